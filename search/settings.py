"""Settings of a run: one dataclass per group, with bounds at each field.

Parts of the search are given the group that they need. Flags, files and histories hold all settings in one flat mapping.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from autobert_zero.search.files import check_shape


OBJECTIVES = ("score", "parameters", "flops", "latency")
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


@dataclass(frozen=True)
class Range:
    """Allowed values of a number: `minimum` and `maximum` included, `above` and `below` excluded."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self == POSITIVE:
            return "a positive number"
        if self.maximum is None and self.below is None:
            return f"at least {self.minimum}"
        if self.above is None:
            return f"a number from {self.minimum} to {self.maximum if self.below is None else f'below {self.below}'}"
        return f"a number above {self.above} and {f'at most {self.maximum}' if self.below is None else f'below {self.below}'}"


POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(minimum=0)
AT_LEAST_ONE = Range(minimum=1)
SIZE = Range(minimum=1, maximum=1 << 20)  # of what memory is allocated for
FRACTION = Range(minimum=0, below=1)

# Settings that are paths, in which `~` is the home folder.
_PATHS = {
    *("output_dir", "train_file", "prepared_dir", "custom_operations", "glue_dir"),
    *("dataset_name", "tokenizer_name", "seed_genomes"),  # or names
}


def _expanded(value: Any) -> Any:
    return list(map(os.path.expanduser, value)) if isinstance(value, list) else os.path.expanduser(value)


def _is_float(hint: Any) -> bool:
    """Whether a type is float, or a list or an option of it."""
    return hint is float or any(map(_is_float, get_args(hint)))


def check_text(text: str, where: str) -> None:
    """Raise a ValueError for an empty text, and for one that files cannot record, such as the name of a file in another
    encoding."""
    if not text:
        raise ValueError(f"{where}: expected a value, got ''")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: expected text that UTF-8 can encode, got {text!r}") from None


# Markers of settings that may differ between sessions of one run: where and how it runs, and how long it continues.
PLACE, BUDGET = "place", "budget"


