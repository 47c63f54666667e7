"""Pseudo-log-likelihoods against a slow definition and another implementation, the metric by hand, and bad input."""

import gzip
import json
import math

import datasets
import evaluate
import numpy as np
import pytest
import torch
from run_blimp import METRIC, load_model, load_pairs, main, make_parser, predicting, pseudo_log_likelihoods
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from tests.conftest import tiny_config


WORDS = ("the", "dog", "dogs", "bark", "un", "##bel", "##iev", "##able", "##s", "see")
SENTENCES = ["the dog barks", "the dogs bark", "dogs bark", "unbelievable dogs see the unbelievable dog"]


def write_tokenizer(folder) -> BertTokenizerFast:
    path = folder / "vocab.txt"
    path.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)))
    tokenizer = BertTokenizerFast(str(path))
    tokenizer.save_pretrained(folder)
    return tokenizer


def fill(model: PreTrainedModel) -> PreTrainedModel:
    """Weights that do not depend on a random number generator."""
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(model.named_parameters())):
            if "LayerNorm" not in name:
                weight.copy_(torch.sin(torch.arange(weight.numel()) * 0.7 + number).view_as(weight) * 2)
    return model.eval()


SIZES = {"vocab_size": 15, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bert() -> BertForMaskedLM:
    return fill(BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=32)))


def slow_scores(model, tokenizer, sentences: list[str]) -> list[float]:
    """By definition, a token at a time."""
    scores = []
    for sentence in sentences:
        ids, score = torch.tensor(tokenizer(sentence).input_ids), 0.0
        for position in range(1, len(ids) - 1):
            masked = ids.clone()
            masked[position] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(masked[None]).logits[0, position]
            score += float(logits.double().log_softmax(-1)[ids[position]])
        scores.append(score)
    return scores


@pytest.mark.parametrize("kind", ["BERT", "RoBERTa", "ours"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
def test_scores_are_those_of_the_definition(tmp_path, kind, batch_tokens):
    tokenizer = write_tokenizer(tmp_path)
    match kind:
        case "BERT":
            model = bert()
        case "RoBERTa":
            model = fill(RobertaForMaskedLM(RobertaConfig(**SIZES, max_position_embeddings=32, pad_token_id=0)))
        case _:
            model = AutoBertZeroForMaskedLM(
                tiny_config(Genome([Convolution(3), SELF_ATTENTION]), vocab_size=15)
            ).eval()
    found = pseudo_log_likelihoods(model, tokenizer, SENTENCES, batch_tokens=batch_tokens)
    assert found == pytest.approx(slow_scores(model, tokenizer, SENTENCES), rel=1e-5)


def test_sentences_of_one_length_share_batches(tmp_path):
    """Nothing is padded, and as many sequences as the limit allows are in each batch."""
    tokenizer, model, shapes = write_tokenizer(tmp_path), bert(), []
    model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    # 3 tokens and 2 special ones each, but for the third and the last.
    pseudo_log_likelihoods(model, tokenizer, ["the dog bark", "the dogs bark", "see dogs", "dogs see dogs", "see"])
    assert shapes == [(1, 3), (2, 4), (9, 5)]
    shapes.clear()
    pseudo_log_likelihoods(model, tokenizer, ["the dog bark"] * 3, batch_tokens=20)
    assert shapes == [(4, 5), (4, 5), (1, 5)]


def test_the_output_is_computed_for_one_token_of_a_sequence(tmp_path):
    """That is what makes it fast."""
    model, shapes = bert(), []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with predicting(model, [torch.tensor([1, 2])]):
        model(torch.ones(2, 5, dtype=torch.long))
    model(torch.ones(2, 5, dtype=torch.long))
    assert shapes == [(2, 15), (2, 5, 15)]


# Of minicons 0.3.39, MaskedLMScorer(model, tokenizer=tokenizer).sequence_score(SENTENCES, reduction=lambda x: x.sum().item(),
# PLL_metric=...), for the model `bert()`.
MINICONS = {
    "original": [-67.89826, -57.67272, -42.55455, -108.26828],
    "within_word_l2r": [-67.89709, -57.67272, -42.55455, -108.81205],
}


@pytest.mark.parametrize(("within_word", "metric"), [(False, "original"), (True, "within_word_l2r")])
def test_scores_are_those_of_minicons(tmp_path, within_word, metric):
    tokenizer = write_tokenizer(tmp_path)
    found = pseudo_log_likelihoods(bert(), tokenizer, SENTENCES, within_word)
    assert found == pytest.approx(MINICONS[metric], abs=2e-4)


def test_a_model_without_knowledge_gives_every_token_the_same_probability(tmp_path):
    model = bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    scores = pseudo_log_likelihoods(model, write_tokenizer(tmp_path), ["dogs bark", "see"])
    assert scores == pytest.approx([-2 * math.log(15), -math.log(15)])


def test_metric_computed_by_hand():
    predictions = [{"good": -1, "bad": -2}, {"good": -2, "bad": -1}, {"good": -1, "bad": -1}, {"good": 0, "bad": -9}]
    references = [
        {"UID": uid, "field": field} for uid, field in (("a", "x_y"), ("a", "x/y"), ("b", "x_y"), ("c", "y"))
    ]
    result = evaluate.load(METRIC).compute(predictions=predictions, references=references)
    assert (result["accuracy"], result["pairs"]) == (50, 4)
    assert {name: group["accuracy"] for name, group in result["fields"].items()} == {
        "x_y": pytest.approx(100 / 3),
        "y": 100,
    }
    assert {name: group["accuracy"] for name, group in result["sets"].items()} == {"a": 50, "b": 0, "c": 100}
    # Wilson: (k + z² / 2 ± z sqrt(k (n - k) / n + z² / 4)) / (n + z²) with k = 2, n = 4
    z = 1.959964
    half = z * math.sqrt(1 + z**2 / 4)
    assert [result["low"], result["high"]] == pytest.approx(
        [100 * (2 + z**2 / 2 + sign * half) / (4 + z**2) for sign in (-1, 1)], rel=1e-5
    )


def write_set(folder, name: str, rows: int = 10, **changed) -> None:
    row = {"sentence_good": "the dogs bark", "sentence_bad": "the dog bark", "field": "morphology", "UID": name}
    lines = [json.dumps({**row, "pairID": str(number), **changed}) for number in range(rows)]
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))


