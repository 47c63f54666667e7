"""From the settings of a run to its space and its strategy."""

from collections.abc import Callable
from typing import Any

from autobert_zero.configuration_autobert_zero import KERNEL_SIZES, LAYER_RULE, Genome
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evolution.limits import LimitedSpace
from autobert_zero.search.evolution.strategies import (
    Evolution,
    LargestFirst,
    OpNas,
    RandomSearch,
    RegularizedEvolution,
    Strategy,
    ThompsonOpNas,
)
from autobert_zero.search.genomes import KNOWN_DESIGNS, read_genome
from autobert_zero.search.settings import LimitSettings, ModelSettings, SpaceSettings, StrategySettings
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds
from autobert_zero.search.space.costs import CostModel
from autobert_zero.search.space.grammar import Grammar


OP_NAS_PRIORITY = ("alpha", "temperature", "decay")


def make_cost_model(
    settings: ModelSettings, vocab_size: int, custom_layers: dict[str, tuple[int, int]] | None = None
) -> CostModel:
    return CostModel(
        settings.hidden_size,
        settings.num_attention_heads,
        settings.intermediate_size,
        vocab_size,
        max_position_embeddings=settings.sequence_length,
        tokens=settings.sequence_length,
        custom_layers=custom_layers or {},
        absolute_positions=settings.position_embedding_type == "absolute",
    )


def make_space(
    settings: SpaceSettings,
    strategy: StrategySettings,
    model: ModelSettings,
    custom: CustomOperations,
) -> BackboneSpace:
    """The space of a run.

    Raises: ValueError if there is no legal attention, or, without position embeddings, no genome that depends on the order
        of tokens.
    """
    needs_order = model.position_embedding_type == "none"
    operations = settings.named_operations()
    if model.num_attention_heads == model.hidden_size:
        raise ValueError(
            "num_attention_heads: expected heads of at least 2 channels for the rotary positions of a baseline, "
            f"got {model.num_attention_heads} for hidden_size={model.hidden_size}"
        )
    have_order: set[Any] = {"rotary", *KERNEL_SIZES} & set(operations)
    if settings.min_attention_layers < model.num_hidden_layers:
        have_order |= {size for size in settings.kernel_sizes if size > 1} | set(custom.layer_kinds)
    if needs_order and not have_order:
        raise ValueError(
            "position_embedding_type: expected absolute for a space without rotary and without convolutions of more than one "
            "token, got none"
        )
    bounds = Bounds(
        model.num_hidden_layers,
        tuple(settings.kernel_sizes),
        settings.max_nodes,
        settings.min_attention_layers,
        settings.max_attention_layers,
        Grammar(operations, custom.operations),
        custom.layer_kinds,
        needs_order,
    )
    return BackboneSpace(
        bounds, tuple(strategy.layer_mutations), tuple(strategy.operation_mutations), custom.array_functions
    )


def within_limits(space: BackboneSpace, settings: LimitSettings, costs: Callable[[Genome], dict[str, float]]) -> Any:
    """The space itself, or a `LimitedSpace` if there are limits."""
    limits = {"parameters": settings.max_parameters, "flops": settings.max_flops}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return LimitedSpace(space, costs, limits) if limits else space


def read_seed_genomes(sources: list[str], space: Any) -> tuple[Genome, ...]:
    """The seed genomes, each once. Raises: ValueError for genomes that cannot be read or are not in the space."""
    bounds = space.bounds
    rules = {**dict(bounds.grammar.custom_operations), **dict.fromkeys(bounds.layer_kinds, LAYER_RULE)}
    found: list[Genome] = []
    for source in sources:
        if source == "known":
            known = (read_genome(name, bounds.num_layers) for name in KNOWN_DESIGNS)
            found += [genome for genome in known if space.contains(genome)]
            continue
        try:
            genome = read_genome(source, bounds.num_layers, rules)
        except (ValueError, OSError) as error:
            raise ValueError(f"seed_genomes: {error}") from None
        if not bounds.has_order(genome):
            raise ValueError(
                f"seed_genomes: expected genomes with rotary or a convolution, because position_embedding_type is none, "
                f"got {source!r}"
            )
        if not space.contains(genome):
            raise ValueError(f"seed_genomes: expected genomes in the space of this run, got {source!r}: {genome}")
        found.append(genome)
    unique: dict[str, Genome] = {}
    for genome in found:
        unique.setdefault(space.key(genome), genome)
    return tuple(unique.values())


def make_strategy(settings: StrategySettings, space: Any) -> Strategy:
    """Raises: ValueError for bad seed genomes, and for settings that the strategy does not use."""
    seeds = read_seed_genomes(settings.seed_genomes, space)
    population, parents, children = settings.population_size, settings.num_parents, settings.num_children
    evolution = {"crossover_probability": settings.crossover_probability, "objectives": tuple(settings.objectives)}
    unused = [] if settings.strategy == "op_nas" else [f"priority_{name}" for name in OP_NAS_PRIORITY]
    if settings.strategy != "regularized_evolution":
        unused.append("tournament_size")
    if settings.strategy in ("random", "largest_first"):
        unused += ["num_parents", "num_children", "layer_mutations", "operation_mutations"]
    if settings.strategy in ("random", "largest_first", "regularized_evolution"):
        unused += ["crossover_probability", "objectives"]
    for name in unused:
        if getattr(settings, name) != getattr(StrategySettings(), name):
            raise ValueError(
                f"{name}: expected its default with strategy {settings.strategy!r}, which does not use it"
            )
    match settings.strategy:
        case "random":
            return RandomSearch(space, population, seeds=seeds)
        case "largest_first":
            return LargestFirst(space, population, seeds=seeds)
        case "regularized_evolution":
            # As many children per generation as the others, so that processes have as many jobs to share.
            return RegularizedEvolution(space, population, settings.tournament_size, parents * children, seeds=seeds)
        case "thompson_op_nas":
            return ThompsonOpNas(space, population, parents, children, seeds=seeds, **evolution)
        case "evolution":
            return Evolution(space, population, parents, children, seeds=seeds, **evolution)
        case _:
            priority = {name: getattr(settings, f"priority_{name}") for name in OP_NAS_PRIORITY}
            return OpNas(space, population, parents, children, **priority, seeds=seeds, **evolution)
