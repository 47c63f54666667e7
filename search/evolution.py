"""The search loop and its strategies. Knows neither BERT nor torch.

A space is anything with `random(rng, draw)`, `mutate(genome, rng, draw)`, `operations(genome)` and `key(genome)`, and
`size(genome)` for the size heuristic, `features(genome)` for Thompson sampling; draws are optional, and uniform without
one. Evaluation is handed in; a history is a list of records, in memory or on disk.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from autobert_zero.search.priority import AdditivePriority, OperationPriority
from autobert_zero.search.settings import stream


# How often a child is drawn anew when what comes is known already.
MAX_TRIES = 50


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
        status: "ok", or "failed" with a `reason`.
        score: higher is better; None if it failed.
        seconds: what the evaluation took.
    """

    index: int
    key: str
    genome: Any
    generation: int
    parents: tuple[int, ...] = ()
    duplicates: int = 0
    status: Literal["proposed", "ok", "failed"] = "proposed"
    score: float | None = None
    reason: str | None = None
    seconds: float = 0.0

    def evaluated(self, score: float | None, reason: str | None, seconds: float) -> "Record":
        """The record with what came of it: a score, or the reason why there is none."""
        status: Literal["ok", "failed"] = "failed" if score is None else "ok"
        return replace(self, status=status, score=score, reason=reason, seconds=seconds)


class HistoryMismatch(ValueError):
    """The history is not one of this search."""


# Makes one genome, and says from which records.
Birth = Callable[[np.random.Generator], tuple[Any, tuple[int, ...]]]
# The births of a generation, given all records of the generations before it.
Strategy = Callable[[int, Sequence[Record]], list[Birth]]


def best(records: Iterable[Record], count: int) -> list[Record]:
    """The `count` best records that succeeded, the best first; of equal scores the earlier."""
    succeeded = [record for record in records if record.score is not None]
    return sorted(succeeded, key=lambda record: (-record.score, record.index))[:count]  # type: ignore[operator]


@dataclass(frozen=True)
class RandomSearch:
    """Random genomes, `population_size` in a generation."""

    space: Any
    population_size: int

    def __call__(self, generation: int, records: Sequence[Record]) -> list[Birth]:
        return [lambda rng: (self.space.random(rng), ())] * self.population_size


