"""Limits of the costs of candidates, for any space."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


# Random and mutated genomes tried until one is within the limits. A try takes about a millisecond, and strategies may
# mutate dozens of times for one child.
MAX_TRIES = 1000
MAX_MUTATIONS = 200


class InfeasibleLimits(ValueError):
    """No genome within the limits was found."""


class LimitedSpace:
    """The genomes of a space whose costs are within limits.

    Args:
        space: the unlimited space.
        costs: function from a genome to its costs by name.
        limits: the maximum of each cost.
    """

    def __init__(self, space: Any, costs: Callable[[Any], Mapping[str, float]], limits: Mapping[str, float]):
        self.space = space
        self.costs = costs
        self.limits = dict(limits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def contains(self, genome: Any) -> bool:
        return self.space.contains(genome) and self.within(genome)

    def within(self, genome: Any) -> bool:
        costs = self.costs(genome)
        return all(costs[name] <= limit for name, limit in self.limits.items())

    def random(self, rng: np.random.Generator) -> Any:
        """Raises: InfeasibleLimits if none of `MAX_TRIES` genomes is within the limits."""
        minimum = dict.fromkeys(self.limits, float("inf"))
        for _ in range(MAX_TRIES):
            if self.within(genome := self.space.random(rng)):
                return genome
            costs = self.costs(genome)
            minimum = {name: min(value, costs[name]) for name, value in minimum.items()}
        wanted = ", ".join(f"max_{name}={limit:,.0f}" for name, limit in self.limits.items())
        found = ", ".join(f"{name} {value:,.0f}" for name, value in minimum.items())
        raise InfeasibleLimits(
            f"{wanted}: expected limits that some genomes keep, got none in {MAX_TRIES}; minimum {found}"
        )

    def mutate(self, genome: Any, rng: np.random.Generator, **choose: Any) -> Any:
        """A child within the limits. Raises: InfeasibleLimits if none of `MAX_MUTATIONS` is."""
        for _ in range(MAX_MUTATIONS):
            if self.within(child := self.space.mutate(genome, rng, **choose)):
                return child
        raise InfeasibleLimits(f"expected limits that some children keep, got none in {MAX_MUTATIONS}")

    def crossover(self, genome: Any, other: Any, rng: np.random.Generator) -> Any:
        child = self.space.crossover(genome, other, rng)
        return child if self.within(child) else genome
