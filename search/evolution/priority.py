"""Operation priority: operations of good candidates are chosen more often, balanced with exploring rare ones.

`OperationPriority` is the paper's, for operations wherever they are in the backbone. `AdditivePriority` also depends on
the position: it models the score of a genome as a sum of effects of its features (an operation at a position), and one
sample of these effects from their posterior (Thompson sampling) ranks whole children.

Departures from the paper are listed in docs/explanation.md.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from autobert_zero.search.evolution.archive import Incidence


def ranks(scores: np.ndarray) -> np.ndarray:
    """Scores (-inf: none) as ranks in [0, 1], the best 1; equal scores share the mean of their ranks."""
    if len(scores) < 2:
        return np.full(len(scores), 0.5)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2)[inverse] / (len(scores) - 1)


class OperationPriority:
    """Chooses operations: call it with some names and a random generator.

    Every operation i has `u_i = mean_i + alpha * sqrt(2 ln N / N_i)`: `mean_i` is the mean rank of the candidates that
    contain it, `N_i` the number of these candidates, `N` the sum of all `N_i`. Among several operations, one is chosen
    with probability softmax(u / temperature).

    Args:
        operations: of the evaluated candidates.
        scores: of the same candidates, -inf for one without a score.
        alpha: weight of the confidence bound, in units of ranks (0 to 1).
        temperature: of the softmax; towards 0 the best is always chosen, a large one chooses uniformly.
        decay: weight of a candidate relative to the next one; below 1, old ones are forgotten.
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
        # Weights of forgotten candidates underflow; the minimum avoids a division by 0.
        counts = np.maximum(operations.sums(weights), np.finfo(float).tiny)
        means = operations.sums(weights * ranks(scores)) / counts
        self.counts = dict(zip(operations.columns, counts.tolist(), strict=True))
        self.means = dict(zip(operations.columns, means.tolist(), strict=True))
        self.total = counts.sum()

    def upper_bound(self, name: str) -> float:
        """u of an operation. One without candidates has the best possible mean and the bound of one candidate."""
        bound = math.sqrt(2 * math.log(max(self.total, 1)) / self.counts.get(name, 1))
        return self.means.get(name, 1.0) + self.alpha * bound

    def probabilities(self, names: Sequence[str]) -> np.ndarray:
        bounds = np.array([self.upper_bound(name) for name in names]) / self.temperature
        weights = np.exp(bounds - bounds.max())
        return weights / weights.sum()

    def __call__(self, names: Sequence[str], rng: np.random.Generator) -> str:
        return names[int(rng.choice(len(names), p=self.probabilities(names)))]


class AdditivePriority:
    """Posterior of the effects of features on the score: Bayesian linear regression on ranks.

    Args:
        features: of the evaluated candidates.
        scores: of the same candidates, -inf for one without a score.
        noise: standard deviation of what the sum of effects does not explain, in units of that of the scores.
        prior: standard deviation of an effect before any observation, in the same units.
    """

    def __init__(self, features: Incidence, scores: np.ndarray, noise: float = 0.5, prior: float = 1.0):
        self.prior = prior
        self.columns = features.columns
        # Ranks are uniform on [0, 1], with mean 1/2 and variance 1/12.
        targets = (ranks(scores) - 0.5) * math.sqrt(12)
        # The last effect is the intercept, a feature of every candidate.
        counts = features.sums(np.ones(len(scores)))
        gram = np.block([[features.gram(), counts[:, None]], [counts[None], np.array([[len(scores)]])]])
        covariance = np.linalg.inv(gram / noise**2 + np.eye(len(gram)) / prior**2)
        self.mean = covariance @ np.append(features.sums(targets), targets.sum()) / noise**2
        self.root = np.linalg.cholesky(covariance)

    def sample(self, rng: np.random.Generator) -> Callable[[Sequence[str]], float]:
        """A sample of the effects from their posterior, as a function that scores features."""
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
