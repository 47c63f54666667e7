"""Operation priority: what did well is drawn more often, balanced against what was seen seldom.

Two of them. `OperationPriority` is the paper's, for operations wherever they stand. `AdditivePriority` also knows where:
it holds the score of a genome for a sum of the effects of its features (an operation at a place), and one sample of
these effects from what the history leaves possible (Thompson sampling) ranks whole children.

Departures from the paper's OP-NAS, as it is generally described:

1. Scores enter as ranks from 0 (worst) to 1 (best), so that alpha means the same at any scale of the score and one
   diverged candidate does not drown the others. Failed candidates rank lowest.
2. The softmax has a temperature.
3. `N_i` counts evaluated candidates with the operation, not draws of it: it can be replayed from the history alone.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from autobert_zero.search.records import Incidence


def ranks(scores: np.ndarray) -> np.ndarray:
    """Scores (-inf: failed) as ranks in [0, 1], the best 1; equal scores share the mean of their ranks."""
    if len(scores) < 2:
        return np.full(len(scores), 0.5)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2)[inverse] / (len(scores) - 1)


class OperationPriority:
    """A way to draw operations: call it with some names and a random generator.

    Every operation i has `u_i = mean_i + alpha * sqrt(2 ln N / N_i)`: `mean_i` is the mean rank of the candidates that
    contain it, `N_i` the number of these candidates, `N` the sum of all `N_i`. Among some operations, one is drawn with
    probability softmax(u / temperature).

    Args:
        operations: of the evaluated candidates.
        scores: of the same, -inf for one that failed.
        alpha: weight of the confidence bound, in units of ranks (0 to 1).
        temperature: of the softmax; towards 0 always the best is drawn, large draws uniformly.
        decay: weight of a candidate against that of the next one; with less than 1, old ones are forgotten.
    """

    def __init__(
        self,
        operations: Incidence,
        scores: np.ndarray,
        alpha: float = 0.2,
        temperature: float = 0.3,
        decay: float = 1.0,
    ):
        self.alpha = alpha
        self.temperature = temperature
        weights = decay ** np.arange(len(scores) - 1, -1, -1.0)
        # What is forgotten altogether counts as next to nothing, and not as a division by 0.
        counts = np.maximum(operations.sums(weights), np.finfo(float).tiny)
        means = operations.sums(weights * ranks(scores)) / counts
        self.counts = dict(zip(operations.columns, counts.tolist(), strict=True))
        self.means = dict(zip(operations.columns, means.tolist(), strict=True))
        self.total = counts.sum()

    def upper_bound(self, name: str) -> float:
        """u of an operation. One that was never seen has the best possible mean and the bound of a single sight."""
        bound = math.sqrt(2 * math.log(max(self.total, 1)) / self.counts.get(name, 1))
        return self.means.get(name, 1.0) + self.alpha * bound

    def probabilities(self, names: Sequence[str]) -> np.ndarray:
        bounds = np.array([self.upper_bound(name) for name in names]) / self.temperature
        weights = np.exp(bounds - bounds.max())
        return weights / weights.sum()

    def __call__(self, names: Sequence[str], rng: np.random.Generator) -> str:
        return names[int(rng.choice(len(names), p=self.probabilities(names)))]


class AdditivePriority:
    """Effects of features on the score, as far as the history tells: Bayesian linear regression on ranks.

    Args:
        features: of the evaluated candidates.
        scores: of the same, -inf for one that failed.
        noise: standard deviation of what the sum of effects does not explain, in units of that of the scores.
        prior: standard deviation of an effect that nothing is known of, in the same units.
    """

    def __init__(self, features: Incidence, scores: np.ndarray, noise: float = 0.5, prior: float = 1.0):
        self.prior = prior
        self.columns = features.columns
        # Ranks are uniform on [0, 1]: of mean 1/2 and variance 1/12.
        targets = (ranks(scores) - 0.5) * math.sqrt(12)
        # The last effect is the mean, a feature that every candidate has.
        counts = features.sums(np.ones(len(scores)))
        gram = np.block([[features.gram(), counts[:, None]], [counts[None], np.array([[len(scores)]])]])
        covariance = np.linalg.inv(gram / noise**2 + np.eye(len(gram)) / prior**2)
        self.mean = covariance @ np.append(features.sums(targets), targets.sum()) / noise**2
        self.root = np.linalg.cholesky(covariance)

    def sample(self, rng: np.random.Generator) -> Callable[[Sequence[str]], float]:
        """Effects drawn from what is possible, as a function that scores features."""
        effects = self.mean + self.root @ rng.standard_normal(len(self.mean))
        unseen: dict[str, float] = {}

        def score(names: Sequence[str]) -> float:
            total = effects[-1]
            for name in names:
                column = self.columns.get(name, len(effects))
                if column < len(effects) - 1:
                    total += effects[column]
                else:
                    total += unseen.setdefault(name, self.prior * rng.standard_normal())
            return float(total)

        return score
