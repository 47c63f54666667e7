"""The question answering script on files in the official format, its metric computed by hand, and bad input."""

import json
import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
import run_squad
from run_squad import METRIC, Question, SquadArguments, answer_span, best_answers, make_windows, read_squad
from transformers import BertTokenizerFast

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel
from autobert_zero.search.text.tokens import train_tokenizer
from tests.conftest import fine_tune, tiny_config


NAMES = ("anna", "bert", "carl", "dora")
PLACES = ("a mill", "the lake", "a town", "one hill")


def squad(path: Path, count: int = 40, impossible: bool = False, **changed) -> Path:
    """Contexts about who lives where, and questions for the place."""
    articles = []
    for number in range(count):
        name, place = NAMES[number % 4], PLACES[number // 4 % 4]
        context = f"it rains . {name} lives near {place} today . it rains again and again ."
        unanswerable = impossible and number % 3 == 0
        answers = [] if unanswerable else [{"text": place, "answer_start": context.index(place), **changed}]
        qa = {"id": f"q{number}", "question": "  who ?" if unanswerable else "  where ?", "answers": answers}
        if impossible:
            qa["is_impossible"] = unanswerable
        articles.append({"title": name, "paragraphs": [{"context": context, "qas": [qa]}]})
    path.write_text(json.dumps({"version": "v2.0" if impossible else "1.1", "data": articles}))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = [q.context + q.text for q in read_squad(str(squad(folder / "all.json", impossible=True)))] + ["where ?"]
    tokenizer = train_tokenizer(texts, vocab_size=150, model_max_length=32)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.0, "max_position_embeddings": 64}
    AutoBertZeroModel(tiny_config(Genome([Convolution(7), SELF_ATTENTION]), **sizes)).save_pretrained(folder)
    return folder


def run(monkeypatch, model, folder, **more) -> dict:
    sizes = {"max_seq_length": 18, "doc_stride": 5, "num_train_epochs": 12}
    return fine_tune(monkeypatch, run_squad, model, folder, "train.json", **{**sizes, **more})


def test_answers_are_found_in_windows_of_a_context(monkeypatch, model, tmp_path, capsys):
    squad(tmp_path / "train.json")
    results = run(monkeypatch, model, tmp_path, save_strategy="epoch")
    assert results["windows"] > results["questions"] == 40
    assert results["metrics"]["exact"] > 80 and set(results["metrics"]) == {"exact", "f1"}
    # The same command trains nothing; another seed is another training.
    assert run(monkeypatch, model, tmp_path, save_strategy="epoch")["metrics"] == results["metrics"]
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path, seed=1)
    assert "holds a training that differs in seed" in capsys.readouterr().err
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert list(predictions) == [f"q{number}" for number in range(40)]
    assert set(predictions.values()) & set(PLACES)


def test_questions_without_an_answer(monkeypatch, model, tmp_path):
    squad(tmp_path / "train.json", impossible=True)
    results = run(monkeypatch, model, tmp_path)
    assert set(results["metrics"]) == {f"{g}{m}" for g in ("", "HasAns_", "NoAns_") for m in ("exact", "f1")}
    assert results["metrics"]["HasAns_exact"] > 60 and results["metrics"]["NoAns_exact"] > 60


def arguments(**changed) -> SquadArguments:
    return SquadArguments("", train_file="", validation_file="", **changed)


def test_windows_overlap_and_spans_are_those_of_the_answer(model):
    tokenizer = BertTokenizerFast.from_pretrained(model)
    context = " ".join(["it rains again and again ."] * 4) + " anna lives near the lake today ."
    question = Question("q", "where ?", context, ("the lake",), (context.index("the lake"),))
    options = arguments(max_seq_length=16, doc_stride=4)
    windows = make_windows([question], tokenizer, options)
    seen = set()
    found = []
    for ids, offsets in zip(windows["input_ids"], windows["offsets"], strict=True):
        assert len(ids) <= 16
        seen |= {place for place in offsets if place}
        first, last = answer_span(question, offsets)
        if (first, last) != (0, 0):
            found.append(context[offsets[first][0] : offsets[last][1]])
    assert len(windows["offsets"]) > 2 and found and set(found) == {"the lake"}
    assert "".join(context[a:b] for a, b in sorted(seen)) == context.replace(" ", "")
    # White space belongs to no token.
    wide = Question("q", "where ?", context, (" the lake ",), (context.index(" the lake "),))
    for offsets in windows["offsets"]:
        assert answer_span(wide, offsets) == answer_span(question, offsets)
    nothing = Question("q", "where ?", context, (), ())
    assert {answer_span(nothing, offsets) for offsets in windows["offsets"]} == {(0, 0)}


def test_long_questions_leave_room_for_the_context(model):
    tokenizer = BertTokenizerFast.from_pretrained(model)
    question = Question("q", "where ? " * 200, "anna lives near the lake today .", (), ())
    windows = make_windows([question], tokenizer, arguments(max_seq_length=20, doc_stride=6))
    read = {place for offsets in windows["offsets"] for place in offsets if place}
    assert "".join(question.context[a:b] for a, b in sorted(read)) == question.context.replace(" ", "")
    assert all(len(ids) <= 20 for ids in windows["input_ids"])


