"""The GLUE script on a few rows, its metric against hand-computed and published formulas, and what it refuses."""

import gzip
import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import run_glue
import torch
from run_glue import METRIC
from safetensors.torch import load_file, save_file
from scipy import stats
from sklearn import metrics
from transformers import BertConfig, BertModel

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel
from autobert_zero.search.glue import TASKS, load_task
from autobert_zero.search.text import train_tokenizer

from .conftest import run_script, tiny_config


GOOD, BAD = "the film is good and warm", "a dull and bad film"


def write_task(
    folder: Path, name: str, rows: int = 60, test: bool = False, texts: tuple[str, str] = (BAD, GOOD), **changed
) -> Path:
    """A task in the layout of a local folder: what its label is can be read off its first text."""
    task = TASKS[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    for part in ("train", *task.validations, *(task.tests if test else ())):
        lines = []
        for number in range(rows):
            label = number % max(2, len(task.labels))
            row = dict.fromkeys(task.columns, texts[min(label, 1)])
            label = label if task.labels else 1.0 + 2.5 * label
            lines.append({**row, "label": -1 if part in task.tests else label, "idx": number, **changed})
        with gzip.open(folder / name / f"{part}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([GOOD, BAD] * 3, vocab_size=100, model_max_length=32)
    tokenizer.save_pretrained(folder)
    config = tiny_config(Genome([Convolution(3), SELF_ATTENTION]), vocab_size=len(tokenizer), hidden_dropout_prob=0.0)
    torch.manual_seed(0)  # what conftest seeds comes later: an untrained model would be right by luck, now and then
    AutoBertZeroModel(config).save_pretrained(folder)
    return folder


def run(monkeypatch, model, data, output, *more: str) -> dict:
    arguments = {
        "model": model,
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
    """It learns what can be learned, says so in one table, writes submissions, and does nothing twice."""
    for name in ("rte", "stsb", "cola"):
        write_task(tmp_path / "data", name, test=name != "cola")
    out = tmp_path / "out"
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "all", "--learning_rates", "1e-7", "0.01")
    assert list(results["tasks"]) == ["cola", "stsb", "rte"]
    for name, found in results["tasks"].items():
        assert found["learning_rate"] == 0.01 and found["grid"]["0.01"] > found["grid"]["1e-07"], name
        assert len(found["scores"]) == 2 and min(found["scores"]) > 80, (name, found)
        assert found["rows"] == {"train": 60, "validation": 60}
    assert set(results["tasks"]["stsb"]["metrics"][0]) == {"pearson", "spearmanr"}
    shown = capsys.readouterr()
    assert all(word in shown.out for word in ("median", "spread", "mean", "rte"))
    assert "rte, train: 60 rows, officially 2,490" in shown.err and "rte, train: 60" in results["notes"][4]

    rte = (out / "submission-seed-43" / "RTE.tsv").read_text().splitlines()
    assert rte[:3] == ["index\tprediction", "0\tentailment", "1\tnot_entailment"] and len(rte) == 61
    stsb = (out / "submission-seed-42" / "STS-B.tsv").read_text().splitlines()
    assert 0 <= float(stsb[1].split("\t")[1]) < float(stsb[2].split("\t")[1]) <= 5
    assert not list(out.glob("*/CoLA.tsv"))

    lines = (out / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3 * (2 + 2)
    # Its last line torn, and the one before it lost: two are trained again, and give the same.
    (out / "rows.jsonl").write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:9])
    again = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "all", "--learning_rates", "1e-7", "0.01")
    repeated = capsys.readouterr().out
    assert repeated.count("'score'") == 2
    assert {n: t["scores"] for n, t in again["tasks"].items()} == {n: t["scores"] for n, t in results["tasks"].items()}
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", out, "--task_name", "all", "--max_train_samples", "8")
    assert "of a run that differs in max_train_samples" in capsys.readouterr().err
    write_task(tmp_path / "data", "rte", texts=(GOOD, BAD))
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", out, "--task_name", "all")
    assert "data_dir: rte is not what it was when 'rte, rate 1e-07' was trained" in capsys.readouterr().err


