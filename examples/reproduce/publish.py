"""Put a pre-trained model into a folder that is a repository of models, such as this checkout.

    python examples/reproduce/publish.py runs/model/compare/found/seed-0 .

Writes `model.safetensors` in half precision (loaded in single precision), `config.json` and the files of the tokenizer. Other
files of the folder remain: the code is that of the checkout.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autobert_zero.search.cli.arguments import ScriptHelpFormatter, path
from autobert_zero.search.files import read_json, write_json


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OF_LOADING = ("is_local", "local_files_only")


def in_half_precision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Raises: ValueError for a weight that is not finite in half precision."""
    half = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    if wrong := [name for name, weight in half.items() if not weight.isfinite().all()]:
        raise ValueError(f"model: expected finite weights in half precision, got others in {', '.join(wrong):.200}")
    return half


def publish(model: Path, folder: Path) -> None:
    """Raises: ValueError for a folder without a complete model; OSError if a file cannot be written."""
    if missing := [name for name in ("config.json", "model.safetensors", *TOKENIZER) if not (model / name).is_file()]:
        raise ValueError(f"model: expected {', '.join(missing)} in {str(model)!r}, got none")
    config = read_json(model / "config.json", dict[str, Any])
    try:
        weights = in_half_precision(load_file(model / "model.safetensors"))
    except SafetensorError as error:
        raise ValueError(f"model: cannot read the weights in {str(model)!r}: {error}") from None
    # transformers loads weights in the type that the configuration names.
    write_json(folder / "config.json", {**config, "dtype": "float32"})
    shutil.copyfile(model / "tokenizer.json", folder / "tokenizer.json")
    # Without what only says how this tokenizer was loaded.
    tokenizer = read_json(model / "tokenizer_config.json", dict[str, Any])
    write_json(folder / "tokenizer_config.json", {k: v for k, v in tokenizer.items() if k not in OF_LOADING})
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place, "model.safetensors")
        save_file(weights, file, metadata={"format": "pt"})
        file.replace(folder / "model.safetensors")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", type=path, help="Folder of a pre-trained model, of run_pretraining.py.")
    parser.add_argument("folder", type=path, help="Folder to put it into.")
    given = parser.parse_args(arguments)
    try:
        publish(given.model, given.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    size = (given.folder / "model.safetensors").stat().st_size
    print(f"{given.folder / 'model.safetensors'}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
