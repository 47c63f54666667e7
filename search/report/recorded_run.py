"""A run as its files record it: its history, also during the search, and its summary once it is finished."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autobert_zero.search.evolution.archive import Record
from autobert_zero.search.evolution.history import OLD_PARTS, read_history
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.report.tables import duration, machine_text
from autobert_zero.search.settings import MARKERS, RENAMED, SearchSettings


# Maximum length of the curve of random search.
MAX_RANDOM = 200


def _upgrade_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names of today; runs from before there was a choice of operations used those of the paper."""
    return {"operations": ["paper"], **{RENAMED.get(name, name): value for name, value in values.items()}}


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a finished run; one of an older version with the names of today."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    return {
        **summary,
        "custom_operations": summary.get("custom_operations", summary.get("own_operations")),
        "settings": _upgrade_settings(summary["settings"]),
        "tokens": {OLD_PARTS.get(name, name): count for name, count in summary["tokens"].items()},
    }


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
    summary: dict[str, Any] | None = None
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
        summary = None
        if folder and (folder / "summary.json").exists():
            summary = read_summary(folder / "summary.json")
            if summary["counts"]["evaluated"] != len(records):
                summary = None  # from before the search was extended
        budget = {}
        if folder and (folder / "settings.json").exists():
            settings = _upgrade_settings(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
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
        """Identifies its text; the split and the tokens also depend on the seed."""
        names = ("train_file", "dataset_name", "dataset_config_name", "max_documents", "proxy_tasks", "proxy")
        return json.dumps([self.header.get("text_digest"), *(self.settings[name] for name in names)])


def groups_of(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Runs that differ only in their seeds, under a label with what the groups differ in: `strategy=random`."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(run.group(), []).append(run)
    firsts = [members[0] for members in groups.values()]
    names = [n for n in MARKERS if n != "seed" and len({str(r.settings.get(n)) for r in firsts}) > 1]
    labels = [", ".join(f"{name}={run.settings.get(name)}" for name in names) or run.name for run in firsts]
    if len(set(labels)) < len(labels):  # they differ in the text
        labels = [f"{label}, {run.name}" for label, run in zip(labels, firsts, strict=True)]
    return dict(zip(labels, groups.values(), strict=True))


def same_text(runs: Sequence[RecordedRun]) -> bool:
    """Whether scores of the runs are comparable."""
    return len({run.text() for run in runs}) == 1
