"""What the training scripts share on top of transformers' Trainer: command line, models, resuming, results."""

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers import TrainingArguments as TransformersArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from autobert_zero.search import custom_operations
from autobert_zero.search.cli.arguments import ScriptHelpFormatter
from autobert_zero.search.evaluation.training import Precision
from autobert_zero.search.files import differing_keys, file_digest, one_line, read_json, write_json
from autobert_zero.search.provenance import provenance
from autobert_zero.search.settings import Group, check_text, did_you_mean
from autobert_zero.search.text.tokens import check_fit, expect_vocabulary, max_tokens


_LOG = logging.getLogger(__name__)

# Command line

# Options that are paths, or may be, in which `~` is the home folder.
PATHS = (
    *("model_name_or_path", "train_file", "validation_file", "data_dir", "output_dir"),
    *("custom_operations", "genome"),
)


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
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave losses out that are not finite."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation batch size per device."})


ATTENTION_HELP = "eager or sdpa. With --bf16 on a CPU eager is faster: the fused backward pass is slow there."


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
    attn_implementation: str | None = field(default=None, metadata={"help": ATTENTION_HELP})


@dataclass
class FileArguments(ModelArguments):
    """Options of a script that trains on one file and evaluates on another."""

    train_file: str = field(kw_only=True, metadata={"help": "File to train on."})
    validation_file: str = field(kw_only=True, metadata={"help": "File to evaluate on."})


def parse(description: str | None, *dataclasses_: type) -> tuple[HfArgumentParser, list[Any]]:
    """Parse the command line of a script. Ends with a usage error for bad input.

    Args:
        dataclasses_: of its options; the last is that of the arguments of Trainer.

    Returns: the parser, for later usage errors, and an instance of each dataclass.
    """
    parser = ArgumentParser(
        dataclasses_,  # type: ignore[arg-type]
        description=description,
        formatter_class=ScriptHelpFormatter,
        allow_abbrev=False,
    )
    try:
        *given, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        if unknown:
            names = (argument.partition("=")[0] for argument in unknown if argument.startswith("-"))
            similar = did_you_mean(names, parser._option_string_actions)
            raise ValueError(f"unrecognized arguments: {' '.join(unknown)}{similar}")
        for options in given:
            if not isinstance(options, Group):  # which has checked itself
                _check_texts(options)
        _check_trainer(given[-1])
        _check_output_dir(Path(given[-1].output_dir))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if given[-1].mixed_precision != "no":  # it may be that of `accelerate launch`
        setattr(given[-1], given[-1].mixed_precision, True)
    if given[-1].bf16 and given[-1].process_index == 0:
        Precision("bf16", given[-1].device.type).warn_if_emulated()
    given[-1].dataloader_pin_memory &= torch.accelerator.is_available()  # a warning otherwise
    return parser, given


def _check_texts(options: Any) -> None:
    """Raise a ValueError for texts that are empty or cannot be recorded, and expand `~` in paths."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_text(text, name)
        if name in PATHS and isinstance(value, str):
            setattr(options, name, os.path.expanduser(value))
        elif name in PATHS and isinstance(value, list):
            setattr(options, name, list(map(os.path.expanduser, value)))


def _check_output_dir(folder: Path) -> None:
    """Raise a ValueError unless a folder can be created or written."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    is_too_long = len(os.fsencode(folder.name)) > 255
    if is_too_long or not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"output_dir: expected a folder that can be written, got {str(folder)!r}")


def check_rate(value: float, name: str) -> None:
    """Raise a ValueError unless a learning rate is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def _check_trainer(args: TransformersArguments) -> None:
    """Raise a ValueError for arguments that Trainer would fail with later, or train nothing with, or that break what the
    scripts promise."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs: expected one process per GPU (accelerate launch, torchrun), got one process"
        )
    if args.mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"mixed_precision: expected no, bf16 or fp16, got {args.mixed_precision}")
    if args.save_only_model:
        raise ValueError("save_only_model: expected false, because a training is resumed from the optimizer, too")
    if args.prediction_loss_only:
        raise ValueError("prediction_loss_only: expected false, got true")
    if args.resume_from_checkpoint is not None:
        raise ValueError("resume_from_checkpoint: expected none, because the same command resumes a training")
    check_rate(args.learning_rate, "learning_rate")
    if not 0 <= args.seed < 1 << 32:
        raise ValueError(f"seed: expected 0 to {(1 << 32) - 1}, got {args.seed}")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(args, name)}")
    if args.save_total_limit == 1:  # a checkpoint is complete only after the one before was removed
        raise ValueError("save_total_limit: expected at least 2, got 1")
    if args.max_steps == 0 or (args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf):
        name = "max_steps" if args.max_steps == 0 else "num_train_epochs"
        raise ValueError(f"{name}: expected a positive number, got {getattr(args, name)}")


# Models

# Maximum number of tokens, unless the model has fewer positions.
DEFAULT_LENGTH = 128


