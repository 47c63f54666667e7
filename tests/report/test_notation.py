"""Genomes as formulas and trees, and the differences between two."""

import pytest
from matplotlib.mathtext import MathTextParser

from autobert_zero.configuration_autobert_zero import (
    OPERATIONS,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.search.report.notation import TWICE_SCALED, differences, latex, simplified, tree
from autobert_zero.search.space.functional_key import genome_key
from tests.conftest import random_genome


RANDOM = sorted({g.expression for i in range(60) for g in random_genome(i) if isinstance(g, Attention)}, key=str)


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        (str(SELF_ATTENTION.expression), r"\operatorname{softmax}\left(\frac{Q\,K^{\top}}{\sqrt{d}}\right)\,V"),
        ("matmul(q, matmul(transpose(k), v))", r"Q\,\left(K^{\top}\,V\right)"),
        ("matmul(matmul(q, transpose(k)), v)", r"Q\,K^{\top}\,V"),
        (
            "matmul(cosine_similarity(q, k), add(q, neg(v)))",
            r"\cos\left(Q, K\right)\,\left(Q + \left(-V\right)\right)",
        ),
        ("neg(add(q, k))", r"-\left(Q + K\right)"),
        ("transpose(transpose(neg(q)))", r"\left(\left(-Q\right)^{\top}\right)^{\top}"),
        ("add(q, add(k, v))", r"Q + \left(K + V\right)"),
        ("scale(softsign(q))", r"\frac{\operatorname{softsign}\left(Q\right)}{\sqrt{d}}"),
    ],
)
def test_formulas(expression, formula):
    assert latex(Expression.parse(expression)) == formula


def test_every_formula_can_be_typeset():
    parser = MathTextParser("path")
    for expression in RANDOM:
        parser.parse(f"${latex(expression)}$")


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (
            "matmul(softmax(matmul(q, transpose(transpose(transpose(k))))), v)",
            "matmul(softmax(matmul(q, transpose(k))), v)",
        ),
        ("neg(neg(neg(q)))", "neg(q)"),
        ("add(neg(transpose(transpose(neg(q)))), k)", "add(q, k)"),
        ("transpose(scale(scale(neg(transpose(k)))))", "transpose(scale ÷d(neg(transpose(k))))"),
    ],
)
def test_simplified(found, shown):
    genome = Genome([Convolution(3), Attention(Expression.parse(found))])
    assert [str(gene) for gene in simplified(genome)] == ["convolution 3", shown]


def test_a_simplified_genome_computes_the_same():
    def expanded(node: Expression) -> Expression:
        operands = tuple(map(expanded, node.operands))
        if node.name == TWICE_SCALED:
            return Expression("scale", (Expression("scale", operands),))
        return Expression(node.name, operands, node.rule)

    for number in range(40):
        genome = random_genome(number)
        shown = simplified(genome)
        genes = (Attention(expanded(gene.expression)) if isinstance(gene, Attention) else gene for gene in shown)
        assert genome_key(Genome(genes)) == genome_key(genome)


def test_trees():
    assert tree(SELF_ATTENTION.expression) == (
        "matmul\n  softmax\n    scale\n      matmul\n        q\n        transpose(k)\n  v"
    )
    shared = Expression.parse("matmul(matmul(neg(q), transpose(neg(q))), neg(q))")
    assert tree(shared) == "matmul\n  matmul\n    neg [1](q)\n    transpose\n      [1]\n  [1]"
    for expression in RANDOM:
        lines = tree(expression).splitlines()
        assert sum(line.split("[")[0].split("(")[0].strip() in OPERATIONS for line in lines) == sum(
            bool(node.operands) for node in expression.nodes()
        )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("add(softmax(q), v)", "add(softmax(k), v)", "q → k"),
        ("add(softmax(q), v)", "add(q, v)", "softmax(q) → q"),
        ("add(softmax(q), neg(softmax(q)))", "add(softmax(k), neg(softmax(k)))", "q → k"),
        (
            "add(softmax(q), neg(softmax(q)))",
            "add(softmax(k), softmax(q))",
            "add(softmax(q), neg(softmax(q))) → add(softmax(k), softmax(q))",
        ),
    ],
)
def test_the_smallest_change_inside_an_attention(old, new, said):
    old, new = (Genome([Convolution(3), Attention(Expression.parse(text))]) for text in (old, new))
    assert differences(old, new) == [f"layer 2: {said}"]
    assert differences(old, old) == []


def test_changes_between_layers():
    genome = Genome([Convolution(3), SELF_ATTENTION, Convolution(5)])
    assert differences(genome, Genome([SELF_ATTENTION, Convolution(3), Convolution(5)])) == ["layers 1 and 2 swapped"]
    assert differences(genome, Genome([Convolution(9), SELF_ATTENTION, SELF_ATTENTION])) == [
        "layer 1: convolution 3 → convolution 9",
        "layer 3: convolution 5 → attention",
    ]
