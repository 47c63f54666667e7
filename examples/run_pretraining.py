"""Pre-train a backbone: masked language modelling, alone or with next-sentence or sentence-order prediction.

    python examples/run_pretraining.py --genome autobert-zero-small --train_file text.txt --output_dir runs/small \\
        --max_steps 10000 --per_device_train_batch_size 32

A genome comes from a preset, a JSON file, or the folder of a search; `--model_type bert` or `convbert` trains another
architecture of transformers on the same batches, for comparison. Training uses transformers' `Trainer` and accepts its
arguments: `--bf16`, `--gradient_accumulation_steps`, `--torch_compile`, `--report_to`, … A batch is counted in blocks of
`--max_seq_length` tokens (one sequence, or several short ones), without padding.

Whole documents are held out as in a search (`--split_seed`, `--validation_fraction`, `--test_fraction`): choose settings
by `eval_validation_loss`; `eval_test_loss` is on text that neither this training nor a search has seen. (With
`--streaming` the first documents are held out; a streamed search may have seen them.) Reported losses are those of
masked language modelling alone. The same command resumes an interrupted training exactly, and does nothing if it is
finished. Results are in `results.json`; load the model by `AutoModel.from_pretrained(output_dir, trust_remote_code=True)`.
"""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from muon import MuonWithAdamW
from safetensors import SafetensorError
from time_budget import ENDLESS, TimeBudget
from training_scripts import (
    ATTENTION_HELP,
    CheckpointDigests,
    OrderedTrainer,
    checkpoint_step,
    choose_attention,
    claim_folder,
    end_diverged,
    expect_same_training,
    last_checkpoint,
    model_identity,
    parse,
    shut_down_together,
    steps_identity,
)
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers import TrainingArguments as TransformersArguments
from transformers.activations import ACT2FN
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import OptimizerNames

from autobert_zero.configuration_autobert_zero import PRESETS, AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import (
    AutoBertZeroForMaskedLM,
    AutoBertZeroForPreTraining,
    AutoBertZeroPreTrainedModel,
)
from autobert_zero.search import custom_operations
from autobert_zero.search.evaluation.measure import without_mixer
from autobert_zero.search.files import bytes_digest, check_shape, one_line, read_json, write_json
from autobert_zero.search.genomes import read_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text.corpus import unigram_loss
from autobert_zero.search.text.documents import count_bytes, stream_documents
from autobert_zero.search.text.masking import MASK_PROBABILITY
from autobert_zero.search.text.packing import OBJECTIVES, Blocks, Curriculum, Packer, StreamedBlocks, join_blocks
from autobert_zero.search.text.prepared import Text, prepare
from autobert_zero.search.text.tokens import first_position, load_tokenizer, max_tokens, tokenize


@dataclass
class ModelArguments:
    genome: str | None = field(
        default=None,
        metadata={"help": f"One of {sorted(PRESETS)}, a JSON file with a genome, or the folder of a search or model."},
    )
    model_type: str | None = field(default=None, metadata={"help": "Another architecture of transformers: bert, …"})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a model to continue from, with its tokenizer."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": ATTENTION_HELP})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of the configuration: hidden_size=128,num_attention_heads=2"}
    )
    custom_operations: str | None = field(
        default=None,
        metadata={
            "help": "Python file with custom operations and layer kinds that the genome uses.",
            "aliases": ["--own_operations"],
        },
    )


