"""Records of candidates, and an archive of them that strategies ask.

Everything an archive answers it keeps up to date at the cost of what is new, so that a search of 100,000 candidates
proposes as fast as one of a hundred.
"""

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from autobert_zero.search.pareto import first_front, nsga2_order


@dataclass(frozen=True)
class Record:
    """A candidate and, once evaluated, what came of it.

    Attributes:
        index: its place in the history.
        key: functional key of the genome.
        genome: whatever the space makes.
        generation: 0 for the first population.
        parents: indices of the records it descends from.
        duplicates: how many proposals were known already and dropped before this one.
        status: "ok", "failed" or, clearly behind at the hurdle, "dropped"; the latter two with a `reason`.
        score: higher is better; None if it failed or was dropped.
        hurdle: its score at the hurdle, if it came there.
        costs: what a limit or an objective is about, by name; lower is better.
        seconds: what the evaluation took.
    """

    index: int
    key: str
    genome: Any
    generation: int
    parents: tuple[int, ...] = ()
    duplicates: int = 0
    status: Literal["proposed", "ok", "failed", "dropped"] = "proposed"
    score: float | None = None
    reason: str | None = None
    hurdle: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def evaluated(self, **outcome: Any) -> "Record":
        """The record with what came of it: fields from `status` on; without a status "ok" or, without a score, "failed"."""
        outcome.setdefault("status", "failed" if outcome.get("score") is None else "ok")
        return replace(self, **outcome)


def objective_values(records: Sequence[Record], objectives: Sequence[str]) -> np.ndarray:
    """(records, objectives), lower is better: costs, and minus the score."""
    rows = [[-r.score if name == "score" else r.costs[name] for name in objectives] for r in records]  # type: ignore[operator]
    return np.array(rows).reshape(len(records), len(objectives))


def pareto_front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The records with a score that no other beats in all objectives, by their first objective."""
    succeeded = [record for record in records if record.score is not None]
    if not succeeded:
        return []
    return [succeeded[i] for i in first_front(objective_values(succeeded, objectives))]


class Incidence:
    """Which records have which names; rows are records, columns are names in the order of their first sight."""

    def __init__(self) -> None:
        self.columns: dict[str, int] = {}
        self._starts = array("q", [0])  # of each record in `_entries`
        self._entries = array("q")
        self._gram = np.zeros((0, 0))
        self._in_gram = 0

    def __len__(self) -> int:
        return len(self._starts) - 1

    def append(self, names: Sequence[str]) -> None:
        """A record with these names, which are distinct."""
        self._entries.extend(self.columns.setdefault(name, len(self.columns)) for name in names)
        self._starts.append(len(self._entries))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """For each name the sum of `values`, one a record, over the records that have it."""
        weights = np.repeat(values, np.diff(np.array(self._starts)))
        return np.bincount(np.array(self._entries), weights, minlength=len(self.columns))

    def gram(self) -> np.ndarray:
        """For each two names how many records have both."""
        missing = len(self.columns) - len(self._gram)
        self._gram = np.pad(self._gram, (0, missing))
        for row in range(self._in_gram, len(self)):
            names = self._entries[self._starts[row] : self._starts[row + 1]]
            self._gram[np.ix_(names, names)] += 1
        self._in_gram = len(self)
        return self._gram


class Archive:
    """The evaluated records that a strategy may look at, in their order."""

    def __init__(self, records: Iterable[Record] = ()):
        self.records: list[Record] = []
        self.keys: set[str] = set()
        self._scores = array("d")
        self._hurdles = array("d")
        self._survivors: list[Record] = []
        self._survived = 0  # records that selection has seen
        self._incidences: dict[Callable[[Any], Sequence[str]], Incidence] = {}
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: Record) -> None:
        self.records.append(record)
        self.keys.add(record.key)
        self._scores.append(-math.inf if record.score is None else record.score)
        if record.hurdle is not None:
            self._hurdles.append(record.hurdle)

    @property
    def scores(self) -> np.ndarray:
        """Of all records; -inf for one that failed."""
        return np.array(self._scores)

    def hurdle(self, share: float) -> float | None:
        """The score at the hurdle that a share of all that came there are below; None before anybody did."""
        return float(np.quantile(np.array(self._hurdles), share)) if self._hurdles else None

    def best(self, count: int) -> list[Record]:
        """The `count` best records that succeeded, the best first; of equal scores the earlier."""
        scores = self.scores
        order = np.argsort(-scores, kind="stable")[:count]
        return [self.records[i] for i in order if scores[i] > -math.inf]

    def survivors(self, objectives: tuple[str, ...], count: int) -> list[Record]:
        """The population of NSGA-II after all generations, its best first: of those that survived, and each generation
        in turn, the `count` best in NSGA-II's order. Objectives are "score" or names of costs; always the same ones.
        """
        new = (record for record in self.records[self._survived :] if record.score is not None)
        for _, generation in itertools.groupby(new, key=lambda record: record.generation):
            pool = [*self._survivors, *generation]
            order = nsga2_order(objective_values(pool, objectives))
            self._survivors = [pool[i] for i in order[:count]]
        self._survived = len(self)
        return self._survivors

    def incidence(self, names: Callable[[Any], Sequence[str]]) -> Incidence:
        """Which records have which names, by a function of their genomes that is called once for each record."""
        incidence = self._incidences.setdefault(names, Incidence())
        for record in self.records[len(incidence) :]:
            incidence.append(names(record.genome))
        return incidence
