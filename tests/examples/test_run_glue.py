"""The GLUE script on a few rows, its metric compared with formulas and other libraries, and bad input."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import run_glue
import torch
from run_glue import METRIC
from safetensors.torch import load_file, save_file
from scipy import stats
from sklearn import metrics
from training_scripts import load_parts
from transformers import BertConfig, BertModel

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel
from autobert_zero.search.files import lock_output_dir
from autobert_zero.search.text.tokens import train_tokenizer
from tests.conftest import run_script, tiny_config
from tests.evaluation.glue_files import BAD, GOOD, write_task


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([GOOD, BAD] * 3, vocab_size=100, model_max_length=32)
    tokenizer.save_pretrained(folder)
    config = tiny_config(Genome([Convolution(3), SELF_ATTENTION]), vocab_size=len(tokenizer), hidden_dropout_prob=0.0)
    torch.manual_seed(0)  # conftest seeds later: an untrained model would sometimes be right by chance
    AutoBertZeroModel(config).save_pretrained(folder)
    return folder


def run(monkeypatch, model, data, output, *more: str) -> dict:
    arguments = {
        "model_name_or_path": model,
        "data_dir": data,
        "output_dir": output,
        "max_seq_length": 16,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 4,
        "learning_rate": 0.01,
        "seeds": 2,
        "disable_tqdm": "true",
    }
    run_script(monkeypatch, run_glue, "--trust_remote_code", *more, **arguments)
    return json.loads((output / "results.json").read_text())


def test_all_tasks_of_a_folder(monkeypatch, model, tmp_path, capsys):
    """It learns the tasks, prints one table, writes submissions, and repeats nothing."""
    for name in ("rte", "stsb", "cola"):
        write_task(tmp_path / "data", name, test=name != "cola")
    out = tmp_path / "out"
    options = ("--task_name", "all", "--learning_rates", "1e-7", "0.01")
    results = run(monkeypatch, model, tmp_path / "data", out, *options)
    assert list(results["tasks"]) == ["cola", "stsb", "rte"]
    for name, found in results["tasks"].items():
        assert found["learning_rate"] == 0.01 and found["grid"]["0.01"] > found["grid"]["1e-07"], name
        assert len(found["scores"]) == 2 and min(found["scores"]) > 80, (name, found)
        assert found["rows"] == {"train": 60, "validation": 60}
    assert set(results["tasks"]["stsb"]["metrics"][0]) == {"pearson", "spearmanr"}
    shown = capsys.readouterr()
    *_, head, line, cola, stsb, rte, mean = shown.out.rstrip().splitlines()
    assert head.split() == ["task", "metric", "mean", "s.d.", "majority", "rate", "seeds"] and set(line) == {"-"}
    scores = results["tasks"]["rte"]["scores"]
    assert rte.split()[:3] == ["rte", "accuracy", f"{sum(scores) / 2:.2f}"] and rte.split()[4] == "50.00"
    assert "Matthews corr." in cola and "Pearson, Spearman" in stsb and mean.startswith("mean")
    assert [results["tasks"][name]["majority"]["score"] for name in ("cola", "stsb", "rte")] == [0.0, 0.0, 50.0]
    assert "rte, train: 60 rows, officially 2,490" in shown.err and "rte, train: 60" in results["notes"][4]

    rte = (out / "submission-seed-43" / "RTE.tsv").read_text().splitlines()
    assert rte[:3] == ["index\tprediction", "0\tentailment", "1\tnot_entailment"] and len(rte) == 61
    stsb = (out / "submission-seed-42" / "STS-B.tsv").read_text().splitlines()
    assert 0 <= float(stsb[1].split("\t")[1]) < float(stsb[2].split("\t")[1]) <= 5
    assert not list(out.glob("*/CoLA.tsv"))

    lines = (out / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3 * (2 + 2)
    # With a torn last line and without the one before: two trainings are repeated, with the same results.
    (out / "rows.jsonl").write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:9])
    with pytest.warns(UserWarning, match="rows.jsonl: dropped a torn last line"):
        again = run(monkeypatch, model, tmp_path / "data", out, *options)
    repeated = capsys.readouterr().out
    assert len(re.findall(r", seed \d+: \d+\.\d\d, \d+\.\d s$", repeated, re.MULTILINE)) == 2
    assert {n: t["scores"] for n, t in again["tasks"].items()} == {n: t["scores"] for n, t in results["tasks"].items()}
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", out, "--task_name", "all", "--max_train_samples", "8")
    assert "of a run that differs in max_train_samples" in capsys.readouterr().err
    write_task(tmp_path / "data", "rte", texts=(GOOD, BAD))
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", out, "--task_name", "all")
    assert "data_dir: rte has changed since 'rte, rate 1e-07' was trained" in capsys.readouterr().err


def test_the_learning_rate_is_chosen_without_the_validation_part(monkeypatch, model, tmp_path):
    """Its labels are swapped here, so the chosen training is bad on it."""
    write_task(tmp_path / "data", "rte", texts=(GOOD, BAD))
    validation = (tmp_path / "data" / "rte" / "validation.jsonl.gz").read_bytes()
    write_task(tmp_path / "data", "rte")
    (tmp_path / "data" / "rte" / "validation.jsonl.gz").write_bytes(validation)
    out = tmp_path / "out"
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", "--learning_rates", "1e-7", "0.01")
    found = results["tasks"]["rte"]
    assert found["learning_rate"] == 0.01 and found["grid"]["0.01"] > 90 and max(found["scores"]) < 10


def test_mnli_without_its_mismatched_part(monkeypatch, model, tmp_path):
    data = write_task(tmp_path / "data", "mnli", rows=9)
    (data / "mnli" / "validation_mismatched.jsonl.gz").unlink()
    results = run(monkeypatch, model, data, tmp_path / "out", "--task_name", "mnli", "--seeds", "1")
    assert "mnli, validation_mismatched: 0 rows, officially 9,832" in results["notes"]
    [scores] = results["tasks"]["mnli"]["metrics"]
    assert set(scores) == {"accuracy"}


def test_matched_and_mismatched(monkeypatch, model, tmp_path):
    data = write_task(tmp_path / "data", "mnli", rows=9, test=True)
    out = tmp_path / "out"
    options = ("--task_name", "mnli", "--save_models")
    results = run(monkeypatch, model, data, out, *options, "--seeds", "1")
    assert "AX.tsv is not written: data_dir: expected ax/test.jsonl.gz" in results["notes"][-1]
    [scores] = results["tasks"]["mnli"]["metrics"]
    assert set(scores) == {"validation_matched accuracy", "validation_mismatched accuracy"}
    assert sorted(path.name for path in out.glob("submission-seed-42/*")) == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    # With the diagnostic part, the run resumes.
    (data / "ax").mkdir()
    (data / "ax" / "test.jsonl.gz").write_bytes((data / "mnli" / "test_matched.jsonl.gz").read_bytes())
    run(monkeypatch, model, data, out, *options, "--seeds", "2")
    names = ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"]
    assert sorted(path.name for path in out.glob("submission-seed-43/*")) == names
    assert len((out / "submission-seed-43" / "AX.tsv").read_text().splitlines()) == 10
    config = json.loads((out / "mnli" / "rate-0.01-seed-42" / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}


def score(task: str, predictions: list, references: list) -> dict[str, float]:
    return evaluate.load(METRIC, task).compute(predictions=predictions, references=references)


@pytest.mark.parametrize(("given", "expected"), [(None, 32), (16, 16)])
def test_the_default_length_fits_the_model(model, given, expected):
    options = SimpleNamespace(
        model_name_or_path=str(model), trust_remote_code=True, model_revision="main", max_seq_length=given
    )
    load_parts(options)
    assert options.max_seq_length == expected


def test_the_metric_by_hand():
    # Of six, three true positives, one false positive, one false negative, one true negative.
    predictions, references = [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]
    assert score("sst2", predictions, references) == {"accuracy": pytest.approx(4 / 6)}
    assert score("mrpc", predictions, references) == {"accuracy": pytest.approx(4 / 6), "f1": pytest.approx(6 / 8)}
    assert score("cola", predictions, references)["matthews_correlation"] == pytest.approx(
        (3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2)
    )
    found = score("stsb", [1.0, 2.0, 3.0], [1.0, 2.0, 5.0])
    assert found == {"pearson": pytest.approx(4 / math.sqrt(2 * 26 / 3)), "spearmanr": pytest.approx(1.0)}
    assert score("cola", [1, 1], [0, 1]) == {"matthews_correlation": 0.0}
    assert score("stsb", [1.0, 1.0], [0.0, 1.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert score("stsb", [math.nan, 1.0], [0.0, 1.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert score("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    with pytest.raises(ValueError, match="task: expected one of"):
        evaluate.load(METRIC, "xnli")


def test_the_metric_equals_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(2, size=(2, 40))
        x, y = rng.normal(size=(2, 40))
        assert score("cola", a, b)["matthews_correlation"] == pytest.approx(metrics.matthews_corrcoef(b, a))
        assert score("qqp", a, b)["f1"] == pytest.approx(metrics.f1_score(b, a))
        assert score("stsb", x, y)["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert score("stsb", x, y)["spearmanr"] == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task_name", "imdb"), "task_name: expected all or one of"),
        (("--task_name", "rte", "--max_seq_length", "64"), "max_seq_length: expected at most 32, the positions"),
        (("--task_name", "mrpc"), "expected mrpc/train.jsonl.gz"),
        (("--task_name", "rte", "--seeds", "0"), "seeds: expected at least 1, got 0"),
        (("--task_name", "rte", "--max_eval_samples", "0"), "max_eval_samples: expected at least 1, got 0"),
        (("--task_name", "rte", "--max_train_samples", "-1"), "max_train_samples: expected at least 1, got -1"),
        (
            ("--task_name", "rte", "--max_train_samples", "1", "--learning_rates", "1e-3", "1e-4"),
            "max_train_samples: expected at least 2, got 1",
        ),
        (("--task_name", "rte", "--learning_rates", "1e-3", "nan"), "learning_rates: expected a positive number"),
        (("--task_name", "rte", "--learning_rates", "1e-3", "1e-3"), "learning_rates: expected different ones"),
        (("--task_name", "rte", "--max_seq_length", "4"), "max_seq_length: expected at least 5"),
    ],
)
def test_bad_arguments(monkeypatch, model, tmp_path, capsys, arguments, message):
    write_task(tmp_path / "data", "rte")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", *arguments)
    assert f"error: {message}" in capsys.readouterr().err.replace("data_dir: ", "")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_a_tokenizer_too_large_for_the_model(monkeypatch, model, tmp_path, capsys):
    write_task(tmp_path / "data", "rte")
    other = tmp_path / "model"
    AutoBertZeroModel(tiny_config(Genome([Convolution(3)]), vocab_size=20)).save_pretrained(other)
    train_tokenizer([GOOD, BAD], vocab_size=100, model_max_length=32).save_pretrained(other)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, other, tmp_path / "data", tmp_path / "out", "--task_name", "rte")
    assert "expected a tokenizer of at most 20 tokens" in capsys.readouterr().err


def test_a_tokenizer_without_a_vocabulary(monkeypatch, model, tmp_path, capsys):
    """The tokenizer that transformers creates for a folder without one reads every text as unknown words."""
    write_task(tmp_path / "data", "rte")
    bert = BertConfig(vocab_size=99, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "bert", tmp_path / "data", tmp_path / "out", "--task_name", "rte")
    assert "expected a tokenizer with a vocabulary in" in capsys.readouterr().err


def test_damaged_weights_are_named_before_the_first_training(monkeypatch, model, tmp_path, capsys):
    write_task(tmp_path / "data", "rte")
    damaged = shutil.copytree(model, tmp_path / "model")
    os.truncate(damaged / "model.safetensors", 100)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, damaged, tmp_path / "data", tmp_path / "out", "--task_name", "rte")
    assert "error: model: cannot load" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["null", "{}", "[]", '{"key": "rte, rate 0.01, seed 42"}'])
def test_damaged_rows_are_named(monkeypatch, model, tmp_path, capsys, line):
    write_task(tmp_path / "data", "rte")
    out = tmp_path / "out"
    run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", "--max_train_samples", "8")
    header, *_ = (out / "rows.jsonl").read_text().splitlines()
    (out / "rows.jsonl").write_text(f"{header}\n{line}\n")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", "--max_train_samples", "8")
    assert "rows.jsonl, line 2" in capsys.readouterr().err


def test_submissions_and_models_are_of_the_rate_that_is_reported(monkeypatch, model, tmp_path):
    """Also if the rate before was another one, and the training is not repeated."""
    data, out, options = (
        write_task(tmp_path / "data", "rte", test=True),
        tmp_path / "out",
        ("--task_name", "rte", "--max_grad_norm", "1e30"),
    )
    submission, written = out / "submission-seed-42" / "RTE.tsv", []
    for rate, more in (("0.01", ()), ("1e-7", ("--save_models",)), ("0.01", ()), ("0.01", ("--save_models",))):
        run(monkeypatch, model, data, out, *options, "--seeds", "1", "--learning_rate", rate, *more)
        written.append(submission.read_text())
    assert written[0] == written[2] == written[3] != written[1]
    folders = {path.name: path / "model.safetensors" for path in (out / "rte").iterdir()}
    assert set(folders) == {"rate-0.01-seed-42", "rate-1e-07-seed-42"} and all(map(Path.exists, folders.values()))
    # An older folder names an option that the training does not depend on.
    rows = (out / "rows.jsonl").read_text()
    (out / "rows.jsonl").write_text(rows.replace("{", '{"trust_remote_code": true, ', 1))
    run(monkeypatch, model, data, out, *options, "--seeds", "1", "--learning_rate", "0.01")
    assert len((out / "rows.jsonl").read_text().splitlines()) == len(rows.splitlines())
    results = run(monkeypatch, model, data, out, *options, "--seeds", "1", "--learning_rate", "1e30")
    assert results["tasks"]["rte"]["scores"] == [None] and not submission.exists()


def test_two_runs_in_one_folder(monkeypatch, model, tmp_path, capsys):
    """Each would cut off the rows of the other."""
    write_task(tmp_path / "data", "rte")
    (tmp_path / "out").mkdir()
    with lock_output_dir(tmp_path / "out"), pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", "--task_name", "rte")
    assert "out is in use by another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("stsb", ("--label_smoothing_factor", "0.1"), "label_smoothing_factor: expected 0 for stsb"),
        (
            "rte",
            ("--save_strategy", "epoch"),
            "save_strategy: expected steps, because the model after the last step counts, got epoch",
        ),
        (
            "rte",
            ("--eval_strategy", "epoch"),
            "eval_strategy: expected no, because the model after the last step counts, got epoch",
        ),
    ],
)
def test_arguments_without_effect(monkeypatch, model, tmp_path, capsys, task, arguments, message):
    write_task(tmp_path / "data", task)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", "--task_name", task, *arguments)
    assert message in capsys.readouterr().err


def test_a_training_that_diverges_is_reported(monkeypatch, model, tmp_path, capsys):
    """And it is not chosen; with weights that are not finite all predictions would be the first label."""
    write_task(tmp_path / "data", "rte", test=True)
    out = tmp_path / "out"
    rates = ("--learning_rates", "1e30", "0.01", "--max_grad_norm", "1e30")
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", *rates)
    assert results["tasks"]["rte"]["grid"]["1e+30"] is None and results["tasks"]["rte"]["learning_rate"] == 0.01
    out = tmp_path / "all"
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", *rates[:2], *rates[3:])
    assert results["tasks"]["rte"]["scores"] == [None, None] and not list(out.glob("submission*"))
    finished = (out / "rows.jsonl").read_text()
    more = (*rates[:2], *rates[3:], "--save_models")  # nothing was saved, and nothing is trained again
    run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", *more)
    assert (out / "rows.jsonl").read_text() == finished
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["rte", "accuracy", "diverged", "50.00", "1e+30", "diverged", "diverged"]


def test_from_one_task_to_another(monkeypatch, model, tmp_path, capsys):
    """A model for three labels is fine-tuned for two; a model that was not kept is trained again."""
    write_task(tmp_path / "data", "mnli", rows=9)
    write_task(tmp_path / "data", "rte")
    for more in ((), ("--save_models",)):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", "--task_name", "mnli", *more)
    first = tmp_path / "out" / "mnli" / "rate-0.01-seed-42"
    results = run(monkeypatch, first, tmp_path / "data", tmp_path / "rte", "--task_name", "rte")
    assert min(results["tasks"]["rte"]["scores"]) > 80
    weights = load_file(first / "model.safetensors")
    name = next(n for n in weights if n.startswith("autobert_zero.") and weights[n].ndim == 2)
    weights[name] = weights[name][:-1].clone()
    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, first, tmp_path / "data", tmp_path / "other", "--task_name", "rte")
    assert "model: expected weights of the sizes in its configuration, got others in" in capsys.readouterr().err


def test_arguments_that_steps_depend_on_identify_a_training(monkeypatch, model, tmp_path, capsys):
    write_task(tmp_path / "data", "rte")
    options = ("--task_name", "rte", "--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs")
    run(monkeypatch, model, tmp_path / "data", tmp_path / "out", *options, '{"min_lr": 0.001}')
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", *options, '{"min_lr": 0.002}')
    assert "differs in lr_scheduler_kwargs" in capsys.readouterr().err
