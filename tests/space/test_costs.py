"""Costs of a genome, compared with the model itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.space.costs import CostModel
from tests.conftest import HEADS, HIDDEN, TOKENS, VOCAB, random_genome, tiny_config


COSTS = CostModel(HIDDEN, HEADS, 37, VOCAB, max_position_embeddings=32, tokens=TOKENS)


@pytest.mark.parametrize("number", range(20))
def test_costs_are_those_of_the_model(number):
    genome = random_genome(number)
    model = AutoBertZeroForMaskedLM(tiny_config(genome))
    assert COSTS.parameters(genome) == sum(p.numel() for p in model.parameters())
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.autobert_zero(torch.full((1, TOKENS), 5))
    assert COSTS.flops(genome) == counter.get_total_flops()