def load_config_and_tokenizer(options: Any) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]]:
    """Configuration and tokenizer of the model, and the arguments to load it with. Its custom operations are loaded.

    Args:
        options: with the fields of `ModelArguments`.

    Raises: ValueError if they are missing or damaged, or do not fit each other.
    """
    name = options.model_name_or_path
    remote = {"trust_remote_code": options.trust_remote_code, "revision": options.model_revision}
    try:
        config = AutoConfig.from_pretrained(name, **remote)
        tokenizer = AutoTokenizer.from_pretrained(name, **remote)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(f"model: cannot load {name!r}: {one_line(error)}") from None
    expect_vocabulary(tokenizer, name)
    if options.trust_remote_code:
        custom_operations.load_for_model(config, name, options.model_revision)
    return config, tokenizer, remote


def load_parts(options: Any, pairs: bool = False) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]]:
    """`load_config_and_tokenizer` for a fine-tuning.

    Args:
        options: with `max_seq_length`, which is chosen if it is None.
        pairs: whether the model is fine-tuned on pairs of texts.

    Raises: ValueError as `load_config_and_tokenizer` does, and if the model does not fit `max_seq_length`.
    """
    config, tokenizer, remote = load_config_and_tokenizer(options)
    if options.max_seq_length is None:
        options.max_seq_length = int(min(DEFAULT_LENGTH, max_tokens(config)))
    check_fit(config, tokenizer, options.max_seq_length, "max_seq_length", pairs)
    tokenizer.padding_side = "right"  # tokens are found by their positions in a row
    return config, tokenizer, remote


def load_model(
    model_class: type, options: Any, parts: tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]]
) -> PreTrainedModel:
    """A model with the weights of its encoder, and a head that may be new. Arguments as of `make_trainer`.

    Raises: ValueError if weights of the encoder are missing or damaged, or do not fit the configuration, and as
        `choose_attention` does.
    """
    config, _, remote = parts
    name = options.model_name_or_path
    try:
        # A head of another size, from an earlier fine-tuning, is replaced by a new one.
        model, loaded = model_class.from_pretrained(  # type: ignore[attr-defined]
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **remote,
        )
    except Exception as error:  # transformers and safetensors raise many kinds for damaged files
        raise ValueError(f"model: cannot load {name!r}: {one_line(error)}") from None
    prefix = f"{model.base_model_prefix}."
    if wrong := sorted(key for key, *_ in loaded["mismatched_keys"] if key.startswith(prefix)):
        raise ValueError(f"model: expected weights of the sizes in its configuration, got others in {wrong}")
    # Models that were trained on masked tokens have no pooler.
    if missing := sorted(key for key in loaded["missing_keys"] if key.startswith(prefix) and "pooler" not in key):
        raise ValueError(f"model: expected weights of its encoder in {name!r}, got none for {', '.join(missing):.200}")
    choose_attention(model, options.attn_implementation)
    return model


def choose_attention(model: PreTrainedModel, implementation: str | None) -> None:
    """Let a model compute attention in a given way, unless it is None.

    Raises: ValueError for an implementation that is unknown, or that the architecture does not choose by name.
    """
    if implementation is None:
        return
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise ValueError(f"attn_implementation: {one_line(error)}") from None
    if (found := model.config._attn_implementation) != implementation:
        raise ValueError(
            f"attn_implementation: expected {found}, the only one of {type(model).__name__}, got {implementation!r}"
        )


