"""Measured costs: FLOPs, latencies, and the costs of custom layer kinds."""

import time

import pytest
import torch
from torch import nn

from autobert_zero.configuration_autobert_zero import LAYER_RULE, SELF_ATTENTION, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evaluation.measure import (
    WARMUP_ROUNDS,
    count_backbone_flops,
    count_flops,
    custom_layer_costs,
    median_latencies,
)
from autobert_zero.search.settings import ModelSettings
from autobert_zero.search.space.costs import CostModel
from tests.conftest import HEADS, HIDDEN, VOCAB, random_genome, tiny_config


SIZES = ModelSettings(hidden_size=12, num_attention_heads=3, intermediate_size=20, sequence_length=16)


class Scaling(nn.Module):
    """A layer kind without matrix products."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_states, real):
        return self.weight * hidden_states


class Projection(nn.Module):
    """A layer kind with one matrix product."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, real):
        return self.dense(hidden_states)


def custom(**functions) -> CustomOperations:
    return CustomOperations(dict.fromkeys(functions, LAYER_RULE), functions)


def test_flops_of_a_linear_layer():
    assert count_flops(nn.Linear(7, 11), torch.ones(5, 7)) == 2 * 5 * 7 * 11


def test_flops_of_a_backbone_equal_those_of_the_cost_model():
    """Also of fused attention."""
    costs = CostModel(HIDDEN, HEADS, 37, VOCAB, max_position_embeddings=32, tokens=10)
    for genome in (random_genome(0), Genome([SELF_ATTENTION])):
        model = AutoBertZeroForMaskedLM(tiny_config(genome)).eval()
        assert count_backbone_flops(model.autobert_zero, 10) == costs.flops(genome)


def test_latencies_are_medians_of_calls_in_turns():
    calls = []

    def call(name: str, seconds: float):
        calls.append(name)
        time.sleep(seconds)

    fast, slow = median_latencies([lambda: call("fast", 0), lambda: call("slow", 0.01)], torch.device("cpu"), 3)
    assert calls == ["fast", "slow"] * (WARMUP_ROUNDS + 3)
    assert fast < 10 <= slow


def test_costs_of_custom_layers():
    found = custom_layer_costs(custom(scaling=Scaling, projection=Projection), SIZES, VOCAB)
    assert found == {"scaling": (12, 0), "projection": (12 * 13, 2 * 16 * 12 * 12)}


def test_a_layer_kind_that_does_not_fit_the_sizes():
    def make(config):
        raise ValueError(f"no layer of width {config.hidden_size}")

    message = (
        "custom_operations: 'narrow' makes no layer of hidden_size=12, num_attention_heads=3: "
        "ValueError: no layer of width 12"
    )
    with pytest.raises(ValueError, match=message):
        custom_layer_costs(custom(narrow=make, scaling=Scaling), SIZES, VOCAB)
