"""The space of backbones: the object that a search works with."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autobert_zero.configuration_autobert_zero import Attention, Convolution, Genome
from autobert_zero.search.space import mutation
from autobert_zero.search.space.bounds import MAX_TRIES, Bounds
from autobert_zero.search.space.functional_key import genome_key
from autobert_zero.search.space.grammar import Choose, choose_uniformly


@dataclass(frozen=True)
class BackboneSpace:
    """Random and mutated genomes, and what a search needs to know about a genome.

    Args:
        bounds: the legal genomes.
        layer_mutations: proportions of the changes between layers, in the order of `mutation.LAYER_CHANGES`.
        operation_mutations: proportions of the changes inside an attention, in the order of
            `mutation.OPERATION_CHANGES`.
        functions: names and numpy functions of custom operations, for functional keys.
    """

    bounds: Bounds
    layer_mutations: tuple[float, ...] = (1.0, 1.0, 1.0)
    operation_mutations: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0)
    functions: tuple[tuple[str, Callable[..., np.ndarray]], ...] = ()

    def contains(self, genome: Genome) -> bool:
        return self.bounds.contains(genome)

    def random(self, rng: np.random.Generator, choose: Choose = choose_uniformly) -> Genome:
        return self.bounds.random(rng, choose)

    def mutate(self, genome: Genome, rng: np.random.Generator, choose: Choose = choose_uniformly) -> Genome:
        """A child: one change between the layers, then one inside a layer; or the genome itself, if no child satisfies
        the requirement that the output depends on the order of tokens."""
        for _ in range(MAX_TRIES):
            child = mutation.mutate_between_layers(genome, self.bounds, self.layer_mutations, rng, choose)
            child = mutation.mutate_inside_layer(child, self.bounds, self.operation_mutations, rng, choose)
            if self.bounds.has_order(child):
                return child
        return genome

    def crossover(self, genome: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """A genome with layers of both."""
        return mutation.crossover(genome, other, self.bounds, rng)

    @staticmethod
    def operations(genome: Genome) -> list[str]:
        """Names of the operations in the attention layers, each once, sorted."""
        return genome.operations()

    @staticmethod
    def features(genome: Genome) -> list[str]:
        """Kind, kernel size, operations and inputs of each layer, with its number."""
        found = []
        for layer, gene in enumerate(genome):
            found.append(f"{layer} {gene.kind}")
            if isinstance(gene, Convolution):
                found.append(f"{layer} convolution {gene.kernel_size}")
            elif isinstance(gene, Attention):
                found += (f"{layer} {name}" for name in sorted({node.name for node in gene.expression.nodes()}))
        return found

    @staticmethod
    def size(genome: Genome) -> tuple[int, int]:
        """Orders genomes by their number of parameters: square linear maps in the mixers, then kernel sizes. Custom
        layers count as 0."""
        kernels = [gene.kernel_size for gene in genome if isinstance(gene, Convolution)]
        inputs = sum(len(genome.projections(i)) + 1 for i, gene in enumerate(genome) if isinstance(gene, Attention))
        return 3 * len(kernels) + inputs, sum(kernels)

    def key(self, genome: Genome) -> str:
        """The functional key: equal for genomes that compute the same function."""
        return genome_key(genome, self.functions)
