"""From settings to a space and a strategy."""

import json
from typing import get_args, get_type_hints

import pytest

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, SELF_ATTENTION
from autobert_zero.search.costs import LimitedSpace
from autobert_zero.search.evolution import first_generation
from autobert_zero.search.factory import make_sizes, make_space, make_strategy, read_genome
from autobert_zero.search.settings import SearchSettings, stream


def make(**values):
    settings = SearchSettings(**values)
    space = make_space(settings, make_sizes(settings, 1000))
    return space, make_strategy(settings, space)


def test_every_strategy_of_the_settings():
    names = get_args(get_type_hints(SearchSettings)["strategy"])
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
    assert (space.num_layers, space.kernel_sizes) == (3, (3, 5))
    assert (space.layer_mutations, space.operation_mutations) == ((0, 1, 2), (1, 2, 3, 4))
    assert (strategy.population_size, strategy.num_parents, strategy.num_children) == (7, 2, 5)
    assert (strategy.alpha, strategy.temperature, strategy.decay) == (0.7, 0.3, 0.9)
    assert (strategy.crossover_probability, strategy.objectives) == (0.4, ("score", "flops"))


@pytest.mark.parametrize("values", [{"objectives": ["score", "flops"]}, {"crossover_probability": 0.5}])
def test_settings_without_effect_are_refused(values):
    with pytest.raises(ValueError, match=r"expected its default with strategy 'random'"):
        make(strategy="random", **values)
    with pytest.raises(ValueError, match=r"priority_alpha: expected its default with strategy 'thompson_op_nas'"):
        make(priority_alpha=0.5)


def test_limits():
    space, _ = make(max_parameters=450_000, max_flops=1e8)
    assert isinstance(space, LimitedSpace) and space.limits == {"parameters": 450_000, "flops": 1e8}
    genome = space.random(stream(0))
    assert space.within(genome)


def test_seed_genomes(tmp_path):
    genome = make()[0].random(stream(1))
    for name, value in {"list": genome.to_list(), "config": {"genome": genome.to_list()}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"genome": genome.to_list(), "score": 1.0}}))
    for name in ("list", "config", "summary"):
        assert read_genome(str(tmp_path / f"{name}.json"), 4) == genome
    assert list(read_genome("published", 14)) == [*PUBLISHED_GENOME, *PUBLISHED_GENOME[:2]]
    space, strategy = make(seed_genomes=["bert", "published", str(tmp_path / "list.json")])
    first = [record.genome for record in first_generation(space, strategy, 0)]
    assert first[:3] == [(SELF_ATTENTION,) * 4, PUBLISHED_GENOME[:4], genome]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected `published`, `bert` or a file: expected a JSON file with a genome, got .*No such file"),
        ("[", "expected `published`, `bert` or a file"),
        ("{}", "expected `published`, `bert` or a file"),
        ('[{"kind": "pooling"}]', "kind"),
        ('[{"kind": "convolution", "kernel_size": 3}]', "expected 4 layers, got 1"),
        (json.dumps([{"kind": "convolution", "kernel_size": 3}] * 4), "expected genomes of the space of this run"),
    ],
)
def test_bad_seed_genomes(tmp_path, content, message):
    if content is not None:
        (tmp_path / "genome.json").write_text(content)
    with pytest.raises(ValueError, match=f"seed_genomes: .*{message}|seed_genomes: {message}"):
        make(seed_genomes=[str(tmp_path / "genome.json")])