def test_the_best_span_of_all_windows_counts():
    context = "alpha beta gamma"
    questions = [Question("a", "?", context, ("beta",), (6,)), Question("b", "?", context, (), ())]
    place = [None, None, (0, 5), (6, 10), (11, 16)]
    windows = {"question": [0, 0, 1], "offsets": [place, place[:4], place]}
    starts, ends = np.zeros((3, 6)), np.zeros((3, 6))
    starts[0, [0, 3]], ends[0, [0, 4]] = (9, 1), (9, 1)  # beta gamma: 2; [CLS]: 18
    starts[1, [2, 5]], ends[1, [2, 5]] = (2, 50), (3, 50)  # alpha: 5; beyond the window: 100
    starts[2, [0, 4]], ends[2, [0, 2]] = (3, 9), (3, 9)  # ends before it starts; [CLS]: 6, the best span: 9
    options = arguments()
    found = best_answers(questions, windows, starts, ends, options)
    # The empty answer to the first has score 0 in one of its windows.
    assert found["a"] == "alpha" and found["b"] == "gamma"
    ends[2, 0] = 7
    assert best_answers(questions, windows, starts, ends, options)["b"] == ""
    short = arguments(max_answer_length=1)
    starts[1, 2] = -9
    assert best_answers(questions, windows, starts, ends, options)["a"] == "beta gamma"
    assert best_answers(questions, windows, starts, ends, short)["a"] in ("beta", "gamma")
    # If all questions have an answer, no prediction is empty.
    assert (
        best_answers(questions[:1], {k: v[:1] for k, v in windows.items()}, starts, ends, options)["a"] == "beta gamma"
    )


def test_the_metric_by_hand():
    def score(prediction: str, *answers: str) -> tuple[float, float]:
        found = evaluate.load(METRIC).compute(predictions=[prediction], references=[list(answers)])
        return found["exact"], found["f1"]

    assert score("The Lake!", "a lake") == (100, 100)
    assert score("near the lake", "lake", "hill") == (0, pytest.approx(200 / 3))
    assert score("lake lake", "lake") == (0, pytest.approx(200 / 3))
    assert score("hill", "lake") == (0, 0)
    assert score("", "lake") == (0, 0) and score("") == (100, 100) and score("lake") == (0, 0)
    assert score("", "the") == (100, 100)  # an answer of articles alone is empty, as in the official script
    both = evaluate.load(METRIC).compute(predictions=["lake", "", "x"], references=[["lake"], [], []])
    assert both == {
        "exact": pytest.approx(200 / 3),
        "f1": pytest.approx(200 / 3),
        "HasAns_exact": 100,
        "HasAns_f1": 100,
        "NoAns_exact": 50,
        "NoAns_f1": 50,
    }


def test_bad_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"question 'q0': expected 'a mill' at character 3 of the context, got 'rains '"
    ):
        read_squad(str(squad(tmp_path / "a.json", answer_start=3)))
    for start in ("3", None, -4):
        with pytest.raises(ValueError, match=f"question 'q0': expected a whole number as answer_start, got {start!r}"):
            read_squad(str(squad(tmp_path / "a.json", answer_start=start)))
    whole = squad(tmp_path / "a.json").read_text()
    for old, new, message in (
        ('"id": "q1"', '"id": "q0"', "expected every id once, got 'q0' several times"),
        (
            re.search(r'"context": "[^"]*"', whole).group(),
            '"context": null',
            "'q0': expected text as context, got None",
        ),
    ):
        assert old in whole
        (tmp_path / "b.json").write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_squad(str(tmp_path / "b.json"))
    for content in ("", "[]", '{"data": 3}', '{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}'):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(ValueError, match="expected a JSON file of SQuAD, got"):
            read_squad(str(tmp_path / "b.json"))
    (tmp_path / "b.json").write_text('{"data": []}')
    with pytest.raises(ValueError, match="expected questions in"):
        read_squad(str(tmp_path / "b.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_seq_length": 99}, "max_seq_length: expected at most 64, the positions of the model, got 99"),
        ({"doc_stride": 10}, "doc_stride: expected from 0 to 5, which leaves room for the question, got 10"),
        ({"doc_stride": -1}, "doc_stride: expected from 0 to 5, which leaves room for the question, got -1"),
        ({"train_file": "no.json"}, "expected a JSON file of SQuAD, got 'no.json'"),
    ],
)
def test_bad_arguments(monkeypatch, model, tmp_path, capsys, arguments, message):
    squad(tmp_path / "train.json")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path, **arguments)
    assert message in capsys.readouterr().err


def test_a_training_that_diverges_is_an_error(monkeypatch, model, tmp_path):
    squad(tmp_path / "train.json")
    with pytest.raises(SystemExit, match="3"):
        run(monkeypatch, model, tmp_path, learning_rate=1e30, max_grad_norm=1e30)
    assert not (tmp_path / "out" / "results.json").exists()
