"""Costs of a backbone, from its genome and its sizes alone: parameters, and FLOPs of a forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autobert_zero.configuration_autobert_zero import KERNEL_SIZES, Convolution, CustomLayer, Expression, Genome


# Operations whose FLOPs are those of a matrix product.
_PRODUCTS = ("matmul", "cosine_similarity", "euclidean_distance")


@dataclass(frozen=True)
class CostModel:
    """Counts parameters and FLOPs of backbones of some size.

    Args:
        hidden_size, num_attention_heads, intermediate_size, vocab_size, max_position_embeddings: as in the
            configuration.
        tokens: length of the sequence that FLOPs are counted for.
        custom_layers: parameters and FLOPs of a layer of each custom kind.
        absolute_positions: whether there is a table of position embeddings.
    """

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tokens: int
    custom_layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    absolute_positions: bool = True

    def parameters(self, genome: Genome) -> int:
        """Parameters of the masked language model, including its tied head."""
        width, inner = self.hidden_size, self.intermediate_size
        positions = self.max_position_embeddings if self.absolute_positions else 0
        embeddings = (self.vocab_size + positions + 2) * width + 2 * width
        head = width * width + 3 * width + self.vocab_size
        feed_forward = 2 * width * inner + inner + width
        total = embeddings + head + len(genome) * (feed_forward + 4 * width)
        for layer, gene in enumerate(genome):
            if isinstance(gene, CustomLayer):
                total += self.custom_layers[gene.kind][0]
            elif isinstance(gene, Convolution):
                total += 3 * width * width + 4 * width + gene.kernel_size * width
            else:
                total += (len(genome.projections(layer)) + 1) * (width * width + width)
                nodes = gene.expression.parameters()
                total += sum(KERNEL_SIZES[n.name] * width if n.name in KERNEL_SIZES else 1 for n in nodes)
        return total

    def flops(self, genome: Genome) -> int:
        """Multiplications and additions in matrix products and convolutions of the backbone, for one sequence."""
        width, tokens = self.hidden_size, self.tokens
        total = len(genome) * 4 * tokens * width * self.intermediate_size
        for layer, gene in enumerate(genome):
            if isinstance(gene, CustomLayer):
                total += self.custom_layers[gene.kind][1]
            elif isinstance(gene, Convolution):
                total += 2 * tokens * width * (3 * width + gene.kernel_size)
            else:
                total += 2 * tokens * width * width * (len(genome.projections(layer)) + 1)
                nodes = gene.expression.nodes()
                total += self.num_attention_heads * sum(map(self._product_flops, nodes))
                total += 2 * tokens * width * sum(KERNEL_SIZES.get(node.name, 0) for node in nodes)
        return total

    def _product_flops(self, node: Expression) -> int:
        if node.name not in _PRODUCTS:
            return 0
        lengths = {"n": self.tokens, "d": self.hidden_size // self.num_attention_heads}
        inner = lengths[node.operands[0].type[1]] + 2 * (node.name == "euclidean_distance")  # squared lengths of both
        return 2 * lengths[node.type[0]] * inner * lengths[node.type[1]]

    def costs(self, genome: Genome) -> dict[str, float]:
        return {"parameters": self.parameters(genome), "flops": self.flops(genome)}
