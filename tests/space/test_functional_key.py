"""Functional keys: equal for equal functions, different for different ones, and the same for ever."""

import pytest

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Attention, Convolution, Expression, Genome
from autobert_zero.search.space.functional_key import expression_key, genome_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("neg(neg(q))", "q"),
        ("add(q, k)", "add(k, q)"),
        ("transpose(transpose(v))", "v"),
        ("scale(matmul(matmul(q, transpose(k)), v))", "matmul(matmul(scale(q), transpose(k)), v)"),
        ("add(q, add(k, v))", "add(add(q, k), v)"),
        ("neg(matmul(euclidean_distance(q, k), v))", "matmul(euclidean_distance(neg(q), neg(k)), neg(v))"),
        ("matmul(cosine_similarity(scale(q), k), v)", "matmul(cosine_similarity(q, k), v)"),
    ],
)
def test_equal_functions_have_equal_keys(one, other):
    assert expression_key(Expression.parse(one)) == expression_key(Expression.parse(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("q", "k"),
        ("q", "neg(q)"),
        ("q", "scale(q)"),
        ("softmax(q)", "transpose(softmax(transpose(q)))"),
        ("matmul(softmax(matmul(q, transpose(k))), v)", "matmul(softmax(scale(matmul(q, transpose(k)))), v)"),
        ("logsigmoid(q)", "softsign(q)"),
    ],
)
def test_different_functions_have_different_keys(one, other):
    assert expression_key(Expression.parse(one)) != expression_key(Expression.parse(other))


def test_genome_keys():
    twice = Attention(Expression.parse(f"neg(neg({SELF_ATTENTION}))"))
    assert genome_key(Genome([Convolution(3), SELF_ATTENTION])) == genome_key(Genome([Convolution(3), twice]))
    assert genome_key(Genome([Convolution(3), SELF_ATTENTION])) != genome_key(Genome([SELF_ATTENTION, Convolution(3)]))
    assert genome_key(Genome([Convolution(3)])) != genome_key(Genome([Convolution(5)]))


def test_values_of_the_first_layer():
    """In the first attention `v1` is `v`; in later ones it is not."""
    shared = Attention(Expression.parse(str(SELF_ATTENTION).replace("v)", "v1)")))
    keys = [
        genome_key(Genome(genes))
        for genes in (
            [Convolution(3), SELF_ATTENTION, SELF_ATTENTION],
            [Convolution(3), shared, SELF_ATTENTION],
            [Convolution(3), SELF_ATTENTION, shared],
        )
    ]
    assert keys[0] == keys[1] != keys[2]


def test_keys_never_change():
    """Histories contain them: with other keys, a resumed run would evaluate known candidates again."""
    assert expression_key(SELF_ATTENTION.expression) == "bab493209a1a3e5b"
    assert genome_key(Genome([Convolution(65), SELF_ATTENTION])) == "560bbda2407286ae"
