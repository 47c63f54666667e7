"""From settings to a space and a strategy."""

import json
from typing import get_args, get_type_hints

import pytest
import torch

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, ROTARY_ATTENTION, SELF_ATTENTION, Convolution
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evolution.limits import LimitedSpace
from autobert_zero.search.evolution.loop import first_generation
from autobert_zero.search.genomes import VALUE_RESIDUAL
from autobert_zero.search.run.factory import make_cost_model, make_space, make_strategy, within_limits
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import SearchSettings, StrategySettings


def make(**values):
    settings = SearchSettings.from_dict(values)
    space = make_space(settings.space, settings.strategy, settings.model, CustomOperations())
    space = within_limits(space, settings.limits, make_cost_model(settings.model, 1000).costs)
    return space, make_strategy(settings.strategy, space)


def test_every_strategy_of_the_settings():
    names = get_args(get_type_hints(StrategySettings)["strategy"])
    strategies = [make(strategy=name)[1] for name in names]
    assert len({type(strategy) for strategy in strategies}) == len(names)


def test_settings_reach_space_and_strategy():
    space, strategy = make(
        num_hidden_layers=3,
        kernel_sizes=[3, 5],
        layer_mutations=[0.0, 1.0, 2.0],
        operation_mutations=[1.0, 2.0, 3.0, 4.0],
        population_size=7,
        num_parents=2,
        num_children=5,
        strategy="op_nas",
        priority_alpha=0.7,
        priority_decay=0.9,
        crossover_probability=0.4,
        objectives=["score", "flops"],
    )
    assert (space.bounds.num_layers, space.bounds.kernel_sizes) == (3, (3, 5))
    assert (space.layer_mutations, space.operation_mutations) == ((0, 1, 2), (1, 2, 3, 4))
    assert (strategy.population_size, strategy.num_parents, strategy.num_children) == (7, 2, 5)
    assert (strategy.alpha, strategy.temperature, strategy.decay) == (0.7, 0.3, 0.9)
    assert (strategy.crossover_probability, strategy.objectives) == (0.4, ("score", "flops"))


@pytest.mark.parametrize(
    "values",
    [
        {"objectives": ["score", "flops"]},
        {"crossover_probability": 0.5},
        {"tournament_size": 3},
        {"num_parents": 2},
        {"layer_mutations": [1.0, 0.0, 0.0]},
    ],
)
def test_settings_without_effect_are_rejected(values):
    with pytest.raises(ValueError, match=r"expected its default with strategy 'random'"):
        make(strategy="random", **values)
    with pytest.raises(ValueError, match=r"priority_alpha: expected its default with strategy 'thompson_op_nas'"):
        make(priority_alpha=0.5)


def test_limits():
    space, _ = make(max_parameters=450_000, max_flops=1e8)
    assert isinstance(space, LimitedSpace) and space.limits == {"parameters": 450_000, "flops": 1e8}
    genome = space.random(random_stream(0))
    assert space.within(genome)


def test_seed_genomes(tmp_path):
    genome = make()[0].random(random_stream(1))
    (tmp_path / "list.json").write_text(json.dumps(genome.to_list()))
    space, strategy = make(seed_genomes=["bert-rotary", "published", str(tmp_path / "list.json")])
    first = [record.genome for record in first_generation(space, strategy, 0)]
    assert first[:3] == [(ROTARY_ATTENTION,) * 4, PUBLISHED_GENOME[:4], genome]


ROTARY = (ROTARY_ATTENTION,) * 4
HYBRID = (Convolution(7), ROTARY_ATTENTION) * 2
RESIDUAL = (VALUE_RESIDUAL,) * 4


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [ROTARY, HYBRID, RESIDUAL]),
        ({"kernel_sizes": [3, 5]}, [ROTARY, RESIDUAL]),
        ({"max_attention_layers": 2}, [HYBRID]),
        ({"max_nodes": 8}, []),
        ({"operations": ["paper"]}, []),
        ({"max_flops": 2.8e7}, [HYBRID]),
        ({"seed_genomes": ["none"]}, []),
        ({"seed_genomes": ["published", "known"]}, [PUBLISHED_GENOME[:4], ROTARY, HYBRID, RESIDUAL]),
    ],
)
def test_a_search_starts_with_the_known_designs_that_its_space_has(values, expected):
    space, strategy = make(**values)
    assert list(strategy.seeds) == expected
    first = [record.genome for record in first_generation(space, strategy, 0)]
    assert first[: len(expected)] == expected and len(first) == strategy.population_size


def test_equal_seed_genomes_are_one():
    """In a single layer the values of the first layer are its own."""
    _, strategy = make(seed_genomes=["known", "bert-rotary", "hybrid-rotary"])
    assert list(strategy.seeds) == [ROTARY, HYBRID, RESIDUAL]
    _, strategy = make(num_hidden_layers=1)
    assert list(strategy.seeds) == [(ROTARY_ATTENTION,)]


def test_none_beside_seed_genomes():
    with pytest.raises(ValueError, match=r"seed_genomes: expected none alone, got \['none', 'bert'\]"):
        make(seed_genomes=["none", "bert"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"operations": ["paper"], "min_attention_layers": 4},
            "position_embedding_type: expected absolute for a space",
        ),
        ({"operations": ["paper"], "kernel_sizes": [1]}, "position_embedding_type: expected absolute for a space"),
        ({"hidden_size": 8, "num_attention_heads": 8}, "num_attention_heads: expected heads of at least 2 channels"),
        (
            {"hidden_size": 8, "num_attention_heads": 8, "position_embedding_type": "absolute"},
            "num_attention_heads: expected heads of at least 2 channels",
        ),
        ({"operations": ["softmax"]}, "operations: expected some that form an attention to all tokens"),
        ({"operations": ["transpose"]}, "operations: expected some that form an expression of type nd"),
        ({"operations": ["matmul"]}, "operations: expected some that form an expression of type nd"),
        ({"operations": ["conv3", "conv7"]}, "operations: expected some that form an attention to all tokens"),
        ({"operations": ["softmax", "rotary", "conv3"]}, "operations: expected some that form an attention"),
    ],
)
def test_spaces_without_legal_genomes(tiny_settings, values, message):
    with pytest.raises(ValueError, match=message):
        Problem.prepare(tiny_settings.replace(num_hidden_layers=4, **values), torch.device("cpu"))


def test_seed_genomes_without_order():
    with pytest.raises(ValueError, match=r"seed_genomes: expected genomes with rotary or a convolution, .*got 'bert'"):
        make(seed_genomes=["bert"])
    _, strategy = make(seed_genomes=["bert"], position_embedding_type="absolute")
    assert strategy.seeds == ((SELF_ATTENTION,) * 4,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file, a folder, or a model of the Hub .*, got .*genome.json"),
        ("[", "expected a JSON file with a genome, got .*genome.json"),
        ("{}", "expected a JSON file with a genome, got .*genome.json"),
        ('[{"kind": "pooling"}]', "kind"),
        ('[{"kind": "convolution", "kernel_size": 3}]', "expected 4 layers, got 1"),
        (json.dumps([{"kind": "convolution", "kernel_size": 3}] * 4), "expected genomes in the space of this run"),
    ],
)
def test_bad_seed_genomes(tmp_path, content, message):
    if content is not None:
        (tmp_path / "genome.json").write_text(content)
    with pytest.raises(ValueError, match=f"seed_genomes: .*{message}|seed_genomes: {message}"):
        make(seed_genomes=[str(tmp_path / "genome.json")])
