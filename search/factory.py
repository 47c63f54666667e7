"""From the settings of a run to its space and its strategy. Pure: no torch."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, SELF_ATTENTION, Genome, add_operations
from autobert_zero.search.costs import LimitedSpace, Sizes
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.strategies import (
    Evolution,
    LargestFirst,
    OpNas,
    RandomSearch,
    RegularizedEvolution,
    Strategy,
    ThompsonOpNas,
)


OP_NAS_PRIORITY = ("alpha", "temperature", "decay")


def make_sizes(settings: SearchSettings, vocab_size: int) -> Sizes:
    return Sizes(
        settings.hidden_size,
        settings.num_attention_heads,
        settings.intermediate_size,
        vocab_size,
        max_position_embeddings=settings.sequence_length,
        tokens=settings.sequence_length,
    )


def make_space(settings: SearchSettings, sizes: Sizes, own_kinds: Sequence[str] = ()) -> Any:
    """The space of the settings and of layer kinds of one's own: a `BackboneSpace`, within the limits if there are any."""
    space = BackboneSpace(
        settings.num_hidden_layers,
        tuple(settings.kernel_sizes),
        settings.max_nodes,
        settings.min_attention_layers,
        tuple(settings.layer_mutations),
        tuple(settings.operation_mutations),
        settings.max_attention_layers,
        tuple(own_kinds),
    )
    limits = {"parameters": settings.max_parameters, "flops": settings.max_flops}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return LimitedSpace(space, sizes.of, limits) if limits else space


def make_strategy(settings: SearchSettings, space: Any) -> Strategy:
    """Raises: ValueError for seed genomes that cannot be read or are not of the space."""
    seeds = tuple(read_genome(source, settings.num_hidden_layers) for source in settings.seed_genomes)
    for source, genome in zip(settings.seed_genomes, seeds, strict=True):
        if not space.contains(genome):
            raise ValueError(f"seed_genomes: expected genomes of the space of this run, got {source!r}: {genome}")
    population, parents, children = settings.population_size, settings.num_parents, settings.num_children
    evolution = {"crossover_probability": settings.crossover_probability, "objectives": tuple(settings.objectives)}
    without_effect = [] if settings.strategy == "op_nas" else [f"priority_{name}" for name in OP_NAS_PRIORITY]
    if settings.strategy in ("random", "largest_first", "regularized_evolution"):
        without_effect += ["crossover_probability", "objectives"]
    for name in without_effect:
        if getattr(settings, name) != getattr(SearchSettings(), name):
            raise ValueError(
                f"{name}: expected its default with strategy {settings.strategy!r}, which has no use for it"
            )
    match settings.strategy:
        case "random":
            return RandomSearch(space, population, seeds=seeds)
        case "largest_first":
            return LargestFirst(space, population, seeds=seeds)
        case "regularized_evolution":
            # As many children in a generation as the others have, so that processes have as much to share.
            return RegularizedEvolution(space, population, settings.tournament_size, parents * children, seeds=seeds)
        case "thompson_op_nas":
            return ThompsonOpNas(space, population, parents, children, seeds=seeds, **evolution)
        case "evolution":
            return Evolution(space, population, parents, children, seeds=seeds, **evolution)
        case _:
            priority = {name: getattr(settings, f"priority_{name}") for name in OP_NAS_PRIORITY}
            return OpNas(space, population, parents, children, **priority, seeds=seeds, **evolution)


def read_genome(source: str, num_layers: int) -> Genome:
    """`bert`, `published` (its first layers, from the first again where there are more), or a JSON file.

    Raises: ValueError for a file that holds no genome of so many layers.
    """
    if source == "bert":
        return Genome([SELF_ATTENTION] * num_layers)
    if source == "published":
        return Genome(PUBLISHED_GENOME[layer % len(PUBLISHED_GENOME)] for layer in range(num_layers))
    try:
        genome = load_genome(source)
    except ValueError as error:
        raise ValueError(f"seed_genomes: expected `published`, `bert` or a file: {error}") from None
    if len(genome) != num_layers:
        raise ValueError(f"seed_genomes: expected {num_layers} layers, got {len(genome)} in {source!r}")
    return genome


def load_genome(path: str | os.PathLike) -> Genome:
    """The genome of a JSON file: a list of layers, or the `config.json` or `summary.json` of a found model.

    Raises: ValueError for a file that holds none.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(value, dict):
            add_operations(value.get("own_operations"))
            value = value["genome"] if "genome" in value else value["best"]["genome"]
        return Genome.from_list(value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a JSON file with a genome, got {str(path)!r}: {error}") from None
