"""A run as its files record it: its history, also during the search, and its summary once it is finished."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, Required, TypedDict

import numpy as np

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.evolution.archive import Record
from autobert_zero.search.evolution.history import OLD_PARTS, read_history
from autobert_zero.search.files import check_shape, read_json
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.report.tables import PRECISIONS, duration, machine_text
from autobert_zero.search.settings import GROUP_OF, MARKERS, RENAMED, SearchSettings


# Maximum length of the curve of random search.
MAX_RANDOM = 200


class ModelResult(TypedDict):
    """A model trained from scratch, or the unigram model."""

    loss: float | None  # test loss in nats; None if the training diverged
    perplexity: float | None
    parameters: NotRequired[int | None]
    training_losses: NotRequired[list[list[float]]]  # steps, and the mean loss of the steps since the one before
    attention_by_distance: NotRequired[dict[str, list[list[float]]]]  # by layer: heads, distances
    layer_importance: NotRequired[list[float]]  # rise of the test loss without the mixer of each layer


class Candidate(TypedDict):
    """A candidate of the search."""

    index: int
    score: float | None
    genome: list[dict[str, Any]]
    steps_from_scratch: NotRequired[int]
    score_from_scratch: NotRequired[float | None]


class Counts(TypedDict):
    """Numbers of candidates."""

    evaluated: int
    failed: int
    pruned: NotRequired[int]
    better_than_unigram: NotRequired[int]  # by their scores; missing if a score is not a loss


class Machine(TypedDict):
    """What a run ran on."""

    processes: int
    threads: int
    device: str
    cores: NotRequired[int | None]


class Data(TypedDict):
    """The text."""

    source: str


class Summary(TypedDict):
    """summary.json of a finished run."""

    identity: str
    status: str
    custom_operations: dict[str, str]
    best: Candidate
    finalists: list[Candidate]
    front: list[dict[str, Any]]
    results: dict[str, ModelResult]
    counts: Counts
    tokens: dict[str, int]
    seconds_of_candidates: float
    seconds_of_last_session: NotRequired[dict[str, float]]  # by phase
    seed: int
    data: Data
    settings: dict[str, Any]
    command: str
    commit: str | None
    versions: dict[str, str]
    machine: Machine
    model_files: NotRequired[list[str]]  # names of the files of the model, without those that describe it


class HeaderData(TypedDict, total=False):
    """The text, and what else a history depends on."""

    digest: str
    tokens: dict[str, int]


class Header(TypedDict, total=False):
    """The first line of history.jsonl."""

    settings: Required[dict[str, Any]]
    data: HeaderData
    seed_genomes: list[str]
    custom_operations: dict[str, str] | None
    threads: int
    text: str
    text_digest: str
    unigram_score: float | None
    command: str
    commit: str | None
    versions: dict[str, str]
    machine: Machine


def _upgrade_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names of today. Runs from before there was a choice of operations and positions used the paper's."""
    paper = {"operations": ["paper"], "position_embedding_type": "absolute"}
    return {**paper, **{RENAMED.get(name, name): value for name, value in values.items()}}


