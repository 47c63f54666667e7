"""A pre-trained model in the root of a repository of models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from reproduce.publish import main
from safetensors.torch import load_file, save_file

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.text.tokens import load_tokenizer, train_tokenizer
from tests.conftest import run_without_package, tiny_config


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path) -> Path:
    tokenizer = train_tokenizer(["the dog barks at the cat"] * 9, vocab_size=60, model_max_length=32)
    genome = Genome([Convolution(3), SELF_ATTENTION])
    config = tiny_config(genome, vocab_size=len(tokenizer), position_embedding_type="none")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))  # as that of a prepared text
    for each in (AutoBertZeroForMaskedLM(config), tokenizer):
        each.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lengths(folder: Path) -> tuple[int, int]:
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    return config["max_position_embeddings"], tokenizer["model_max_length"]


def test_a_published_model_is_loaded_in_single_precision(model, tmp_path, capsys):
    """In a process without this package, from the folder itself."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("configuration_autobert_zero.py", "modeling_autobert_zero.py"):
        shutil.copy(ROOT / name, folder)
    for _ in range(2):  # the second replaces the first
        main([str(model), str(folder)])
    assert "model.safetensors: 0.0 MiB" in capsys.readouterr().out
    assert "local" not in (folder / "tokenizer_config.json").read_text()
    assert lengths(folder) == (32, 32)
    main([str(model), str(folder), "--model_max_length", "99"])
    assert lengths(folder) == (99, 99)
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    code = """
import sys, transformers
fill_mask = transformers.pipeline("fill-mask", model=sys.argv[1], trust_remote_code=True)
print(fill_mask.model.dtype, len(fill_mask("the dog [MASK]")))
"""
    assert run_without_package(code, str(folder), cwd=tmp_path)[0].split() == ["torch.float32", "5"]
    assert not any(path.is_dir() and path.name != "__pycache__" for path in folder.iterdir())


def test_incomplete_and_damaged_models(model, tmp_path, capsys):
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main([str(model), str(tmp_path), *arguments])
        assert not (tmp_path / "config.json").exists()
        return capsys.readouterr().err

    assert "model_max_length: expected 1 to inf, got 0" in error("--model_max_length", "0")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"none"', '"absolute"'))
    assert "model_max_length: expected 1 to 32, got 33" in error("--model_max_length", "33")
    (model / "config.json").write_text(
        config.replace('"custom_operations": null', '"custom_operations": {"act": "ab->ab"}')
    )
    assert "model: expected one without custom operations" in error()
    (model / "config.json").write_text(config)
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: torch.full_like(weights[name], 1e6)}, model / "model.safetensors", {"format": "pt"})
    assert f"expected finite weights in half precision, got others in {name}" in error()
    (model / "model.safetensors").write_bytes(b"damaged")
    assert "model: cannot read the weights" in error()
    (model / "tokenizer.json").unlink()
    assert "model: expected tokenizer.json in " in error()
