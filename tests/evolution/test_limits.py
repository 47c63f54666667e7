"""Spaces within limits."""

import pytest

from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.limits import MAX_MUTATIONS, MAX_TRIES, InfeasibleLimits, LimitedSpace
from autobert_zero.search.evolution.loop import propose
from autobert_zero.search.evolution.strategies import Evolution, OpNas, RandomSearch, ThompsonOpNas
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.costs import CostModel
from autobert_zero.search.stopping import Stopped
from tests.conftest import HEADS, HIDDEN, SPACE, TOKENS, VOCAB, random_genome
from tests.evolution.conftest import search


COSTS = CostModel(HIDDEN, HEADS, 37, VOCAB, max_position_embeddings=32, tokens=TOKENS)


def test_a_search_within_limits():
    limit = sorted(COSTS.parameters(random_genome(i)) for i in range(100))[20]
    space = LimitedSpace(SPACE, COSTS.costs, {"parameters": limit})
    assert not space.contains(max((random_genome(i) for i in range(100)), key=COSTS.parameters))

    def evaluate(record):
        return Outcome(score=float(COSTS.parameters(record.genome)))

    history = search(OpNas(space, 8, 2, 3, crossover_probability=0.5), count=80, evaluate=evaluate, space=space)
    assert len(history) == 80 and all(space.contains(record.genome) for record in history)


def test_a_search_at_the_edge_of_its_limits_continues(monkeypatch):
    """Random genomes within the limits are so rare that sometimes none is found: then the child is omitted."""
    monkeypatch.setattr("autobert_zero.search.evolution.limits.MAX_TRIES", 100)
    limit = min(COSTS.parameters(random_genome(i)) for i in range(300))
    space = LimitedSpace(SPACE, COSTS.costs, {"parameters": limit})
    history = search(RandomSearch(space, 3), count=6, evaluate=lambda record: Outcome(score=0.0), space=space)
    assert all(space.within(record.genome) for record in history)
    nothing = LimitedSpace(SPACE, COSTS.costs, {"parameters": 10})
    assert search(RandomSearch(nothing, 3), count=6, space=nothing) == []


@pytest.mark.parametrize("strategy", [Evolution, ThompsonOpNas])
def test_children_are_given_up_if_none_is_within_the_limits(strategy):
    """A child costs few tries then, and the search can be stopped between them."""
    parent = random_genome(0)
    tries = 0

    def costs(genome):
        nonlocal tries
        tries += 1
        return {"parameters": 0 if genome == parent else 1}

    space = LimitedSpace(SPACE, costs, {"parameters": 0})
    archive = Archive([Record(0, SPACE.key(parent), parent, 0).evaluated(Outcome(score=0.0))])
    [*proposers] = strategy(space, 1, 1, 1)(1, archive)
    checks = 0

    def check():
        nonlocal checks
        checks += 1
        if checks == 4:
            raise Stopped("stopped", 0)

    assert propose(space, proposers, 1, 1, set(archive.keys), 0, check) == []
    assert checks == 2  # one for the children, one for random genomes
    assert tries <= (1 if strategy is Evolution else 30) * MAX_MUTATIONS + 2 * MAX_TRIES
    with pytest.raises(Stopped):
        propose(space, proposers * 2, 1, 1, set(archive.keys), 0, check)


def test_limits_that_no_genome_keeps():
    space = LimitedSpace(SPACE, COSTS.costs, {"parameters": 10, "flops": 1e12})
    with pytest.raises(
        InfeasibleLimits, match=r"max_parameters=10, max_flops=.*: expected limits that some genomes keep"
    ):
        space.random(random_stream(0))
    with pytest.raises(InfeasibleLimits, match="expected limits that some children keep"):
        space.mutate(random_genome(0), random_stream(0))
