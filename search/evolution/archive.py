"""Records of candidates, and an archive of them that strategies query.

An archive updates its answers incrementally, so that a search of 100,000 candidates proposes as fast as one of 100.
"""

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from autobert_zero.search.evolution.pareto import first_front, nsga2_order


@dataclass(frozen=True)
class Outcome:
    """Result of an evaluation.

    Attributes:
        status: "ok", "failed" or "pruned"; the latter two with a `reason`.
        score: higher is better; None if it failed or was pruned.
        intermediate_score: the score when pruning was decided, if the evaluation got that far.
        costs: what limits and objectives refer to, by name; lower is better.
        seconds: duration of the evaluation.
    """

    status: Literal["ok", "failed", "pruned"] = "ok"
    score: float | None = None
    reason: str | None = None
    intermediate_score: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Record:
    """A candidate: as it was proposed and, once evaluated, with its outcome.

    Attributes:
        index: position in the history.
        key: functional key of the genome.
        genome: of whatever type the space has.
        generation: 0 for the first population.
        parents: indices of the records it descends from.
        duplicates: number of proposals discarded before this one because they were known already.
        outcome: None until it is evaluated.
    """

    index: int
    key: str
    genome: Any
    generation: int
    parents: tuple[int, ...] = ()
    duplicates: int = 0
    outcome: Outcome | None = None

    def evaluated(self, outcome: Outcome) -> "Record":
        """The record with its outcome."""
        return replace(self, outcome=outcome)

    @property
    def result(self) -> Outcome:
        """The outcome of an evaluated record."""
        assert self.outcome is not None
        return self.outcome

    @property
    def score(self) -> float | None:
        """None if it failed, was pruned, or is not evaluated yet."""
        return None if self.outcome is None else self.outcome.score


def objective_values(records: Sequence[Record], objectives: Sequence[str]) -> np.ndarray:
    """(records, objectives), lower is better: costs, and the negated score."""
    rows = [[-r.score if name == "score" else r.result.costs[name] for name in objectives] for r in records]  # type: ignore[operator]
    return np.array(rows).reshape(len(records), len(objectives))


def pareto_front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The records with a score that no other dominates, ordered by their first objective."""
    succeeded = [record for record in records if record.score is not None]
    if not succeeded:
        return []
    return [succeeded[i] for i in first_front(objective_values(succeeded, objectives))]


class Incidence:
    """Which records have which names: rows are records, columns are names in order of first appearance."""

    def __init__(self) -> None:
        self.columns: dict[str, int] = {}
        self._starts = array("q", [0])  # where the entries of each record start
        self._entries = array("q")
        self._gram = np.zeros((0, 0))
        self._in_gram = 0

    def __len__(self) -> int:
        return len(self._starts) - 1

    def append(self, names: Sequence[str]) -> None:
        """Add a record with these names, which must be distinct."""
        self._entries.extend(self.columns.setdefault(name, len(self.columns)) for name in names)
        self._starts.append(len(self._entries))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """For each name the sum of `values` (one per record) over the records that have it."""
        weights = np.repeat(values, np.diff(np.array(self._starts)))
        return np.bincount(np.array(self._entries), weights, minlength=len(self.columns))

    def gram(self) -> np.ndarray:
        """For each pair of names the number of records that have both."""
        missing = len(self.columns) - len(self._gram)
        self._gram = np.pad(self._gram, (0, missing))
        for row in range(self._in_gram, len(self)):
            names = self._entries[self._starts[row] : self._starts[row + 1]]
            self._gram[np.ix_(names, names)] += 1
        self._in_gram = len(self)
        return self._gram


class Archive:
    """The evaluated records that a strategy may use, in order."""

    def __init__(self, records: Iterable[Record] = ()):
        self.records: list[Record] = []
        self.keys: set[str] = set()
        self._scores = array("d")
        self._intermediate_scores = array("d")
        self._survivors: list[Record] = []
        self._num_selected = 0  # records that survivor selection has considered
        self._incidences: dict[Callable[[Any], Sequence[str]], Incidence] = {}
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: Record) -> None:
        self.records.append(record)
        self.keys.add(record.key)
        self._scores.append(-math.inf if record.score is None else record.score)
        if (score := record.result.intermediate_score) is not None:
            self._intermediate_scores.append(score)

    @property
    def scores(self) -> np.ndarray:
        """Scores of all records; -inf for those without one."""
        return np.array(self._scores)

    def pruning_threshold(self, fraction: float) -> float | None:
        """The quantile of all intermediate scores below which a candidate is pruned; None before there is one."""
        scores = np.array(self._intermediate_scores)
        return float(np.quantile(scores, fraction)) if len(scores) else None

    def best(self, count: int) -> list[Record]:
        """The `count` best records with a score, best first; ties in the order of the records."""
        scores = self.scores
        order = np.argsort(-scores, kind="stable")[:count]
        return [self.records[i] for i in order if scores[i] > -math.inf]

    def survivors(self, objectives: tuple[str, ...], count: int) -> list[Record]:
        """The population of NSGA-II after all generations, best first: each generation in turn is merged with the
        survivors, of which the `count` best in NSGA-II's order remain.

        Args:
            objectives: "score" or names of costs; the same ones in every call.
        """
        new = (record for record in self.records[self._num_selected :] if record.score is not None)
        for _, generation in itertools.groupby(new, key=lambda record: record.generation):
            pool = [*self._survivors, *generation]
            order = nsga2_order(objective_values(pool, objectives))
            self._survivors = [pool[i] for i in order[:count]]
        self._num_selected = len(self)
        return self._survivors

    def incidence(self, names: Callable[[Any], Sequence[str]]) -> Incidence:
        """Which records have which names, by a function of the genome that is called once per record."""
        incidence = self._incidences.setdefault(names, Incidence())
        for record in self.records[len(incidence) :]:
            incidence.append(names(record.genome))
        return incidence
