"""One reader of genomes: presets, expressions, files, folders of runs and models, and models of the Hub."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from autobert_zero.configuration_autobert_zero import (
    PRESETS,
    PUBLISHED_GENOME,
    ROTARY_ATTENTION,
    SELF_ATTENTION,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    Expression,
    Gene,
    Genome,
)
from autobert_zero.search.evolution.archive import Archive
from autobert_zero.search.evolution.history import read_history
from autobert_zero.search.files import check_shape, first_line, one_line, read_json
from autobert_zero.search.settings import did_you_mean


# Errors of the Hub and of the network. The base of the latter is that of httpx or its successor, by the version of
# huggingface_hub.
HUB_ERRORS: tuple[type[Exception], ...] = (
    HfHubHTTPError.__mro__[1],
    HFValidationError,
    LocalTokenNotFoundError,
    OSError,
)

# Values are mixed with those of the first layer (learnable ResFormer; Zhou et al., 2024, arXiv 2410.17897).
VALUE_RESIDUAL = Attention(
    Expression.parse("matmul(softmax(scale(matmul(rotary(q), transpose(rotary(k))))), mix(v, v1))")
)

# Genomes of any number of layers, which repeat.
REPEATED: dict[str, Sequence[Gene]] = {
    "bert": [SELF_ATTENTION],
    "bert-rotary": [ROTARY_ATTENTION],
    "hybrid": [Convolution(7), SELF_ATTENTION],
    "hybrid-rotary": [Convolution(7), ROTARY_ATTENTION],
    "published": PUBLISHED_GENOME,
    "value-residual": [VALUE_RESIDUAL],
}


# The designs that a search starts with by default.
KNOWN_DESIGNS = ("bert-rotary", "hybrid-rotary", "value-residual")


def decode_genome(value: Any, header: dict[str, Any]) -> Genome:
    """A genome of a history. Raises: ValueError if it is not one."""
    return _from_list(value, header.get("custom_operations"))


def _from_list(genes: Any, custom_operations: Any) -> Genome:
    check_shape(custom_operations, dict[str, str] | None, "custom_operations")
    return Genome.from_list(genes, custom_operations)


def read_genome(
    source: str, num_layers: int | None = None, custom_operations: Mapping[str, str] | None = None
) -> Genome:
    """Read a genome.

    Args:
        source: a preset; one of `REPEATED`, whose layers are repeated up to `num_layers`; an expression (one layer of
            attention); a JSON file (a list of genes, or the `config.json` or `summary.json` of a found
            model); the folder of a model or a run (during a search, its best candidate so far); a model of the Hub.
        num_layers: number of layers that the genome must have.
        custom_operations: rules by name of custom operations and layer kinds that an expression or a list of genes may
            use; other sources name their own.

    Raises: ValueError if the source is none of these or has another number of layers; OSError for a model that cannot
        be loaded.
    """
    if num_layers is not None and source in REPEATED:
        layers = REPEATED[source]
        return Genome(layers[i % len(layers)] for i in range(num_layers))
    genome = _read(source, custom_operations or {})
    if num_layers is not None and len(genome) != num_layers:
        raise ValueError(f"expected {num_layers} layers, got {len(genome)} in {source!r}")
    return genome


def _read(source: str, rules: Mapping[str, str]) -> Genome:
    if source in PRESETS:
        return PRESETS[source][0]
    path = Path(os.path.expanduser(source))
    if "(" in source and not os.path.exists(path):  # False for a name that is too long
        return Genome([Attention(Expression.parse(source, rules))])
    if path.is_file():
        return _read_file(path, rules)
    if path.is_dir():
        finished = [] if _has_more_candidates(path) else ["summary.json", "config.json", "model/config.json"]
        for name in finished:
            if (path / name).exists():
                return _read_file(path / name, rules)
        if not (path / "history.jsonl").exists():
            raise ValueError(f"expected a summary.json, config.json or history.jsonl in {source!r}, got none")
        best = Archive(read_history(path / "history.jsonl", decode_genome)[1]).best(1)
        if not best:
            raise ValueError(f"{source!r} has no candidate with a score yet")
        return best[0].genome
    # Anything else is mistyped, and the Hub would be queried for it repeatedly.
    may_be_on_hub = len(path.parts) == 2 and not path.is_absolute() and path.suffix != ".json"
    if not may_be_on_hub or Path(path.parts[0]).is_dir():
        suggestion = did_you_mean([source], [*PRESETS, *REPEATED])
        raise ValueError(f"expected a file, a folder, or a model of the Hub (USER/NAME), got {source!r}{suggestion}")
    return _from_hub(source)


def _has_more_candidates(run: Path) -> bool:
    """Whether the search in a folder goes on: it has candidates that its summary does not know."""
    history, summary = run / "history.jsonl", run / "summary.json"
    if not (history.exists() and summary.exists()):
        return False
    with open(history, "rb") as file:
        evaluated = sum(line.endswith(b"\n") for line in file) - 1  # the first line is not of a candidate
    return read_json(summary, dict[str, Any]).get("counts", {}).get("evaluated", evaluated) < evaluated


def _from_hub(name: str) -> Genome:
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"))  # a single attempt; a download would be repeated
        config = json.loads(Path(hf_hub_download(name, "config.json")).read_text(encoding="utf-8"))
    except HUB_ERRORS as error:
        raise OSError(f"cannot load {name!r} from the Hub: {first_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"expected a configuration in {name!r}: {error}") from None
    return _from_config(config, name)


def _read_file(path: Path, rules: Mapping[str, str]) -> Genome:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            return Genome.from_list(value, rules)
        if "model_type" in value:
            return _from_config(value, str(path))
        genome = value["genome"] if "genome" in value else value["best"]["genome"]
        return _from_list(genome, value.get("custom_operations", value.get("own_operations")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a JSON file with a genome, got {str(path)!r}: {error}") from None


def _from_config(config: dict[str, Any], source: str) -> Genome:
    if not isinstance(config, dict):
        raise ValueError(f"expected a configuration in {source!r}, got {config!r:.200}")
    if config.get("model_type") != AutoBertZeroConfig.model_type:
        raise ValueError(f"a model of type {config.get('model_type')!r} has no genome: {source!r}")
    try:
        return AutoBertZeroConfig.from_dict(config).parsed_genome()
    except Exception as error:  # transformers raises many kinds for values of other types
        raise ValueError(f"expected a configuration in {source!r}, got one with {one_line(error)}") from None
