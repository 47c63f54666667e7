"""Strategies: which candidates to propose in a generation, given the records before it.

A space is any object with `random(rng, choose)`, `mutate(genome, rng, choose)`, `crossover(genome, other, rng)`,
`operations(genome)` and `key(genome)`, `size(genome)` for the size heuristic and `features(genome)` for Thompson
sampling; `choose` is optional, by default uniform. A space needs only the methods that its strategy uses.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from autobert_zero.search.evolution.archive import Archive, Record
from autobert_zero.search.evolution.limits import InfeasibleLimits
from autobert_zero.search.evolution.priority import AdditivePriority, OperationPriority


# Proposes one genome, with the indices of its parents.
Proposer = Callable[[np.random.Generator], tuple[Any, tuple[int, ...]]]
# The proposers of a generation, given the records that it may use.
Strategy = Callable[[int, Archive], list[Proposer]]


@dataclass(frozen=True)
class RandomSearch:
    """Random genomes, `population_size` in a generation; the first generation starts with the genomes `seeds`."""

    space: Any
    population_size: int
    seeds: tuple[Any, ...] = field(default=(), kw_only=True)

    def __call__(self, generation: int, archive: Archive) -> list[Proposer]:
        proposers: list[Proposer] = [self.propose_random] * self.population_size
        if generation == 0:
            proposers[: len(self.seeds)] = [partial(lambda seed, rng: (seed, ()), seed) for seed in self.seeds]
        return proposers

    def propose_random(self, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        return self.space.random(rng), ()


@dataclass(frozen=True)
class LargestFirst(RandomSearch):
    """The size heuristic: the largest of `pool_size` random genomes, by `space.size(genome)`."""

    pool_size: int = 10

    def propose_random(self, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        return max((self.space.random(rng) for _ in range(self.pool_size)), key=self.space.size), ()


@dataclass(frozen=True)
class RegularizedEvolution(RandomSearch):
    """Regularized evolution (Real et al., AAAI 2019): the population is the youngest records; the best of a random
    tournament among them is the parent.

    Args:
        space: see the module.
        population_size: number of youngest records in the population.
        tournament_size: records in the tournament of each child.
        num_children: children in a generation; 1 in the original.
    """

    tournament_size: int
    num_children: int = 1

    def __call__(self, generation: int, archive: Archive) -> list[Proposer]:
        population = Archive(r for r in archive.records[-self.population_size :] if r.score is not None)
        if not population:
            return super().__call__(generation, archive)

        def propose_child(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            size = min(self.tournament_size, len(population))
            [parent] = Archive(population.records[i] for i in rng.choice(len(population), size, replace=False)).best(1)
            return self.space.mutate(parent.genome, rng), (parent.index,)

        return [propose_child] * self.num_children


@dataclass(frozen=True)
class Evolution(RandomSearch):
    """Plain evolution: a random population, then children of the best, with uniformly chosen operations.

    Args:
        space: see the module.
        population_size: M, genomes of the first generation.
        num_parents: K, best of all records, which have children.
        num_children: C, children of each parent.
        crossover_probability: probability that a child has a second parent, another of the best.
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

    def __call__(self, generation: int, archive: Archive) -> list[Proposer]:
        parents = self.parents(archive)
        if not parents:
            return super().__call__(generation, archive)
        mutate = self.mutation(archive)

        def propose_child(parent: Record, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            genome, indices = parent.genome, [parent.index]
            if self.crossover_probability and rng.random() < self.crossover_probability and len(parents) > 1:
                other = parents[(parents.index(parent) + 1 + int(rng.integers(len(parents) - 1))) % len(parents)]
                genome, indices = self.space.crossover(genome, other.genome, rng), [parent.index, other.index]
            return mutate(genome, rng), tuple(indices)

        return [partial(propose_child, parent) for parent in parents for _ in range(self.num_children)]

    def mutation(self, archive: Archive) -> Callable[[Any, np.random.Generator], Any]:
        return self.space.mutate


@dataclass(frozen=True)
class OpNas(Evolution):
    """Operation-priority evolution: plain evolution, with operations chosen by priority.

    Args: those of `Evolution`, and
        alpha, temperature, decay: of the `OperationPriority`.
    """

    alpha: float = 0.2
    temperature: float = 0.3
    decay: float = 1.0

    def mutation(self, archive: Archive) -> Callable[[Any, np.random.Generator], Any]:
        operations = archive.incidence(self.space.operations)
        priority = OperationPriority(operations, archive.scores, self.alpha, self.temperature, self.decay)
        return partial(self.space.mutate, choose=priority)


@dataclass(frozen=True)
class ThompsonOpNas(Evolution):
    """Evolution that selects each child from many, by an `AdditivePriority` of operations at their positions.

    For each child the effects are sampled once, and of `pool_size` children of plain evolution the one with the
    highest sum of effects is proposed.

    Args: those of `Evolution`, and
        pool_size: children to select from.
        noise, prior: of the `AdditivePriority`.
    """

    pool_size: int = 30
    noise: float = 0.5
    prior: float = 1.0

    def __call__(self, generation: int, archive: Archive) -> list[Proposer]:
        proposers = super().__call__(generation, archive)
        if not self.parents(archive):
            return proposers
        priority = AdditivePriority(archive.incidence(self.space.features), archive.scores, self.noise, self.prior)

        def propose_best(rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
            score = priority.sample(rng)
            pool = []
            for _ in range(self.pool_size):
                with contextlib.suppress(InfeasibleLimits):
                    pool.append(proposers[int(rng.integers(len(proposers)))](rng))
            if not pool:
                raise InfeasibleLimits("expected limits that some children keep, got none")
            new = [child for child in pool if self.space.key(child[0]) not in archive.keys]
            return max(new or pool, key=lambda child: score(self.space.features(child[0])))

        return [propose_best] * len(proposers)