@dataclass
class PretrainingArguments:
    objective: str = field(
        default="mlm", metadata={"help": f"One of {list(OBJECTIVES)}; nsp and sop add sentence pairs to mlm."}
    )
    whole_word_masking: bool = field(default=False, metadata={"help": "Mask all pieces of a word together."})
    mlm_probability: float = field(
        default=MASK_PROBABILITY, metadata={"help": "Fraction of the tokens to predict. Evaluations have 0.15."}
    )
    final_mlm_probability: float | None = field(
        default=None, metadata={"help": "This fraction in the last step, linear in between. None: it does not change."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Tokens of the longest sequences, and of a block."})
    short_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens of the sequences of the first steps, a divisor of the longest."}
    )
    short_fraction: float = field(
        default=0.9, metadata={"help": "Fraction of the steps with short sequences, if any."}
    )
    muon: bool = field(
        default=False,
        metadata={"help": "Train the weights of linear layers by Muon instead of AdamW, at the same learning rate."},
    )
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Train for this time, without set-up and evaluations, instead of max_steps; learning and masking rate follow it."
        },
    )
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "More text to evaluate on, by file.", "aliases": ["--eval_file"]}
    )
    max_eval_sequences: int = field(default=1024, metadata={"help": "Maximum number of sequences of an evaluation."})
    streaming_buffer: int = field(
        default=10000,
        metadata={"help": "With --streaming: documents in memory.", "aliases": ["--streamed_documents"]},
    )
    streaming_test_documents: int = field(
        default=1000,
        metadata={"help": "With --streaming: the first documents, held out.", "aliases": ["--streamed_report"]},
    )