@dataclass(frozen=True)
class LargestFirst(RandomSearch):
    """The size heuristic: of `pool_size` random genomes the largest, by `space.size(genome)`."""

    pool_size: int = 10

    def __call__(self, generation: int, records: Sequence[Record]) -> list[Birth]:
        def birth(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            return max((self.space.random(rng) for _ in range(self.pool_size)), key=self.space.size), ()

        return [birth] * self.population_size


@dataclass(frozen=True)
class RegularizedEvolution(RandomSearch):
    """Regularised evolution (Real et al., AAAI 2019): the population are the youngest; the best of a random few of
    them has a child.

    Args:
        space: see the module.
        population_size: how many of the youngest records are the population.
        tournament_size: how many of them are drawn for each child.
        num_children: children in a generation; 1 in the original.
    """

    tournament_size: int
    num_children: int = 1

    def __call__(self, generation: int, records: Sequence[Record]) -> list[Birth]:
        population = [record for record in records[-self.population_size :] if record.score is not None]
        if not population:
            return super().__call__(generation, records)

        def birth(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            size = min(self.tournament_size, len(population))
            [parent] = best((population[i] for i in rng.choice(len(population), size, replace=False)), 1)
            return self.space.mutate(parent.genome, rng), (parent.index,)

        return [birth] * self.num_children


@dataclass(frozen=True)
class Evolution(RandomSearch):
    """Plain evolution: a random population, then children of the best, their operations drawn uniformly.

    Args:
        space: see the module.
        population_size: M, genomes of the first generation.
        num_parents: K, best records of all that have children.
        num_children: C, children of each parent.
    """

    num_parents: int
    num_children: int

    def __call__(self, generation: int, records: Sequence[Record]) -> list[Birth]:
        parents = best(records, self.num_parents)
        if not parents:
            return super().__call__(generation, records)
        mutate = self.mutation(records)

        def child(parent: Record, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            return mutate(parent.genome, rng), (parent.index,)

        return [partial(child, parent) for parent in parents for _ in range(self.num_children)]

    def mutation(self, records: Sequence[Record]) -> Callable[[Any, np.random.Generator], Any]:
        return self.space.mutate


@dataclass(frozen=True)
class OpNas(Evolution):
    """Operation-priority evolution: plain evolution, but operations are drawn by priority.

    Args: those of `Evolution`, and
        alpha, temperature: of the `OperationPriority`.
    """

    alpha: float
    temperature: float

    def mutation(self, records: Sequence[Record]) -> Callable[[Any, np.random.Generator], Any]:
        evaluated = [(self.space.operations(record.genome), record.score) for record in records]
        return partial(self.space.mutate, draw=OperationPriority(evaluated, self.alpha, self.temperature))


@dataclass(frozen=True)
class ThompsonOpNas(Evolution):
    """Evolution whose children are the best of many, by an `AdditivePriority` of operations at their places.

    For each child one sample of the effects is drawn, and of `pool_size` mutations of the parents the one with the
    highest sum of them is taken.

    Args: those of `Evolution`, and
        pool_size: mutations that a child is chosen from.
        noise, prior: of the `AdditivePriority`.
    """

    pool_size: int = 30
    noise: float = 0.5
    prior: float = 1.0

    def __call__(self, generation: int, records: Sequence[Record]) -> list[Birth]:
        parents = best(records, self.num_parents)
        if not parents:
            return super().__call__(generation, records)
        space, known = self.space, {record.key for record in records}
        evaluated = [(space.features(record.genome), record.score) for record in records]
        priority = AdditivePriority(evaluated, self.noise, self.prior)

        def birth(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            score = priority.sample(rng)
            drawn = [parents[int(rng.integers(len(parents)))] for _ in range(self.pool_size)]
            pool = [(space.mutate(parent.genome, rng), (parent.index,)) for parent in drawn]
            new = [child for child in pool if space.key(child[0]) not in known]
            return max(new or pool, key=lambda child: score(space.features(child[0])))

        return [birth] * (self.num_parents * self.num_children)


def propose(
    space: Any, births: Sequence[Birth], generation: int, records: Sequence[Record], seed: int
) -> list[Record]:
    """The candidates of a generation: each a function of (seed, generation, child), none known already.

    A child that is known, in `records` or in this generation, is drawn anew, at most `MAX_TRIES` times; then random
    genomes are tried as often, for it may be the parent alone that has no new child; then its place stays empty.
    """
    known = {record.key for record in records}
    proposals: list[Record] = []
    for child, birth in enumerate(births):
        for duplicates in range(2 * MAX_TRIES):
            rng = stream(seed, "proposal", generation, child, duplicates)
            genome, parents = birth(rng) if duplicates < MAX_TRIES else (space.random(rng), ())
            key = space.key(genome)
            if key not in known:
                known.add(key)
                index = len(records) + len(proposals)
                proposals.append(Record(index, key, genome, generation, parents, duplicates))
                break
    return proposals


def first_generation(space: Any, strategy: Strategy, seed: int) -> list[Record]:
    """What a search begins with, not evaluated."""
    return propose(space, strategy(0, []), 0, [], seed)


def evolve(
    space: Any,
    strategy: Strategy,
    evaluate: Callable[[list[Record]], Iterable[Record]],
    history: list[Record],
    seed: int,
    max_evaluations: int,
) -> str:
    """Search until `max_evaluations` records stand in `history`, or the space has no new candidate.

    Args:
        evaluate: takes proposed records, gives them back evaluated, in the same order.
        history: records of what is done already; continued where it stops, in the middle of a generation too.

    Returns: "budget spent" or "space exhausted".

    Raises: HistoryMismatch where the history is not one of this search (other seed, strategy, space or version); its
        last generation is what is compared.
    """
    generation = history[-1].generation if history else 0
    while len(history) < max_evaluations:
        earlier = [record for record in history if record.generation < generation]
        done = history[len(earlier) :]
        proposals = propose(space, strategy(generation, earlier), generation, earlier, seed)
        for record, proposal in zip(done, proposals, strict=False):
            if record.key != proposal.key:
                raise HistoryMismatch(
                    f"history: expected candidate {proposal.index} to have the key {proposal.key}, got {record.key}"
                )
        if not proposals:
            return "space exhausted"
        remaining = proposals[len(done) : max_evaluations - len(earlier)]
        for record in evaluate(remaining) if remaining else ():
            history.append(record)
        generation += 1
    return "budget spent"