def test_the_rate_is_chosen_without_the_validation_part(monkeypatch, model, tmp_path):
    """Its labels are the wrong way round here: what is good on it is bad, and what is chosen is good."""
    write_task(tmp_path / "data", "rte", texts=(GOOD, BAD))
    validation = (tmp_path / "data" / "rte" / "validation.jsonl.gz").read_bytes()
    write_task(tmp_path / "data", "rte")
    (tmp_path / "data" / "rte" / "validation.jsonl.gz").write_bytes(validation)
    out = tmp_path / "out"
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", "--learning_rates", "1e-7", "0.01")
    found = results["tasks"]["rte"]
    assert found["learning_rate"] == 0.01 and found["grid"]["0.01"] > 90 and max(found["scores"]) < 10


def test_matched_and_mismatched(monkeypatch, model, tmp_path):
    data = write_task(tmp_path / "data", "mnli", rows=9, test=True)
    out = tmp_path / "out"
    options = ("--task_name", "mnli", "--save_models")
    results = run(monkeypatch, model, data, out, *options, "--seeds", "1")
    assert "AX.tsv is not written: data_dir: expected ax/test.jsonl.gz" in results["notes"][-1]
    [scores] = results["tasks"]["mnli"]["metrics"]
    assert set(scores) == {"validation_matched accuracy", "validation_mismatched accuracy"}
    assert sorted(path.name for path in out.glob("submission-seed-42/*")) == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    # The diagnostic part comes later, and the run goes on.
    (data / "ax").mkdir()
    (data / "ax" / "test.jsonl.gz").write_bytes((data / "mnli" / "test_matched.jsonl.gz").read_bytes())
    run(monkeypatch, model, data, out, *options, "--seeds", "2")
    names = ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"]
    assert sorted(path.name for path in out.glob("submission-seed-43/*")) == names
    assert len((out / "submission-seed-43" / "AX.tsv").read_text().splitlines()) == 10
    config = json.loads((out / "mnli" / "seed-42" / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}


def score(task: str, predictions: list, references: list) -> dict[str, float]:
    return evaluate.load(METRIC, task).compute(predictions=predictions, references=references)


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


def test_the_metric_is_scikit_learn_s_and_scipy_s():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(2, size=(2, 40))
        x, y = rng.normal(size=(2, 40))
        assert score("cola", a, b)["matthews_correlation"] == pytest.approx(metrics.matthews_corrcoef(b, a))
        assert score("qqp", a, b)["f1"] == pytest.approx(metrics.f1_score(b, a))
        assert score("stsb", x, y)["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert score("stsb", x, y)["spearmanr"] == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("cola", {"label": 2}, r"cola, train: expected as label one of .*'acceptable', 1.*, got 2 in idx 0"),
        ("cola", {"label": None}, "cola, train: expected a column of labels"),
        ("cola", {"label": "acceptabel"}, "cola, train: expected as label .* got 'acceptabel' in idx 0"),
        ("stsb", {"label": 5.5}, r"stsb, train: expected as label a number from 0.0 to 5.0, got 5.5 in idx 0"),
        ("stsb", {"idx": 3}, "stsb, train: expected every idx once, got 3 more often"),
        ("mrpc", {"sentence2": None}, "mrpc, train: expected text in 'sentence2', got None in idx 0"),
        ("cola", {"label": True}, "cola, train: expected as label .* got True in idx 0"),
        ("cola", {"label": [1]}, r"cola, train: expected as label .* got \[1\] in idx 0"),
        ("stsb", {"label": "3"}, "stsb, train: expected as label a number .* got '3' in idx 0"),
        ("cola", {"idx": "3"}, "cola, train: expected whole numbers in 'idx', got '3'"),
        ("cola", {"idx": None}, "cola, train: expected whole numbers in 'idx', got None"),
        ("mrpc", {"idx": -3}, "mrpc, train: expected whole numbers in 'idx', got -3"),
    ],
)
def test_bad_rows(tmp_path, name, changed, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, str(write_task(tmp_path, name, **changed)))


