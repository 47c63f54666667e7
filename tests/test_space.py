"""Grammar, space and mutation: only legal results ever, and every legal kind within a bounded number of draws."""

import dataclasses

import numpy as np
import pytest

from autobert_zero.configuration_autobert_zero import (
    INPUTS,
    OPERATIONS,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.search.grammar import APPLICATIONS, LEAST_SIZES, draw_uniformly, random_expression
from autobert_zero.search.mutation import CHANGES, mutate_between_layers, mutate_inside_layer
from autobert_zero.search.settings import stream
from autobert_zero.search.space import BackboneSpace

from .conftest import SPACE, random_genome


DRAWS = 2000


def test_least_sizes_are_reached_and_minimal():
    assert LEAST_SIZES == {"nd": 1, "dn": 2, "nn": 3, "dd": 4}
    for type_, size in LEAST_SIZES.items():
        assert len(random_expression(type_, size, stream(0), draw_uniformly).nodes()) <= size


def test_applications_make_what_they_say():
    for type_, ways in APPLICATIONS.items():
        for name, types in ways:
            operands = tuple(random_expression(t, 4, stream(1), draw_uniformly) for t in types)
            assert Expression(name, operands).type == type_
    assert {name for ways in APPLICATIONS.values() for name, _ in ways} == set(OPERATIONS)


def test_random_expressions():
    names = set()
    for i in range(DRAWS):
        type_ = list(LEAST_SIZES)[i % 4]
        expression = random_expression(type_, 4 + i % 10, stream(i), draw_uniformly)
        assert expression.type == type_
        assert str(expression).count("(") + sum(map(str(expression).count, INPUTS)) >= len(expression.nodes()) - 9
        assert len(expression.nodes()) <= 4 + i % 10
        names |= {node.name for node in expression.nodes()}
    assert names == {*INPUTS, *OPERATIONS}


def test_random_genomes():
    genes = set()
    for i in range(DRAWS):
        genome = random_genome(i)
        assert SPACE.contains(genome)
        assert all(gene.expression.mixes_tokens() for gene in genome if isinstance(gene, Attention))
        genes |= {(layer, getattr(gene, "kernel_size", "attention")) for layer, gene in enumerate(genome)}
    assert genes == {(layer, kind) for layer in range(3) for kind in (3, 5, 7, "attention")}


@pytest.mark.parametrize("least", [0, 1, 3])
def test_least_number_of_attentions(least):
    space = BackboneSpace(3, (3, 5), 10, least)
    counts = set()
    genome = space.random(stream(0))
    for i in range(500):
        genome = space.mutate(genome, stream(i, "m"))
        assert space.contains(genome)
        counts.add(sum(isinstance(gene, Attention) for gene in genome))
        counts.add(sum(isinstance(gene, Attention) for gene in space.random(stream(i, "r"))))
    assert counts == set(range(least, 4))


@pytest.mark.parametrize("most", range(4))
def test_greatest_number_of_attentions(most):
    space = dataclasses.replace(SPACE, min_attention_layers=0, max_attention_layers=most)
    counts = set()
    for number in range(100):
        genome = space.random(stream(number, "most"))
        for generation in range(4):
            assert space.contains(genome)
            counts.add(sum(isinstance(gene, Attention) for gene in genome))
            genome = space.mutate(genome, stream(number, "child", generation))
    assert counts == set(range(most + 1))
    assert not dataclasses.replace(space, max_attention_layers=0).contains(Genome([SELF_ATTENTION] * 3))


def test_between_layers_makes_every_kind_of_change():
    found, swaps = set(), 0
    for i in range(DRAWS):
        genome = random_genome(i)
        child = mutate_between_layers(genome, SPACE, stream(i, "m"), draw_uniformly)
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
    space = dataclasses.replace(SPACE, layer_mutations=weights)
    sizes = set()
    for i in range(300):
        genome = random_genome(i)
        child = mutate_between_layers(genome, space, stream(i, "m"), draw_uniformly)
        pairs = [(a, b) for a, b in zip(genome, child, strict=True) if a != b]
        assert all(is_expected(a, b) for a, b in pairs)
        sizes.add(len(pairs))
    # Nothing else is done where the one change is not possible.
    assert sizes == ({2} if weights[2] else {0, 1} if weights[1] else {1})


def test_proportions_of_changes_inside_a_layer():
    space = dataclasses.replace(SPACE, operation_mutations=(0, 0, 0, 1))
    for i in range(300):
        genome = random_genome(i)
        child = mutate_inside_layer(genome, space, stream(i, "m"), draw_uniformly)
        assert SPACE.operations(child) == SPACE.operations(genome) and child != genome


def test_crossover():
    whose = np.zeros((DRAWS, 3))
    for i in range(DRAWS):
        mine, theirs = random_genome(2 * i), random_genome(2 * i + 1)
        child = SPACE.crossover(mine, theirs, stream(i, "x"))
        assert SPACE.contains(child)
        whose[i] = [a == c != b for a, b, c in zip(mine, theirs, child, strict=True)]
    assert (whose.mean(0) > 0.35).all() and (whose.mean(0) < 0.65).all()
    space = BackboneSpace(2, (3,), 10, 1)
    attends = Genome([SELF_ATTENTION, Convolution(3)])
    for i in range(50):
        assert space.contains(space.crossover(attends, Genome(reversed(attends)), stream(i)))


def test_between_layers_where_nothing_can_change():
    space = BackboneSpace(1, (3,), 10, 1)
    genome = space.random(stream(0))
    assert mutate_between_layers(genome, space, stream(1), draw_uniformly) == genome


def test_inside_layer_changes_one_attention():
    for i in range(DRAWS):
        genome = random_genome(i)
        child = mutate_inside_layer(genome, SPACE, stream(i, "m"), draw_uniformly)
        assert SPACE.contains(child)
        [layer] = [layer for layer in range(3) if genome[layer] != child[layer]]
        assert isinstance(genome[layer], Attention) and isinstance(child[layer], Attention)
    convolutions = Genome([Convolution(3)] * 3)
    assert mutate_inside_layer(convolutions, SPACE, stream(0), draw_uniformly) == convolutions


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
    space = BackboneSpace(1, (3,), 16, 1)
    children = {CHANGES[change](expression, space, stream(i), draw_uniformly) for i in range(DRAWS)} - {None}
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


def test_operations_are_drawn_by_the_given_way():
    seen = []

    def draw(names, rng):
        seen.append(tuple(names))
        return "neg" if "neg" in names else names[0]

    expression = Expression.parse(STANDARD)
    children = {str(CHANGES["insert"](expression, SPACE, stream(i), draw)) for i in range(100)}
    assert all("neg(" in child for child in children) and seen


def test_a_draw_that_likes_no_mixing_operation_still_gives_attentions():
    for i in range(50):
        genome = SPACE.random(stream(i), lambda names, rng: "neg" if "neg" in names else draw_uniformly(names, rng))
        assert SPACE.contains(genome)


def test_operations_of_a_genome():
    genome = Genome(
        [Convolution(3), Attention(Expression.parse("neg(neg(q))")), Attention(Expression.parse("add(q, k)"))]
    )
    assert SPACE.operations(genome) == ["add", "neg"]
