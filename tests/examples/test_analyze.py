"""The analysis script: its measures computed by hand, and its pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analyze import distinct_labels, effective_rank, main, relative_singular_values, token_similarity
from PIL import Image
from transformers import BertConfig, BertModel

from autobert_zero import modeling_autobert_zero as modeling
from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, CustomLayer, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel
from autobert_zero.search import custom_operations
from autobert_zero.search.evaluation.measure import count_backbone_flops
from autobert_zero.search.text.tokens import train_tokenizer
from tests.conftest import tiny_config, write_corpus


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_token_similarity():
    same = torch.tensor([[[1.0, 2.0]] * 3])
    assert token_similarity(same) == pytest.approx(1)
    assert token_similarity(torch.eye(4)[None]) == pytest.approx(0)
    states = torch.randn(2, 5, 7)
    pairs = [
        torch.cosine_similarity(states[s, i], states[s, j], dim=0)
        for s in range(2)
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert token_similarity(states) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-5)


def test_spectra():
    states = torch.diag(torch.tensor([4.0, 2.0, 0.0]))[None].repeat(2, 1, 1)
    states[1] *= 10
    assert relative_singular_values(states) == pytest.approx([1, 0.5, 0])
    assert effective_rank(np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.array([1.0, 0.0])) == pytest.approx(1)


def test_flops_of_self_attention_equal_those_of_bert():
    """A backbone with self-attention in every layer, and BERT."""
    sizes = {"vocab_size": 99, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 37}
    ours = AutoBertZeroModel(tiny_config(Genome([SELF_ATTENTION] * 2)), add_pooling_layer=False)
    bert = BertModel(BertConfig(**sizes, num_hidden_layers=2), add_pooling_layer=False)
    assert count_backbone_flops(ours, 11) == count_backbone_flops(bert, 11) > 0


def test_labels_are_distinct():
    assert distinct_labels(["runs/a/model", "runs/b/model"]) == ["a", "b"]
    assert distinct_labels(["runs/a/model"]) == ["model"]
    assert distinct_labels(["."]) == [Path.cwd().name]
    assert distinct_labels([".", "runs/a"]) == [Path.cwd().name, "runs/a"]
    assert distinct_labels(["runs/a", "runs/a/model", "other"]) == ["runs/a", "runs/a/model", "other"]
    assert distinct_labels(["runs/a", "runs/a/model"]) == ["a", "model"]
    assert distinct_labels(["m", "m/m"]) == ["m", "m/m"]
    with pytest.raises(ValueError, match="models: expected each once"):
        distinct_labels(["m", "m/"])


def test_pictures(monkeypatch, tmp_path, capsys):
    custom = custom_operations.load(EXAMPLES / "custom_operations.py")
    fields = {"custom_operations": dict(custom.rules), "custom_operations_digest": custom.digest}
    text = write_corpus(tmp_path / "text.txt")
    tokenizer = train_tokenizer([(tmp_path / "text.txt").read_text()], vocab_size=150, model_max_length=32)
    for name, genome in (("one", [CustomLayer("average_pooling"), SELF_ATTENTION]), ("other", [SELF_ATTENTION] * 3)):
        config = tiny_config(Genome(genome), vocab_size=len(tokenizer), **fields)
        AutoBertZeroModel(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        custom_operations.save_with_model(tmp_path / name)
    sizes = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    monkeypatch.setattr(modeling, "CUSTOM_OPERATIONS", {})  # as in another process
    models = [str(tmp_path / name) for name in ("one", "other", "bert")]
    arguments = ["--trust_remote_code", "--text_file", text, "--sequences", "8", "--rounds", "1"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    main(["--models", *models, *arguments, "--sequence_length", "16"])
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())["models"]
    assert list(found) == ["one", "other", "bert"]
    assert [len(found[name]["token_similarity"]) for name in found] == [3, 4, 2]
    assert len(found["one"]["singular_values"][0]) == 16 and found["one"]["milliseconds"] > 0
    shapes = [np.array(found[name]["attention_by_distance"]).shape for name in found]
    assert shapes == [(1, 3, 17), (3, 3, 17), (1, 2, 17)]
    for name in ("token_uniformity", "singular_values", "attention_by_distance", "costs"):
        picture = np.array(Image.open(tmp_path / "out" / f"{name}.png").convert("L"))
        assert picture.shape[0] > 200 and (picture < 128).any()
    main(["--models", models[0], *arguments, "--sequence_length", "4", "--output_dir", str(tmp_path / "short")])
    short = json.loads((tmp_path / "short" / "analysis.json").read_text())["models"]["one"]
    assert np.array(short["attention_by_distance"]).shape == (1, 3, 7)
    small = str(tmp_path / "small")
    AutoBertZeroModel(tiny_config(Genome([SELF_ATTENTION]), vocab_size=20)).save_pretrained(small)
    tokenizer.save_pretrained(small)
    for changed, message in (
        (["--sequence_length", "64"], "sequence_length: expected at most 32"),
        (["--sequence_length", "16", "--sequences", "9999"], "text_file: expected 9999 sequences of 16 tokens"),
        (
            ["--sequence_length", "16", "--models", small],
            f"models: {small!r}: model: expected a tokenizer of at most 20 tokens",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["--models", *models, *arguments, *changed])
        assert message in capsys.readouterr().err