@dataclass
class TrainingArguments(TransformersArguments):
    """transformers' own, with defaults for pre-training."""

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or their fraction of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of all but biases and norms."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logged losses."})
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float = field(
        default=0.25, metadata={"help": "Steps between two evaluations, or their fraction of all steps."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints that are kept."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave losses out that are not finite."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Fixed: the order is determined by the data set."}
    )


def changed_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Fields that are not at their defaults; the same for a later version of the class with more fields."""
    default = type(config)().to_dict()
    return {name: value for name, value in config.to_dict().items() if default.get(name) != value}


def make_config(model: ModelArguments, vocab_size: int, pad_token_id: int, max_seq_length: int) -> Any:
    """Configuration of the model, with the size of the vocabulary and enough positions.

    Raises: ValueError for an unknown model or field.
    """
    if [model.genome, model.model_type, model.model_name_or_path].count(None) != 2:
        raise ValueError("genome: expected one of --genome, --model_type and --model_name_or_path")
    custom = custom_operations.CustomOperations()
    if model.custom_operations is not None:
        custom = custom_operations.load(model.custom_operations)
    if model.model_name_or_path is not None:
        if model.config_overrides:
            raise ValueError("config_overrides: expected none with --model_name_or_path")
        config = _config_of_model(model.model_name_or_path, custom.digest)
        if config.vocab_size != vocab_size:
            raise ValueError(
                f"tokenizer_name: expected the vocabulary of the model, of {config.vocab_size} tokens, got {vocab_size}"
            )
    elif model.model_type is not None:
        if model.model_type not in CONFIG_MAPPING:
            raise ValueError(f"model_type: expected a model type of transformers, got {model.model_type!r}")
        config = CONFIG_MAPPING[model.model_type]()
    elif model.genome in PRESETS:
        config = AutoBertZeroConfig.preset(model.genome)
    else:
        config = _config_of_genome(model.genome, custom.rules)
    if custom.digest and model.model_name_or_path is None and getattr(config, "custom_operations", None):
        config.custom_operations_digest = custom.digest
    overrides = model.config_overrides or ""
    try:
        if overrides:
            config.update_from_string(overrides)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config_overrides: {error}") from None
    if not hasattr(config, "max_position_embeddings"):
        raise ValueError(f"model_type: expected an encoder with max_position_embeddings, got {model.model_type!r}")
    config.vocab_size, config.pad_token_id = vocab_size, pad_token_id
    if max_seq_length > (maximum := max_tokens(config)):
        if "max_position_embeddings=" in overrides or model.model_name_or_path is not None:
            raise ValueError(
                f"max_seq_length: expected at most {maximum}, by max_position_embeddings, got {max_seq_length}"
            )
        config.max_position_embeddings = max_seq_length + first_position(config)
    if (activation := getattr(config, "hidden_act", None)) is not None and activation not in ACT2FN:
        raise ValueError(f"hidden_act: expected an activation of transformers, got {activation!r}")
    return type(config).from_dict(config.to_dict())  # checks all fields together


def _config_of_model(name: str, custom_digest: str | None) -> PretrainedConfig:
    """The configuration of a model to continue from, whose custom operations are loaded with it."""
    try:
        config = AutoConfig.from_pretrained(name)
        custom_operations.load_for_model(config, name)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(f"model_name_or_path: expected a model, got {name!r}: {one_line(error)}") from None
    own = getattr(config, "custom_operations_digest", None)
    if custom_digest is not None and custom_digest != own:
        raise ValueError("custom_operations: expected those of the model, or none, with --model_name_or_path")
    return config


def _config_of_genome(source: str, rules: Mapping[str, str]) -> AutoBertZeroConfig:
    """The configuration of a model's folder, or of the model of a run; else that of a genome, at base size."""
    path = Path(source)
    folder = path / "model" if (path / "model" / "config.json").exists() else path
    try:
        if (folder / "config.json").exists():
            found = PretrainedConfig.get_config_dict(folder)[0].get("model_type")
            if found != AutoBertZeroConfig.model_type:
                raise ValueError(f"a model of type {found!r} has no genome; --model_type trains another architecture")
            return AutoBertZeroConfig.from_pretrained(folder)
        genome = read_genome(source, custom_operations=rules)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(
            f"genome: expected a preset, a JSON file or a folder, got {source!r}: {one_line(error)}"
        ) from None
    return AutoBertZeroConfig(genome=genome.to_list(), custom_operations=genome.custom_operations() or None)


def predict_where_labelled(model: transformers.PreTrainedModel) -> None:
    """Let a model of transformers compute logits only at labelled tokens, as AutoBERT-Zero does. The mean over labels is
    unchanged."""
    labelled: torch.Tensor | None = None

    def select_labels(module, arguments, inputs):
        nonlocal labelled
        labels = inputs.get("labels")
        labelled = None if labels is None else labels != -100
        return arguments, inputs if labels is None else {**inputs, "labels": labels[labelled][None]}

    def select_hidden_states(module, arguments, output):
        if labelled is not None:
            output.last_hidden_state = output.last_hidden_state[labelled][None]
        return output

    model.register_forward_pre_hook(select_labels, with_kwargs=True)
    model.base_model.register_forward_hook(select_hidden_states)


def make_model(config: Any, objective: str, name_or_path: str | None = None) -> transformers.PreTrainedModel:
    """The model with the heads of the objective, with random weights or those of another model.

    Raises: ValueError if it has no such heads, or if weights are missing or cannot be loaded.
    """
    if isinstance(config, AutoBertZeroConfig):
        config.sparse_prediction = True  # logits only at labelled tokens
        own = AutoBertZeroForMaskedLM if objective == "mlm" else AutoBertZeroForPreTraining
        return own(config) if name_or_path is None else _with_weights(own, config, name_or_path)
    auto = AutoModelForMaskedLM if objective == "mlm" else AutoModelForPreTraining
    try:
        model = auto.from_config(config)
    except ValueError as error:
        raise ValueError(f"model_type: {error}") from None
    if objective != "mlm" and "next_sentence_label" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"objective: expected mlm for {type(model).__name__}, without sentence pairs, got {objective!r}"
        )
    if name_or_path is not None:
        model = _with_weights(auto, config, name_or_path)
    predict_where_labelled(model)
    return model


def _with_weights(model_class: Any, config: Any, name_or_path: str) -> transformers.PreTrainedModel:
    try:
        model, info = model_class.from_pretrained(
            name_or_path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model_name_or_path: expected weights in {name_or_path!r}: {error}") from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"model_name_or_path: expected weights of a {type(model).__name__} in {name_or_path!r}, "
            f"got none for {', '.join(missing):.200}"
        )
    return model