def setting(default: Any, help: str, old_name: str | None = None) -> Any:
    """A field. `old_name` is accepted as well, as a flag and in files."""
    metadata = {"help": help, "aliases": [f"--{old_name}"] if old_name else []}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Group:
    """Settings of one subject.

    Raises: ValueError at construction that names the setting, what was expected and what came.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if get_origin(hint) is ClassVar:
                continue
            value = getattr(self, name)
            if isinstance(value, os.PathLike | tuple):  # as Python code may give them
                value = os.fspath(value) if isinstance(value, os.PathLike) else list(value)
                object.__setattr__(self, name, value)
            check_shape(value, hint, name)
            if _is_float(hint) and value is not None:  # an integer is legal, but equal settings have one digest
                value = list(map(float, value)) if isinstance(value, list) else float(value)
                object.__setattr__(self, name, value)
            if value is None:
                continue
            extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            for allowed in (extra for extra in extras if isinstance(extra, Range)):
                self.expect(name, value in allowed, str(allowed))
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    check_text(text, name)
            if name in _PATHS:
                object.__setattr__(self, name, _expanded(value))

    def expect(self, name: str, holds: bool, expected: str) -> None:
        """Raise a ValueError about a setting unless `holds`."""
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def _is_distinct(self, name: str) -> bool:
        return len(set(getattr(self, name))) == len(getattr(self, name))


@dataclass(frozen=True)
class TextSettings(Group):
    """Where text comes from, what is held out of it, and its tokenizer."""

    title = "text"

    train_file: list[str] = setting(
        [],
        "Text files: .csv, .tsv, .json or .jsonl with a column of text, or plain text (a blank line ends a document), each "
        "also as .gz, .xz or .bz2; .parquet or .arrow. "
        "Without it and --dataset_name: the language reference that is part of Python.",
    )
    dataset_name: str | None = setting(None, "Data set of the Hub, or a local folder; its train split is used.")
    dataset_config_name: str | None = setting(None, "Configuration of the data set.")
    text_column: str = setting("text", "Column of the text in data with columns; every row is a document.")
    streaming: bool = setting(False, "Stream the data set of the Hub; a search then needs --max_documents.")
    max_documents: Annotated[int | None, Range(minimum=3)] = setting(None, "Maximum number of documents to read.")
    tokenizer_name: str | None = setting(
        None, "Name or path of a tokenizer. Without it a WordPiece tokenizer is trained.", old_name="tokenizer"
    )
    vocab_size: Annotated[int, Range(minimum=64, maximum=1 << 24)] = setting(
        4096, "Vocabulary size of the tokenizer that is trained."
    )
    validation_fraction: Annotated[float, Range(above=0, below=0.5)] = setting(
        0.08, "Fraction of the text (whole documents) that scores candidates.", old_name="select_fraction"
    )
    test_fraction: Annotated[float, Range(above=0, below=0.5)] = setting(
        0.08, "Fraction of the text (whole documents) for the losses that are reported.", old_name="report_fraction"
    )
    split_seed: Annotated[int, NOT_NEGATIVE] = setting(
        42,
        "Seed of the split, and of the masks of held-out text: runs with other seeds are evaluated on the same text.",
    )
    prepared_dir: Annotated[str | None, PLACE] = setting(
        None, "Folder in which the tokenized text is kept. Other runs and scripts that use it skip the preparation."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("train_file", not (self.train_file and self.dataset_name), "either train_file or dataset_name")
        for name in ("streaming", "dataset_config_name"):
            self.expect(name, not getattr(self, name) or self.dataset_name is not None, "dataset_name with it")


@dataclass(frozen=True)
class RunSettings(Group):
    """Where and how a search runs."""

    title = "run"

    output_dir: Annotated[str, PLACE] = setting(
        "runs/search", "Folder of the run. The same command on the same folder resumes it."
    )
    seed: Annotated[int, NOT_NEGATIVE] = setting(42, "Seed of all randomness of the run.")
    num_threads: Annotated[int, Range(minimum=0, maximum=1024), PLACE] = setting(
        0, "Threads per process; 0 divides the cores of the machine evenly. Results differ in the last digits."
    )
    processes_per_device: Annotated[int, Range(minimum=1, maximum=64), PLACE] = setting(
        1, "Processes that share an accelerator, if a candidate is too small to fill it."
    )
    checkpoint_seconds: Annotated[float, NOT_NEGATIVE, PLACE] = setting(
        30.0, "Seconds between checkpoints of long trainings."
    )
    max_seconds: Annotated[float | None, POSITIVE, PLACE] = setting(
        None, "Stop gracefully after this time; the same command resumes."
    )
    log_with: Annotated[list[str], PLACE] = setting(
        [], "Trackers of Accelerate, if installed: tensorboard, wandb, ..."
    )


@dataclass(frozen=True)
class ModelSettings(Group):
    """Sizes of the backbones."""

    title = "model"

    num_hidden_layers: Annotated[int, Range(minimum=1, maximum=1024)] = setting(4, "Number of layers.")
    hidden_size: Annotated[int, SIZE] = setting(64, "Width.")
    num_attention_heads: Annotated[int, SIZE] = setting(2, "Attention heads.")
    intermediate_size: Annotated[int, SIZE] = setting(256, "Width of the feed-forward part.")
    sequence_length: Annotated[int, Range(minimum=8, maximum=1 << 20)] = setting(64, "Tokens per sequence.")
    position_embedding_type: Literal["absolute", "none"] = setting(
        "none",
        "absolute: BERT's table of positions. none: no table; rotary and convolutions encode the order of tokens.",
    )
    rope_theta: Annotated[float, POSITIVE] = setting(10_000.0, "Base of the rotation frequencies of rotary.")
    initializer_range: Annotated[float, POSITIVE] = setting(
        0.08, "Standard deviation of initial weights; BERT uses 0.02 at width 768."
    )
    dropout: Annotated[float, FRACTION] = setting(
        0.0, "Dropout of hidden states and attention weights in all trainings."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        divides = self.hidden_size % self.num_attention_heads == 0
        self.expect("num_attention_heads", divides, "a divisor of hidden_size")


@dataclass(frozen=True)
class SpaceSettings(Group):
    """Which backbones are possible."""

    title = "space"

    kernel_sizes: list[int] = setting([3, 5, 7, 9, 15, 31, 65], "Kernel sizes of convolutions.")
    max_nodes: Annotated[int, Range(minimum=5)] = setting(14, "Maximum number of nodes of an attention expression.")
    min_attention_layers: Annotated[int, NOT_NEGATIVE] = setting(
        1, "Minimum number of attention layers. With none, a token sees only its neighbours within the kernels."
    )
    max_attention_layers: int | None = setting(
        None, "Maximum number of attention layers; with both at 0 there are only convolutions."
    )
    operations: list[str] = setting(
        ["all"], "Operations of attention expressions: names, `paper` for the primitives of the paper, or `all`."
    )
    custom_operations: Annotated[str | None, PLACE] = setting(  # its content is part of the history's data
        None,
        "Python file with a table OPERATIONS of operations and layer kinds, used beside the built-in ones.",
        old_name="own_operations",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Imported here: it takes seconds to load, which the help of the command line does not need.
        from autobert_zero.configuration_autobert_zero import ALL_OPERATIONS, MAX_NODES, Convolution

        self.expect("max_nodes", self.max_nodes <= MAX_NODES, f"at most {MAX_NODES}")
        self.expect("kernel_sizes", len(self.kernel_sizes) > 0, "at least one size")
        self.expect("kernel_sizes", self._is_distinct("kernel_sizes"), "distinct sizes")
        for size in self.kernel_sizes:
            try:
                Convolution(size)
            except ValueError as error:
                raise ValueError(f"kernel_sizes: {error}") from None
        known = {"all", "paper", *ALL_OPERATIONS}
        self.expect("operations", bool(self.operations) and set(self.operations) <= known, f"any of {sorted(known)}")
        self.expect(
            "max_attention_layers",
            self.max_attention_layers is None or self.max_attention_layers >= self.min_attention_layers,
            f"at least min_attention_layers={self.min_attention_layers}",
        )

    def named_operations(self) -> tuple[str, ...]:
        """The names of the operations, in a fixed order."""
        from autobert_zero.configuration_autobert_zero import ALL_OPERATIONS, PAPER_OPERATIONS

        names = {
            name
            for given in self.operations
            for name in {"all": ALL_OPERATIONS, "paper": PAPER_OPERATIONS}.get(given, (given,))
        }
        return tuple(name for name in ALL_OPERATIONS if name in names)


@dataclass(frozen=True)
class LimitSettings(Group):
    """What a candidate may cost."""

    title = "limits of a candidate"

    max_parameters: Annotated[int | None, POSITIVE] = setting(None, "Maximum number of parameters.")
    max_flops: Annotated[float | None, POSITIVE] = setting(
        None, "Maximum floating-point operations of a forward pass of one sequence."
    )
    max_latency: Annotated[float | None, POSITIVE] = setting(
        None,
        "Maximum milliseconds of a forward pass, measured before a candidate is trained; a slower candidate fails. "
        "Measurements, and so the history, differ between runs.",
    )
    latency_batch_size: Annotated[int, SIZE] = setting(1, "Sequences in the batch that latency is measured on.")


@dataclass(frozen=True)
class StrategySettings(Group):
    """How candidates are proposed."""

    title = "strategy"

    strategy: Literal["op_nas", "thompson_op_nas", "evolution", "regularized_evolution", "largest_first", "random"] = (
        setting("thompson_op_nas", "How candidates are proposed.")
    )
    max_evaluations: Annotated[int, AT_LEAST_ONE, BUDGET] = setting(
        40, "Number of candidates to evaluate, those of earlier sessions included."
    )
    population_size: Annotated[int, SIZE] = setting(
        16, "M: genomes in the first generation: the seed genomes, and random ones."
    )
    num_parents: Annotated[int, SIZE] = setting(3, "K: best candidates that have children.")
    num_children: Annotated[int, SIZE] = setting(4, "C: children of each parent in a generation.")
    tournament_size: Annotated[int, AT_LEAST_ONE] = setting(
        5, "Candidates in a tournament of regularized evolution; the best is the parent."
    )
    seed_genomes: list[str] = setting(
        ["known"],
        "Genomes to start with: bert, bert-rotary, hybrid, hybrid-rotary, value-residual, published, or JSON files: a list "
        "of layers, a config.json or a summary.json. known: bert-rotary, hybrid-rotary and value-residual, as far as the "
        "space has them; none: all are random, as in the paper.",
    )
    crossover_probability: Annotated[float, Range(minimum=0, maximum=1)] = setting(
        0.0, "Probability that a child has a second parent."
    )
    layer_mutations: list[float] = setting(
        [1.0, 1.0, 1.0],
        "Relative weights of the mutations of layers: change the kind, change a kernel size, swap two layers, and, if given, "
        "copy a layer over another, and none.",
    )
    operation_mutations: list[float] = setting(
        [1.0, 1.0, 1.0, 0.0],
        "Relative weights of four mutations of operations: replace, insert, remove, rewire an input.",
    )
    objectives: list[str] = setting(
        ["score"],
        "What to optimize: score, alone or with parameters, flops, latency. With several, NSGA-II selects the parents.",
    )
    lookahead: Annotated[int, NOT_NEGATIVE] = setting(
        0, "Generations proposed before the previous one is complete, so that processes need not wait for it."
    )
    priority_alpha: Annotated[float, NOT_NEGATIVE] = setting(
        0.2, "Weight of the upper confidence bound in the operation priority."
    )
    priority_temperature: Annotated[float, POSITIVE] = setting(
        0.3, "Temperature of the softmax by which operations are chosen."
    )
    priority_decay: Annotated[float, Range(above=0, maximum=1)] = setting(
        1.0,
        "Weight of a candidate in the priority relative to the next one; below 1, old ones are gradually forgotten.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, counts in {"layer_mutations": (3, 4, 5), "operation_mutations": (4,)}.items():
            weights = getattr(self, name)
            valid = len(weights) in counts and min(weights) >= 0 and 0 < sum(weights) < math.inf
            numbers = " to ".join(map(str, sorted({counts[0], counts[-1]})))
            self.expect(name, valid, f"{numbers} numbers of at least 0, not all of them 0")
        self.expect("seed_genomes", len(self.seed_genomes) == 1 or "none" not in self.seed_genomes, "none alone")
        if self.seed_genomes == ["none"]:
            object.__setattr__(self, "seed_genomes", [])
        known = "score" in self.objectives and set(self.objectives) <= set(OBJECTIVES)
        self.expect(
            "objectives", known and self._is_distinct("objectives"), f"score and any others of {list(OBJECTIVES)}"
        )


@dataclass(frozen=True)
class TrainingSettings(Group):
    """What all trainings have in common."""

    title = "training"

    batch_size: Annotated[int, SIZE] = setting(8, "Sequences per batch.")
    eval_sequences: Annotated[int, SIZE] = setting(256, "Number of sequences that a loss is evaluated on.")
    learning_rate: Annotated[float, POSITIVE] = setting(
        2e-3, "Peak learning rate of the super-network and of trainings from scratch."
    )
    warmup_ratio: Annotated[float, FRACTION] = setting(0.1, "Fraction of the steps in which the learning rate rises.")
    weight_decay: Annotated[float, NOT_NEGATIVE] = setting(0.01, "Weight decay of matrices.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting(
        "no",
        "Autocast of trainings and evaluations to 16 bits; fp16 with scaled losses. `accelerate launch --mixed_precision` "
        "sets it, too.",
    )
    micro_batch_size: Annotated[int | None, SIZE, PLACE] = setting(
        None,
        "Sequences of a batch that are computed at once, to save memory. Without dropout, results differ in the last digits.",
    )
    gradient_checkpointing: Annotated[bool, PLACE] = setting(
        False, "Save memory by computing the activations of a layer again in the backward pass."
    )
    compile: Annotated[bool, PLACE] = setting(
        False,
        "Compile the layers of models that are trained from scratch. `accelerate launch --dynamo_backend inductor` sets it, "
        "too. Results differ in the last digits.",
    )


@dataclass(frozen=True)
class SupernetSettings(Group):
    """The super-network."""

    title = "super-network"

    supernet_steps: Annotated[int, NOT_NEGATIVE] = setting(900, "Training steps of the super-network.")
    paths: Literal["self_attention", "space"] = setting(
        "self_attention",
        "Genomes that it is trained on. self_attention: self-attention in a random number of layers, and sometimes a random "
        "attention; space: random ones, as in the paper.",
    )
    random_attention_paths: Annotated[float, Range(minimum=0, maximum=1)] = setting(
        0.5, "Fraction of the self_attention paths in which one layer has a random attention."
    )
    paths_per_step: Annotated[int, SIZE] = setting(2, "Paths per training step; their gradients are averaged.")


@dataclass(frozen=True)
class CandidateSettings(Group):
    """How a candidate is scored."""

    title = "candidates"

    candidate_steps: Annotated[int, NOT_NEGATIVE] = setting(
        40, "Training steps of a candidate, from the weights of its path."
    )
    candidate_learning_rate: Annotated[float, POSITIVE] = setting(1e-3, "Peak learning rate of a candidate.")
    candidate_seconds: Annotated[float | None, POSITIVE] = setting(
        None, "A candidate that takes longer fails. With it, the history depends on the speed of the machine."
    )
    prune_after: Annotated[float | None, FRACTION] = setting(
        None,
        "Fraction of a candidate's steps after which it is pruned if it is among the worst; None: no pruning.",
        old_name="hurdle",
    )
    prune_fraction: Annotated[float, Range(minimum=0, maximum=1)] = setting(
        0.3, "Fraction of the candidates to prune at that point.", old_name="hurdle_share"
    )
    proxy: Literal["mlm", "glue"] = setting(
        "mlm",
        "The score. mlm: the masked-language-model loss on the validation part. glue: the result of fine-tuning, measured "
        "on a held-out tenth of the GLUE training data.",
    )


@dataclass(frozen=True)
class GlueSettings(Group):
    """GLUE as the score."""

    title = "GLUE as the score"

    proxy_tasks: list[str] = setting(["rte", "mrpc", "cola"], "Tasks of GLUE, with --proxy glue.")
    glue_dir: str | None = setting(
        None, "Folder with TASK/{train,validation}.jsonl.gz in the columns of nyu-mll/glue. Without it: the Hub."
    )
    glue_steps: Annotated[int, AT_LEAST_ONE] = setting(100, "Training steps of fine-tuning on each task.")
    glue_learning_rate: Annotated[float, POSITIVE] = setting(5e-4, "Peak learning rate of fine-tuning.")

    def __post_init__(self) -> None:
        super().__post_init__()
        known = bool(self.proxy_tasks) and set(self.proxy_tasks) <= set(GLUE_TASKS)
        self.expect("proxy_tasks", known and self._is_distinct("proxy_tasks"), f"any of {list(GLUE_TASKS)}, each once")


@dataclass(frozen=True)
class FinalSettings(Group):
    """What follows the search."""

    title = "after the search"

    final_steps: Annotated[int, AT_LEAST_ONE, BUDGET] = setting(
        1400, "Training steps of the winner and of each baseline, from scratch."
    )
    finalists: Annotated[int, AT_LEAST_ONE, BUDGET] = setting(
        3, "Number of best candidates that start a training from scratch; the best of them is the winner."
    )
    finalist_fraction: Annotated[float, FRACTION, BUDGET] = setting(
        0.5,
        "Fraction of the final steps after which the winner is chosen; 0: the best score wins.",
        old_name="finalist_share",
    )


@dataclass(frozen=True)
class SearchSettings:
    """All settings of a run, by group. On a CPU, two runs with equal settings, text, versions and threads give equal
    histories.

    Raises: ValueError that names the setting, what was expected and what came.
    """

    run: RunSettings = field(default_factory=RunSettings)
    text: TextSettings = field(default_factory=TextSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    space: SpaceSettings = field(default_factory=SpaceSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    strategy: StrategySettings = field(default_factory=StrategySettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    supernet: SupernetSettings = field(default_factory=SupernetSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    glue: GlueSettings = field(default_factory=GlueSettings)
    final: FinalSettings = field(default_factory=FinalSettings)

    def __post_init__(self) -> None:
        fits = self.space.min_attention_layers <= self.model.num_hidden_layers
        self.space.expect("min_attention_layers", fits, "0 to num_hidden_layers")
        bounded = not self.text.streaming or self.text.max_documents is not None
        self.text.expect("streaming", bounded, "max_documents with it")

    @property
    def groups(self) -> list[Group]:
        return [getattr(self, each.name) for each in dataclasses.fields(self)]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SearchSettings":
        """From a flat mapping; settings that it lacks have their defaults, and old names are accepted."""
        return cls().replace(**values)

    def replace(self, **values: Any) -> "SearchSettings":
        """A copy with some settings changed, by their names."""
        values = {RENAMED.get(name, name): value for name, value in without_removed(values).items()}
        if unknown := [name for name in values if name not in GROUP_OF]:
            raise ValueError(f"expected settings of a search, got {unknown[0]!r}{did_you_mean(unknown, GROUP_OF)}")
        changed: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            changed.setdefault(GROUP_OF[name], {})[name] = value
        return dataclasses.replace(
            self, **{group: dataclasses.replace(getattr(self, group), **some) for group, some in changed.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """All settings in a flat mapping."""
        return {name: value for group in self.groups for name, value in dataclasses.asdict(group).items()}

    def identity(self) -> dict[str, Any]:
        """The settings that a history depends on: all but the place, the machine, and the budget."""
        return {name: value for name, value in self.to_dict().items() if not MARKERS[name] & {PLACE, BUDGET}}

    def budget(self) -> dict[str, Any]:
        """The settings that extend a run: how long it continues, and what follows its history."""
        return {name: value for name, value in self.to_dict().items() if BUDGET in MARKERS[name]}


GROUPS: dict[str, type[Group]] = {
    name: hint for name, hint in get_type_hints(SearchSettings).items() if issubclass(hint, Group)
}
# By the name of a setting: its group, its markers; by an old name: the new one.
GROUP_OF = {each.name: name for name, group in GROUPS.items() for each in dataclasses.fields(group)}
MARKERS = {
    name: set(filter(lambda extra: isinstance(extra, str), get_args(hint)[1:]))
    if get_origin(hint) is Annotated
    else set()
    for group in GROUPS.values()
    for name, hint in get_type_hints(group, include_extras=True).items()
}
RENAMED = {
    alias.removeprefix("--"): each.name
    for group in GROUPS.values()
    for each in dataclasses.fields(group)
    for alias in each.metadata["aliases"]
}


# Settings that are no more, with what was their default.
REMOVED = {"convolution_paths": 0.75, "other_paths": "space"}


def without_removed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings, as an earlier version may have written them, without those that are no more.

    Raises: ValueError for one that was not at its default.
    """
    for name, default in REMOVED.items():
        if name in values and values[name] != default:
            raise ValueError(
                f"{name}: expected none, because paths and random_attention_paths replace it, got {values[name]!r}"
            )
    return {name: value for name, value in values.items() if name not in REMOVED}


def did_you_mean(names: Iterable[object], known: Iterable[str]) -> str:
    """`; did you mean seed?` for the first name that is similar to a known one."""
    known = list(known)
    for name in map(str, names):
        similar = difflib.get_close_matches(name, known, n=1)
        if similar and similar[0] != name:
            return f"; did you mean {similar[0]}?"
    return ""


def flags(values: dict[str, Any]) -> list[str]:
    """Settings as command-line arguments: `{"a_b": 1, "c": [2, 3]}` as `--a_b 1 --c 2 3`; None and [] are omitted, but for
    seed genomes, of which [] means none."""
    found = []
    for name, value in values.items():
        if name == "seed_genomes" and value == []:
            found += ["--seed_genomes", "none"]
        elif value is not None and value != []:
            found += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found
