"""The script for named entities on files in the official format, its metric computed by hand, and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import run_ner
from run_ner import METRIC, Sentence, make_pieces, read_columns, tags_of_words
from transformers import BertTokenizerFast

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel
from autobert_zero.search.text.tokens import train_tokenizer
from tests.conftest import count_steps, fine_tune, tiny_config


NAMES = ("anna", "bert", "carl dorn", "dora")
PLACES = ("mill", "lake", "new town", "hill")


def entity(words: str, kind: str) -> list[str]:
    first, *rest = words.split()
    return [f"{first} NN B-{kind}", *(f"{word} NN I-{kind}" for word in rest)]


def conll(path: Path, count: int = 40) -> Path:
    """Sentences about who lives where, with a column between word and tag as in CoNLL-2003."""
    blocks = ["-DOCSTART- -X- O\n"]
    for number in range(count):
        name, place = entity(NAMES[number % 4], "PER"), entity(PLACES[number // 4 % 4], "LOC")
        blocks.append("\n".join([*name, "lives VB O", "near IN O", *place, "today RB O", ". . O"]) + "\n")
    path.write_text("\n".join(blocks))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = [" ".join(sentence.words) for sentence in read_columns(str(conll(folder / "all.txt")))]
    # A small vocabulary, so that most words have several tokens.
    tokenizer = train_tokenizer(texts, vocab_size=60, model_max_length=32)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.0, "max_position_embeddings": 32}
    AutoBertZeroModel(tiny_config(Genome([Convolution(7), SELF_ATTENTION]), **sizes)).save_pretrained(folder)
    return folder


def run(monkeypatch, model, folder, **more) -> dict:
    sizes = {"max_seq_length": 12, "num_train_epochs": 8}
    return fine_tune(monkeypatch, run_ner, model, folder, "train.txt", **{**sizes, **more})


def test_entities_are_found_in_pieces_of_sentences(monkeypatch, model, tmp_path, capsys):
    conll(tmp_path / "train.txt")
    results = run(monkeypatch, model, tmp_path, save_strategy="epoch")
    assert results["training_pieces"] > results["sentences"] == 40
    assert set(results["metrics"]) == {"precision", "recall", "f1", "accuracy", "PER_f1", "LOC_f1"}
    assert results["metrics"]["f1"] > 90
    assert f"f1 {results['metrics']['f1']:.2f}" in capsys.readouterr().out
    # The official evaluation can read the predictions: word, tag, predicted tag.
    written = read_columns(str(tmp_path / "out" / "predictions.txt"), label_column=1)
    assert written == read_columns(str(tmp_path / "train.txt"))
    predicted = [s.tags for s in read_columns(str(tmp_path / "out" / "predictions.txt"))]
    metric = evaluate.load(METRIC)
    assert metric.compute(predictions=predicted, references=[s.tags for s in written]) == results["metrics"]
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["id2label"] == {"0": "O", "1": "B-LOC", "2": "B-PER", "3": "I-LOC", "4": "I-PER"}
    # The same command trains nothing; another seed or column is another training.
    steps = count_steps(monkeypatch)
    assert run(monkeypatch, model, tmp_path, save_strategy="epoch")["metrics"] == results["metrics"]
    assert not steps
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path, seed=1, label_column=2)
    assert "holds a training that differs in label_column (-1, got 2), seed (" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_tag_every_word_and_end_together(model, tmp_path):
    conll(tmp_path / "train.txt", count=37)  # an odd number of pieces
    script = [run_ner.__file__, "--use_cpu", "true", "--model_name_or_path", str(model), "--trust_remote_code"]
    files = [f"--{name}={tmp_path / 'train.txt'}" for name in ("train_file", "validation_file")]
    sizes = ["--max_seq_length=12", "--num_train_epochs=1", "--per_device_eval_batch_size=4", "--report_to=none"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for number in range(3):
        output = tmp_path / f"out-{number}"
        command = [*launch, *script, *files, *sizes, "--output_dir", str(output)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads((output / "results.json").read_text())["processes"] == 2
        tagged = read_columns(str(output / "predictions.txt"), label_column=1)
        assert tagged == read_columns(str(tmp_path / "train.txt"))


def test_each_word_starts_in_one_piece(model):
    tokenizer = BertTokenizerFast.from_pretrained(model)
    words = ("anna", "\u200b", "lives", "near", "new", "town", "today", ".", "carl", "dorn", "\xa0", "lives")
    pieces = make_pieces([Sentence(words, ("O",) * len(words))] * 2, tokenizer, max_seq_length=8)
    assert len(pieces["sentence"]) > 4 and max(map(len, pieces["input_ids"])) == 8
    starts = [(n, word) for n, firsts in zip(pieces["sentence"], pieces["words"], strict=True) for word in firsts]
    # Words without a token start nowhere.
    expected = [word for word in range(len(words)) if word not in (1, 10)]
    assert [pair for pair in starts if pair[1] is not None] == [(n, word) for n in (0, 1) for word in expected]
    for ids, firsts in zip(pieces["input_ids"], pieces["words"], strict=True):
        for token, word in zip(tokenizer.convert_ids_to_tokens(ids), firsts, strict=True):
            assert word is None or words[word].startswith(token)


def test_pieces_without_a_label_are_not_trained_on(monkeypatch, model, tmp_path):
    """A batch of nothing else has no loss: sentences without a token, and the rest of a long word."""
    conll(tmp_path / "train.txt", count=4)
    with open(tmp_path / "train.txt", "a") as file:
        file.write("\n\u200b O\n\n" + "." * 40 + " O\n\n")
    results = run(monkeypatch, model, tmp_path, per_device_train_batch_size=1, num_train_epochs=1)
    tokenizer = BertTokenizerFast.from_pretrained(model)
    pieces = make_pieces(read_columns(str(tmp_path / "train.txt")), tokenizer, 12)["words"]
    labelled = sum(any(word is not None for word in words) for words in pieces)
    assert results["training_pieces"] == labelled < len(pieces)


def test_words_get_the_tag_of_their_first_token():
    sentences = [Sentence(("a", "b", "c"), ("O",) * 3), Sentence(("d",), ("O",))]
    pieces = {"sentence": [0, 0, 1], "words": [[None, 0, None, None], [None, 2, None], [None, 0, None]]}
    predicted = np.array([[2, 1, 2, 2], [2, 2, 1, -100], [1, 0, 1, -100]])
    found = tags_of_words(sentences, pieces, predicted, ["O", "B-X", "I-X"])
    assert found == [["B-X", "O", "I-X"], ["O"]]


def test_the_metric_by_hand():
    def score(predicted: str, expected: str) -> dict[str, float]:
        return evaluate.load(METRIC).compute(predictions=[predicted.split()], references=[expected.split()])

    right = score("B-A I-A O B-B", "B-A I-A O B-B")
    assert right == {"precision": 100, "recall": 100, "f1": 100, "accuracy": 100, "A_f1": 100, "B_f1": 100}
    # One of two predictions is right, one of three entities is found; four of six tags are right.
    some = score("B-A O O B-B O O", "B-A I-A O B-B O B-A")
    thirds = {"precision": 50, "recall": pytest.approx(100 / 3), "f1": pytest.approx(40)}
    assert some == {**thirds, "accuracy": pytest.approx(400 / 6), "A_f1": 0, "B_f1": 100}
    # As in the official script, an entity may start with I, and ends where the type changes.
    assert score("I-A I-A I-B", "B-A I-A B-B")["f1"] == 100
    assert score("B-A B-A", "B-A I-A")["f1"] == 0
    assert score("O", "O") == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 100}


def test_columns(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\tO\r\nb\tB-X\r\n\r\n\r\nc \xa0 S-Y".encode())
    assert read_columns(str(path)) == [Sentence(("a", "b"), ("O", "B-X")), Sentence(("c",), ("S-Y",))]
    for content, message in (
        ("a O\nb X\n", r"line 2: expected a word and, in column -1, a tag \(.*\), got 'b X'"),
        ("a O\n\nB-X\n", "line 3: expected a word and.*got 'B-X'"),
        ("a B-\n", "line 1: expected a word"),
        ("\n-DOCSTART- O\n", "expected sentences in .*, got none"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_columns(str(path))
    path.write_text("a O NN\n")
    assert read_columns(str(path), label_column=1)[0].tags == ("O",)
    with pytest.raises(ValueError, match="in column 3, a tag"):
        read_columns(str(path), label_column=3)
    path.write_bytes(b"a O\n\xff O\n")
    with pytest.raises(ValueError, match=r"expected UTF-8 in .*, got invalid start byte at byte 4"):
        read_columns(str(path))


def test_bad_arguments(monkeypatch, model, tmp_path, capsys):
    conll(tmp_path / "train.txt")
    (tmp_path / "empty.txt").write_text("a O\n")
    for arguments, message in (
        ({"max_seq_length": 99}, "max_seq_length: expected at most 32, the positions of the model, got 99"),
        ({"train_file": "no.txt"}, "No such file or directory: 'no.txt'"),
        ({"train_file": tmp_path / "empty.txt"}, "expected entities in"),
        ({"label_column": 1}, "line 3: expected a word and, in column 1, a tag"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, model, tmp_path, **arguments)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
