"""Costs of a genome, against the model itself; spaces within limits."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.costs import LimitedSpace, NoGenome, Sizes
from autobert_zero.search.evolution import evolve
from autobert_zero.search.settings import stream
from autobert_zero.search.strategies import OpNas, RandomSearch

from .conftest import HEADS, HIDDEN, SPACE, TOKENS, VOCAB, random_genome, tiny_config


SIZES = Sizes(HIDDEN, HEADS, 37, VOCAB, max_position_embeddings=32, tokens=TOKENS)


@pytest.mark.parametrize("number", range(20))
def test_costs_are_those_of_the_model(number):
    genome = random_genome(number)
    model = AutoBertZeroForMaskedLM(tiny_config(genome))
    assert SIZES.parameters(genome) == sum(p.numel() for p in model.parameters())
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.autobert_zero(torch.full((1, TOKENS), 5))
    assert SIZES.flops(genome) == counter.get_total_flops()


def test_a_search_within_limits():
    limit = sorted(SIZES.parameters(random_genome(i)) for i in range(100))[20]
    space = LimitedSpace(SPACE, SIZES.of, {"parameters": limit})
    assert not space.contains(max((random_genome(i) for i in range(100)), key=SIZES.parameters))
    history = []

    def submit(record, archive):
        return lambda: record.evaluated(score=float(SIZES.parameters(record.genome)))

    evolve(space, OpNas(space, 8, 2, 3, crossover_probability=0.5), submit, history, 0, 80)
    assert len(history) == 80 and all(space.contains(record.genome) for record in history)


def test_a_search_at_the_edge_of_its_limits_goes_on():
    """Random genomes within the limits are so rare that at times none is found: their places stay empty."""
    limit = SIZES.parameters(min((random_genome(i) for i in range(3000)), key=SIZES.parameters))
    space = LimitedSpace(SPACE, SIZES.of, {"parameters": limit})
    history = []

    def submit(record, archive):
        return lambda: record.evaluated(score=0.0)

    evolve(space, RandomSearch(space, 3), submit, history, 0, 6)
    assert all(space.within(record.genome) for record in history)
    nothing = LimitedSpace(SPACE, SIZES.of, {"parameters": 10})
    assert evolve(nothing, RandomSearch(nothing, 3), submit, [], 0, 6) == "space exhausted"


def test_limits_that_nothing_keeps():
    space = LimitedSpace(SPACE, SIZES.of, {"parameters": 10, "flops": 1e12})
    with pytest.raises(NoGenome, match=r"max_parameters=10, max_flops=.*: expected limits that some genomes keep"):
        space.random(stream(0))
    genome = random_genome(0)
    assert space.mutate(genome, stream(0)) == genome
