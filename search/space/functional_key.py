"""Functional keys: two genomes that compute the same function have the same key, however they are written.

An expression is evaluated in float64 on fixed random inputs of two shapes, and the rounded result is hashed. The tests
also compare the model's executor with this one, which is in numpy.
"""

import functools
import hashlib
import math
from collections.abc import Callable

import numpy as np

from autobert_zero.configuration_autobert_zero import INPUTS, Attention, Convolution, Expression, Gene, Genome


SHAPES = ((5, 3), (3, 4))  # (tokens, head size), distinct so that a swapped axis changes the key
SIGNIFICANT_DIGITS = 6


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-4)


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
}


# Names and functions of custom operations; a tuple, so that it can be hashed.
Functions = tuple[tuple[str, Callable[..., np.ndarray]], ...]


def evaluate(expression: Expression, inputs: dict[str, np.ndarray], functions: Functions = ()) -> np.ndarray:
    """Value of an expression for one head.

    Args:
        inputs: by name, (tokens, head size) each.
        functions: names and functions of custom operations.

    Returns: (tokens, head size).
    """
    root_head_size = math.sqrt(next(iter(inputs.values())).shape[1])
    operations = {**OPERATIONS, "scale": lambda x: x / root_head_size, **dict(functions)}
    values: dict[Expression, np.ndarray] = {Expression(name): value for name, value in inputs.items()}
    for node in expression.nodes():
        if node.operands:
            values[node] = operations[node.name](*(values[operand] for operand in node.operands))
    return values[expression]


def _fixed_inputs() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(20220101)  # part of every recorded key: must never change
    return [{name: rng.standard_normal(shape) for name in INPUTS} for shape in SHAPES]


_FIXED_INPUTS = _fixed_inputs()


@functools.lru_cache(maxsize=100_000)
def expression_key(expression: Expression, functions: Functions = ()) -> str:
    """16 hexadecimal digits, equal for equal functions."""
    digest = hashlib.sha256()
    for inputs in _FIXED_INPUTS:
        value = evaluate(expression, inputs, functions)
        # Rounded relative to the largest entry: entries that cancel to nearly zero are rounding errors of its size.
        largest = np.abs(value).max()
        decimals = SIGNIFICANT_DIGITS - math.ceil(math.log10(largest)) if 0 < largest < math.inf else 0
        digest.update((np.round(value, decimals) + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.hexdigest()[:16]


def genome_key(genome: Genome, functions: Functions = ()) -> str:
    """16 hexadecimal digits, equal for genomes whose layers compute equal functions."""

    def layer_key(gene: Gene) -> str:
        if isinstance(gene, Attention):
            return expression_key(gene.expression, functions)
        return str(gene.kernel_size) if isinstance(gene, Convolution) else gene.kind

    layers = [layer_key(gene) for gene in genome]
    return hashlib.sha256("|".join(layers).encode()).hexdigest()[:16]
