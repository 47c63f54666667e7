"""Operation priority: what did well is drawn more often, balanced against what was seen seldom.

Two of them: `OperationPriority` is the paper's, for operations wherever they stand. `AdditivePriority` also knows where:
it holds the score of a genome for a sum of the effects of its features (an operation at a place), and one sample of
these effects from what the history leaves possible (Thompson sampling) ranks whole children.

`OperationPriority`: every operation i has `u_i = mean_i + alpha * sqrt(2 ln N / N_i)`: `mean_i` is the mean score of the candidates that
contain it, `N_i` the number of these candidates, `N` the sum of all `N_i`. Among some operations, one is drawn with
probability softmax(u / temperature).

Departures from the paper's OP-NAS, as it is generally described:

1. Scores enter as ranks from 0 (worst) to 1 (best), so that alpha means the same at any scale of the score and one
   diverged candidate does not drown the others. Failed candidates rank lowest.
2. The softmax has a temperature.
3. `N_i` counts evaluated candidates with the operation, not draws of it: it can be replayed from the history alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence

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


class AdditivePriority:
    """Effects of features on the score, as far as the history tells: Bayesian linear regression on ranks.

    Args:
        evaluated: for each evaluated candidate its features and its score, None if it failed.
        noise: standard deviation of what the sum of effects does not explain, in units of that of the scores.
        prior: standard deviation of an effect that nothing is known of, in the same units.
    """

    def __init__(
        self, evaluated: Iterable[tuple[Sequence[str], float | None]], noise: float = 0.5, prior: float = 1.0
    ):
        evaluated = list(evaluated)
        self.prior = prior
        self.places = {name: i for i, name in enumerate(sorted({n for names, _ in evaluated for n in names}))}
        present = np.zeros((len(evaluated), len(self.places) + 1))
        present[:, -1] = 1  # the mean
        for row, (names, _) in enumerate(evaluated):
            present[row, [self.places[name] for name in names]] = 1
        # Ranks are uniform on [0, 1]: of mean 1/2 and variance 1/12.
        scores = (np.array(ranks([score for _, score in evaluated])) - 0.5) * math.sqrt(12)
        covariance = np.linalg.inv(present.T @ present / noise**2 + np.eye(present.shape[1]) / prior**2)
        self.mean = covariance @ present.T @ scores / noise**2
        self.root = np.linalg.cholesky(covariance)

    def sample(self, rng: np.random.Generator) -> Callable[[Sequence[str]], float]:
        """Effects drawn from what is possible, as a function that scores features."""
        effects = self.mean + self.root @ rng.standard_normal(len(self.mean))
        unseen: dict[str, float] = {}

        def score(names: Sequence[str]) -> float:
            total = effects[-1]
            for name in names:
                if name in self.places:
                    total += effects[self.places[name]]
                else:
                    total += unseen.setdefault(name, self.prior * rng.standard_normal())
            return float(total)

        return score
