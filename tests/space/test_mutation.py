"""Mutation: legal children only, and every kind of change within a bounded number of draws."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from autobert_zero.configuration_autobert_zero import (
    ALL_OPERATIONS,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds
from autobert_zero.search.space.grammar import choose_uniformly
from autobert_zero.search.space.mutation import OPERATION_CHANGES, mutate_between_layers, mutate_inside_layer
from tests.conftest import SPACE, random_genome


DRAWS = 2000
BOUNDS = SPACE.bounds
LAYER_WEIGHTS = SPACE.layer_mutations
OPERATION_WEIGHTS = SPACE.operation_mutations


def test_between_layers_makes_every_kind_of_change():
    found, swaps = set(), 0
    for i in range(DRAWS):
        genome = random_genome(i)
        child = mutate_between_layers(genome, BOUNDS, LAYER_WEIGHTS, random_stream(i, "m"), choose_uniformly)
        assert SPACE.contains(child)
        changed = [layer for layer in range(3) if genome[layer] != child[layer]]
        if len(changed) == 2:
            i, j = changed
            assert (child[i], child[j]) == (genome[j], genome[i])
            swaps += 1
        else:
            [layer] = changed
            found.add((layer, genome[layer].kind, child[layer].kind))
    kinds = ("convolution", "attention")
    expected = {(layer, a, b) for layer in range(3) for a in kinds for b in kinds}
    assert found == expected - {(layer, "attention", "attention") for layer in range(3)}
    assert swaps / DRAWS == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize(
    ("weights", "is_expected"),
    [
        ((1, 0, 0), lambda a, b: a.kind != b.kind),
        ((0, 1, 0), lambda a, b: a.kind == b.kind == "convolution"),
        ((0, 0, 1), lambda a, b: True),
    ],
)
def test_proportions_of_changes_between_layers(weights, is_expected):
    sizes = set()
    for i in range(300):
        genome = random_genome(i)
        child = mutate_between_layers(genome, BOUNDS, weights, random_stream(i, "m"), choose_uniformly)
        pairs = [(a, b) for a, b in zip(genome, child, strict=True) if a != b]
        assert all(is_expected(a, b) for a, b in pairs)
        sizes.add(len(pairs))
    # If the only change is not possible, there is none.
    assert sizes == ({2} if weights[2] else {0, 1} if weights[1] else {1})


def test_a_layer_is_copied_over_another():
    """Within the bounds of the number of attentions; and none is a change, too."""
    copied = set()
    for i in range(300):
        genome = random_genome(i)
        child = mutate_between_layers(genome, BOUNDS, (0, 0, 0, 1, 0), random_stream(i, "m"), choose_uniformly)
        assert SPACE.contains(child)
        changed = [layer for layer in range(3) if genome[layer] != child[layer]]
        if len(set(genome)) > 1:
            copied |= {(changed[0], other) for other in range(3) if child[changed[0]] == genome[other]}
            assert len(changed) == 1 and child[changed[0]] in genome
        else:
            assert child == genome
        assert mutate_between_layers(genome, BOUNDS, (0, 0, 0, 0, 1), random_stream(i), choose_uniformly) == genome
    assert copied >= {(a, b) for a in range(3) for b in range(3) if a != b}


def test_proportions_of_changes_inside_a_layer():
    for i in range(300):
        genome = random_genome(i)
        child = mutate_inside_layer(genome, BOUNDS, (0, 0, 0, 1), random_stream(i, "m"), choose_uniformly)
        assert SPACE.operations(child) == SPACE.operations(genome) and child != genome


def test_a_space_uses_its_proportions():
    space = dataclasses.replace(SPACE, layer_mutations=(0, 0, 1), operation_mutations=(0, 0, 0, 1))
    for i in range(300):
        genome = random_genome(i)
        child = space.mutate(genome, random_stream(i, "m"))
        assert sorted(gene.kind for gene in child) == sorted(gene.kind for gene in genome)
        assert SPACE.operations(child) == SPACE.operations(genome)


def test_crossover():
    whose = np.zeros((DRAWS, 3))
    for i in range(DRAWS):
        mine, theirs = random_genome(2 * i), random_genome(2 * i + 1)
        child = SPACE.crossover(mine, theirs, random_stream(i, "x"))
        assert SPACE.contains(child)
        whose[i] = [a == c != b for a, b, c in zip(mine, theirs, child, strict=True)]
    assert (whose.mean(0) > 0.35).all() and (whose.mean(0) < 0.65).all()
    space = BackboneSpace(Bounds(2, (3,), 10, 1))
    genome = Genome([SELF_ATTENTION, Convolution(3)])
    for i in range(50):
        assert space.contains(space.crossover(genome, Genome(reversed(genome)), random_stream(i)))


def test_between_layers_where_nothing_can_change():
    bounds = Bounds(1, (3,), 10, 1)
    genome = bounds.random(random_stream(0))
    assert mutate_between_layers(genome, bounds, LAYER_WEIGHTS, random_stream(1), choose_uniformly) == genome


def test_inside_layer_changes_one_attention():
    for i in range(DRAWS):
        genome = random_genome(i)
        child = mutate_inside_layer(genome, BOUNDS, OPERATION_WEIGHTS, random_stream(i, "m"), choose_uniformly)
        assert SPACE.contains(child)
        [layer] = [layer for layer in range(3) if genome[layer] != child[layer]]
        assert isinstance(genome[layer], Attention) and isinstance(child[layer], Attention)
    convolutions = Genome([Convolution(3)] * 3)
    child = mutate_inside_layer(convolutions, BOUNDS, OPERATION_WEIGHTS, random_stream(0), choose_uniformly)
    assert child == convolutions


STANDARD = "matmul(softmax(scale(matmul(q, transpose(k)))), v)"


@pytest.mark.parametrize(
    ("change", "required"),
    [
        (
            "replace",
            {
                "matmul(logsigmoid(scale(matmul(q, transpose(k)))), v)",
                "matmul(softmax(scale(cosine_similarity(q, k))), v)",
                "matmul(softmax(scale(euclidean_distance(q, k))), v)",
                "matmul(transpose(scale(matmul(q, transpose(k)))), v)",
                "cosine_similarity(softmax(scale(matmul(q, transpose(k)))), transpose(v))",
            },
        ),
        (
            "insert",
            {
                "neg(matmul(softmax(scale(matmul(q, transpose(k)))), v))",
                "matmul(softmax(scale(matmul(add(q, k), transpose(k)))), v)",
                "matmul(softmax(scale(matmul(q, transpose(logsigmoid(k))))), v)",
            },
        ),
        (
            "remove",
            {
                "matmul(scale(matmul(q, transpose(k))), v)",
                "matmul(softmax(matmul(q, transpose(k))), v)",
                "v",
            },
        ),
        (
            "rewire",
            {
                "matmul(softmax(scale(matmul(q, transpose(p)))), v)",
                "matmul(softmax(scale(matmul(k, transpose(k)))), v)",
                "matmul(softmax(scale(matmul(q, transpose(k)))), q)",
            },
        ),
    ],
)
def test_operators(change, required):
    expression = Expression.parse(STANDARD)
    bounds = Bounds(1, (3,), 16, 1)
    make = OPERATION_CHANGES[change]
    children = {make(expression, bounds, random_stream(i), choose_uniformly) for i in range(DRAWS)} - {None}
    assert all(child.type == "nd" for child in children)
    assert required <= set(map(str, children))
    sizes = {len(child.nodes()) - len(expression.nodes()) for child in children}
    if change == "insert":
        assert min(sizes) >= 0
        assert {child.name for child in children} >= {"add", "matmul", "cosine_similarity", "euclidean_distance"}
    if change == "remove":
        assert max(sizes) < 0
    if change == "rewire":
        assert max(sizes) <= 0


def test_mutation_produces_all_operations_as_readily():
    """Those that the paper has not, too, each about as often as others of its rule; and `v1`."""
    expression, counts = SELF_ATTENTION.expression, Counter()
    for i in range(DRAWS):
        child = mutate_inside_layer(
            Genome([Attention(expression)] * 3), BOUNDS, OPERATION_WEIGHTS, random_stream(i, "m"), choose_uniformly
        )
        [changed] = [gene.expression for gene in child if gene.expression != expression] or [expression]
        counts.update({node.name for node in changed.nodes()} - {node.name for node in expression.nodes()})
    assert set(counts) >= set(ALL_OPERATIONS) - {node.name for node in expression.nodes()}
    for names in (("rotary", "conv3", "conv7", "conv15"), ("sigmoid", "neg", "softsign"), ("mul", "mix")):
        found = [counts[name] for name in names]
        assert min(found) > 0.5 * max(found) > 10


def test_operations_are_chosen_by_the_given_function():
    seen = []

    def choose(names, rng):
        seen.append(tuple(names))
        return "neg" if "neg" in names else names[0]

    expression = Expression.parse(STANDARD)
    children = {str(OPERATION_CHANGES["insert"](expression, BOUNDS, random_stream(i), choose)) for i in range(100)}
    assert all("neg(" in child for child in children) and seen
