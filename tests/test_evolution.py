import dataclasses
import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from autobert_zero.search.evolution import MAX_TRIES, evolve, first_generation, propose
from autobert_zero.search.priority import AdditivePriority, OperationPriority, ranks
from autobert_zero.search.records import Archive, Incidence, pareto_front
from autobert_zero.search.settings import stream
from autobert_zero.search.strategies import (
    Evolution,
    LargestFirst,
    OpNas,
    RandomSearch,
    RegularizedEvolution,
    ThompsonOpNas,
)

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


def evaluate(record):
    return record.evaluated(score=fitness(record.genome))


def best(records, count):
    return Archive(records).best(count)


def search(strategy=OP_NAS, seed=0, count=60, history=None, evaluate=evaluate, space=SPACE, lookahead=0):
    history = [] if history is None else history

    def submit(record, archive):
        return lambda: evaluate(record)

    status = evolve(space, strategy, submit, history, seed, count, lookahead)
    return status, history


def trace_digest(history) -> str:
    trace = [(r.index, r.key, str(r.genome), r.generation, r.parents, r.duplicates) for r in history]
    return hashlib.sha256(json.dumps(trace).encode()).hexdigest()[:16]


def test_golden_trace():
    """Changes only when proposals are meant to change: then old histories can no longer be continued."""
    _, history = search(count=30)
    assert trace_digest(history) == "fa19117317beb2a5"


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
@pytest.mark.parametrize(("interruptions", "lookahead"), [((1, 8), 0), ((9, 20, 21), 0), (range(1, 60, 2), 2)])
def test_an_interrupted_search_gives_the_same_history(strategy, interruptions, lookahead):
    history = []
    for count in interruptions:

        def interrupted(record, count=count, history=history):
            if len(history) == count:
                raise KeyboardInterrupt
            return evaluate(record)

        with pytest.raises(KeyboardInterrupt):
            search(strategy, history=history, evaluate=interrupted, lookahead=lookahead)
        assert len(history) == count
    assert search(strategy, history=history, lookahead=lookahead)[1] == search(strategy, lookahead=lookahead)[1]


def test_a_longer_search_begins_like_a_shorter_one():
    _, short = search(count=25)
    _, long = search(count=60)
    assert long[:25] == short
    assert search(count=60, history=short)[1] == long


def test_lookahead():
    """Generation g is proposed when all before g - lookahead are done, at once, and from those alone."""
    for lookahead in (1, 3):
        submitted, history = [], []

        def submit(record, archive, submitted=submitted, history=history, lookahead=lookahead):
            expected = [r for r in history if r.generation < max(1, record.generation - lookahead)]
            assert archive.records == (expected if record.generation else []) == history[: len(expected)]
            assert len(history) == len(archive)
            submitted.append(record)
            return lambda: evaluate(record)

        assert evolve(SPACE, OP_NAS, submit, history, 0, 60, lookahead) == "budget spent"
        assert [r.index for r in submitted] == list(range(60)) and len({r.key for r in history}) == 60
        earliest = {r.generation: r.index for r in reversed(history)}
        for record in history:
            if record.generation > 1:
                seen = earliest[max(1, record.generation - lookahead)]
                assert all(parent < seen for parent in record.parents)


def test_seeds_are_the_first():
    seeds = tuple(SPACE.random(stream(i, "seeds")) for i in range(3))
    for strategy in STRATEGIES:
        seeded = dataclasses.replace(strategy, seeds=seeds)
        history = search(seeded, count=20)[1]
        assert tuple(record.genome for record in history[:3]) == seeds
        assert [record.generation for record in history[:8]] == [0] * 8
        assert all(record.genome not in seeds for record in history[3:])
    many = dataclasses.replace(OP_NAS, population_size=2, seeds=seeds)
    assert [record.genome for record in first_generation(SPACE, many, 0)] == list(seeds)


def test_crossover_has_two_parents():
    _, history = search(dataclasses.replace(OP_NAS, num_parents=3, crossover_probability=0.5), count=200)
    pairs = [record.parents for record in history if len(record.parents) == 2]
    assert all(a != b for a, b in pairs)
    assert len(pairs) / sum(bool(record.parents) for record in history) == pytest.approx(0.5, abs=0.15)


def test_several_objectives_keep_a_front():
    """Parents are of NSGA-II's population: short ones and fit ones, where one objective has the fit ones alone."""

    def evaluate(record):
        return record.evaluated(score=fitness(record.genome), costs={"length": len(str(record.genome))})

    strategy = dataclasses.replace(OP_NAS, num_parents=4, objectives=("score", "length"))
    _, history = search(strategy, count=150, evaluate=evaluate)
    front = pareto_front(history, strategy.objectives)
    last = history[-1].generation
    survivors = Archive(r for r in history if r.generation < last).survivors(strategy.objectives, 8)
    assert {r.parents[0] for r in history if r.generation == last} <= {r.index for r in survivors[:4]}
    scores = [record.score for record in front]
    lengths = [record.costs["length"] for record in front]
    assert len(front) > 4 and scores == sorted(scores, reverse=True) and lengths == sorted(lengths, reverse=True)
    _, single = search(count=150, evaluate=evaluate)
    assert min(r.costs["length"] for r in history) < min(r.costs["length"] for r in single)


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
    def failing(record):
        return record.evaluated(score=None, reason="diverged")

    status, history = search(evaluate=failing, count=20)
    assert status == "budget spent" and len(history) == 20
    assert {(r.status, r.score, r.reason) for r in history} == {("failed", None, "diverged")}
    assert best(history, 5) == []

    def sometimes(record):
        return failing(record) if record.index % 2 else evaluate(record)

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

    def evaluate(record):
        return record.evaluated(score=float(record.genome))

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

    assert len(propose(Space(), [birth, birth], 0, 0, set(), seed=0)) == 1
    assert len(calls) == 1 + 2 * MAX_TRIES and len(set(calls)) == len(calls)


