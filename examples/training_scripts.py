"""What the training scripts share on top of transformers' Trainer: command line, models, resuming, results."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
import transformers
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers import TrainingArguments as TransformersArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from autobert_zero.search import custom_operations
from autobert_zero.search.cli.arguments import ScriptHelpFormatter
from autobert_zero.search.files import differing_keys, file_digest, write_json
from autobert_zero.search.provenance import provenance
from autobert_zero.search.text.tokens import check_fit, expect_vocabulary


# Command line


class ArgumentParser(HfArgumentParser):
    """Prints the error alone for bad input, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\nSee {self.prog} --help.\n")


@dataclass
class FineTuningArguments(TransformersArguments):
    """transformers' own, with defaults for fine-tuning."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate, unless a grid is given."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or their fraction of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of all but biases and norms."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation batch size per device."})


@dataclass
class ModelArguments:
    """The model that is fine-tuned."""

    model_name_or_path: str = field(
        metadata={"help": "Folder or Hub name of a pre-trained model with its tokenizer.", "aliases": ["--model"]}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code saved with the model."})
    model_revision: str = field(
        default="main", metadata={"help": "Revision of a model of the Hub.", "aliases": ["--revision"]}
    )


@dataclass
class FileArguments(ModelArguments):
    """Options of a script that trains on one file and evaluates on another."""

    train_file: str = field(kw_only=True, metadata={"help": "File to train on."})
    validation_file: str = field(kw_only=True, metadata={"help": "File to evaluate on."})


def parse(options: type, arguments: type, description: str | None) -> tuple[HfArgumentParser, Any, Any]:
    """Parse the command line of a script.

    Returns: the parser, for later usage errors, the options, and the arguments of Trainer.
    """
    parser = ArgumentParser(
        (options, arguments),  # type: ignore[arg-type]
        description=description,
        formatter_class=ScriptHelpFormatter,
        allow_abbrev=False,
    )
    given, args = parser.parse_args_into_dataclasses()
    args.dataloader_pin_memory &= torch.accelerator.is_available()
    return parser, given, args


# Models

# Maximum number of tokens, unless the model has fewer positions.
DEFAULT_LENGTH = 128


def load_parts(options: Any) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]]:
    """Configuration and tokenizer of the model, and the arguments to load it with.

    Raises: ValueError if they do not fit each other or `max_seq_length`; OSError if they are missing.
    """
    name = options.model_name_or_path
    remote = {"trust_remote_code": options.trust_remote_code, "revision": options.model_revision}
    config = AutoConfig.from_pretrained(name, **remote)
    tokenizer = AutoTokenizer.from_pretrained(name, **remote)
    expect_vocabulary(tokenizer, name)
    if options.max_seq_length is None:
        options.max_seq_length = min(DEFAULT_LENGTH, getattr(config, "max_position_embeddings", DEFAULT_LENGTH))
    check_fit(config, tokenizer, options.max_seq_length, "max_seq_length")
    if options.trust_remote_code:
        custom_operations.load_for_model(config, name, options.model_revision)
    return config, tokenizer, remote


def make_trainer(
    model_class: type,
    options: Any,
    args: TransformersArguments,
    parts: tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]],
    rows: datasets.Dataset,
    collator_class: type,
    **more: Any,
) -> Trainer:
    """A trainer of one of transformers' `AutoModelFor...` classes; new weights depend on the seed.

    Args:
        parts: from `load_parts`, with the configuration adapted to the task.
        rows: encoded.
        collator_class: makes batches, given the tokenizer.
        more: arguments of Trainer.

    Raises: ValueError if weights of the encoder do not fit the configuration.
    """
    config, tokenizer, remote = parts
    transformers.set_seed(args.seed)
    # A head of another size, from an earlier fine-tuning, is replaced by a new one.
    model, loaded = model_class.from_pretrained(
        options.model_name_or_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **remote
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
    # transformers' models accept the number of items in a batch and ignore it: the mean over micro-batches is right.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def has_diverged(trainer: Trainer) -> bool:
    """Whether weights are not finite. Predictions of such a model look normal: the first label for all rows."""
    return not all(parameter.isfinite().all() for parameter in trainer.model.parameters())


# Resuming: what a folder is the training of, and where it was

# Arguments of Trainer that its steps depend on.
STEPS_DEPEND_ON = (
    *("seed", "max_steps", "num_train_epochs", "learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type"),
    *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "bf16", "fp16", "label_smoothing_factor"),
)
# Others, which count if they are not at their defaults.
STEPS_MAY_DEPEND_ON = (
    *("lr_scheduler_kwargs", "optim_args", "data_seed", "dataloader_drop_last", "neftune_noise_alpha"),
    "train_sampling_strategy",
)


def model_identity(options: Any) -> dict[str, str]:
    """Digests of the configuration and weights in a folder; name and revision of a model of the Hub."""
    name = options.model_name_or_path
    if not Path(name).is_dir():
        return {"name": name, "revision": getattr(options, "model_revision", "main")}
    # Not all files of the folder: Trainer's own say how it was trained, not what it is.
    patterns = ("config.json", "*.safetensors", "pytorch_model*.bin")
    files = sorted(path for pattern in patterns for path in Path(name).glob(pattern))
    return {path.name: file_digest(path) for path in files}


def steps_identity(args: TransformersArguments) -> dict[str, Any]:
    """The arguments of Trainer that the steps depend on; `batch` is the number of rows per step."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    others = [
        name
        for name in STEPS_MAY_DEPEND_ON
        if name in defaults and getattr(args, name) not in (defaults[name], None, {})
    ]
    return {**{name: str(getattr(args, name)) for name in (*STEPS_DEPEND_ON, *others)}, "batch": batch}