def test_bad_files(tmp_path):
    write_task(tmp_path, "rte")
    path = tmp_path / "rte" / "train.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    path.write_bytes(gzip.compress("".join(lines[:5] + lines[7:]).encode()))
    with pytest.raises(ValueError, match=r"rte, train: expected rows 0 to 59, without idx \[5, 6\], 2 in all"):
        load_task("rte", str(tmp_path))
    path.write_bytes(gzip.compress("".join(lines).encode()))
    (tmp_path / "rte" / "validation.jsonl.gz").write_bytes(gzip.compress(b'{"sentence": "a", "label": 1, "idx": 0}\n'))
    with pytest.raises(ValueError, match=r"rte, validation: expected columns .*without \['sentence1', 'sentence2'\]"):
        load_task("rte", str(tmp_path))
    (tmp_path / "rte" / "validation.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"expected rte/validation.jsonl.gz in .*, got \['train'\]"):
        load_task("rte", str(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_dir: (cannot read|expected rows in) .*train.jsonl.gz"):
        load_task("rte", str(tmp_path))
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="data_dir: cannot read"):
        load_task("rte", str(tmp_path))


def test_labels_by_name_are_numbered_in_the_order_of_the_task(tmp_path):
    write_task(tmp_path, "qnli")
    for part in ("train", "validation"):
        path = tmp_path / "qnli" / f"{part}.jsonl.gz"
        text = gzip.decompress(path.read_bytes()).decode()
        for number, label in enumerate(TASKS["qnli"].labels):
            text = text.replace(f'"label": {number}', f'"label": "{label}"')
        path.write_bytes(gzip.compress(text.encode()))
    assert load_task("qnli", str(tmp_path))["train"]["label"][:4] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task_name", "imdb"), "task_name: expected all or one of"),
        (("--task_name", "rte", "--max_seq_length", "64"), "max_seq_length: expected at most 32, the positions"),
        (("--task_name", "mrpc"), "expected mrpc/train.jsonl.gz"),
        (("--task_name", "rte", "--seeds", "0"), "seeds: expected at least 1, got 0"),
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
    """What transformers makes of a folder without a tokenizer's files reads every text as unknown words."""
    write_task(tmp_path / "data", "rte")
    bert = BertConfig(vocab_size=99, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "bert", tmp_path / "data", tmp_path / "out", "--task_name", "rte")
    assert "expected a tokenizer with a vocabulary in" in capsys.readouterr().err


def test_a_training_that_diverges_says_so(monkeypatch, model, tmp_path, capsys):
    """And is not chosen; predictions of weights that are no numbers would be those of the first label."""
    write_task(tmp_path / "data", "rte", test=True)
    out = tmp_path / "out"
    rates = ("--learning_rates", "1e30", "0.01", "--max_grad_norm", "1e30")
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", *rates)
    assert results["tasks"]["rte"]["grid"]["1e+30"] is None and results["tasks"]["rte"]["learning_rate"] == 0.01
    out = tmp_path / "all"
    results = run(monkeypatch, model, tmp_path / "data", out, "--task_name", "rte", *rates[:2], *rates[3:])
    assert results["tasks"]["rte"]["scores"] == [None, None] and not list(out.glob("submission*"))
    assert capsys.readouterr().out.splitlines()[-1].split() == ["rte", "diverged", "1e+30", "diverged", "diverged"]


def test_from_one_task_to_another(monkeypatch, model, tmp_path):
    """The model of a task with three labels is taken for one with two; a model that was not kept is made again."""
    write_task(tmp_path / "data", "mnli", rows=9)
    write_task(tmp_path / "data", "rte")
    for more in ((), ("--save_models",)):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", "--task_name", "mnli", *more)
    first = tmp_path / "out" / "mnli" / "seed-42"
    results = run(monkeypatch, first, tmp_path / "data", tmp_path / "rte", "--task_name", "rte")
    assert min(results["tasks"]["rte"]["scores"]) > 80
    weights = load_file(first / "model.safetensors")
    name = next(n for n in weights if n.startswith("autobert_zero.") and weights[n].ndim == 2)
    weights[name] = weights[name][:-1].clone()
    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model: expected weights of the sizes in its configuration, got others in"):
        run(monkeypatch, first, tmp_path / "data", tmp_path / "other", "--task_name", "rte")


def test_all_that_steps_depend_on_tells_trainings_apart(monkeypatch, model, tmp_path, capsys):
    write_task(tmp_path / "data", "rte")
    options = ("--task_name", "rte", "--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs")
    run(monkeypatch, model, tmp_path / "data", tmp_path / "out", *options, '{"min_lr": 0.001}')
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, tmp_path / "data", tmp_path / "out", *options, '{"min_lr": 0.002}')
    assert "differs in lr_scheduler_kwargs" in capsys.readouterr().err