def test_a_parent_without_new_children_gives_way_to_random_genomes():
    class Space:
        key = staticmethod(str)

        def random(self, rng):
            return int(rng.integers(1000))

    proposals = propose(Space(), [lambda rng: (7, (0,))] * 5, 0, 0, set(), seed=0)
    assert proposals[0].genome == 7 and len({record.key for record in proposals}) == 5
    assert [record.parents for record in proposals] == [(0,), (), (), (), ()]


# Operation priority


def test_ranks():
    def of(*scores):
        return ranks(np.array(scores)).tolist()

    assert of() == []
    assert of(3.0) == [0.5]
    assert of(-1e9, 2.0, 1.0) == [0.0, 1.0, 0.5]
    assert of(1.0, 1.0, 2.0) == [0.25, 0.25, 1.0]
    assert of(-math.inf, 1.0, -math.inf) == [0.25, 1.0, 0.25]


def table(evaluated) -> tuple[Incidence, np.ndarray]:
    """Names and scores of candidates, as the priorities take them."""
    incidence = Incidence()
    for names, _ in evaluated:
        incidence.append(names)
    return incidence, np.array([score for _, score in evaluated])


def test_incidence():
    rng = np.random.default_rng(0)
    present = rng.random((30, 6)) < 0.4
    incidence = Incidence()
    for count, row in enumerate(present, start=1):
        incidence.append([f"{i}" for i in np.flatnonzero(row)])
        if count in (7, 30):  # grows between two questions
            seen = present[:count][:, [int(name) for name in incidence.columns]].astype(float)
            values = rng.random(count)
            np.testing.assert_allclose(incidence.sums(values), seen.T @ values)
            np.testing.assert_array_equal(incidence.gram(), seen.T @ seen)
    assert len(incidence) == 30 and len(incidence.columns) == 6


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


def test_what_is_long_ago_counts_less():
    rows = [(["a"], 1.0), (["a", "b"], 2.0), (["b"], 3.0)]  # ranks 0, 1/2, 1
    priority = OperationPriority(*table(rows), decay=0.5)
    assert priority.counts == {"a": 0.75, "b": 1.5}
    assert priority.means == {"a": pytest.approx(0.25 / 0.75), "b": pytest.approx((0.25 + 1) / 1.5)}
    forgotten = OperationPriority(*table([(["old"], 1.0)] + [(["new"], 2.0)] * 3000), decay=0.5)
    assert np.isfinite(forgotten.probabilities(["old", "new"])).all()


def test_priority_draws_by_its_probabilities():
    priority = OperationPriority(*table([(["good"], 1.0), (["bad"], 0.0)] * 5), alpha=0.1, temperature=0.5)
    names = ["bad", "good", "unseen"]
    draws = [priority(names, stream(0, i)) for i in range(4000)]
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


def test_priority_without_any_record_draws_uniformly():
    assert OperationPriority(*table([])).probabilities("abcd") == pytest.approx([0.25] * 4)


# Additive priority


def test_additive_priority_is_the_regression():
    """Mean and covariance of the posterior, by samples, against the closed form for one feature."""
    evaluated = [(["a"], 1.0), (["a"], 2.0), ([], 0.0), ([], 0.5), (["a"], 3.0)]
    priority = AdditivePriority(*table(evaluated), noise=0.7, prior=2.0)
    x = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [1, 1]], dtype=float)
    y = (np.array([0.5, 0.75, 0.0, 0.25, 1.0]) - 0.5) * math.sqrt(12)
    covariance = np.linalg.inv(x.T @ x / 0.49 + np.eye(2) / 4)
    mean = covariance @ x.T @ y / 0.49
    rng = stream(0, "samples")
    samples = np.array([[(score := priority.sample(rng))(["a"]) - score([]), score([])] for _ in range(20000)])
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.02)


def test_what_was_never_seen_has_an_effect_of_its_own():
    priority = AdditivePriority(*table([(["a"], 1.0), (["b"], 0.0)]), prior=1.5)
    rng = stream(0, "unseen")
    effects = []
    for _ in range(5000):
        score = priority.sample(rng)
        effects.append(score(["new"]) - score([]))
        assert score(["new"]) == score(["new"])
    assert np.mean(effects) == pytest.approx(0, abs=0.1) and np.std(effects) == pytest.approx(1.5, abs=0.1)