class OrderedTrainer(Trainer):
    """Evaluates and predicts all rows in their order, also if training groups them by length or drops the last batch."""

    @contextlib.contextmanager
    def _all_in_order(self) -> Iterator[None]:
        given = {name: getattr(self.args, name) for name in ("train_sampling_strategy", "dataloader_drop_last")}
        self.args.train_sampling_strategy, self.args.dataloader_drop_last = "sequential", False
        try:
            yield
        finally:
            vars(self.args).update(given)

    def get_eval_dataloader(self, eval_dataset=None):
        with self._all_in_order():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._all_in_order():
            return super().get_test_dataloader(test_dataset)


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

    Raises: ValueError as `load_model` does.
    """
    _, tokenizer, _ = parts
    transformers.set_seed(args.seed)
    trainer = OrderedTrainer(
        model=load_model(model_class, options, parts),
        args=args,
        train_dataset=rows,
        data_collator=collator_class(tokenizer),
        processing_class=tokenizer,
        callbacks=[CheckpointDigests()],
        **more,
    )
    # transformers' models accept the number of items in a batch and ignore it: the mean over micro-batches is right.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def has_diverged(trainer: Trainer) -> bool:
    """Whether weights are not finite. Predictions of such a model look normal: the first label for all rows."""
    return not all(parameter.isfinite().all() for parameter in trainer.model.parameters())


# Exit code of a script whose training diverged.
DIVERGED = 3


def end_diverged() -> NoReturn:
    """End the process of a script whose training diverged."""
    print("error: the training diverged: try a lower learning_rate in another output_dir", file=sys.stderr)
    sys.exit(DIVERGED)


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
    """Digests of the configuration and weights in a folder; name and revision of a model of the Hub.

    Args:
        options: with `model_name_or_path`, and for the Hub maybe `model_revision`.
    """
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


def without_obsolete(identity: dict[str, Any]) -> dict[str, Any]:
    """A recorded identity without options that were in it before, and that a training does not depend on."""
    return {name: value for name, value in identity.items() if name != "trust_remote_code"}


def expect_same_training(folder: Path, identity: dict[str, Any]) -> None:
    """Raise a ValueError if a folder holds another training, with the names that differ."""
    path = folder / "training.json"
    if path.exists():
        found = without_obsolete(read_json(path, dict[str, Any]))
        if different := differing_keys(found, identity):
            values = ", ".join(
                f"{name} ({found.get(name)!r:.60}, got {identity.get(name)!r:.60})" for name in different
            )
            raise ValueError(
                f"output_dir: {folder} holds a training that differs in {values}. Choose another folder, and "
                "--model_name_or_path to start from the weights in this one"
            )
    elif any(checkpoints(folder)):
        raise ValueError(f"output_dir: {folder} holds checkpoints of another training")


def claim_folder(args: TransformersArguments, identity: dict[str, Any]) -> None:
    """Record in the output folder what is trained there. To be called when nothing but the training can fail.

    Raises: ValueError if the folder cannot be written, and as `expect_same_training` does.
    """
    folder = Path(args.output_dir)
    with args.main_process_first(desc="settings"):
        expect_same_training(folder, identity)
        if args.process_index == 0 and not (folder / "training.json").exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "training.json", identity)
            except OSError as error:
                raise ValueError(f"output_dir: cannot write to {folder}: {error.strerror}") from None


def claim_folder_for_file(options: FileArguments, args: TransformersArguments, irrelevant: tuple[str, ...]) -> None:
    """`claim_folder` for a training on one file.

    Args:
        irrelevant: options that the training does not depend on.
    """
    place = (
        "model_name_or_path",
        "model_revision",
        "attn_implementation",
        "trust_remote_code",
        "train_file",
        "validation_file",
        *irrelevant,
    )
    identity = {
        **{k: v for k, v in dataclasses.asdict(options).items() if k not in place},
        **steps_identity(args),
        "model": model_identity(options),
        "train": file_digest(options.train_file),
    }
    claim_folder(args, identity)


def checkpoints(folder: Path) -> Iterator[Path]:
    """Trainer's checkpoints in a folder, the last one first."""
    numbered = [path for path in folder.glob("*") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
    yield from sorted(numbered, key=checkpoint_step, reverse=True)


def checkpoint_step(path: Path) -> int:
    """The steps that a checkpoint was written after."""
    return int(path.name.rpartition("-")[2])


class CheckpointDigests(TrainerCallback):
    """Adds digests of its files to each checkpoint, so that one that is damaged or incomplete is not resumed."""

    FILE = "digests.json"

    def on_save(self, args: TransformersArguments, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes files
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            write_json(folder / self.FILE, {path.relative_to(folder).as_posix(): file_digest(path) for path in files})

    @classmethod
    def damage(cls, folder: Path) -> str | None:
        """What is wrong with a checkpoint; None if it is as it was written."""
        try:
            digests = read_json(folder / cls.FILE, dict[str, str])
            if TRAINER_STATE_NAME not in digests:
                return f"{cls.FILE}: expected a digest of {TRAINER_STATE_NAME}, got none"
            wrong = [name for name, digest in digests.items() if file_digest(folder / name) != digest]
        except (OSError, ValueError) as error:
            return str(error)
        return f"{', '.join(wrong)}: not what was written" if wrong else None


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that is as it was written; later ones are renamed to `….damaged`, with a warning. All processes
    call it: the main process decides."""
    found: list[str | None] = [None]
    if PartialState().is_main_process:
        for path in checkpoints(folder):
            if (damage := CheckpointDigests.damage(path)) is None:
                found = [str(path)]
                break
            renamed = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(renamed, ignore_errors=True)
            path.rename(renamed)  # Trainer would count it as a checkpoint
            _LOG.warning("%s is renamed to %s: %s", path, renamed.name, damage)
    [checkpoint] = broadcast_object_list(found)
    return checkpoint


# Training and results


def train_and_predict(trainer: Trainer, rows: datasets.Dataset) -> Any:
    """Train, from the last checkpoint if there is one, and save the model.

    Returns: predictions for encoded rows.

    Raises: SystemExit if the training diverged.
    """
    folder = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if has_diverged(trainer):
        end_diverged()
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
    if state.num_processes > 1:
        # The thread of gloo needs the interpreter to free the barrier. Without it, what the script frees next, a model of
        # DistributedDataParallel, would wait for that thread forever: it holds the interpreter meanwhile.
        time.sleep(0.5)
