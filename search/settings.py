"""Settings of a run, and the named random streams that all its randomness comes from."""

import dataclasses
import math
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from autobert_zero.configuration_autobert_zero import MAX_NODES, Convolution


OBJECTIVES = ("score", "parameters", "flops", "latency")
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

# What settings are about, by the first of each group.
_GROUPS = {
    "train_file": "text",
    "output_dir": "run",
    "sequence_length": "sequences",
    "num_hidden_layers": "model",
    "kernel_sizes": "space",
    "max_parameters": "limits of a candidate",
    "strategy": "strategy",
    "batch_size": "training",
    "supernet_steps": "super-network",
    "candidate_steps": "candidates",
    "proxy": "GLUE as the score",
    "final_steps": "after the search",
    "num_threads": "machine",
}

# How long a run goes on, and what comes after its history.
BUDGET = ("max_evaluations", "finalists", "finalist_share", "final_steps")

# Settings that may differ between sessions of one run.
_NO_PART_OF_A_HISTORY = {
    *BUDGET,
    "output_dir",
    "prepared_dir",
    "own_operations",  # where the file is; what stands in it is part of the data
    "num_threads",
    "checkpoint_seconds",
    "max_seconds",
    "log_with",
}


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """An independent random stream for each sequence of names: `stream(seed, "proposal", generation, child)`."""
    key = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def flags(values: dict[str, Any]) -> list[str]:
    """Settings as a command line has them: `{"a_b": 1, "c": [2, 3]}` as `--a_b 1 --c 2 3`; None and [] are left out."""
    found = []
    for name, value in values.items():
        if value is not None and value != []:
            found += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TextSettings:
    """Where text comes from, what is held out of it, and its tokenizer.

    Raises `ValueError` that names the setting, what was expected and what came.
    """

    train_file: list[str] = _setting(
        [],
        "Text files: plain text (a blank line ends a document), .json, .jsonl or .csv, each also as .gz, .xz or .bz2. "
        "Without this and --dataset_name: the language reference that comes with Python.",
    )
    dataset_name: str | None = _setting(None, "A data set of the Hub, or of a local folder; its train split is used.")
    dataset_config_name: str | None = _setting(None, "Its configuration.")
    text_column: str = _setting("text", "Column of the text in data that has columns; every row is a document.")
    streaming: bool = _setting(False, "Stream the data set of the Hub; a search needs --max_documents with it.")
    max_documents: int | None = _setting(None, "Read at most this many documents.")
    tokenizer: str | None = _setting(None, "Name or path of a tokenizer; without it a WordPiece one is trained.")
    vocab_size: int = _setting(4096, "Size of the vocabulary of the tokenizer that is trained.")
    select_fraction: float = _setting(0.08, "Share of the text (whole documents) that scores candidates.")
    report_fraction: float = _setting(0.08, "Share of the text (whole documents) that the reported losses come from.")
    prepared_dir: str | None = _setting(
        None, "Folder to keep the tokens in: a run that finds them there, also of another script, need not make them."
    )

    def __post_init__(self) -> None:
        self._expect("vocab_size", self.vocab_size >= 64, "at least 64")
        for name in ("select_fraction", "report_fraction"):
            self._expect(name, 0 < getattr(self, name) < 0.5, "a number above 0 and below 0.5")
        self._expect("train_file", not (self.train_file and self.dataset_name), "either train_file or dataset_name")
        self._expect("streaming", not self.streaming or self.dataset_name is not None, "dataset_name with it")
        self._expect(
            "dataset_config_name",
            self.dataset_config_name is None or self.dataset_name is not None,
            "dataset_name with it",
        )
        self._expect("max_documents", self.max_documents is None or self.max_documents >= 3, "at least 3")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class SearchSettings(TextSettings):
    """Everything that a run is made of. On a CPU, two runs with equal settings, text, versions and threads give equal
    histories.

    Raises `ValueError` that names the setting, what was expected and what came.
    """

    output_dir: str = _setting("runs/search", "Folder of the run. The same command on the same folder continues it.")
    seed: int = _setting(42, "All randomness of the run comes from it.")

    sequence_length: int = _setting(64, "Tokens in a sequence.")
    eval_sequences: int = _setting(256, "Sequences of the select and of the report part that a loss is taken on.")

    num_hidden_layers: int = _setting(4, "Layers of the backbone.")
    hidden_size: int = _setting(64, "Width of the backbone.")
    num_attention_heads: int = _setting(2, "Attention heads.")
    intermediate_size: int = _setting(256, "Width of the feed-forward part.")
    initializer_range: float = _setting(0.08, "Standard deviation of initial weights; BERT has 0.02, at width 768.")
    dropout: float = _setting(0.0, "Dropout of hidden states and attention weights in all trainings.")

    kernel_sizes: list[int] = _setting([3, 5, 7, 9, 15, 31, 65], "Kernel sizes that convolutions may have.")
    max_nodes: int = _setting(14, "Most nodes in an attention expression.")
    own_operations: str | None = _setting(
        None,
        "Python file with a table OPERATIONS of operations and layer kinds to search with beside the built-in ones.",
    )
    min_attention_layers: int = _setting(
        1, "Least number of attention layers: without one, no token sees beyond the kernels."
    )
    max_attention_layers: int | None = _setting(None, "Most attention layers; with both at 0 convolutions alone.")

    max_parameters: int | None = _setting(None, "Most parameters that a candidate may have.")
    max_flops: float | None = _setting(None, "Most floating-point operations of a forward pass of one sequence.")
    max_latency: float | None = _setting(
        None,
        "Most milliseconds of a forward pass, measured before a candidate is trained; a slower one has failed. What is "
        "measured differs from run to run, and so may the history.",
    )
    latency_batch_size: int = _setting(1, "Sequences in the batch that latency is measured on.")

    strategy: Literal["op_nas", "thompson_op_nas", "evolution", "regularized_evolution", "largest_first", "random"] = (
        _setting("thompson_op_nas", "How candidates are proposed.")
    )
    max_evaluations: int = _setting(40, "Candidates to evaluate.")
    population_size: int = _setting(16, "M: random genomes in the first generation.")
    num_parents: int = _setting(3, "K: best candidates that have children.")
    num_children: int = _setting(4, "C: children of each parent in a generation.")
    tournament_size: int = _setting(5, "Records that the parent of a regularised evolution is the best of.")
    seed_genomes: list[str] = _setting(
        [],
        "Genomes that the search begins with: `published`, `bert`, or JSON files: a list of layers, or the config.json or "
        "summary.json of a model that was found.",
    )
    crossover_probability: float = _setting(0.0, "Probability that a child has a second parent.")
    layer_mutations: list[float] = _setting(
        [1.0, 1.0, 1.0],
        "Proportions of changing whether a layer is attention, of changing a kernel size, and of swapping two layers.",
    )
    operation_mutations: list[float] = _setting(
        [1.0, 1.0, 1.0, 0.0], "Proportions of replacing, inserting, removing an operation, and of rewiring an input."
    )
    objectives: list[str] = _setting(
        ["score"], "score, and any of parameters, flops, latency: with several, parents are chosen by NSGA-II."
    )
    lookahead: int = _setting(
        0, "Generations proposed before the last one is done, so that many processes need not wait for the slowest."
    )
    priority_alpha: float = _setting(0.2, "Weight of the upper confidence bound in the operation priority.")
    priority_temperature: float = _setting(0.3, "Temperature of the softmax that operations are drawn with.")

    priority_decay: float = _setting(
        1.0, "Weight of a candidate in the priority against that of the next one; below 1 old ones are forgotten."
    )

    batch_size: int = _setting(8, "Sequences in a batch.")
    learning_rate: float = _setting(2e-3, "Peak learning rate of the super-network and of trainings from scratch.")
    warmup_ratio: float = _setting(0.1, "Share of the steps in which the learning rate rises.")
    weight_decay: float = _setting(0.01, "Weight decay of matrices.")
    supernet_steps: int = _setting(900, "Updates of the super-network.")
    convolution_paths: float = _setting(
        0.75, "Share of its paths that have no attention: they learn first, and the rest learns on what they found."
    )
    other_paths: Literal["space", "attentions", "population"] = _setting(
        "space",
        "What the other paths are: any of the space; attentions in all layers, so that the branches train apart; the "
        "random genomes of the first generation.",
    )
    paths_per_step: int = _setting(2, "Paths whose gradients make one update of the super-network.")
    candidate_steps: int = _setting(40, "Updates of a candidate, from the weights of its path.")
    candidate_learning_rate: float = _setting(1e-3, "Peak learning rate of a candidate.")
    candidate_seconds: float | None = _setting(
        None, "A candidate that takes longer has failed; with it, the history depends on the speed of the machine."
    )
    hurdle: float | None = _setting(
        None, "Share of a candidate's updates after which it is dropped if it is among the worst; None: no hurdle."
    )
    hurdle_share: float = _setting(0.3, "Share of all candidates that counts as the worst.")
    proxy: Literal["mlm", "glue"] = _setting(
        "mlm",
        "What scores a candidate after its updates: the masked-language-model loss on the select part, or fine-tuning on "
        "GLUE, of which a tenth of the training parts scores.",
    )
    proxy_tasks: list[str] = _setting(["rte", "mrpc", "cola"], "Tasks of GLUE, with --proxy glue.")
    glue_dir: str | None = _setting(
        None, "Folder with TASK/{train,validation}.jsonl.gz in the columns of nyu-mll/glue; without it: the Hub."
    )
    glue_steps: int = _setting(100, "Updates of fine-tuning on each task.")
    glue_learning_rate: float = _setting(5e-4, "Peak learning rate of fine-tuning.")
    final_steps: int = _setting(1400, "Updates of the winner, and of BERT, from scratch.")
    finalists: int = _setting(3, "Best candidates that begin a training from scratch; the one ahead is the winner.")
    finalist_share: float = _setting(0.5, "Share of the final updates after which it is; 0: the best score wins.")

    num_threads: int = _setting(
        0,
        "Threads of each process; 0 shares the cores of the machine evenly. Sums differ with it in the last digits.",
    )
    checkpoint_seconds: float = _setting(30.0, "Seconds between checkpoints of long trainings.")
    max_seconds: float | None = _setting(None, "Stop in order after this time; the same command continues.")
    log_with: list[str] = _setting([], "Trackers of Accelerate that are installed: tensorboard, wandb, ...")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {
            "sequence_length": 8,
            "eval_sequences": 1,
            "num_hidden_layers": 1,
            "hidden_size": 1,
            "num_attention_heads": 1,
            "intermediate_size": 1,
            "max_evaluations": 1,
            "population_size": 1,
            "num_parents": 1,
            "num_children": 1,
            "tournament_size": 1,
            "batch_size": 1,
            "supernet_steps": 0,
            "paths_per_step": 1,
            "candidate_steps": 0,
            "final_steps": 1,
            "seed": 0,
            "num_threads": 0,
            "priority_alpha": 0,
            "weight_decay": 0,
            "checkpoint_seconds": 0,
            "latency_batch_size": 1,
            "lookahead": 0,
            "glue_steps": 1,
            "finalists": 1,
        }.items():
            self._expect(name, getattr(self, name) >= least, f"at least {least}")
        for name in ("max_parameters", "max_flops", "max_latency", "candidate_seconds", "max_seconds"):
            self._expect(name, getattr(self, name) is None or getattr(self, name) > 0, "a positive number")
        for name in ("crossover_probability", "hurdle_share"):
            self._expect(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._expect("priority_decay", 0 < self.priority_decay <= 1, "a number above 0 and at most 1")
        self._expect("hurdle", self.hurdle is None or 0 <= self.hurdle < 1, "a number from 0 to below 1")
        for name, count in {"layer_mutations": 3, "operation_mutations": 4}.items():
            weights = getattr(self, name)
            right = len(weights) == count and all(w >= 0 and math.isfinite(w) for w in weights) and sum(weights) > 0
            self._expect(name, right, f"{count} numbers of at least 0, not all of them 0")
        self._expect(
            "objectives",
            "score" in self.objectives and set(self.objectives) <= set(OBJECTIVES) and self._distinct("objectives"),
            f"score and any others of {list(OBJECTIVES)}",
        )
        for name in (
            "initializer_range",
            "learning_rate",
            "candidate_learning_rate",
            "glue_learning_rate",
            "priority_temperature",
        ):
            self._expect(name, getattr(self, name) > 0, "a positive number")
        for name, value in self.to_dict().items():
            self._expect(name, not isinstance(value, float) or math.isfinite(value), "a finite number")
        for name in ("dropout", "warmup_ratio", "finalist_share"):
            self._expect(name, 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        self._expect("convolution_paths", 0 <= self.convolution_paths <= 1, "a number from 0 to 1")
        self._expect(
            "num_attention_heads", self.hidden_size % self.num_attention_heads == 0, "a divisor of hidden_size"
        )
        self._expect("kernel_sizes", len(self.kernel_sizes) > 0, "at least one size")
        self._expect("kernel_sizes", self._distinct("kernel_sizes"), "distinct sizes")
        for size in self.kernel_sizes:
            Convolution(size)
        self._expect("max_nodes", 5 <= self.max_nodes <= MAX_NODES, f"from 5 to {MAX_NODES}")
        self._expect(
            "min_attention_layers", 0 <= self.min_attention_layers <= self.num_hidden_layers, "0 to num_hidden_layers"
        )
        self._expect(
            "max_attention_layers",
            self.max_attention_layers is None or self.max_attention_layers >= self.min_attention_layers,
            f"at least min_attention_layers={self.min_attention_layers}",
        )
        for name in ("strategy", "other_paths", "proxy"):
            choices = get_args(get_type_hints(type(self))[name])
            self._expect(name, getattr(self, name) in choices, f"one of {list(choices)}")
        known = bool(self.proxy_tasks) and set(self.proxy_tasks) <= set(GLUE_TASKS)
        self._expect("proxy_tasks", known and self._distinct("proxy_tasks"), f"any of {list(GLUE_TASKS)}, each once")
        self._expect("streaming", not self.streaming or self.max_documents is not None, "max_documents with it")

    def _distinct(self, name: str) -> bool:
        return len(set(getattr(self, name))) == len(getattr(self, name))

    @classmethod
    def groups(cls) -> dict[str, list[dataclasses.Field]]:
        """The settings by what they are about."""
        found: dict[str, list[dataclasses.Field]] = {}
        group = ""
        for each in dataclasses.fields(cls):
            group = _GROUPS.get(each.name, group)
            found.setdefault(group, []).append(each)
        return found

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The settings that a history depends on: all but the place, the machine, and how long it goes on."""
        return {name: value for name, value in self.to_dict().items() if name not in _NO_PART_OF_A_HISTORY}