def digest_of(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits of tokens in order."""
    return bytes_digest(np.ascontiguousarray(tokens, dtype="<i4").tobytes() for tokens in arrays)


def prepared_or_streamed(settings: TextSettings, options: PretrainingArguments) -> Text:
    """The tokenized text; of a stream only the test part, its first documents. Raises: ValueError for bad text."""
    if not settings.streaming:
        return prepare(settings, options.max_seq_length)
    if not settings.tokenizer_name:
        raise ValueError("tokenizer_name: expected one with streaming, got none")
    if settings.prepared_dir:
        raise ValueError(f"prepared_dir: expected none with streaming, got {settings.prepared_dir!r}")
    tokenizer = load_tokenizer(settings.tokenizer_name)
    held_out = list(itertools.islice(stream_documents(settings), options.streaming_test_documents))
    return Text(tokenizer, {"test": tokenize(held_out, tokenizer)}, num_bytes={"test": count_bytes(held_out)})


def make_blocks(
    settings: TextSettings,
    options: PretrainingArguments,
    text: Text,
    seed: int,
    count: int,
    batch: int,
    budget: TimeBudget | None = None,
):
    """The data set of `count` steps of `batch` blocks each."""
    short = options.short_seq_length
    short_blocks = round(count * options.short_fraction) * batch if short else 0
    first, last = options.mlm_probability, options.final_mlm_probability
    curriculum = Curriculum(
        options.max_seq_length,
        short or options.max_seq_length,
        short_blocks,
        (first, first if last is None else last),
        count * batch,
        None if budget is None else lambda: budget.fraction,
    )
    pack = functools.partial(
        Packer, tokenizer=text.tokenizer, objective=options.objective, whole_word_masking=options.whole_word_masking
    )
    if not settings.streaming:
        return Blocks(pack(text.parts["train"], seed=seed), curriculum, count * batch)

    def read():
        return itertools.islice(stream_documents(settings), options.streaming_test_documents, None)

    def pack_documents(documents: list[str], number: int) -> Packer:
        buffer_seed = int(random_stream(seed, "documents", number).integers(1 << 31))
        return pack(tokenize(documents, text.tokenizer), seed=buffer_seed)

    return StreamedBlocks(read, pack_documents, curriculum, options.streaming_buffer)


def evaluation_sets(
    settings: TextSettings, options: PretrainingArguments, text: Text
) -> tuple[dict[str, Blocks], dict[str, int]]:
    """By name, evaluation sequences: the same ones, with the same masks, for every model and seed; and the bytes of the
    texts that they are of.

    Raises: ValueError for files of one name, and for bad text.
    """
    num_bytes = dict(text.num_bytes)
    arrays = {part: tokens for part, tokens in text.parts.items() if part != "train"}
    for path in options.validation_file:
        name = Path(path).name.split(".")[0]
        if name in arrays:
            raise ValueError(
                f"validation_file: expected files of different names, other than {list(arrays)}, got {path!r}"
            )
        try:
            documents = list(stream_documents(TextSettings(train_file=[path], text_column=settings.text_column)))
            arrays[name], num_bytes[name] = tokenize(documents, text.tokenizer), count_bytes(documents)
        except ValueError as error:
            raise ValueError(f"validation_file: {path!r}: {error}") from None
    found = {}
    for name, tokens in arrays.items():
        packer = Packer(tokens, text.tokenizer, 0, options.objective)
        total = min(options.max_eval_sequences, packer.count(options.max_seq_length))
        if not total:
            where = "validation_file" if name not in text.parts else "train_file"
            part = name if name not in text.parts else f"the {name} part"
            raise ValueError(f"{where} {part}: expected {options.max_seq_length} tokens or more, got {len(tokens)}")
        found[name] = Blocks(packer, Curriculum(options.max_seq_length, options.max_seq_length, 0), total)
    return found, num_bytes


def may_be_extended(args: TransformersArguments, options: PretrainingArguments) -> bool:
    """Whether the steps of a training do not depend on their number: constant rate after a warm-up in steps, no phase of
    short sequences, and a constant masking rate."""
    constant = args.lr_scheduler_type == "constant"
    warms_up = args.lr_scheduler_type == "constant_with_warmup" and (args.warmup_steps >= 1 or args.warmup_steps == 0)
    changes = options.short_seq_length is not None or options.final_mlm_probability is not None
    return (constant or warms_up) and not changes


def check_options(options: PretrainingArguments) -> None:
    """Raise a ValueError for numbers out of range."""
    minimum = {
        "max_seq_length": 8,
        "short_seq_length": 8,
        "max_eval_sequences": 1,
        "streaming_buffer": 1,
        "streaming_test_documents": 1,
    }
    for name, least in minimum.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    for name in ("mlm_probability", "final_mlm_probability"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")
    if not 0 <= options.short_fraction <= 1:
        raise ValueError(f"short_fraction: expected a number from 0 to 1, got {options.short_fraction}")


def check_muon(args: TransformersArguments) -> None:
    """Raise a ValueError for another optimizer of the other parameters than AdamW."""
    if args.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
        raise ValueError(f"optim: expected adamw_torch or adamw_torch_fused with muon, got {args.optim.value}")


def check_budget(options: PretrainingArguments, args: TransformersArguments) -> None:
    """Raise a ValueError for options that do not go with `max_seconds`."""
    if not 0 < options.max_seconds < math.inf:  # type: ignore[operator]
        raise ValueError(f"max_seconds: expected a positive number, got {options.max_seconds}")
    expected = {
        "max_steps": (args.max_steps <= 0, "none"),
        "warmup_steps": (args.warmup_steps < 1, "a fraction below 1"),
        "short_seq_length": (options.short_seq_length is None, "none"),
        "dataloader_num_workers": (args.dataloader_num_workers == 0, "0"),
    }
    for name, (is_right, what) in expected.items():
        if not is_right:
            raise ValueError(
                f"{name}: expected {what} with max_seconds, got {getattr(args, name, getattr(options, name, None))}"
            )


def checkpoint_steps(folder: Path) -> int:
    """The steps of the last checkpoint in a folder; 0 if there is none."""
    checkpoint = last_checkpoint(folder)
    return checkpoint_step(Path(checkpoint)) if checkpoint else 0


def finished_steps(folder: Path) -> int | None:
    """The steps of the finished training in a folder; None if there is none. Raises: ValueError for a damaged file."""
    path = folder / "results.json"
    if not path.exists() or not (folder / "model.safetensors").exists() or not (folder / "config.json").exists():
        return None
    results = read_json(path, dict[str, Any])
    try:
        return int(results["steps"] if "steps" in results else results["identity"]["max_steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the results of a training: {error!r}") from None


def has_finite_losses(folder: Path) -> bool:
    """Whether the finished training in a folder did not diverge."""
    losses = read_json(folder / "results.json", dict[str, Any]).get("losses", {})
    check_shape(losses, dict[str, dict[str, float | None]], "results.json, losses")
    return all(found.get("1") is not None for found in losses.values())


def losses_by_fraction(
    log: list[dict[str, Any]], fraction_of: Callable[[int], float]
) -> dict[str, dict[str, float | None]]:
    """For each evaluation set its loss after fractions of the training; None if it was not finite.

    Args:
        fraction_of: a step.
    """
    found: dict[str, dict[str, float | None]] = {}
    for entry in log:
        for key, value in entry.items():
            if key.startswith("eval_") and key.endswith("_loss"):
                name = key.removeprefix("eval_").removesuffix("_loss")
                fraction = f"{fraction_of(entry['step']):.4g}"
                found.setdefault(name, {})[fraction] = value if math.isfinite(value) else None
    return found


def bits_per_byte(loss: float, tokens: np.ndarray, num_bytes: int, tokenizer: PreTrainedTokenizerBase) -> float:
    """A loss in nats per masked token as bits for each byte of the text, by which vocabularies can be compared.

    A token that is not in the vocabulary counts as any other, though nothing predicts what it stands for: with many of them
    the number is too low.

    Args:
        tokens: of the text (tokens,).
        num_bytes: of the text.
    """
    ends = np.isin(tokens, [tokenizer.cls_token_id, tokenizer.sep_token_id]).sum()
    return loss * (len(tokens) - int(ends)) / math.log(2) / num_bytes


# Test sequences on which the importance of layers is measured: differences on the same ones vary less than losses.
IMPORTANCE_SEQUENCES = 512
# Points of the loss curve of a training.
CURVE_POINTS = 40


def training_losses(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Steps, and mean losses of the batches since the step before; not finite ones are left out."""
    points = [(entry["step"], entry["loss"]) for entry in log if math.isfinite(entry.get("loss", math.nan))]
    size = math.ceil(len(points) / CURVE_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], round(statistics.fmean(loss for _, loss in group), 4)) for group in groups]