def _check_settings(values: dict[str, Any], where: str) -> None:
    """Raise a ValueError unless the settings that are still in use have legal values."""
    try:
        SearchSettings.from_dict({name: value for name, value in values.items() if name in GROUP_OF})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_summary(path: Path) -> Summary:
    """The summary of a finished run; one of an older version with the names of today.

    Raises: OSError; ValueError that names the file and the field, what was expected, and what came.
    """
    summary = read_json(path, dict[str, Any])
    upgraded = {
        "finalists": [],
        "front": [],
        **summary,
        "custom_operations": summary.get("custom_operations", summary.get("own_operations", {})),
    }
    try:
        check_shape(upgraded, Summary, "summary")
        upgraded["settings"] = {**SearchSettings().to_dict(), **_upgrade_settings(upgraded["settings"])}
        upgraded["tokens"] = {OLD_PARTS.get(name, name): count for name, count in upgraded["tokens"].items()}
        _check_settings(upgraded["settings"], "summary, settings")
        for name in ("train", "validation", "test", "final_each"):
            if name not in upgraded["tokens"]:
                raise ValueError(f"summary, tokens, {name}: expected a value, got none")
        if len(upgraded["results"]) < 2 or upgraded["results"].get("unigram", {}).get("loss") is None:
            raise ValueError(
                f"summary, results: expected losses of models and of unigram, got {upgraded['results']!r:.200}"
            )
        _check_genome(upgraded["best"]["genome"], upgraded, "summary, best")
        for number, finalist in enumerate(upgraded["finalists"]):
            _check_genome(finalist["genome"], upgraded, f"summary, finalists, {number}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return upgraded  # type: ignore[return-value]


def _check_winner(winner: Candidate, records: list[Record], path: Path) -> None:
    index = winner["index"]
    if not 0 <= index < len(records):
        raise ValueError(f"{path}: summary, best, index: expected below {len(records)}, got {index}")
    if records[index].score is None:
        raise ValueError(f"{path}: summary, best, index: expected a candidate with a score, got {index}")
    if winner["genome"] != records[index].genome.to_list():
        raise ValueError(
            f"{path}: summary, best, genome: expected that of candidate {index}, {records[index].genome}, "
            f"got {winner['genome']!r:.200}"
        )


def _check_genome(genes: Any, summary: dict[str, Any], where: str) -> None:
    try:
        genome = Genome.from_list(genes, summary["custom_operations"])
    except ValueError as error:
        raise ValueError(f"{where}, {error}") from None
    layers = summary["settings"]["num_hidden_layers"]
    if len(genome) != layers:
        raise ValueError(f"{where}, genome: expected {layers} layers, got {len(genome)}")


@dataclass(frozen=True)
class RecordedRun:
    """A run on disk.

    Attributes:
        name: of its folder.
        header, records: of its history.
        summary: None before it is finished.
        budget: settings that the history does not depend on, as far as they are known.
    """

    name: str
    header: dict[str, Any]
    records: list[Record]
    summary: Summary | None = None
    budget: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "RecordedRun":
        """The run of a folder, or of a history file. Raises: ValueError or OSError if there is none."""
        path = Path(path)
        folder = path if path.is_dir() else None
        file = path / "history.jsonl" if folder else path
        if not file.exists():
            raise FileNotFoundError(f"expected the folder of a run, or a history, got {str(path)!r}")
        header, records = read_history(file, decode_genome)
        try:
            check_shape(header, Header, "header")
            _check_settings(_upgrade_settings(header["settings"]), "header, settings")
        except ValueError as error:
            raise ValueError(f"{file}, line 1: {error}") from None
        summary = None
        if folder and (folder / "summary.json").exists():
            summary = read_summary(folder / "summary.json")
            if summary["counts"]["evaluated"] != len(records):
                summary = None  # from before the search was extended
            else:
                _check_winner(summary["best"], records, folder / "summary.json")
        budget = {}
        if folder and (folder / "settings.json").exists():
            settings = _upgrade_settings(read_json(folder / "settings.json", dict[str, Any]))
            _check_settings(settings, str(folder / "settings.json"))
            budget = {name: settings[name] for name in SearchSettings().budget() if name in settings}
        return cls(path.resolve().name if folder else path.stem, header, records, summary, budget)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the history, defaults for those that an older one lacks, and the budget if it is known."""
        return {**SearchSettings().to_dict(), **_upgrade_settings(self.header["settings"]), **self.budget}

    @property
    def all_settings(self) -> dict[str, Any]:
        """Those of the summary as well, once it is finished."""
        return {**self.settings, **(self.summary["settings"] if self.summary else {})}

    @property
    def winner(self) -> Record | None:
        """The finalist that was trained from scratch; before that the best by score."""
        return self.records[self.summary["best"]["index"]] if self.summary else self.best

    @property
    def best(self) -> Record | None:
        scored = (record for record in self.records if record.score is not None)
        return max(scored, key=lambda record: record.score, default=None)  # type: ignore[arg-type, return-value]

    @property
    def seconds(self) -> float:
        """Duration of all evaluations, summed over processes."""
        return sum(record.result.seconds for record in self.records)

    def best_so_far(self) -> list[float]:
        """The best score after each record; nan before the first score."""
        scores = [-math.inf if record.score is None else record.score for record in self.records]
        best = np.maximum.accumulate(np.array(scores)) if scores else np.array([])
        return [value if value > -math.inf else math.nan for value in best.tolist()]

    def random_baseline(self) -> list[float]:
        """Mean best score of 1, 2, … random genomes of the first generation, drawn without replacement; at most
        `MAX_RANDOM` values."""
        seeds = set(self.header.get("seed_genomes") or ())
        first = [r for r in self.records if r.generation == 0 and str(r.genome) not in seeds]
        scores = sorted(r.score for r in first if r.score is not None)
        # With i worse scores below it, a score is the best of n in C(i, n - 1) of all C(count, n) draws.
        expected, ways = [], np.ones(len(scores))
        for drawn in range(1, min(len(scores), MAX_RANDOM) + 1):
            expected.append(float(np.dot(ways, scores) / ways.sum()))
            ways = ways * np.maximum(np.arange(len(scores)) - drawn + 1, 0)
            ways /= ways.max() or 1.0
        return expected

    def facts(self) -> dict[str, str]:
        """Text, tokens, machine, command and versions, as far as the header records them."""
        header = self.header
        found = {"text": header.get("text")}
        data = header.get("data")
        if isinstance(data, dict):
            found |= {f"{part} tokens": f"{count:,}" for part, count in data.get("tokens", {}).items()}
        found["evaluation"] = f"{len(self.records):,} candidates in {duration(self.seconds)}"
        found["seed"] = str(self.settings.get("seed"))
        if machine := header.get("machine"):
            found["machine"] = machine_text(machine)
            found["arithmetic"] = PRECISIONS[self.settings["mixed_precision"]]
        found |= {name: header.get(name) for name in ("command", "commit")}
        found["versions"] = ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items())
        return {name: text for name, text in found.items() if text}

    def score_name(self) -> str:
        return "mean GLUE score" if self.settings["proxy"] == "glue" else "score: minus the loss, in nats"

    def group(self) -> str:
        """What it shares with runs that differ only in the seed."""
        settings = {name: value for name, value in self.settings.items() if name != "seed"}
        return json.dumps([settings, self.text()], sort_keys=True)

    def text(self) -> str:
        """Identifies the text, its held-out parts and their tokens: what makes losses comparable."""
        return json.dumps([self.header.get("text_digest"), *(self.settings.get(name) for name in COMPARED)])


# Settings that must be equal for losses to be comparable.
COMPARED = (
    *("train_file", "dataset_name", "dataset_config_name", "max_documents", "validation_fraction", "test_fraction"),
    *("split_seed", "tokenizer_name", "vocab_size", "sequence_length", "eval_sequences", "proxy_tasks", "proxy"),
)


def _value_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# Characters of the label of a group: longer ones are replaced by the name of a run.
MAX_LABEL = 60


def groups_of(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Runs that differ only in their seeds, under a label with what the groups differ in: `strategy=random`."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(run.group(), []).append(run)
    firsts = [members[0] for members in groups.values()]
    names = [n for n in MARKERS if n != "seed" and len({str(r.settings.get(n)) for r in firsts}) > 1]
    labels = [
        ", ".join(f"{name}={_value_text(run.settings.get(name))}" for name in names) or run.name for run in firsts
    ]
    labels = [label if len(label) <= MAX_LABEL else run.name for label, run in zip(labels, firsts, strict=True)]
    if len(set(labels)) < len(labels):  # they differ in the text
        labels = [f"{label}, {run.name}" for label, run in zip(labels, firsts, strict=True)]
    return dict(zip(labels, groups.values(), strict=True))


def same_text(runs: Sequence[RecordedRun]) -> bool:
    """Whether scores of the runs are comparable."""
    return len({run.text() for run in runs}) == 1
