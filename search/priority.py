"""Operation priority: operations that did well are drawn more often, balanced by an upper confidence bound.

Every operation i has `u_i = mean_i + alpha * sqrt(2 ln N / N_i)`: `mean_i` is the mean score of the candidates that
contain it, `N_i` the number of these candidates, `N` the sum of all `N_i`. Among some operations, one is drawn with
probability softmax(u / temperature).

Departures from the paper's OP-NAS, as it is generally described:

1. Scores enter as ranks from 0 (worst) to 1 (best), so that alpha means the same at any scale of the score and one
   diverged candidate does not drown the others. Failed candidates rank lowest.
2. The softmax has a temperature.
3. `N_i` counts evaluated candidates with the operation, not draws of it: it can be replayed from the history alone.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np


def ranks(scores: Sequence[float | None]) -> list[float]:
    """Scores (None: failed) as ranks in [0, 1], the best 1; equal scores share the mean of their ranks."""
    values = np.array([-math.inf if score is None else score for score in scores])
    if len(values) < 2:
        return [0.5] * len(values)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return ((first + (counts - 1) / 2)[inverse] / (len(values) - 1)).tolist()


class OperationPriority:
    """A way to draw operations: call it with some names and a random generator.

    Args:
        evaluated: for each evaluated candidate the operations it contains and its score, None if it failed.
        alpha: weight of the confidence bound, in units of ranks (0 to 1).
        temperature: of the softmax; towards 0 always the best is drawn, large draws uniformly.
    """

    def __init__(
        self, evaluated: Iterable[tuple[Sequence[str], float | None]], alpha: float = 0.2, temperature: float = 0.3
    ):
        self.alpha = alpha
        self.temperature = temperature
        self.counts: dict[str, int] = {}
        self.sums: dict[str, float] = {}
        evaluated = list(evaluated)
        for (operations, _), rank in zip(evaluated, ranks([score for _, score in evaluated]), strict=True):
            for name in operations:
                self.counts[name] = self.counts.get(name, 0) + 1
                self.sums[name] = self.sums.get(name, 0.0) + rank
        self.total = sum(self.counts.values())

    def upper_bound(self, name: str) -> float:
        """u of an operation. One that was never seen has the best possible mean and the bound of a single sight."""
        count = self.counts.get(name, 0)
        mean = self.sums[name] / count if count else 1.0
        return mean + self.alpha * math.sqrt(2 * math.log(max(self.total, 1)) / max(count, 1))

    def probabilities(self, names: Sequence[str]) -> np.ndarray:
        bounds = np.array([self.upper_bound(name) for name in names]) / self.temperature
        weights = np.exp(bounds - bounds.max())
        return weights / weights.sum()

    def __call__(self, names: Sequence[str], rng: np.random.Generator) -> str:
        return names[int(rng.choice(len(names), p=self.probabilities(names)))]