def claim_folder(args: TransformersArguments, identity: dict[str, Any]) -> None:
    """Record in the output folder what is trained there.

    Raises: ValueError if the folder holds another training, with the names that differ.
    """
    with args.main_process_first(desc="settings"):
        if args.process_index == 0:
            _claim_folder(Path(args.output_dir), identity)


def _claim_folder(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "training.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if different := differing_keys(found, identity):
            values = ", ".join(
                f"{name} ({found.get(name)!r:.60}, got {identity.get(name)!r:.60})" for name in different
            )
            raise ValueError(
                f"output_dir: {folder} holds a training that differs in {values}. Choose another folder, and "
                "--model_name_or_path to start from the weights in this one"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise ValueError(f"output_dir: {folder} holds checkpoints of another training")
    write_json(path, identity)


def claim_folder_for_file(options: FileArguments, args: TransformersArguments, irrelevant: tuple[str, ...]) -> None:
    """`claim_folder` for a training on one file.

    Args:
        irrelevant: options that the training does not depend on.
    """
    place = ("model_name_or_path", "model_revision", "train_file", "validation_file", *irrelevant)
    identity = {
        **{k: v for k, v in dataclasses.asdict(options).items() if k not in place},
        **steps_identity(args),
        "model": model_identity(options),
        "train": file_digest(options.train_file),
    }
    claim_folder(args, identity)


def last_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint: Trainer writes its state last."""
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda p: -int(p.name.split("-")[-1])):
        try:
            TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


# Training and results


def train_and_predict(trainer: Trainer, rows: datasets.Dataset) -> Any:
    """Train, from the last checkpoint if there is one, and save the model.

    Returns: predictions for encoded rows.

    Raises: SystemExit if the training diverged.
    """
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if has_diverged(trainer):
        sys.exit("error: the training diverged: try a lower learning_rate in another output_dir")
    trainer.save_model()
    if trainer.is_world_process_zero():
        custom_operations.save_with_model(folder)
    return trainer.predict(rows).predictions


def write_results(
    args: TransformersArguments, commit: str | None, counts: dict[str, int], metrics: dict[str, float]
) -> None:
    """Write `results.json`, and print the metrics."""
    facts = {**provenance(commit, args.device.type), "processes": args.world_size, "seed": args.seed}
    write_json(Path(args.output_dir) / "results.json", {**facts, **counts, "metrics": metrics})
    print(" ".join(f"{name} {value:.2f}" for name, value in metrics.items()))


def shut_down_together() -> None:
    """The last call of a script: a process that exits while another still communicates can abort both."""
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
