"""Costs of a genome, compared with the model itself."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.space.costs import CostModel
from tests.conftest import HEADS, HIDDEN, TOKENS, VOCAB, random_genome, tiny_config


COSTS = CostModel(HIDDEN, HEADS, 37, VOCAB, max_position_embeddings=32, tokens=TOKENS)


@pytest.mark.parametrize("positions", ["absolute", "none"])
@pytest.mark.parametrize("number", range(20))
def test_costs_are_those_of_the_model(number, positions):
    genome = Genome([ROTARY_ATTENTION, *random_genome(number)])
    model = AutoBertZeroForMaskedLM(tiny_config(genome, position_embedding_type=positions))
    costs = dataclasses.replace(COSTS, absolute_positions=positions == "absolute")
    assert costs.parameters(genome) == sum(p.numel() for p in model.parameters())
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.autobert_zero(torch.full((1, TOKENS), 5))
    assert costs.flops(genome) == counter.get_total_flops()
