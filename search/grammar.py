"""Grammar of attention expressions: every way to make a type, and random expressions, legal by construction."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from autobert_zero.configuration_autobert_zero import BUILT_IN, INPUT_TYPE, INPUTS, OPERATIONS, Expression


class Draw(Protocol):
    """Draws one of some operations; a search strategy brings its own."""

    def __call__(self, names: Sequence[str], rng: np.random.Generator) -> str: ...


def draw_uniformly(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _applications() -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """For every type, the ways to make it: an operation and the types of its operands."""
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {"".join(t): [] for t in itertools.product("nd", repeat=2)}
    for name in DRAWN:
        rule = OPERATIONS[name]
        letters = sorted(set(rule) & set("abc"))
        operands, result = rule.split("->")
        for axes in itertools.product("nd", repeat=len(letters)):
            binding = str.maketrans(dict(zip(letters, axes, strict=True)))
            found[result.translate(binding)].append((name, tuple(operands.translate(binding).split(","))))
    return found


# Operations that are drawn (`draw_from`), and what follows from them.
DRAWN: list[str] = []
APPLICATIONS: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
LEAST_SIZES: dict[str, int] = {}


def _least_sizes() -> dict[str, int]:
    """For every type, the least number of nodes (as written, not shared) of an expression of that type."""
    sizes = {INPUT_TYPE: 1}
    for _ in range(len(APPLICATIONS)):  # each round settles at least one more type
        for type_, ways in APPLICATIONS.items():
            reachable = [1 + sum(sizes[t] for t in types) for _, types in ways if all(t in sizes for t in types)]
            if reachable:
                sizes[type_] = min(sizes.get(type_, reachable[0]), *reachable)
    return sizes


def draw_from(own: Iterable[str] = ()) -> None:
    """Let random expressions be of the built-in operations and of some of one's own."""
    DRAWN[:] = [*BUILT_IN, *own]
    APPLICATIONS.update(_applications())
    LEAST_SIZES.update(_least_sizes())


draw_from()

# With what probability a random expression of type n×d ends here in an input, where it could go on.
INPUT_PROBABILITY = 0.3


def random_expression(type_: str, max_size: int, rng: np.random.Generator, draw: Draw) -> Expression:
    """A random expression of a type, of at most `max_size` nodes as written (at least `LEAST_SIZES[type_]`)."""
    if type_ == INPUT_TYPE and (max_size < 2 or rng.random() < INPUT_PROBABILITY):
        return Expression(draw_uniformly(INPUTS, rng))
    return random_operation(type_, max_size, rng, draw)


def random_operation(type_: str, max_size: int, rng: np.random.Generator, draw: Draw) -> Expression:
    """Like `random_expression`, but never a bare input: of at least two nodes."""
    ways = [(n, types) for n, types in APPLICATIONS[type_] if 1 + sum(LEAST_SIZES[t] for t in types) <= max_size]
    name = draw(sorted({name for name, _ in ways}), rng)
    choices = [types for n, types in ways if n == name]
    types = choices[int(rng.integers(len(choices)))]
    spare = max_size - 1 - sum(LEAST_SIZES[t] for t in types)
    shares = [spare] if len(types) == 1 else [share := int(rng.integers(spare + 1)), spare - share]
    operands = (
        random_expression(t, LEAST_SIZES[t] + share, rng, draw) for t, share in zip(types, shares, strict=True)
    )
    return Expression(name, tuple(operands))
