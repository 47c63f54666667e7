"""Small searches for the tests of this folder."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.loop import evolve
from autobert_zero.search.evolution.strategies import (
    Evolution,
    LargestFirst,
    OpNas,
    RandomSearch,
    RegularizedEvolution,
    ThompsonOpNas,
)
from tests.conftest import SPACE


OP_NAS = OpNas(SPACE, population_size=8, num_parents=2, num_children=3, alpha=0.2, temperature=0.3)
STRATEGIES = [
    OP_NAS,
    RandomSearch(SPACE, 8),
    Evolution(SPACE, 8, 2, 3),
    RegularizedEvolution(SPACE, 8, 3),
    LargestFirst(SPACE, 8, 4),
    ThompsonOpNas(SPACE, 8, 2, 3, pool_size=6),
]


@dataclass
class Evaluation:
    """Evaluates a record as late as possible: when its outcome is requested."""

    evaluate: Callable[[Record], Outcome]
    record: Record

    def result(self) -> Outcome:
        return self.evaluate(self.record)


def fitness(genome) -> float:
    """A toy: short expressions with `softmax`, small kernels."""
    return str(genome).count("softmax") - 0.01 * len(str(genome))


def evaluate(record: Record) -> Outcome:
    return Outcome(score=fitness(record.genome))


def best(records: list[Record], count: int) -> list[Record]:
    return Archive(records).best(count)


def search(
    strategy=OP_NAS, seed=0, count=60, history=None, evaluate=evaluate, space=SPACE, lookahead=0
) -> list[Record]:
    """The history of a search; a given one is extended."""
    history = [] if history is None else history
    before = len(history)
    new = list(
        evolve(space, strategy, lambda record, archive: Evaluation(evaluate, record), history, seed, count, lookahead)
    )
    assert new == history[before:]
    return history


def trace_digest(history: list[Record]) -> str:
    trace = [(r.index, r.key, str(r.genome), r.generation, r.parents, r.duplicates) for r in history]
    return hashlib.sha256(json.dumps(trace).encode()).hexdigest()[:16]
