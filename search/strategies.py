"""Strategies of a search: which births a generation has, given the records before it. Pure: no BERT, no torch.

A space is anything with `random(rng, draw)`, `mutate(genome, rng, draw)`, `crossover(genome, other, rng)`,
`operations(genome)` and `key(genome)`, and `size(genome)` for the size heuristic, `features(genome)` for Thompson
sampling; draws are optional, and uniform without one. What a strategy does not use, a space need not have.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from autobert_zero.search.priority import AdditivePriority, OperationPriority
from autobert_zero.search.records import Archive, Record


# Makes one genome, and says from which records.
Birth = Callable[[np.random.Generator], tuple[Any, tuple[int, ...]]]
# The births of a generation, given the records it may look at.
Strategy = Callable[[int, Archive], list[Birth]]


@dataclass(frozen=True)
class RandomSearch:
    """Random genomes, `population_size` in a generation; the first begins with the genomes `seeds`."""

    space: Any
    population_size: int
    seeds: tuple[Any, ...] = field(default=(), kw_only=True)

    def __call__(self, generation: int, archive: Archive) -> list[Birth]:
        births: list[Birth] = [self.birth] * self.population_size
        if generation == 0:
            births[: len(self.seeds)] = [partial(lambda seed, rng: (seed, ()), seed) for seed in self.seeds]
        return births

    def birth(self, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        return self.space.random(rng), ()


@dataclass(frozen=True)
class LargestFirst(RandomSearch):
    """The size heuristic: of `pool_size` random genomes the largest, by `space.size(genome)`."""

    pool_size: int = 10

    def birth(self, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        return max((self.space.random(rng) for _ in range(self.pool_size)), key=self.space.size), ()


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

    def __call__(self, generation: int, archive: Archive) -> list[Birth]:
        population = Archive(r for r in archive.records[-self.population_size :] if r.score is not None)
        if not population:
            return super().__call__(generation, archive)

        def birth(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            size = min(self.tournament_size, len(population))
            [parent] = Archive(population.records[i] for i in rng.choice(len(population), size, replace=False)).best(1)
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
        crossover_probability: that a child has a second parent, another of the best.
        objectives: "score" or names of costs. With several, the best are those of NSGA-II's population of M.
    """

    num_parents: int
    num_children: int
    crossover_probability: float = field(default=0.0, kw_only=True)
    objectives: tuple[str, ...] = field(default=("score",), kw_only=True)

    def parents(self, archive: Archive) -> list[Record]:
        if self.objectives == ("score",):
            return archive.best(self.num_parents)
        return archive.survivors(self.objectives, max(self.population_size, self.num_parents))[: self.num_parents]

    def __call__(self, generation: int, archive: Archive) -> list[Birth]:
        parents = self.parents(archive)
        if not parents:
            return super().__call__(generation, archive)
        mutate = self.mutation(archive)

        def child(parent: Record, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            genome, indices = parent.genome, [parent.index]
            if self.crossover_probability and rng.random() < self.crossover_probability and len(parents) > 1:
                other = parents[(parents.index(parent) + 1 + int(rng.integers(len(parents) - 1))) % len(parents)]
                genome, indices = self.space.crossover(genome, other.genome, rng), [parent.index, other.index]
            return mutate(genome, rng), tuple(indices)

        return [partial(child, parent) for parent in parents for _ in range(self.num_children)]

    def mutation(self, archive: Archive) -> Callable[[Any, np.random.Generator], Any]:
        return self.space.mutate


@dataclass(frozen=True)
class OpNas(Evolution):
    """Operation-priority evolution: plain evolution, but operations are drawn by priority.

    Args: those of `Evolution`, and
        alpha, temperature, decay: of the `OperationPriority`.
    """

    alpha: float = 0.2
    temperature: float = 0.3
    decay: float = 1.0

    def mutation(self, archive: Archive) -> Callable[[Any, np.random.Generator], Any]:
        operations = archive.incidence(self.space.operations)
        draw = OperationPriority(operations, archive.scores, self.alpha, self.temperature, self.decay)
        return partial(self.space.mutate, draw=draw)


@dataclass(frozen=True)
class ThompsonOpNas(Evolution):
    """Evolution whose children are the best of many, by an `AdditivePriority` of operations at their places.

    For each child one sample of the effects is drawn, and of `pool_size` children of plain evolution the one with the
    highest sum of them is taken.

    Args: those of `Evolution`, and
        pool_size: children that one is chosen from.
        noise, prior: of the `AdditivePriority`.
    """

    pool_size: int = 30
    noise: float = 0.5
    prior: float = 1.0

    def __call__(self, generation: int, archive: Archive) -> list[Birth]:
        births = super().__call__(generation, archive)
        if not self.parents(archive):
            return births
        priority = AdditivePriority(archive.incidence(self.space.features), archive.scores, self.noise, self.prior)

        def birth(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            score = priority.sample(rng)
            pool = [births[int(rng.integers(len(births)))](rng) for _ in range(self.pool_size)]
            new = [child for child in pool if self.space.key(child[0]) not in archive.keys]
            return max(new or pool, key=lambda child: score(self.space.features(child[0])))

        return [birth] * len(births)
