"""What each strategy proposes."""

import dataclasses
import math

import numpy as np
import pytest

from autobert_zero.search.evolution.archive import Archive, Outcome, pareto_front
from autobert_zero.search.evolution.loop import first_generation
from autobert_zero.search.evolution.strategies import LargestFirst, RandomSearch, RegularizedEvolution
from autobert_zero.search.seeding import random_stream
from tests.conftest import SPACE
from tests.evolution.conftest import OP_NAS, STRATEGIES, best, fitness, search


@pytest.mark.parametrize(
    "strategy", [OP_NAS, STRATEGIES[2], STRATEGIES[3], STRATEGIES[5]], ids=lambda s: type(s).__name__
)
def test_evolution_finds_better_than_random_search(strategy):
    gains = []
    for seed in range(10):
        evolved = search(strategy, seed=seed, count=80)
        random = search(RandomSearch(SPACE, 8), seed=seed, count=80)
        gains.append(best(evolved, 1)[0].score - best(random, 1)[0].score)
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / math.sqrt(len(gains))


def test_seeds_are_the_first():
    seeds = tuple(SPACE.random(random_stream(i, "seeds")) for i in range(3))
    for strategy in STRATEGIES:
        seeded = dataclasses.replace(strategy, seeds=seeds)
        history = search(seeded, count=20)
        assert tuple(record.genome for record in history[:3]) == seeds
        assert [record.generation for record in history[:8]] == [0] * 8
        assert all(record.genome not in seeds for record in history[3:])
    many = dataclasses.replace(OP_NAS, population_size=2, seeds=seeds)
    assert [record.genome for record in first_generation(SPACE, many, 0)] == list(seeds)


def test_crossover_has_two_parents():
    history = search(dataclasses.replace(OP_NAS, num_parents=3, crossover_probability=0.5), count=200)
    pairs = [record.parents for record in history if len(record.parents) == 2]
    assert all(a != b for a, b in pairs)
    assert len(pairs) / sum(bool(record.parents) for record in history) == pytest.approx(0.5, abs=0.15)


def test_several_objectives_keep_a_front():
    """Parents are from NSGA-II's population: short ones and fit ones; with one objective only fit ones."""

    def evaluate(record):
        return Outcome(score=fitness(record.genome), costs={"length": len(str(record.genome))})

    strategy = dataclasses.replace(OP_NAS, num_parents=4, objectives=("score", "length"))
    history = search(strategy, count=150, evaluate=evaluate)
    front = pareto_front(history, strategy.objectives)
    last = history[-1].generation
    survivors = Archive(r for r in history if r.generation < last).survivors(strategy.objectives, 8)
    assert {r.parents[0] for r in history if r.generation == last} <= {r.index for r in survivors[:4]}
    scores = [record.score for record in front]
    lengths = [record.result.costs["length"] for record in front]
    assert len(front) > 4 and scores == sorted(scores, reverse=True) and lengths == sorted(lengths, reverse=True)
    single = search(count=150, evaluate=evaluate)
    assert min(r.result.costs["length"] for r in history) < min(r.result.costs["length"] for r in single)


def test_regularized_evolution_forgets_the_old():
    """Every parent is the best of a few of the youngest, even if an older one is better."""
    history = search(RegularizedEvolution(SPACE, 8, 3), count=60)
    for record in history[8:]:
        if record.parents:
            assert record.index - 8 <= record.parents[0] < record.index
    champion = max(history[:30], key=lambda record: record.score)
    assert all(champion.index not in record.parents for record in history[champion.index + 9 :])


def test_largest_first():
    history = search(LargestFirst(SPACE, 8, 20), count=40)
    random = search(RandomSearch(SPACE, 8), count=40)
    sizes = [[SPACE.size(record.genome) for record in h] for h in (history, random)]
    assert np.mean(sizes[0], axis=0)[0] > np.mean(sizes[1], axis=0)[0] + 1