def test_a_model_is_evaluated(tmp_path, capsys):
    data, model_folder = tmp_path / "data", tmp_path / "model"
    data.mkdir(), model_folder.mkdir()
    write_set(data, "number")
    write_set(data, "reverse", sentence_good="the dog bark", sentence_bad="the dogs bark", field="syntax")
    write_tokenizer(model_folder)
    bert().save_pretrained(model_folder)
    common = [
        "--model_name_or_path",
        str(model_folder),
        "--data_dir",
        str(data),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    main([*common, "--fraction", "0.5"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["pairs"], results["accuracy"], results["fraction"]) == (10, 50, 0.5)
    assert sorted(group["accuracy"] for group in results["sets"].values()) == [0, 100]
    assert set(results["fields"]) == {"morphology", "syntax"} and {"commit", "command", "machine"} <= set(results)
    assert set(results["weights"]) == {"config.json", "model.safetensors"}
    assert "morphology" in capsys.readouterr().out


def test_half_precision_is_scored_in_single_precision(tmp_path):
    write_tokenizer(tmp_path)
    bert().half().save_pretrained(tmp_path)
    given = make_parser().parse_args(["--model_name_or_path", str(tmp_path), "--output_dir", "out"])
    assert load_model(given)[0].dtype == torch.float32


def test_each_set_has_one_file(tmp_path):
    """Pairs that count twice would make the intervals too narrow."""
    write_set(tmp_path, "number")
    (tmp_path / "number.jsonl").write_bytes(gzip.decompress((tmp_path / "number.jsonl.gz").read_bytes()))
    with pytest.raises(ValueError, match=r"expected one file of each set, got two of number\.jsonl"):
        load_pairs(tmp_path, 1)


def test_a_fraction_is_spread_over_a_set(tmp_path):
    rows = [{"sentence_good": str(i), "sentence_bad": "-", "field": "x", "UID": "a"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_pairs(tmp_path, 0.3)["sentence_good"][:] == ["0", "3", "6"]
    assert load_pairs(tmp_path, 0.01)["sentence_good"][:] == ["0"]
    assert len(load_pairs(tmp_path, 1)) == 10


def test_the_sets_of_the_hub(monkeypatch):
    """All of them, each with its fraction; errors name the data set."""

    def load_dataset(name: str, config: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("nyu-mll/blimp", "train")
        rows = [{"sentence_good": f"{config} {i}", "sentence_bad": "-", "field": "x", "UID": config} for i in range(4)]
        return datasets.Dataset.from_list([{**row, "pair_id": 1} for row in rows])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["a", "b"])
    pairs = load_pairs(None, 0.5)
    assert pairs["sentence_good"][:] == ["a 0", "a 2", "b 0", "b 2"]
    assert pairs.column_names == ["sentence_good", "sentence_bad", "field", "UID"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot load nyu-mll/blimp from the Hub"):
        load_pairs(None, 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"data_dir": "none"}, "data_dir: expected files UID.jsonl.gz"),
        ({"fraction": 0}, "fraction: expected a number above 0"),
        ({"batch_tokens": 0}, "batch_tokens: expected at least 1"),
        ({"model_name_or_path": "nothing"}, "model: cannot load 'nothing'"),
        ({"set": {"sentence_bad": None}}, "expected text in 'sentence_bad' of"),
        ({"set": {"sentence_bad": "dog " * 40}}, "expected at most 32 tokens, got 42"),
        ({"weights": False}, "model: cannot load"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, broken, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_set(tmp_path / "data", "number", **broken.pop("set", {}))
    write_tokenizer(tmp_path)
    bert().save_pretrained(tmp_path)
    if not broken.pop("weights", True):
        (tmp_path / "model.safetensors").write_bytes(b"damaged")
    values = {"model_name_or_path": str(tmp_path), "data_dir": "data", "output_dir": "out", **broken}
    with pytest.raises(SystemExit):
        main([text for name, value in values.items() for text in (f"--{name}", str(value))])
    assert message in capsys.readouterr().err


def test_missing_columns_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"sentence_good": "a", "UID": "a"}))
    with pytest.raises(ValueError, match="without \\['field', 'sentence_bad'\\]"):
        load_pairs(tmp_path, 1)
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        load_pairs(tmp_path, 1)


def test_weights_of_the_output_must_be_there(tmp_path, capsys):
    """With new ones, the accuracy would be that of chance."""
    write_tokenizer(tmp_path)
    bert().bert.save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert "expected all weights" in capsys.readouterr().err


def test_scores_do_not_depend_on_the_other_sentences(tmp_path):
    tokenizer, model = write_tokenizer(tmp_path), bert()
    together = pseudo_log_likelihoods(model, tokenizer, SENTENCES, True)
    apart = [pseudo_log_likelihoods(model, tokenizer, [sentence], True)[0] for sentence in SENTENCES]
    assert together == pytest.approx(np.array(apart), rel=1e-6)
