import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from autobert_zero.search.evolution import (
    MAX_TRIES,
    Evolution,
    LargestFirst,
    OpNas,
    RandomSearch,
    RegularizedEvolution,
    ThompsonOpNas,
    best,
    evolve,
    propose,
)
from autobert_zero.search.priority import AdditivePriority, OperationPriority, ranks
from autobert_zero.search.settings import stream

from .conftest import SPACE


OP_NAS = OpNas(SPACE, population_size=8, num_parents=2, num_children=3, alpha=0.2, temperature=0.3)
STRATEGIES = [
    OP_NAS,
    RandomSearch(SPACE, 8),
    Evolution(SPACE, 8, 2, 3),
    RegularizedEvolution(SPACE, 8, 3),
    LargestFirst(SPACE, 8, 4),
    ThompsonOpNas(SPACE, 8, 2, 3, pool_size=6),
]


def fitness(genome) -> float:
    """A toy: short expressions with `softmax`, small kernels."""
    return str(genome).count("softmax") - 0.01 * len(str(genome))


def evaluate(records):
    return [record.evaluated(fitness(record.genome), None, 0.0) for record in records]


def search(strategy=OP_NAS, seed=0, count=60, history=None, evaluate=evaluate, space=SPACE):
    history = [] if history is None else history
    status = evolve(space, strategy, evaluate, history, seed, count)
    return status, history


def trace_digest(history) -> str:
    trace = [(r.index, r.key, str(r.genome), r.generation, r.parents, r.duplicates) for r in history]
    return hashlib.sha256(json.dumps(trace).encode()).hexdigest()[:16]


def test_golden_trace():
    """Changes only when proposals are meant to change: then old histories can no longer be continued."""
    _, history = search(count=30)
    assert trace_digest(history) == "82f3fb9dea1b3470"


def test_the_same_trace_in_another_process():
    code = "from tests.test_evolution import *; print(trace_digest(search(count=30)[1]))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == trace_digest(search(count=30)[1])


def test_another_seed_gives_another_trace():
    for strategy in STRATEGIES:
        assert trace_digest(search(strategy, seed=0)[1]) != trace_digest(search(strategy, seed=1)[1])


def test_shape_of_a_search():
    status, history = search(count=50)
    assert status == "budget spent"
    assert [record.index for record in history] == list(range(50))
    assert len({record.key for record in history}) == 50
    sizes = [sum(record.generation == g for record in history) for g in range(8)]
    assert sizes == [8, 6, 6, 6, 6, 6, 6, 6]
    for record in history:
        earlier = [r for r in history if r.generation < record.generation]
        assert record.parents == () or record.parents[0] in [r.index for r in best(earlier, 2)]
        assert bool(record.parents) == (record.generation > 0)


@pytest.mark.parametrize(
    "strategy", [OP_NAS, STRATEGIES[2], STRATEGIES[3], STRATEGIES[5]], ids=lambda s: type(s).__name__
)
def test_evolution_finds_better_than_random_search(strategy):
    gains = []
    for seed in range(10):
        _, evolved = search(strategy, seed=seed, count=80)
        _, random = search(RandomSearch(SPACE, 8), seed=seed, count=80)
        gains.append(best(evolved, 1)[0].score - best(random, 1)[0].score)
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / math.sqrt(len(gains))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("interruptions", [(1,), (8,), (9, 20, 21), range(1, 60)])
def test_an_interrupted_search_gives_the_same_history(strategy, interruptions):
    history = []
    for count in interruptions:

        def interrupted(records, count=count, history=history):
            for record in evaluate(records):
                if len(history) == count:
                    raise KeyboardInterrupt
                yield record

        with pytest.raises(KeyboardInterrupt):
            search(strategy, history=history, evaluate=interrupted)
        assert len(history) == count
    assert search(strategy, history=history)[1] == search(strategy)[1]


def test_regularized_evolution_forgets_the_old():
    """Every parent is the best of a few of the youngest, also where an older one is better."""
    _, history = search(RegularizedEvolution(SPACE, 8, 3), count=60)
    for record in history[8:]:
        if record.parents:
            assert record.index - 8 <= record.parents[0] < record.index
    champion = max(history[:30], key=lambda record: record.score)
    assert all(champion.index not in record.parents for record in history[champion.index + 9 :])


def test_largest_first():
    _, history = search(LargestFirst(SPACE, 8, 20), count=40)
    _, random = search(RandomSearch(SPACE, 8), count=40)
    sizes = [[SPACE.size(record.genome) for record in h] for h in (history, random)]
    assert np.mean(sizes[0], axis=0)[0] > np.mean(sizes[1], axis=0)[0] + 1


def test_a_history_of_another_search_is_refused():
    _, history = search(seed=1, count=10)
    with pytest.raises(ValueError, match="history: expected candidate 8 to have the key"):
        search(seed=2, history=history)


def test_failures_are_outcomes():
    def failing(records):
        return [record.evaluated(None, "diverged", 0.1) for record in records]

    status, history = search(evaluate=failing, count=20)
    assert status == "budget spent" and len(history) == 20
    assert {(r.status, r.score, r.reason) for r in history} == {("failed", None, "diverged")}
    assert best(history, 5) == []

    def sometimes(records):
        for record in evaluate(records):
            yield record.evaluated(None, "diverged", 0.1) if record.index % 2 else record

    _, history = search(evaluate=sometimes, count=40)
    assert all(history[parent].status == "ok" for record in history for parent in record.parents)


