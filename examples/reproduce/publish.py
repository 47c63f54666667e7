"""Put a pre-trained model into a folder that is a repository of models, such as this checkout.

    python examples/reproduce/publish.py runs/model/compare/found/seed-0 . --model_max_length 512

Writes `model.safetensors` in half precision (loaded in single precision), `config.json` and the files of the tokenizer. Other
files of the folder remain: the code is that of the checkout. A model without a table of positions may be offered for longer
texts than it was trained on, which pipelines and sentence-transformers then no longer cut off.
"""

import argparse
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.search.cli.arguments import ScriptHelpFormatter, path
from autobert_zero.search.files import read_json, write_json
from autobert_zero.search.text.tokens import max_tokens


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OF_LOADING = ("is_local", "local_files_only")


def in_half_precision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Raises: ValueError for a weight that is not finite in half precision."""
    half = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    if wrong := [name for name, weight in half.items() if not weight.isfinite().all()]:
        raise ValueError(f"model: expected finite weights in half precision, got others in {', '.join(wrong):.200}")
    return half


def publish(model: Path, folder: Path, model_max_length: int | None = None) -> None:
    """Args: model_max_length: tokens of the longest text; None: as many as in training.

    Raises: ValueError for a folder without a complete model, or a length that it has no positions for; OSError if a file
        cannot be written.
    """
    if missing := [name for name in ("config.json", "model.safetensors", *TOKENIZER) if not (model / name).is_file()]:
        raise ValueError(f"model: expected {', '.join(missing)} in {str(model)!r}, got none")
    config = read_json(model / "config.json", dict[str, Any])
    tokenizer = read_json(model / "tokenizer_config.json", dict[str, Any])
    if model_max_length is not None:
        maximum = max_tokens(AutoBertZeroConfig.from_dict(config))
        if not 0 < model_max_length <= maximum:
            raise ValueError(f"model_max_length: expected 1 to {maximum}, got {model_max_length}")
        tokenizer["model_max_length"] = model_max_length
        if maximum == math.inf:  # otherwise it is the size of the table
            config["max_position_embeddings"] = model_max_length
    if config.get("custom_operations"):
        raise ValueError("model: expected one without custom operations, whose code the folder would lack")
    try:
        weights = in_half_precision(load_file(model / "model.safetensors"))
    except SafetensorError as error:
        raise ValueError(f"model: cannot read the weights in {str(model)!r}: {error}") from None
    # transformers loads weights in the type that the configuration names.
    write_json(folder / "config.json", {**config, "dtype": "float32"})
    shutil.copyfile(model / "tokenizer.json", folder / "tokenizer.json")
    # Without what only says how this tokenizer was loaded.
    write_json(folder / "tokenizer_config.json", {k: v for k, v in tokenizer.items() if k not in OF_LOADING})
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place, "model.safetensors")
        save_file(weights, file, metadata={"format": "pt"})
        file.replace(folder / "model.safetensors")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", type=path, help="Folder of a pre-trained model, of run_pretraining.py.")
    parser.add_argument("folder", type=path, help="Folder to put it into.")
    parser.add_argument("--model_max_length", type=int, help="Tokens of the longest text; default: as in training.")
    given = parser.parse_args(arguments)
    try:
        publish(given.model, given.folder, given.model_max_length)
    except (ValueError, OSError, StrictDataclassError) as error:
        parser.error(str(error))
    size = (given.folder / "model.safetensors").stat().st_size
    print(f"{given.folder / 'model.safetensors'}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
