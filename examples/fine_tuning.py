"""What the fine-tuning scripts share: their command line, defaults of Trainer, whether a model takes what it will be given,
what a folder is the training of, and what is left in it."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from continuing import HelpFormatter, hold_settings, last_checkpoint, model_identity, steps_identity
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers import TrainingArguments as TransformersArguments

from autobert_zero.search import own_operations, reporting
from autobert_zero.search.text import expect_vocabulary, file_digest


@dataclass
class FineTuningArguments(TransformersArguments):
    """transformers' own, with defaults for fine-tuning."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate, if there is no grid."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Updates, or their share, in which the rate rises."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of all but biases and norms."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a device in an update."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows of a device in an evaluation."})


@dataclass
class FileArguments:
    """Options of a script that fine-tunes on one file and reports on another."""

    model: str = field(metadata={"help": "Folder or Hub name of a pre-trained model with its tokenizer."})
    train_file: str = field(metadata={"help": "File to train on."})
    validation_file: str = field(metadata={"help": "File to report on."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code beside the model."})
    revision: str = field(default="main", metadata={"help": "Revision of a model of the Hub."})


def parse(options: type, arguments: type, description: str | None) -> tuple[HfArgumentParser, Any, Any]:
    """The parser of a script, for what is wrong later on, and what the command line gives: options, and arguments of Trainer."""
    parser = HfArgumentParser(
        (options, arguments),  # type: ignore[arg-type]
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    given, args = parser.parse_args_into_dataclasses()
    args.dataloader_pin_memory &= torch.accelerator.is_available()
    return parser, given, args


def load_parts(options: Any) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]]:
    """Configuration and tokenizer of the model of some options, and what it is to be loaded with.

    Raises: ValueError where they do not fit; OSError where there are none.
    """
    remote = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
    config = AutoConfig.from_pretrained(options.model, **remote)
    tokenizer = AutoTokenizer.from_pretrained(options.model, **remote)
    expect_vocabulary(tokenizer, options.model)
    check_fit(config, tokenizer, options.max_seq_length)
    if options.trust_remote_code:
        own_operations.load_beside(config, options.model, options.revision)
    return config, tokenizer, remote


def check_fit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
    """Raises: ValueError for a tokenizer larger than the model's vocabulary, and more tokens than it has positions."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model: expected a tokenizer of at most {config.vocab_size} tokens, the vocabulary of the model, "
            f"got one of {len(tokenizer)}"
        )
    if max_seq_length > config.max_position_embeddings:
        raise ValueError(
            f"max_seq_length: expected at most {config.max_position_embeddings}, the positions of the model, "
            f"got {max_seq_length}"
        )


def make_trainer(
    model_class: type,
    options: Any,
    args: TransformersArguments,
    parts: tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]],
    rows: datasets.Dataset,
    collator_class: type,
    **more: Any,
) -> Trainer:
    """A trainer of one of transformers' `AutoModelFor...`, on encoded rows; what is new in the model depends on the seed.

    Args:
        parts: of `load_parts`, with the configuration as the task needs it.
        collator_class: makes a batch of rows, given the tokenizer.
        more: arguments of Trainer.
    """
    config, tokenizer, remote = parts
    transformers.set_seed(args.seed)
    # A head of another size, of a model fine-tuned before, begins anew like one that is missing.
    model, loaded = model_class.from_pretrained(
        options.model, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **remote
    )
    if wrong := [name for name, *_ in loaded["mismatched_keys"] if name.startswith(f"{model.base_model_prefix}.")]:
        raise ValueError(f"model: expected weights of the sizes in its configuration, got others in {sorted(wrong)}")
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator_class(tokenizer),
        processing_class=tokenizer,
        **more,
    )
    # Models of transformers take what it would pass and leave it alone: then the mean over micro-batches is right.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def hold_training(options: FileArguments, args: TransformersArguments, of_no_step: tuple[str, ...]) -> None:
    """Write down in the output folder what is trained there, from a file.

    Args:
        of_no_step: options that no step of the training depends on.

    Raises: ValueError where the folder is of another training, by the names that differ.
    """
    of_place = ("model", "revision", "train_file", "validation_file", *of_no_step)
    identity = {
        **{k: v for k, v in dataclasses.asdict(options).items() if k not in of_place},
        **steps_identity(args),
        "model": model_identity(options.model, options.revision),
        "train": file_digest(options.train_file),
    }
    hold_settings(args, identity)


def train_and_predict(trainer: Trainer, rows: datasets.Dataset) -> Any:
    """Train, or go on from the last checkpoint; save the model. Returns: what it predicts for encoded rows.

    Raises: SystemExit for a training that diverged.
    """
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if has_diverged(trainer):
        sys.exit("error: the training diverged: try a lower learning_rate in another output_dir")
    trainer.save_model()
    if trainer.is_world_process_zero():
        own_operations.carry(folder)
    return trainer.predict(rows).predictions


def has_diverged(trainer: Trainer) -> bool:
    """Whether weights are no numbers any more. Predictions of such a model look like any: the first label of all rows."""
    return not all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def write_results(
    args: TransformersArguments, commit: str | None, counts: dict[str, int], metrics: dict[str, float]
) -> None:
    """`results.json`, and a line of it."""
    provenance = {**reporting.provenance(commit, args.device.type), "processes": args.world_size, "seed": args.seed}
    reporting.write_json(Path(args.output_dir) / "results.json", {**provenance, **counts, "metrics": metrics})
    print(" ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
