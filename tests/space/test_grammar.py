"""The grammar: its tables are right, and random expressions are legal and use everything."""

from autobert_zero.configuration_autobert_zero import INPUTS, OPERATIONS, Expression
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.grammar import Grammar, choose_uniformly


DRAWS = 2000
GRAMMAR = Grammar()


def test_min_sizes_are_reached_and_minimal():
    assert GRAMMAR.min_sizes == {"nd": 1, "dn": 2, "nn": 3, "dd": 4}
    for type_, size in GRAMMAR.min_sizes.items():
        expression = GRAMMAR.random_expression(type_, size, random_stream(0), choose_uniformly)
        assert len(expression.nodes()) <= size


def test_applications_form_the_type_that_they_are_listed_under():
    for type_, ways in GRAMMAR.applications.items():
        for name, types in ways:
            operands = tuple(GRAMMAR.random_expression(t, 4, random_stream(1), choose_uniformly) for t in types)
            assert Expression(name, operands).type == type_
    assert {name for ways in GRAMMAR.applications.values() for name, _ in ways} == set(OPERATIONS)


def test_random_expressions():
    names = set()
    for i in range(DRAWS):
        type_ = list(GRAMMAR.min_sizes)[i % 4]
        expression = GRAMMAR.random_expression(type_, 4 + i % 10, random_stream(i), choose_uniformly)
        assert expression.type == type_
        assert str(expression).count("(") + sum(map(str(expression).count, INPUTS)) >= len(expression.nodes()) - 9
        assert len(expression.nodes()) <= 4 + i % 10
        names |= {node.name for node in expression.nodes()}
    assert names == {*INPUTS, *OPERATIONS}
