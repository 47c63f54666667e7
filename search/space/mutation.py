"""Mutation on two levels: between the layers (kind, kernel size, order) and inside one attention (operations).

Children are legal by construction: only changes that lead to a legal genome are considered. Departures from the paper
are listed in docs/explanation.md.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from autobert_zero.configuration_autobert_zero import Attention, Expression, Gene, Genome
from autobert_zero.search.space.bounds import Bounds
from autobert_zero.search.space.grammar import Choose, Grammar


def _with_gene(genome: Genome, layer: int, gene: Gene) -> Genome:
    return Genome((*genome[:layer], gene, *genome[layer + 1 :]))


def _in_random_order(names: Iterable[str], weights: Iterable[float], rng: np.random.Generator) -> Iterator[str]:
    """Names without replacement, each with a probability proportional to its weight; never one of weight 0."""
    left = {name: weight for name, weight in zip(names, weights, strict=True) if weight > 0}
    while left:
        total = sum(left.values())
        name = list(left)[int(rng.choice(len(left), p=[weight / total for weight in left.values()]))]
        yield name
        del left[name]


def mutate_between_layers(
    genome: Genome, bounds: Bounds, weights: Sequence[float], rng: np.random.Generator, choose: Choose
) -> Genome:
    """Change whether one layer is attention, or which other gene it has, or swap two layers that differ, or copy one over
    another.

    Args:
        weights: proportions of the changes, in the order of `LAYER_CHANGES`; 0 for those without one.

    Returns: the child, or the genome itself if the bounds allow no such change.
    """
    for change in _in_random_order(list(LAYER_CHANGES)[: len(weights)], weights, rng):
        child = LAYER_CHANGES[change](genome, bounds, rng, choose)
        if child is not None:
            return child
    return genome


def change_kind(genome: Genome, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Genome | None:
    """Replace a layer without attention by a random attention, or the reverse."""
    attentions = [isinstance(gene, Attention) for gene in genome]
    count = sum(attentions)
    may_change = {True: bounds.allows_attentions(count - 1), False: bounds.allows_attentions(count + 1)}
    layers = [i for i, attends in enumerate(attentions) if may_change[attends]]
    if not layers:
        return None
    layer = layers[int(rng.integers(len(layers)))]
    gene = bounds.random_other(rng) if attentions[layer] else bounds.random_attention(rng, choose)
    return _with_gene(genome, layer, gene)


def change_kernel_size(genome: Genome, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Genome | None:
    """Replace the kernel size, or the custom kind, of one layer."""
    layers = [
        i for i, gene in enumerate(genome) if not isinstance(gene, Attention) and set(bounds.other_genes) - {gene}
    ]
    if not layers:
        return None
    layer = layers[int(rng.integers(len(layers)))]
    others = [gene for gene in bounds.other_genes if gene != genome[layer]]
    return _with_gene(genome, layer, others[int(rng.integers(len(others)))])


def swap_layers(genome: Genome, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Genome | None:
    pairs = [(i, j) for j in range(len(genome)) for i in range(j) if genome[i] != genome[j]]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    return _with_gene(_with_gene(genome, i, genome[j]), j, genome[i])


def copy_layer(genome: Genome, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Genome | None:
    """Replace the gene of a layer by that of another layer: what is good in one place may be so in others."""
    attends = [isinstance(gene, Attention) for gene in genome]
    pairs = [
        (i, j)
        for i, j in itertools.permutations(range(len(genome)), 2)
        if genome[i] != genome[j] and bounds.allows_attentions(sum(attends) - attends[i] + attends[j])
    ]
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    return _with_gene(genome, i, genome[j])


LAYER_CHANGES = {
    "kind": change_kind,
    "kernel_size": change_kernel_size,
    "swap": swap_layers,
    "copy": copy_layer,
    "none": lambda genome, bounds, rng, choose: genome,
}


def crossover(genome: Genome, other: Genome, bounds: Bounds, rng: np.random.Generator) -> Genome:
    """Each layer from one of two genomes, by a fair coin; `genome` itself if the mixture is not legal."""
    child = Genome(mine if rng.random() < 0.5 else theirs for mine, theirs in zip(genome, other, strict=True))
    return child if bounds.contains(child) else genome


def mutate_inside_layer(
    genome: Genome, bounds: Bounds, weights: Sequence[float], rng: np.random.Generator, choose: Choose
) -> Genome:
    """Replace, insert or remove one operation of one attention, or rewire one of its inputs.

    Args:
        weights: proportions of the changes, in the order of `OPERATION_CHANGES`.

    Returns: the child, or the genome itself if it has no attention.
    """
    layers = [layer for layer, gene in enumerate(genome) if isinstance(gene, Attention)]
    if not layers:
        return genome
    layer = layers[int(rng.integers(len(layers)))]
    expression = genome[layer].expression  # type: ignore[union-attr]
    # Rewiring always succeeds, so the loop returns.
    for change in [*_in_random_order(OPERATION_CHANGES, weights, rng), "rewire"]:
        child = OPERATION_CHANGES[change](expression, bounds, rng, choose)
        if child is not None and child != expression and bounds.contains_expression(child):
            return _with_gene(genome, layer, Attention(child))
    raise AssertionError(f"no mutation of {expression}")


def _transposed(x: Expression) -> Expression:
    return x.operands[0] if x.name == "transpose" else Expression("transpose", (x,))


def _alternatives(node: Expression, grammar: Grammar) -> dict[str, Expression]:
    """Other operations, by name, of the type of `node` on its operands, the last one transposed if necessary."""
    *first, last = node.operands
    found: dict[str, Expression] = {}
    for name in grammar.rules:
        if name == node.name:
            continue
        for operands in (node.operands, (*first, _transposed(last))):
            try:
                candidate = grammar.apply(name, operands)
            except ValueError:
                continue
            if candidate.type == node.type:
                found.setdefault(name, candidate)
    return found


def replace(expression: Expression, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Expression | None:
    """Replace a random operation by another one."""
    nodes = [node for node in expression.nodes() if node.operands]
    for i in rng.permutation(len(nodes)):
        if alternatives := _alternatives(nodes[i], bounds.grammar):
            return expression.replace(nodes[i], alternatives[choose(sorted(alternatives), rng)])
    return None


def insert(expression: Expression, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Expression | None:
    """Apply a new operation to a random node, of the node's type; other operands are small random expressions."""
    spare = bounds.max_nodes - len(expression.nodes()) - 1
    nodes = expression.nodes()
    node = nodes[int(rng.integers(len(nodes)))]
    grammar, sizes = bounds.grammar, bounds.grammar.min_sizes
    # Ways in which one operand is the node and the others fit into the spare nodes.
    ways = [
        (name, types, position)
        for name, types in grammar.applications[node.type]
        for position, type_ in enumerate(types)
        if type_ == node.type and sum(sizes[t] for i, t in enumerate(types) if i != position) <= spare
    ]
    if spare < 0 or not ways:
        return None
    name = choose(sorted({name for name, _, _ in ways}), rng)
    choices = [(types, position) for n, types, position in ways if n == name]
    types, position = choices[int(rng.integers(len(choices)))]
    operands = [
        node if i == position else grammar.random_expression(t, max(sizes[t], min(spare, 4)), rng, choose)
        for i, t in enumerate(types)
    ]
    return expression.replace(node, grammar.apply(name, tuple(operands)))


def remove(expression: Expression, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Expression | None:
    """Replace a random operation by one of its operands of the same type."""
    removable = [(node, x) for node in expression.nodes() for x in node.operands if x.type == node.type]
    if not removable:
        return None
    node, operand = removable[int(rng.integers(len(removable)))]
    return expression.replace(node, operand)


def rewire(expression: Expression, bounds: Bounds, rng: np.random.Generator, choose: Choose) -> Expression | None:
    """Replace a random input by another one, wherever it is used."""
    used = expression.inputs()
    old = used[int(rng.integers(len(used)))]
    others = [name for name in bounds.grammar.inputs if name != old]
    return expression.replace(Expression(old), Expression(others[int(rng.integers(len(others)))]))


OPERATION_CHANGES = {"replace": replace, "insert": insert, "remove": remove, "rewire": rewire}
