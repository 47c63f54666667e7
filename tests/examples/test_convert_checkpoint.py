"""Converted checkpoints give the same outputs. The port's model is written here again, from its parameter names."""

import contextlib
import io
import json
import math
import os
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import (
    AutoBertZeroForMaskedLM,
    AutoBertZeroForPreTraining,
    AutoBertZeroForSequenceClassification,
    AutoBertZeroModel,
)
from tests.conftest import BATCH, HEADS, HIDDEN, TOKENS, VOCAB


SIZES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": 37}


def convert(source: Path, target: Path) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        convert_checkpoint.main([str(source), str(target)])
    return output.getvalue()


@pytest.mark.parametrize(
    ("bert_class", "our_class"),
    [
        (BertModel, AutoBertZeroModel),
        (BertForMaskedLM, AutoBertZeroForMaskedLM),
        (BertForPreTraining, AutoBertZeroForPreTraining),
        (BertForSequenceClassification, AutoBertZeroForSequenceClassification),
    ],
    ids=lambda c: c.__name__,
)
def test_bert(bert_class, our_class, tmp_path):
    bert = bert_class(BertConfig(**SIZES, num_hidden_layers=3, initializer_range=0.2, num_labels=4)).eval()
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    bert.save_pretrained(tmp_path / "bert")
    assert our_class.__name__ in convert(tmp_path / "bert", tmp_path / "ours")
    ours, info = our_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    ids, mask = torch.randint(1, VOCAB, (BATCH, TOKENS)), torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[1, 4:] = 0
    expected, got = bert(ids, mask), ours.eval()(ids, mask)
    for name, value in expected.items():
        a, b = (x[mask.bool()] if x.shape[:2] == mask.shape else x for x in (got[name], value))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)


