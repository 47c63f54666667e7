"""The space of backbones: which genomes are legal, a random one, a mutated one."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autobert_zero.configuration_autobert_zero import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    RESULT_TYPE,
    Attention,
    Convolution,
    Expression,
    Gene,
    Genome,
    OwnLayer,
)
from autobert_zero.search import mutation
from autobert_zero.search.functional_key import genome_key
from autobert_zero.search.grammar import DRAWN, Draw, draw_uniformly, random_operation


# Random expressions drawn until one is of the space.
MAX_TRIES = 100


@dataclass(frozen=True)
class BackboneSpace:
    """Genomes of `num_layers` layers, each a convolution or an attention of bounded size that mixes tokens, and so many
    attentions.

    Args:
        own_kinds: layer kinds of one's own; as likely each as a kernel size.
        layer_mutations: proportions of the changes between layers, in the order of `mutation.LAYER_CHANGES`.
        operation_mutations: proportions of the changes inside an attention, in the order of `mutation.CHANGES`.
    """

    num_layers: int
    kernel_sizes: tuple[int, ...]
    max_nodes: int
    min_attention_layers: int
    layer_mutations: tuple[float, ...] = (1.0, 1.0, 1.0)
    operation_mutations: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0)
    max_attention_layers: int | None = None
    own_kinds: tuple[str, ...] = ()

    @cached_property
    def other_genes(self) -> tuple[Gene, ...]:
        """All that a layer without attention can be."""
        return (*map(Convolution, self.kernel_sizes), *map(OwnLayer, self.own_kinds))

    @property
    def most_attention_layers(self) -> int:
        return self.num_layers if self.max_attention_layers is None else self.max_attention_layers

    def contains(self, genome: Genome) -> bool:
        return (
            len(genome) == self.num_layers
            and self.min_attention_layers
            <= sum(isinstance(gene, Attention) for gene in genome)
            <= self.most_attention_layers
            and all(
                self.contains_expression(gene.expression) if isinstance(gene, Attention) else gene in self.other_genes
                for gene in genome
            )
        )

    def contains_expression(self, expression: Expression) -> bool:
        nodes = expression.nodes()
        return (
            expression.type == RESULT_TYPE
            and expression.mixes_tokens()
            and expression.depth <= MAX_DEPTH
            and len(nodes) <= self.max_nodes
            and len(str(expression)) <= MAX_CHARACTERS
            and all(node.name in DRAWN for node in nodes if node.operands)
        )

    def random(self, rng: np.random.Generator, draw: Draw = draw_uniformly) -> Genome:
        """A random genome: attention or not, for each layer by a fair coin, then an expression or another gene."""
        attends = rng.random(self.num_layers) < 0.5
        missing = self.min_attention_layers - int(attends.sum())
        if missing > 0:
            attends[rng.choice(np.flatnonzero(~attends), size=missing, replace=False)] = True
        spare = int(attends.sum()) - self.most_attention_layers
        if spare > 0:
            attends[rng.choice(np.flatnonzero(attends), size=spare, replace=False)] = False
        return Genome(self.random_attention(rng, draw) if a else self.random_other(rng) for a in attends)

    def random_other(self, rng: np.random.Generator) -> Gene:
        """A gene without attention."""
        return self.other_genes[int(rng.integers(len(self.other_genes)))]

    def random_attention(self, rng: np.random.Generator, draw: Draw = draw_uniformly) -> Gene:
        for attempt in range(MAX_TRIES):
            # About one in three mixes no tokens; drawn by a priority that likes no mixing operation, nearly all.
            way = draw if attempt < MAX_TRIES // 2 else draw_uniformly
            expression = random_operation(RESULT_TYPE, self.max_nodes, rng, way)
            if self.contains_expression(expression):
                return Attention(expression)
        raise AssertionError(f"no attention of the space in {MAX_TRIES} tries")

    def mutate(self, genome: Genome, rng: np.random.Generator, draw: Draw = draw_uniformly) -> Genome:
        """A child: one change between the layers, then one inside a layer."""
        genome = mutation.mutate_between_layers(genome, self, rng, draw)
        return mutation.mutate_inside_layer(genome, self, rng, draw)

    def crossover(self, genome: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """A genome of layers of both."""
        return mutation.crossover(genome, other, self, rng)

    @staticmethod
    def operations(genome: Genome) -> list[str]:
        """Names of the operations in the attention layers, each once, sorted."""
        return genome.operations()

    @staticmethod
    def features(genome: Genome) -> list[str]:
        """What stands where: kind, kernel size, operations and inputs of each layer."""
        found = []
        for layer, gene in enumerate(genome):
            found.append(f"{layer} {gene.kind}")
            if isinstance(gene, Convolution):
                found.append(f"{layer} convolution {gene.kernel_size}")
            elif isinstance(gene, Attention):
                found += (f"{layer} {name}" for name in sorted({node.name for node in gene.expression.nodes()}))
        return found

    def size(self, genome: Genome) -> tuple[int, int]:
        """What orders genomes by their number of parameters: square linear maps in the mixers, then kernel sizes. Layers
        of one's own count as none."""
        kernels = [gene.kernel_size for gene in genome if isinstance(gene, Convolution)]
        inputs = sum(len(gene.expression.inputs()) + 1 for gene in genome if isinstance(gene, Attention))
        return 3 * len(kernels) + inputs, sum(kernels)

    def key(self, genome: Genome) -> str:
        """The functional key: equal for genomes that compute the same function."""
        return genome_key(genome)
