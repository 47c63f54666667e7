"""Measured costs: FLOPs, latencies, and the costs of custom layer kinds."""

import time

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from autobert_zero.configuration_autobert_zero import (
    LAYER_RULE,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroModel
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evaluation.measure import (
    WARMUP_ROUNDS,
    attention_by_distance,
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


def test_attention_by_distance():
    """Against sums over pairs of tokens, and of attention that is the same everywhere."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(**sizes, num_hidden_layers=2, attn_implementation="eager"), add_pooling_layer=False)
    for layer in model.encoder.layer:
        torch.nn.init.normal_(layer.attention.self.query.weight, std=3)
    batches = [torch.randint(30, (3, 9)), torch.randint(30, (1, 9))]
    found = attention_by_distance(model, batches, reach=3)
    assert [each.shape for each in found] == [(2, 7)] * 2
    weights = torch.cat([model(ids, output_attentions=True).attentions[1] for ids in batches])
    for distance in range(-3, 4):
        pairs = [(i, i + distance) for i in range(9) if 0 <= i + distance < 9]
        expected = sum(weights[:, 1, i, j].mean().item() for i, j in pairs) / len(pairs)
        assert found[1][1, distance + 3] == pytest.approx(expected, abs=1e-6)
    for layer in model.encoder.layer:
        torch.nn.init.zeros_(layer.attention.self.query.weight)
        torch.nn.init.zeros_(layer.attention.self.query.bias)
    assert attention_by_distance(model, batches)[0] == pytest.approx(1 / 9)


def test_weights_without_a_softmax_count_by_their_size():
    ids, found = torch.randint(5, 30, (2, 12)), []
    for text in ("matmul(neg(matmul(q, transpose(k))), v)", "matmul(matmul(q, transpose(k)), v)"):
        torch.manual_seed(0)
        genome = Genome([Convolution(3), Attention(Expression.parse(text))])
        model = AutoBertZeroModel(tiny_config(genome, initializer_range=0.5), add_pooling_layer=False)
        found += attention_by_distance(model, [ids])  # the convolution has no weights
    assert len(found) == 2 and found[0] == pytest.approx(found[1]) and (found[0] > 0).all()
