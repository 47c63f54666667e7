"""Random and mutated genomes are within the bounds, and reach everything that the bounds allow."""

import dataclasses

import pytest

from autobert_zero.configuration_autobert_zero import (
    OPERATIONS,
    PAPER_OPERATIONS,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds
from autobert_zero.search.space.grammar import Grammar, choose_uniformly
from tests.conftest import SPACE, random_genome


def test_random_genomes():
    genes = set()
    for i in range(2000):
        genome = random_genome(i)
        assert SPACE.contains(genome)
        assert all(gene.expression.attends() for gene in genome if isinstance(gene, Attention))
        genes |= {(layer, getattr(gene, "kernel_size", "attention")) for layer, gene in enumerate(genome)}
    assert genes == {(layer, kind) for layer in range(3) for kind in (3, 5, 7, "attention")}


@pytest.mark.parametrize("minimum", [0, 1, 3])
def test_minimum_number_of_attentions(minimum):
    space = BackboneSpace(Bounds(3, (3, 5), 10, minimum))
    counts = set()
    genome = space.random(random_stream(0))
    for i in range(500):
        genome = space.mutate(genome, random_stream(i, "m"))
        assert space.contains(genome)
        counts.add(sum(isinstance(gene, Attention) for gene in genome))
        counts.add(sum(isinstance(gene, Attention) for gene in space.random(random_stream(i, "r"))))
    assert counts == set(range(minimum, 4))


def test_paths_of_self_attention_depend_on_the_order():
    """By a random attention, where nothing else does."""
    bounds = Bounds(3, (3,), 10, 3, grammar=Grammar((*PAPER_OPERATIONS, "conv7")), requires_order=True)
    for number in range(20):
        genome = bounds.random_self_attentions(random_stream(number))
        assert genome.has_order() and sum(gene != SELF_ATTENTION for gene in genome) == 1
    for other in (
        dataclasses.replace(bounds, min_attention_layers=0),
        dataclasses.replace(bounds, requires_order=False),
    ):
        paths = [other.random_self_attentions(random_stream(number)) for number in range(20)]
        assert {gene for path in paths for gene in path} <= {SELF_ATTENTION, Convolution(3)}


def test_the_smallest_attentions_are_found():
    """Few of the random expressions of five nodes attend to all tokens."""
    bounds = Bounds(1, (3,), 5, 1, grammar=Grammar(tuple(OPERATIONS)))
    for number in range(300):
        assert len(bounds.random_attention(random_stream(number), lambda names, rng: names[0]).expression.nodes()) <= 5


@pytest.mark.parametrize("maximum", range(4))
def test_maximum_number_of_attentions(maximum):
    bounds = dataclasses.replace(SPACE.bounds, min_attention_layers=0, max_attention_layers=maximum)
    space = BackboneSpace(bounds)
    counts = set()
    for number in range(100):
        genome = space.random(random_stream(number, "most"))
        for generation in range(4):
            assert space.contains(genome)
            counts.add(sum(isinstance(gene, Attention) for gene in genome))
            genome = space.mutate(genome, random_stream(number, "child", generation))
    assert counts == set(range(maximum + 1))
    convolutions = dataclasses.replace(bounds, max_attention_layers=0)
    assert not convolutions.contains(Genome([SELF_ATTENTION] * 3))


def test_a_preference_against_mixing_operations_still_gives_attentions():
    for i in range(50):
        genome = SPACE.random(
            random_stream(i), lambda names, rng: "neg" if "neg" in names else choose_uniformly(names, rng)
        )
        assert SPACE.contains(genome)


def test_operations_of_a_genome():
    genome = Genome(
        [Convolution(3), Attention(Expression.parse("neg(neg(q))")), Attention(Expression.parse("add(q, k)"))]
    )
    assert SPACE.operations(genome) == ["add", "neg"]