def test_a_space_without_new_candidates_ends_the_search():
    class Numbers:
        """Seven genomes, a functional key that merges them to four."""

        def random(self, rng, draw=None):
            return int(rng.integers(7))

        def mutate(self, genome, rng, draw):
            return (genome + int(rng.integers(1, 7))) % 7

        def operations(self, genome):
            return [f"operation {genome % 2}"]

        def key(self, genome):
            return str(genome // 2)

    def evaluate(records):
        return [record.evaluated(float(record.genome), None, 0.0) for record in records]

    for strategy in (RandomSearch(Numbers(), 3), OpNas(Numbers(), 3, 2, 2, 0.2, 0.3)):
        status, history = search(strategy, count=100, evaluate=evaluate, space=Numbers())
        assert status == "space exhausted"
        assert sorted(record.key for record in history) == ["0", "1", "2", "3"]
        # Continued, it still is.
        assert search(strategy, count=100, evaluate=evaluate, space=Numbers(), history=history)[0] == status


def test_retries_are_bounded():
    calls = []

    def birth(rng):
        calls.append(rng.integers(1 << 60))
        return "the same", ()

    class Space:
        key = staticmethod(str)

        def random(self, rng):
            return birth(rng)[0]

    assert len(propose(Space(), [birth, birth], 0, [], seed=0)) == 1
    assert len(calls) == 1 + 2 * MAX_TRIES and len(set(calls)) == len(calls)


def test_a_parent_without_new_children_gives_way_to_random_genomes():
    class Space:
        key = staticmethod(str)

        def random(self, rng):
            return int(rng.integers(1000))

    proposals = propose(Space(), [lambda rng: (7, (0,))] * 5, 0, [], seed=0)
    assert proposals[0].genome == 7 and len({record.key for record in proposals}) == 5
    assert [record.parents for record in proposals] == [(0,), (), (), (), ()]


# Operation priority


def test_ranks():
    assert ranks([]) == []
    assert ranks([3.0]) == [0.5]
    assert ranks([-1e9, 2.0, 1.0]) == [0.0, 1.0, 0.5]
    assert ranks([1.0, 1.0, 2.0]) == [0.25, 0.25, 1.0]
    assert ranks([None, 1.0, None]) == [0.25, 1.0, 0.25]


def test_priority_is_the_formula():
    priority = OperationPriority([(["a", "b"], 1.0), (["a"], 3.0), (["c"], 2.0)], alpha=0.7, temperature=0.5)
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


def test_priority_draws_by_its_probabilities():
    priority = OperationPriority([(["good"], 1.0), (["bad"], 0.0)] * 5, alpha=0.1, temperature=0.5)
    names = ["bad", "good", "unseen"]
    draws = [priority(names, stream(0, i)) for i in range(4000)]
    for name, probability in zip(names, priority.probabilities(names), strict=True):
        error = math.sqrt(probability * (1 - probability) / len(draws))
        assert abs(draws.count(name) / len(draws) - probability) < 5 * error
    assert draws.count("good") > draws.count("bad")


def test_priority_does_not_depend_on_the_scale_of_scores():
    scores = [0.3, 0.1, 0.7, 0.2]
    operations = [["a"], ["b"], ["a", "c"], ["b", "c"]]
    one = OperationPriority(zip(operations, scores, strict=True))
    other = OperationPriority(zip(operations, [1000 * s - 5e6 for s in scores], strict=True))
    assert one.probabilities("abc") == pytest.approx(other.probabilities("abc"))


def test_priority_without_any_record_draws_uniformly():
    assert OperationPriority([]).probabilities("abcd") == pytest.approx([0.25] * 4)


# Additive priority


def test_additive_priority_is_the_regression():
    """Mean and covariance of the posterior, by samples, against the closed form for one feature."""
    evaluated = [(["a"], 1.0), (["a"], 2.0), ([], 0.0), ([], 0.5), (["a"], 3.0)]
    priority = AdditivePriority(evaluated, noise=0.7, prior=2.0)
    x = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [1, 1]], dtype=float)
    y = (np.array([0.5, 0.75, 0.0, 0.25, 1.0]) - 0.5) * math.sqrt(12)
    covariance = np.linalg.inv(x.T @ x / 0.49 + np.eye(2) / 4)
    mean = covariance @ x.T @ y / 0.49
    rng = stream(0, "samples")
    samples = np.array([[(score := priority.sample(rng))(["a"]) - score([]), score([])] for _ in range(20000)])
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.02)


def test_what_was_never_seen_has_an_effect_of_its_own():
    priority = AdditivePriority([(["a"], 1.0), (["b"], 0.0)], prior=1.5)
    rng = stream(0, "unseen")
    effects = []
    for _ in range(5000):
        score = priority.sample(rng)
        effects.append(score(["new"]) - score([]))
        assert score(["new"]) == score(["new"])
    assert np.mean(effects) == pytest.approx(0, abs=0.1) and np.std(effects) == pytest.approx(1.5, abs=0.1)
