"""Mutation on two levels: between the layers (kind, kernel size, order) and inside one attention (operations).

Children are legal by construction: only moves that lead to a legal genome are drawn from.

Departures from the paper's OP-NAS, as it is generally described: two layers can be swapped; an input can be rewired,
where no operation can be replaced, inserted or removed, or as often as the proportions of the changes say.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autobert_zero.configuration_autobert_zero import (
    INPUTS,
    Attention,
    Expression,
    Gene,
    Genome,
)
from autobert_zero.search.grammar import APPLICATIONS, DRAWN, LEAST_SIZES, Draw, random_expression


if TYPE_CHECKING:
    from autobert_zero.search.space import BackboneSpace


def _with_gene(genome: Genome, layer: int, gene: Gene) -> Genome:
    return Genome((*genome[:layer], gene, *genome[layer + 1 :]))


def _in_random_order(names: Iterable[str], weights: Iterable[float], rng: np.random.Generator) -> Iterator[str]:
    """Names one after the other, each drawn from those that are left, in proportion to their weights; never one of 0."""
    left = {name: weight for name, weight in zip(names, weights, strict=True) if weight > 0}
    while left:
        total = sum(left.values())
        name = list(left)[int(rng.choice(len(left), p=[weight / total for weight in left.values()]))]
        yield name
        del left[name]


def mutate_between_layers(genome: Genome, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Genome:
    """Change whether one layer is attention, or which other one it is (its kernel size), or swap two layers that differ.

    Returns the genome itself where the space has no such change (one kernel size, attention everywhere required).
    """
    for change in _in_random_order(LAYER_CHANGES, space.layer_mutations, rng):
        child = LAYER_CHANGES[change](genome, space, rng, draw)
        if child is not None:
            return child
    return genome


def change_kind(genome: Genome, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Genome | None:
    """A random attention in the place of a layer without, or the other way round."""
    attentions = [isinstance(gene, Attention) for gene in genome]
    count = sum(attentions)
    may_change = {True: count > space.min_attention_layers, False: count < space.most_attention_layers}
    layers = [i for i, attends in enumerate(attentions) if may_change[attends]]
    if not layers:
        return None
    layer = layers[int(rng.integers(len(layers)))]
    gene = space.random_other(rng) if attentions[layer] else space.random_attention(rng, draw)
    return _with_gene(genome, layer, gene)


def change_kernel_size(genome: Genome, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Genome | None:
    """Another kernel size, or layer kind of one's own, in the place of one."""
    layers = [
        i for i, gene in enumerate(genome) if not isinstance(gene, Attention) and set(space.other_genes) - {gene}
    ]
    if not layers:
        return None
    layer = layers[int(rng.integers(len(layers)))]
    others = [gene for gene in space.other_genes if gene != genome[layer]]
    return _with_gene(genome, layer, others[int(rng.integers(len(others)))])


def swap_layers(genome: Genome, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Genome | None:
    pairs = [(i, j) for j in range(len(genome)) for i in range(j) if genome[i] != genome[j]]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    return _with_gene(_with_gene(genome, i, genome[j]), j, genome[i])


LAYER_CHANGES = {"kind": change_kind, "kernel_size": change_kernel_size, "swap": swap_layers}


def crossover(genome: Genome, other: Genome, space: "BackboneSpace", rng: np.random.Generator) -> Genome:
    """Each layer of one of two genomes, by a fair coin; `genome` itself where the mixture is not of the space."""
    child = Genome(mine if rng.random() < 0.5 else theirs for mine, theirs in zip(genome, other, strict=True))
    return child if space.contains(child) else genome


def mutate_inside_layer(genome: Genome, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Genome:
    """Replace, insert or remove one operation of one attention, or rewire one input of it.

    Returns the genome itself where it has no attention.
    """
    layers = [layer for layer, gene in enumerate(genome) if isinstance(gene, Attention)]
    if not layers:
        return genome
    layer = layers[int(rng.integers(len(layers)))]
    expression = genome[layer].expression  # type: ignore[union-attr]
    # Rewiring always succeeds, so the loop returns.
    for change in [*_in_random_order(CHANGES, space.operation_mutations, rng), "rewire"]:
        child = CHANGES[change](expression, space, rng, draw)
        if child is not None and child != expression and space.contains_expression(child):
            return _with_gene(genome, layer, Attention(child))
    raise AssertionError(f"no mutation of {expression}")


def _transposed(x: Expression) -> Expression:
    return x.operands[0] if x.name == "transpose" else Expression("transpose", (x,))


def _alternatives(node: Expression) -> dict[str, Expression]:
    """Other operations, by name, that give the type of `node` from its operands, the last one transposed if need be."""
    *first, last = node.operands
    found: dict[str, Expression] = {}
    for name in DRAWN:
        if name == node.name:
            continue
        for operands in (node.operands, (*first, _transposed(last))):
            try:
                candidate = Expression(name, operands)
            except ValueError:
                continue
            if candidate.type == node.type:
                found.setdefault(name, candidate)
    return found


def _shuffled(nodes: Sequence[Expression], rng: np.random.Generator) -> Iterator[Expression]:
    return (nodes[i] for i in rng.permutation(len(nodes)))


def replace(expression: Expression, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Expression | None:
    """Another operation in the place of a random one."""
    for node in _shuffled([node for node in expression.nodes() if node.operands], rng):
        if alternatives := _alternatives(node):
            return expression.replace(node, alternatives[draw(sorted(alternatives), rng)])
    return None


def insert(expression: Expression, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Expression | None:
    """A new operation on top of a random node, of the node's type; what else it needs is a small random expression."""
    spare = space.max_nodes - len(expression.nodes()) - 1
    nodes = expression.nodes()
    node = nodes[int(rng.integers(len(nodes)))]
    # Ways in which one operand is the node and the others fit in what is left.
    ways = [
        (name, types, position)
        for name, types in APPLICATIONS[node.type]
        for position, type_ in enumerate(types)
        if type_ == node.type and sum(LEAST_SIZES[t] for i, t in enumerate(types) if i != position) <= spare
    ]
    if spare < 0 or not ways:
        return None
    name = draw(sorted({name for name, _, _ in ways}), rng)
    choices = [(types, position) for n, types, position in ways if n == name]
    types, position = choices[int(rng.integers(len(choices)))]
    operands = [
        node if i == position else random_expression(t, max(LEAST_SIZES[t], min(spare, 4)), rng, draw)
        for i, t in enumerate(types)
    ]
    return expression.replace(node, Expression(name, tuple(operands)))


def remove(expression: Expression, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Expression | None:
    """A random operation gives way to one of its operands of the same type."""
    removable = [(node, x) for node in expression.nodes() for x in node.operands if x.type == node.type]
    if not removable:
        return None
    node, operand = removable[int(rng.integers(len(removable)))]
    return expression.replace(node, operand)


def rewire(expression: Expression, space: "BackboneSpace", rng: np.random.Generator, draw: Draw) -> Expression | None:
    """Another input in the place of a random one, wherever it is used."""
    used = expression.inputs()
    old = used[int(rng.integers(len(used)))]
    others = [name for name in INPUTS if name != old]
    return expression.replace(Expression(old), Expression(others[int(rng.integers(len(others)))]))


CHANGES = {"replace": replace, "insert": insert, "remove": remove, "rewire": rewire}
