"""Operation priorities: the formula of the paper, and the additive regression."""

import math

import numpy as np
import pytest

from autobert_zero.search.evolution.archive import Incidence
from autobert_zero.search.evolution.priority import AdditivePriority, OperationPriority, ranks
from autobert_zero.search.seeding import random_stream


def test_ranks():
    def of(*scores):
        return ranks(np.array(scores)).tolist()

    assert of() == []
    assert of(3.0) == [0.5]
    assert of(-1e9, 2.0, 1.0) == [0.0, 1.0, 0.5]
    assert of(1.0, 1.0, 2.0) == [0.25, 0.25, 1.0]
    assert of(-math.inf, 1.0, -math.inf) == [0.25, 1.0, 0.25]


def table(evaluated) -> tuple[Incidence, np.ndarray]:
    """Names and scores of candidates, as arguments of the priorities."""
    incidence = Incidence()
    for names, _ in evaluated:
        incidence.append(names)
    return incidence, np.array([score for _, score in evaluated])


def test_priority_is_the_formula():
    priority = OperationPriority(*table([(["a", "b"], 1.0), (["a"], 3.0), (["c"], 2.0)]), alpha=0.7, temperature=0.5)
    total = 4  # a twice, b and c once
    expected = {
        "a": 0.5 + 0.7 * math.sqrt(2 * math.log(total) / 2),
        "b": 0.0 + 0.7 * math.sqrt(2 * math.log(total)),
        "c": 0.5 + 0.7 * math.sqrt(2 * math.log(total)),
        "unseen": 1.0 + 0.7 * math.sqrt(2 * math.log(total)),
    }
    for name, value in expected.items():
        assert priority.upper_bound(name) == pytest.approx(value)
    weights = np.exp(np.array([expected["a"], expected["c"]]) / 0.5)
    assert priority.probabilities(["a", "c"]) == pytest.approx(weights / weights.sum())


def test_old_candidates_count_less():
    rows = [(["a"], 1.0), (["a", "b"], 2.0), (["b"], 3.0)]  # ranks 0, 1/2, 1
    priority = OperationPriority(*table(rows), decay=0.5)
    assert priority.counts == {"a": 0.75, "b": 1.5}
    assert priority.means == {"a": pytest.approx(0.25 / 0.75), "b": pytest.approx((0.25 + 1) / 1.5)}
    forgotten = OperationPriority(*table([(["old"], 1.0)] + [(["new"], 2.0)] * 3000), decay=0.5)
    assert np.isfinite(forgotten.probabilities(["old", "new"])).all()


def test_priority_chooses_with_its_probabilities():
    priority = OperationPriority(*table([(["good"], 1.0), (["bad"], 0.0)] * 5), alpha=0.1, temperature=0.5)
    names = ["bad", "good", "unseen"]
    draws = [priority(names, random_stream(0, i)) for i in range(4000)]
    for name, probability in zip(names, priority.probabilities(names), strict=True):
        error = math.sqrt(probability * (1 - probability) / len(draws))
        assert abs(draws.count(name) / len(draws) - probability) < 5 * error
    assert draws.count("good") > draws.count("bad")


def test_priority_does_not_depend_on_the_scale_of_scores():
    scores = [0.3, 0.1, 0.7, 0.2]
    operations = [["a"], ["b"], ["a", "c"], ["b", "c"]]
    one = OperationPriority(*table(list(zip(operations, scores, strict=True))))
    other = OperationPriority(*table([(names, 1000 * s - 5e6) for names, s in zip(operations, scores, strict=True)]))
    assert one.probabilities("abc") == pytest.approx(other.probabilities("abc"))


def test_priority_without_any_record_chooses_uniformly():
    assert OperationPriority(*table([])).probabilities("abcd") == pytest.approx([0.25] * 4)


def test_additive_priority_is_the_regression():
    """Mean and covariance of samples of the posterior, compared with the closed form for one feature."""
    evaluated = [(["a"], 1.0), (["a"], 2.0), ([], 0.0), ([], 0.5), (["a"], 3.0)]
    priority = AdditivePriority(*table(evaluated), noise=0.7, prior=2.0)
    x = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [1, 1]], dtype=float)
    y = (np.array([0.5, 0.75, 0.0, 0.25, 1.0]) - 0.5) * math.sqrt(12)
    covariance = np.linalg.inv(x.T @ x / 0.49 + np.eye(2) / 4)
    mean = covariance @ x.T @ y / 0.49
    rng = random_stream(0, "samples")
    samples = np.array([[(score := priority.sample(rng))(["a"]) - score([]), score([])] for _ in range(20000)])
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.02)


def test_an_unseen_feature_has_a_random_effect():
    priority = AdditivePriority(*table([(["a"], 1.0), (["b"], 0.0)]), prior=1.5)
    rng = random_stream(0, "unseen")
    effects = []
    for _ in range(5000):
        score = priority.sample(rng)
        effects.append(score(["new"]) - score([]))
        assert score(["new"]) == score(["new"])
    assert np.mean(effects) == pytest.approx(0, abs=0.1) and np.std(effects) == pytest.approx(1.5, abs=0.1)
