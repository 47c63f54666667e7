"""Grammar of attention expressions: all ways to form each type, and random expressions, legal by construction."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from autobert_zero.configuration_autobert_zero import (
    ALL_OPERATIONS,
    INPUT_TYPE,
    INPUTS,
    OPERATIONS,
    PROJECTED_INPUTS,
    Expression,
)


# Probability that a random expression of type n×d ends in an input where it could continue.
INPUT_PROBABILITY = 0.3


class Choose(Protocol):
    """Chooses one of several operations; a search strategy supplies its own."""

    def __call__(self, names: Sequence[str], rng: np.random.Generator) -> str: ...


def choose_uniformly(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


@dataclass(frozen=True)
class Grammar:
    """The operations that expressions may use.

    Args:
        operations: names of built-in operations, and `v1` if the values of the first attention layer may be an input.
        custom_operations: names and type rules.
    """

    operations: tuple[str, ...] = ALL_OPERATIONS
    custom_operations: tuple[tuple[str, str], ...] = ()

    @cached_property
    def rules(self) -> dict[str, str]:
        """Type rules of all operations, by name."""
        built_in = {name: rule for name, rule in OPERATIONS.items() if name in self.operations}
        return {**built_in, **dict(self.custom_operations)}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in INPUTS if name in (*PROJECTED_INPUTS, *self.operations))

    @cached_property
    def applications(self) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
        """For every type, the ways to form it: an operation and the types of its operands."""
        found: dict[str, list[tuple[str, tuple[str, ...]]]] = {
            "".join(t): [] for t in itertools.product("nd", repeat=2)
        }
        for name, rule in self.rules.items():
            letters = sorted(set(rule) & set("abc"))
            operands, result = rule.split("->")
            for axes in itertools.product("nd", repeat=len(letters)):
                binding = str.maketrans(dict(zip(letters, axes, strict=True)))
                found[result.translate(binding)].append((name, tuple(operands.translate(binding).split(","))))
        return found

    @cached_property
    def min_sizes(self) -> dict[str, int]:
        """For every type, the minimum number of nodes (as written, not shared) of an expression of that type."""
        sizes = {INPUT_TYPE: 1}
        for _ in range(len(self.applications)):  # each round settles at least one more type
            for type_, ways in self.applications.items():
                reachable = [1 + sum(sizes[t] for t in types) for _, types in ways if all(t in sizes for t in types)]
                if reachable:
                    sizes[type_] = min(sizes.get(type_, reachable[0]), *reachable)
        return sizes

    def apply(self, name: str, operands: tuple[Expression, ...]) -> Expression:
        """An operation on operands. Raises: ValueError if their types do not fit."""
        return Expression(name, operands, None if name in OPERATIONS else self.rules[name])

    def random_expression(self, type_: str, max_size: int, rng: np.random.Generator, choose: Choose) -> Expression:
        """A random expression of a type, of at most `max_size` nodes as written (at least `min_sizes[type_]`)."""
        if type_ == INPUT_TYPE and (max_size < 2 or rng.random() < INPUT_PROBABILITY):
            return Expression(choose_uniformly(self.inputs, rng))
        return self.random_operation(type_, max_size, rng, choose)

    def random_operation(self, type_: str, max_size: int, rng: np.random.Generator, choose: Choose) -> Expression:
        """Like `random_expression`, but never a single input: at least two nodes.

        Raises: ValueError if no operation can form the type.
        """
        sizes = self.min_sizes
        ways = [
            (name, types)
            for name, types in self.applications[type_]
            if all(t in sizes for t in types) and 1 + sum(sizes[t] for t in types) <= max_size
        ]
        if not ways:
            raise ValueError(
                f"operations: expected some that form an expression of type {type_} with at most {max_size} nodes, got "
                f"{', '.join(self.rules) or 'none'}"
            )
        name = choose(sorted({name for name, _ in ways}), rng)
        choices = [types for n, types in ways if n == name]
        types = choices[int(rng.integers(len(choices)))]
        spare = max_size - 1 - sum(sizes[t] for t in types)
        spares = [spare] if len(types) == 1 else [part := int(rng.integers(spare + 1)), spare - part]
        operands = (
            self.random_expression(t, sizes[t] + part, rng, choose) for t, part in zip(types, spares, strict=True)
        )
        return self.apply(name, tuple(operands))
