"""Functional keys: two genomes that compute the same function have the same key, however they are written. (Only if
kernels of convolutions in an expression change places, equal functions may have different keys.)

An expression is evaluated in float64 on fixed random inputs of two shapes, and the rounded result is hashed. The tests
also compare the model's executor with this one, which is in numpy.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from autobert_zero.configuration_autobert_zero import (
    FIRST_VALUES,
    KERNEL_SIZES,
    PROJECTED_INPUTS,
    Attention,
    Convolution,
    Expression,
    Gene,
    Genome,
)
from autobert_zero.search.files import bytes_digest
from autobert_zero.search.seeding import random_stream


SHAPES = ((5, 3), (3, 4))  # (tokens, head size), distinct so that a swapped axis changes the key
SIGNIFICANT_DIGITS = 6


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-4)


def _rotary(x: np.ndarray) -> np.ndarray:
    half = x.shape[1] // 2
    angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / max(1, half))
    first, second, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=1)


def _convolution(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(tokens, head size) by kernels (kernel size, head size), with zeros beyond the ends."""
    margin = len(kernel) // 2
    padded = np.pad(x, ((margin, margin), (0, 0)))
    return sum(tap * padded[i : i + len(x)] for i, tap in enumerate(kernel))


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "neg": np.negative,
    "transpose": np.transpose,
    "softmax": _softmax,
    "logsigmoid": lambda x: -np.logaddexp(0, -x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "add": np.add,
    "matmul": np.matmul,
    "cosine_similarity": lambda x, y: _unit_rows(x) @ _unit_rows(y).T,
    "euclidean_distance": lambda x, y: np.linalg.norm(x[:, None] - y[None], axis=-1),
    "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    "mul": np.multiply,
    "rotary": _rotary,
}


# Names and functions of custom operations; a tuple, so that it can be hashed.
Functions = tuple[tuple[str, Callable[..., np.ndarray]], ...]


def fixed_parameters(expression: Expression, head_size: int) -> dict[str, np.ndarray]:
    """Parameters of its nodes by name: kernels (kernel size, head size), and the weight of y in a `mix`.

    They depend on the name only, so equal names in two expressions have equal kernels, and different nodes of one
    expression have different ones, as in a model. All weights are their initial value, ½: mixtures that differ by their
    learned weights only have the same key.
    """
    found = {}
    for node, name in expression.parameters().items():
        rng = random_stream(20220101, "parameters", name)  # part of recorded keys: must never change
        size = KERNEL_SIZES.get(node.name)
        found[name] = np.array(0.5) if size is None else rng.standard_normal((size, head_size))
    return found


def evaluate(
    expression: Expression,
    inputs: dict[str, np.ndarray],
    functions: Functions = (),
    parameters: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Value of an expression for one head.

    Args:
        inputs: by name, (tokens, head size) each.
        functions: names and functions of custom operations.
        parameters: of the nodes, by name; `fixed_parameters` by default.

    Returns: (tokens, head size).
    """
    head_size = next(iter(inputs.values())).shape[1]
    if parameters is None:
        parameters = fixed_parameters(expression, head_size)
    names = expression.parameters()
    root_head_size = math.sqrt(head_size)
    operations = {**OPERATIONS, "scale": lambda x: x / root_head_size, **dict(functions)}
    values: dict[Expression, np.ndarray] = {Expression(name): value for name, value in inputs.items()}
    for node in expression.nodes():
        operands = [values[operand] for operand in node.operands]
        if node.name in KERNEL_SIZES:
            [x] = operands
            values[node] = _convolution(x, parameters[names[node]])
        elif node.name == "mix":
            weight = parameters[names[node]]
            values[node] = (1 - weight) * operands[0] + weight * operands[1]
        elif operands:
            values[node] = operations[node.name](*operands)
    return values[expression]


def _fixed_inputs() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(20220101)  # part of every recorded key: must never change
    found = [{name: rng.standard_normal(shape) for name in PROJECTED_INPUTS} for shape in SHAPES]
    for inputs, shape in zip(found, SHAPES, strict=True):
        inputs[FIRST_VALUES] = rng.standard_normal(shape)
    return found


_FIXED_INPUTS = _fixed_inputs()


@functools.lru_cache(maxsize=100_000)
def expression_key(expression: Expression, functions: Functions = ()) -> str:
    """16 hexadecimal digits, equal for equal functions."""
    return bytes_digest(_rounded(evaluate(expression, inputs, functions)).tobytes() for inputs in _FIXED_INPUTS)


def _rounded(value: np.ndarray) -> np.ndarray:
    # Relative to the largest entry: entries that cancel to nearly zero are rounding errors of its size.
    largest = np.abs(value).max()
    decimals = SIGNIFICANT_DIGITS - math.ceil(math.log10(largest)) if 0 < largest < math.inf else 0
    return np.round(value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0


def genome_key(genome: Genome, functions: Functions = ()) -> str:
    """16 hexadecimal digits, equal for genomes whose layers compute equal functions."""

    def layer_key(gene: Gene) -> str:
        if isinstance(gene, Attention):
            return expression_key(gene.expression, functions)
        return str(gene.kernel_size) if isinstance(gene, Convolution) else gene.kind

    first = genome.first_attention()
    if first is not None:  # where the first values are its own
        gene = genome[first]
        assert isinstance(gene, Attention)
        expression = gene.expression.replace(Expression(FIRST_VALUES), Expression("v"))
        genome = Genome((*genome[:first], Attention(expression), *genome[first + 1 :]))
    layers = [layer_key(gene) for gene in genome]
    return bytes_digest(["|".join(layers).encode()])