def options_identity(options: PretrainingArguments) -> dict[str, Any]:
    """The options that the steps depend on; later ones only if they are not at their defaults, so that a training that was
    started by an earlier version can be resumed."""
    later = ("mlm_probability", "final_mlm_probability", "max_seconds", "muon")
    defaults = {each.name: each.default for each in dataclasses.fields(options)}
    return {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name != "validation_file" and not (name in later and value == defaults[name])
    }


class PretrainingTrainer(OrderedTrainer):
    """Evaluates masked language modelling alone, also if it trains on sentence pairs; all checkpoints can be loaded.

    Args:
        budget: for a training of a given time.
        muon: whether the weights of linear layers are trained by Muon.
        arguments: those of Trainer.
    """

    def __init__(self, *arguments: Any, budget: TimeBudget | None = None, muon: bool = False, **more: Any):
        super().__init__(*arguments, **more)
        self.budget = budget
        self.muon = muon
        if muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("muon: expected whole models in each process, got FSDP or DeepSpeed")

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.muon:
            _, adamw = self.get_optimizer_cls_and_kwargs(self.args)
            decayed = self.get_decay_parameter_names(self.model)
            self.optimizer = MuonWithAdamW.of_model(self.model, decayed, self.args.weight_decay, **adamw)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.budget is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = self.budget.scheduler(optimizer or self.optimizer)
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if not model.training and "next_sentence_label" in inputs:
            labels = inputs["next_sentence_label"].view(-1)
            loss = loss - torch.nn.functional.cross_entropy(outputs["seq_relationship_logits"], labels)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args, **kwargs):
        # An iterator of a DataLoader takes a random number, by which dropout would depend on the number of evaluations.
        pause = contextlib.nullcontext() if self.budget is None else self.budget.paused()
        with pause, torch.random.fork_rng(devices=[]):  # of the CPU alone
            return super().evaluate(*args, **kwargs)

    def layer_importance(self) -> list[float] | None:
        """By how many nats the loss of a part of the test sequences rises without the mixer of each layer; None for other
        architectures, and if one of the losses is not finite."""
        if not isinstance(self.model, AutoBertZeroPreTrainedModel):
            return None
        test = self.eval_dataset["test"]
        part = torch.utils.data.Subset(test, range(min(len(test), IMPORTANCE_SEQUENCES)))
        data, losses = self.get_eval_dataloader(part), []
        for layer in (None, *range(self.model.config.num_hidden_layers)):
            removed = contextlib.nullcontext() if layer is None else without_mixer(self.model.base_model, layer)
            with removed:
                output = self.evaluation_loop(data, "importance", prediction_loss_only=True, metric_key_prefix="test")
            losses.append(output.metrics["test_loss"])
        self.callback_handler.on_predict(self.args, self.state, self.control, {})  # closes the progress bar
        rises = [round(loss - losses[0], 4) for loss in losses[1:]]
        return rises if all(map(math.isfinite, rises)) else None

    def _save(self, output_dir=None, state_dict=None):
        config = self.model.config
        sparse = getattr(config, "sparse_prediction", False)
        if sparse:
            config.sparse_prediction = False  # a loaded model returns all logits
        try:
            super()._save(output_dir, state_dict)
        finally:
            if sparse:
                config.sparse_prediction = True
        if self.args.should_save:  # in all processes
            custom_operations.save_with_model(Path(output_dir or self.args.output_dir))


