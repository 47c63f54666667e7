"""Bounds of the space: which genes and genomes are legal, and random ones."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autobert_zero.configuration_autobert_zero import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    RESULT_TYPE,
    ROTARY_ATTENTION,
    SELF_ATTENTION,
    Attention,
    Convolution,
    CustomLayer,
    Expression,
    Gene,
    Genome,
)
from autobert_zero.search.space.grammar import Choose, Grammar, choose_uniformly


# Random genomes or expressions tried until one is legal, and those of them whose operations a priority chooses: nearly none of
# these attend to tokens, if it prefers operations that do not.
MAX_TRIES = 1000
PRIORITY_TRIES = 50


@dataclass(frozen=True)
class Bounds:
    """Legal genomes: each layer is a convolution, a custom layer, or an attention to all tokens.

    Args:
        num_layers: layers of each genome.
        kernel_sizes: of convolutions.
        max_nodes: maximum number of nodes of an attention expression.
        min_attention_layers, max_attention_layers: bounds of the number of attentions; None for no maximum.
        grammar: the operations that expressions may use.
        layer_kinds: custom kinds; each is as probable as one kernel size.
        requires_order: whether a genome must depend on the order of tokens by itself, without position embeddings.
    """

    num_layers: int
    kernel_sizes: tuple[int, ...]
    max_nodes: int
    min_attention_layers: int
    max_attention_layers: int | None = None
    grammar: Grammar = Grammar()
    layer_kinds: tuple[str, ...] = ()
    requires_order: bool = False

    @cached_property
    def other_genes(self) -> tuple[Gene, ...]:
        """All genes of layers without attention."""
        return (*map(Convolution, self.kernel_sizes), *map(CustomLayer, self.layer_kinds))

    @property
    def most_attentions(self) -> int:
        """The maximum number of attention layers."""
        return (
            self.num_layers if self.max_attention_layers is None else min(self.num_layers, self.max_attention_layers)
        )

    def allows_attentions(self, count: int) -> bool:
        """Whether a genome may have this many attention layers."""
        return self.min_attention_layers <= count <= self.most_attentions

    def has_order(self, genome: Genome) -> bool:
        """Whether the genome depends on the order of tokens, if it must."""
        return not self.requires_order or genome.has_order()

    def contains(self, genome: Genome) -> bool:
        return (
            len(genome) == self.num_layers
            and self.has_order(genome)
            and self.allows_attentions(sum(isinstance(gene, Attention) for gene in genome))
            and all(
                self.contains_expression(gene.expression) if isinstance(gene, Attention) else gene in self.other_genes
                for gene in genome
            )
        )

    def contains_expression(self, expression: Expression) -> bool:
        nodes = expression.nodes()
        return (
            expression.type == RESULT_TYPE
            and expression.attends()
            and expression.depth <= MAX_DEPTH
            and len(nodes) <= self.max_nodes
            and len(str(expression)) <= MAX_CHARACTERS
            and all(node.name in (self.grammar.rules if node.operands else self.grammar.inputs) for node in nodes)
        )

    def random(self, rng: np.random.Generator, choose: Choose = choose_uniformly) -> Genome:
        """A random genome: for each layer a fair coin decides on attention, then the gene is random.

        Raises: ValueError if the operations hardly ever form a legal one.
        """
        return self._with_order(lambda: self._random(rng, choose))

    @cached_property
    def self_attention(self) -> Attention | None:
        """Self-attention of the operations of the space, with rotary positions if they are among them; None if it cannot be
        formed. It may have more nodes than the space allows."""
        for attention in (ROTARY_ATTENTION, SELF_ATTENTION):
            if all(node.name in self.grammar.rules for node in attention.expression.nodes() if node.operands):
                return attention
        return None

    @property
    def _has_others(self) -> bool:
        """Whether some layer may be without attention."""
        return self.min_attention_layers < self.num_layers

    @cached_property
    def _needs_random_attention(self) -> bool:
        """Whether neither self-attention nor another gene depends on the order of tokens, as it must."""
        return not self.has_order(Genome([self.self_attention, *(self.other_genes if self._has_others else ())]))

    def random_self_attentions(self, rng: np.random.Generator, with_random: bool = False) -> Genome:
        """A genome with self-attention in random layers, and no attention in the others. Their number is random, up to the
        legal maximum; it may be below the minimum if the space has other layers.

        Args:
            with_random: whether one random layer has a random attention instead, unless the space is without attention.

        Raises: ValueError if the space has no self-attention.
        """
        return self._with_order(lambda: self._random_self_attentions(rng, with_random))

    def _random_self_attentions(self, rng: np.random.Generator, with_random: bool) -> Genome:
        if self.self_attention is None:
            raise ValueError("operations: expected those of self-attention")
        with_random |= self._needs_random_attention
        count = int(rng.integers(self.most_attentions + 1)) if self._has_others else self.num_layers
        attends = rng.permutation(self.num_layers) < count
        genes = [self.self_attention if a else self.random_other(rng) for a in attends]
        places = [layer for layer, a in enumerate(attends) if a or count < self.most_attentions]
        if with_random and places:
            genes[int(rng.choice(places))] = self.random_attention(rng)
        return Genome(genes)

    def _with_order(self, make: Callable[[], Genome]) -> Genome:
        for _ in range(MAX_TRIES):
            if self.has_order(genome := make()):
                return genome
        raise ValueError(
            f"operations: expected genomes that depend on the order of tokens, got none in {MAX_TRIES} tries from "
            f"{', '.join(self.grammar.rules)}"
        )

    def _random(self, rng: np.random.Generator, choose: Choose) -> Genome:
        attends = rng.random(self.num_layers) < 0.5
        missing = self.min_attention_layers - int(attends.sum())
        if missing > 0:
            attends[rng.choice(np.flatnonzero(~attends), size=missing, replace=False)] = True
        if self.max_attention_layers is not None and (excess := int(attends.sum()) - self.max_attention_layers) > 0:
            attends[rng.choice(np.flatnonzero(attends), size=excess, replace=False)] = False
        return Genome(self.random_attention(rng, choose) if a else self.random_other(rng) for a in attends)

    def random_other(self, rng: np.random.Generator) -> Gene:
        """A random gene without attention."""
        return self.other_genes[int(rng.integers(len(self.other_genes)))]

    def random_attention(self, rng: np.random.Generator, choose: Choose = choose_uniformly) -> Attention:
        for attempt in range(MAX_TRIES):
            way = choose if attempt < PRIORITY_TRIES else choose_uniformly
            expression = self.grammar.random_operation(RESULT_TYPE, self.max_nodes, rng, way)
            if self.contains_expression(expression):
                return Attention(expression)
        raise ValueError(
            f"operations: expected some that form an attention to all tokens within max_nodes={self.max_nodes}, got none in "
            f"{MAX_TRIES} tries from {', '.join(self.grammar.rules)}"
        )