class Port:
    """The port's masked language model as a function of its state dict."""

    kernels, layers = (65, 9, 3, 7, 7, 3), 12

    def __init__(self, weight_softmax: bool):
        self.weight_softmax = weight_softmax
        self.weights: dict[str, torch.Tensor] = {}
        for name, size in (("word", VOCAB), ("position", 32), ("token_type", 2)):
            self.add(f"autobert.embeddings.{name}_embeddings.weight", size, HIDDEN)
        self.add_norm("autobert.embeddings.LayerNorm")
        for layer in range(self.layers):
            prefix = f"autobert.layer.{layer}."
            if layer % 2 == 0:
                self.add_linear(prefix + "Linear1", HIDDEN, 2 * HIDDEN)
                self.add(prefix + "conv.weight", HEADS, 1, self.kernels[layer // 2])
                self.add_linear(prefix + "Linear2", HIDDEN, HIDDEN)
                self.add_linear(prefix + "fc1", HIDDEN, 37)
                self.add_linear(prefix + "fc2", 37, HIDDEN)
                self.add_norm(prefix + "layer_norms.0")
                self.add_norm(prefix + "layer_norms.1")
            else:
                for name in ("query", "key", *(["value"] if layer >= 9 else [])):
                    self.add_linear(prefix + f"self_attention.{name}", HIDDEN, HIDDEN)
                self.add_linear(prefix + "self_output.dense", HIDDEN, HIDDEN)
                self.add_norm(prefix + "self_output.LayerNorm")
                self.add_linear(prefix + "intermediate.dense", HIDDEN, 37)
                self.add_linear(prefix + "intermediate_output.dense", 37, HIDDEN)
                self.add_norm(prefix + "intermediate_output.LayerNorm")
        self.add_linear("cls.predictions.transform.dense", HIDDEN, HIDDEN)
        self.add_norm("cls.predictions.transform.LayerNorm")
        self.add("cls.predictions.bias", VOCAB)
        self.weights["cls.predictions.decoder.bias"] = self.weights["cls.predictions.bias"]
        self.weights["cls.predictions.decoder.weight"] = self.weights["autobert.embeddings.word_embeddings.weight"]
        self.weights["autobert.embeddings.position_ids"] = torch.arange(32)[None]

    def add(self, name: str, *shape: int) -> None:
        self.weights[name] = 0.3 * torch.randn(shape)

    def add_linear(self, name: str, before: int, after: int) -> None:
        self.add(name + ".weight", after, before)
        self.add(name + ".bias", after)

    def add_norm(self, name: str) -> None:
        self.add(name + ".weight", HIDDEN)
        self.add(name + ".bias", HIDDEN)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (HIDDEN,), self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-12)

    def attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        def heads(name):
            return (
                self.linear(f"autobert.layer.{layer}.self_attention.{name}", x)
                .unflatten(-1, (HEADS, -1))
                .transpose(1, 2)
            )

        root = math.sqrt(HIDDEN // HEADS)
        q, k = heads("query"), heads("key")
        if layer == 1:
            scores, v = -(q @ F.logsigmoid(-k).mT), q + k
        elif layer == 3:
            scores, v = -(q @ F.logsigmoid(F.logsigmoid(q) + q + k).mT), q
        elif layer in (5, 7):
            scores, v = -(q @ F.logsigmoid(k).mT), q
        elif layer == 9:
            v = heads("value")
            scores = q @ (k / root + F.softsign(F.softsign(k) / root) + v).mT
        else:
            v = heads("value")
            scores = q @ (k / root + v).mT
        return ((scores / root).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        embeddings = "autobert.embeddings."
        x = self.weights[embeddings + "word_embeddings.weight"][ids]
        x = x + self.weights[embeddings + "position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(embeddings + "LayerNorm", x + self.weights[embeddings + "token_type_embeddings.weight"][0])
        for layer in range(self.layers):
            prefix = f"autobert.layer.{layer}."
            if layer % 2 == 0:
                kernel = self.weights[prefix + "conv.weight"][
                    :, 0
                ]  # (heads, kernel size): one for all channels of a head
                kernel = kernel.softmax(-1) if self.weight_softmax else kernel
                gated = F.glu(self.linear(prefix + "Linear1", x))
                margin = kernel.shape[1] // 2
                windows = F.pad(gated, (0, 0, margin, margin)).unfold(1, kernel.shape[1], 1)
                mixed = torch.einsum("bthck,hk->bthc", windows.unflatten(2, (HEADS, -1)), kernel).flatten(2)
                x = self.norm(prefix + "layer_norms.0", x + self.linear(prefix + "Linear2", mixed))
                # The port adds the input twice.
                x = self.norm(
                    prefix + "layer_norms.1",
                    x + x + self.linear(prefix + "fc2", F.gelu(self.linear(prefix + "fc1", x))),
                )
            else:
                mixed = self.linear(prefix + "self_output.dense", self.attention(layer, x))
                x = self.norm(prefix + "self_output.LayerNorm", x + mixed)
                inner = F.gelu(self.linear(prefix + "intermediate.dense", x))
                x = self.norm(
                    prefix + "intermediate_output.LayerNorm",
                    x + self.linear(prefix + "intermediate_output.dense", inner),
                )
        head = "cls.predictions."
        x = self.norm(head + "transform.LayerNorm", F.gelu(self.linear(head + "transform.dense", x)))
        return self.linear(head + "decoder", x)


@pytest.mark.parametrize("weight_softmax", [False, True])
def test_port(weight_softmax, tmp_path):
    port = Port(weight_softmax)
    config = BertConfig(**SIZES, max_position_embeddings=32, num_hidden_layers=12).to_dict()
    config |= {
        "model_type": "autobert",
        "architectures": ["AutoBertModelForMaskedLM"],
        "weight_softmax": weight_softmax,
    }
    config |= {"kernel_size_list": list(port.kernels), "use_glu": True}
    source = tmp_path / "port"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    torch.save(port.weights, source / "pytorch_model.bin")
    convert(source, tmp_path / "ours")
    ours = AutoBertZeroForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    assert ours.config.parsed_genome() == AutoBertZeroConfig().parsed_genome()
    ids = torch.randint(VOCAB, (BATCH, 20))
    torch.testing.assert_close(ours(ids).logits, port(ids), atol=1e-4, rtol=1e-4)


def refused(source: Path, target: Path, capsys) -> str:
    with pytest.raises(SystemExit, match="2"):
        convert(source, target)
    assert not target.exists()
    return capsys.readouterr().err


def test_other_layouts_are_refused(tmp_path, capsys):
    config = AutoConfig.for_model("roberta")
    config.save_pretrained(tmp_path)
    message = refused(tmp_path, tmp_path / "ours", capsys)
    assert "error: model_type: expected one of ['bert', 'autobert'], got roberta" in message
    bert = BertModel(BertConfig(**SIZES, num_hidden_layers=2))
    bert.config.num_hidden_layers = 3
    bert.save_pretrained(tmp_path)
    assert "error: weights: missing ['encoder.layer.2" in refused(tmp_path, tmp_path / "ours", capsys)
    assert "nowhere" in refused(tmp_path / "nowhere", tmp_path / "ours", capsys)


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    """The checkpoint itself most of all."""
    BertModel(BertConfig(**SIZES, num_hidden_layers=1)).save_pretrained(tmp_path / "bert")
    (tmp_path / "file").touch()
    before = {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()}
    for target in ("bert", "file"):
        with pytest.raises(SystemExit, match="2"):
            convert(tmp_path / "bert", tmp_path / target)
        assert "output_dir: expected a new or an empty folder" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "bert").iterdir()}


def test_damaged_checkpoints_are_refused(tmp_path, capsys):
    BertModel(BertConfig(**SIZES, num_hidden_layers=1)).save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    for values in ({"hidden_size": "x"}, {"num_hidden_layers": None}, {"hidden_act": "foo"}):
        (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, **values}))
        assert "error: config.json: expected a configuration" in refused(tmp_path / "bert", tmp_path / "ours", capsys)
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    assert "error: weights: " in refused(tmp_path / "bert", tmp_path / "ours", capsys)
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    os.truncate(tmp_path / "bert" / "model.safetensors", 100)
    assert "error: weights: cannot read" in refused(tmp_path / "bert", tmp_path / "ours", capsys)


def test_an_untied_decoder_stays_untied(tmp_path):
    config = BertConfig(**SIZES, num_hidden_layers=1, tie_word_embeddings=False, initializer_range=0.2)
    bert = BertForMaskedLM(config).eval()
    bert.save_pretrained(tmp_path / "bert")
    convert(tmp_path / "bert", tmp_path / "ours")
    ids = torch.randint(1, VOCAB, (BATCH, TOKENS))
    ours = AutoBertZeroForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(ours(ids).logits, bert(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_decoder_is_refused(tmp_path, capsys):
    BertModel(BertConfig(**SIZES, num_hidden_layers=1, is_decoder=True)).save_pretrained(tmp_path / "bert")
    assert "error: is_decoder: expected false, got true" in refused(tmp_path / "bert", tmp_path / "ours", capsys)