@dataclass
class Pretraining:
    """A checked training that has not started."""

    trainer: Trainer
    text: Text
    num_bytes: dict[str, int]  # of the evaluated texts
    identity: dict[str, Any]
    source: dict[str, Any]
    commit: str | None

    @classmethod
    def set_up(
        cls, model_arguments: ModelArguments, settings: TextSettings, options: PretrainingArguments, args
    ) -> "Pretraining":
        """Raises: ValueError for bad input."""
        commit = current_commit()
        check_options(options)
        if options.muon:
            check_muon(args)
        if args.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor: expected 0, got {args.label_smoothing_factor}")
        if model_arguments.model_name_or_path is not None and settings.tokenizer_name is None:
            _config_of_model(model_arguments.model_name_or_path, None)  # otherwise an error would be of the tokenizer
            settings = dataclasses.replace(settings, tokenizer_name=model_arguments.model_name_or_path)
        with args.main_process_first(desc="text"):
            text = prepared_or_streamed(settings, options)
        if (
            settings.streaming
            and settings.max_documents
            and settings.max_documents <= options.streaming_test_documents
        ):
            raise ValueError(
                f"max_documents: expected more than streaming_test_documents={options.streaming_test_documents}, which are held out, "
                f"got {settings.max_documents}"
            )
        batch = steps_identity(args)["batch"]
        budget = None
        if options.max_seconds is not None:
            check_budget(options, args)
            budget = TimeBudget(options.max_seconds, args)
            args.max_steps, args.eval_strategy = ENDLESS, IntervalStrategy.NO
        if args.max_steps <= 0:
            if settings.streaming:
                raise ValueError("max_steps: expected a number with streaming, got none")
            args.max_steps = math.ceil(
                args.num_train_epochs * len(text.parts["train"]) / options.max_seq_length / batch
            )
        config = make_config(model_arguments, len(text.tokenizer), text.tokenizer.pad_token_id, options.max_seq_length)
        args.train_sampling_strategy = "sequential"  # the data set determines the order
        args.remove_unused_columns = False
        if args.load_best_model_at_end and args.metric_for_best_model == "loss":
            if settings.streaming:
                raise ValueError("load_best_model_at_end: expected false with streaming, which has no validation part")
            args.metric_for_best_model = "validation_loss"
        transformers.set_seed(args.seed)
        network = make_model(config, options.objective, model_arguments.model_name_or_path)
        choose_attention(network, model_arguments.attn_implementation)
        evaluated, num_bytes = evaluation_sets(settings, options, text)
        trainer = PretrainingTrainer(
            model=network,
            args=args,
            data_collator=join_blocks,
            train_dataset=make_blocks(settings, options, text, args.seed, args.max_steps, batch, budget),
            eval_dataset=evaluated,
            processing_class=text.tokenizer,
            callbacks=[*([] if budget is None else [budget]), CheckpointDigests()],
            budget=budget,
            muon=options.muon,
        )
        # transformers' models accept the number of items in a batch and ignore it: the mean over micro-batches is right.
        trainer.model_accepts_loss_kwargs = False
        identity = {
            **options_identity(options),
            **steps_identity(args),
            "config": changed_fields(config),
            "text": digest_of(*(text.parts[part] for part in sorted(text.parts))),
            "evaluated": {name: digest_of(blocks.packer.tokens) for name, blocks in evaluated.items()},
            "streamed": dataclasses.asdict(settings) if settings.streaming else None,
        }
        if model_arguments.model_name_or_path is not None:
            identity["weights"] = model_identity(model_arguments)
        if budget is not None or may_be_extended(args, options):
            del identity["max_steps"]
        expect_same_training(Path(args.output_dir), identity)
        source = {"files": [Path(name).name for name in settings.train_file], "data_set": settings.dataset_name}
        return cls(trainer, text, num_bytes, identity, source, commit)

    def run(self) -> None:
        trainer, checkpoint = self.trainer, last_checkpoint(Path(self.trainer.args.output_dir))
        if trainer.budget is not None:
            trainer.budget.resume(checkpoint)
        output = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()  # before evaluations, for which weights may be rounded
        log, steps = trainer.state.log_history, trainer.state.global_step
        # The best weights, if they were loaded, are not those of the last step.
        is_best = trainer.args.load_best_model_at_end
        if is_best or not any("eval_test_loss" in entry and entry["step"] == steps for entry in log):
            trainer.evaluate()
        importance = trainer.layer_importance()
        if trainer.is_world_process_zero():
            self._write_results(output.metrics, importance)

    def _write_results(self, metrics: dict[str, float], importance: list[float] | None) -> None:
        args, trainer, text = self.trainer.args, self.trainer, self.text
        steps, budget = trainer.state.global_step, trainer.budget
        frequencies = text.parts.get("train", text.parts["test"])
        unigram = {
            name: unigram_loss(frequencies, (blocks[i]["labels"] for i in range(len(blocks))), text.tokenizer)
            for name, blocks in trainer.eval_dataset.items()
        }
        block = self.identity["max_seq_length"]
        losses = losses_by_fraction(
            trainer.state.log_history, lambda step: step / steps if budget is None else budget.fractions[step]
        )
        results = {
            "losses": losses,
            "bits_per_byte": {
                name: found["1"]
                and bits_per_byte(found["1"], trainer.eval_dataset[name].packer.tokens, num_bytes, text.tokenizer)
                for name, found in losses.items()
                if (num_bytes := self.num_bytes.get(name))
            },
            "training_losses": training_losses(trainer.state.log_history),
            "unigram_losses": unigram,
            "layer_importance": importance,
            "parameters": trainer.model.num_parameters(),
            "steps": steps,
            "seconds": budget and round(budget.seconds, 1),
            "tokens": steps * self.identity["batch"] * block,
            "seconds_of_last_session": metrics["train_runtime"],
            "tokens_per_second": round(
                metrics["train_samples_per_second"] * block
                if budget is None
                else steps * self.identity["batch"] * block / budget.seconds,
                1,
            ),
            "identity": self.identity,
            "source": self.source,
            "processes": args.world_size,
            "threads": torch.get_num_threads(),
            **provenance(self.commit, args.device.type),
        }
        write_json(Path(args.output_dir) / "results.json", results)
        for name, losses in results["losses"].items():
            loss = "not finite" if losses["1"] is None else f"{losses['1']:.4f}"
            print(f"{name}: loss {loss} after {results['tokens']:,} tokens (unigram {unigram[name]:.4f})")


def main() -> None:
    parser, given = parse(__doc__, ModelArguments, TextSettings, PretrainingArguments, TrainingArguments)
    try:
        pretraining = Pretraining.set_up(*given)
        args = pretraining.trainer.args
        folder = Path(args.output_dir)
        finished = finished_steps(folder)
        completed = max(finished or 0, checkpoint_steps(folder))
        if completed > args.max_steps:
            raise ValueError(
                f"max_steps: expected at least {completed}, those of {args.output_dir}, got {args.max_steps}"
            )
        claim_folder(args, pretraining.identity)
    except (ValueError, StrictDataclassError) as error:
        parser.error(str(error))
    if finished == args.max_steps or (finished and pretraining.trainer.budget):
        print(f"{args.output_dir} contains this training, finished.")
    else:
        pretraining.run()
    shut_down_together()
    if args.process_index == 0 and not has_finite_losses(folder):
        end_diverged()


if __name__ == "__main__":
    main()
