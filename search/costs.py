"""What a backbone costs, from its genome and its sizes alone: parameters, and operations of a forward pass. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autobert_zero.configuration_autobert_zero import Convolution, Expression, Genome, OwnLayer


# Operations with a matrix product inside, which their FLOPs are those of.
_PRODUCTS = ("matmul", "cosine_similarity", "euclidean_distance")

# Random genomes drawn until one is within the limits.
MAX_TRIES = 1000


@dataclass(frozen=True)
class Sizes:
    """Sizes of a backbone as in its configuration; `tokens` is the length of the sequence that FLOPs are counted for."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tokens: int

    def parameters(self, genome: Genome) -> int:
        """Parameters of the masked language model, its tied head included."""
        width, inner = self.hidden_size, self.intermediate_size
        embeddings = (self.vocab_size + self.max_position_embeddings + 2) * width + 2 * width
        head = width * width + 3 * width + self.vocab_size
        feed_forward = 2 * width * inner + inner + width
        total = embeddings + head + len(genome) * (feed_forward + 4 * width)
        for gene in genome:
            if isinstance(gene, OwnLayer):
                total += OWN_LAYERS[gene.kind](self)[0]
            elif isinstance(gene, Convolution):
                total += 3 * width * width + 4 * width + gene.kernel_size * width
            else:
                total += (len(gene.expression.inputs()) + 1) * (width * width + width)
        return total

    def flops(self, genome: Genome) -> int:
        """Multiplications and additions in matrix products and convolutions of the backbone, for one sequence."""
        width, tokens = self.hidden_size, self.tokens
        total = len(genome) * 4 * tokens * width * self.intermediate_size
        for gene in genome:
            if isinstance(gene, OwnLayer):
                total += OWN_LAYERS[gene.kind](self)[1]
            elif isinstance(gene, Convolution):
                total += 2 * tokens * width * (3 * width + gene.kernel_size)
            else:
                total += 2 * tokens * width * width * (len(gene.expression.inputs()) + 1)
                total += self.num_attention_heads * sum(map(self._products, gene.expression.nodes()))
        return total

    def _products(self, node: Expression) -> int:
        if node.name not in _PRODUCTS:
            return 0
        lengths = {"n": self.tokens, "d": self.hidden_size // self.num_attention_heads}
        inner = lengths[node.operands[0].type[1]] + 2 * (node.name == "euclidean_distance")  # squared lengths of both
        return 2 * lengths[node.type[0]] * inner * lengths[node.type[1]]

    def of(self, genome: Genome) -> dict[str, float]:
        return {"parameters": self.parameters(genome), "flops": self.flops(genome)}


# Parameters and FLOPs of a layer kind of one's own; `own_operations` knows.
OWN_LAYERS: dict[str, Callable[[Sizes], tuple[int, int]]] = {}


class NoGenome(ValueError):
    """No genome within the limits was found."""


class LimitedSpace:
    """The genomes of a space whose costs are within limits.

    Args:
        space: whose genomes they are.
        costs: of a genome, by name.
        limits: the most that a cost may be, by name.
    """

    def __init__(self, space: Any, costs: Callable[[Any], Mapping[str, float]], limits: Mapping[str, float]):
        self.space = space
        self.costs = costs
        self.limits = dict(limits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def contains(self, genome: Any) -> bool:
        return self.space.contains(genome) and self.within(genome)

    def within(self, genome: Any) -> bool:
        costs = self.costs(genome)
        return all(costs[name] <= limit for name, limit in self.limits.items())

    def random(self, rng: np.random.Generator) -> Any:
        """Raises: NoGenome where none of many is within the limits."""
        least = dict.fromkeys(self.limits, float("inf"))
        for _ in range(MAX_TRIES):
            if self.within(genome := self.space.random(rng)):
                return genome
            costs = self.costs(genome)
            least = {name: min(value, costs[name]) for name, value in least.items()}
        wanted = ", ".join(f"max_{name}={limit:,.0f}" for name, limit in self.limits.items())
        found = ", ".join(f"{name} {value:,.0f}" for name, value in least.items())
        raise NoGenome(f"{wanted}: expected limits that some genomes keep, got none in {MAX_TRIES}; least {found}")

    def mutate(self, genome: Any, rng: np.random.Generator, **draw: Any) -> Any:
        """A child within the limits; the genome itself where none comes in many tries."""
        children = (self.space.mutate(genome, rng, **draw) for _ in range(MAX_TRIES))
        return next((child for child in children if self.within(child)), genome)

    def crossover(self, genome: Any, other: Any, rng: np.random.Generator) -> Any:
        child = self.space.crossover(genome, other, rng)
        return child if self.within(child) else genome
