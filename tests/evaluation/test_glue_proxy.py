"""GLUE as the proxy: scores come from learning, are repeatable, and do not use the official validation parts."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.search.cli.search import main
from autobert_zero.search.evaluation.glue import TASKS
from autobert_zero.search.evaluation.glue_proxy import GlueProxy
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import GLUE_TASKS, GlueSettings, SearchSettings
from tests.conftest import command_line, write_corpus
from tests.evaluation.glue_files import BAD, GOOD, write_task


GENOME = Genome([Convolution(3), SELF_ATTENTION])


@pytest.fixture
def settings(tiny_settings, tmp_path) -> SearchSettings:
    for name in ("rte", "stsb"):
        write_task(tmp_path / "glue", name)
    glue = {"proxy": "glue", "proxy_tasks": ["rte", "stsb"], "glue_dir": str(tmp_path / "glue")}
    values = {"glue_steps": 30, "glue_learning_rate": 1e-2, "initializer_range": 0.3, "batch_size": 8}
    return tiny_settings.replace(**glue, **values)


def prepare(settings: SearchSettings) -> Problem:
    return Problem.prepare(settings, torch.device("cpu"))


def test_the_score(settings, tmp_path):
    problem = prepare(settings)
    proxy, supernet = problem.proxy, problem.new_supernet()
    outcome = proxy.score(GENOME, supernet)
    assert outcome.reason is None and outcome.score > 0.8, outcome
    assert proxy.score(GENOME, supernet).score == outcome.score
    # Opposite labels are learned as well: the score comes from learning, not from the initial weights.
    for name in ("rte", "stsb"):
        write_task(tmp_path / "glue", name, texts=(GOOD, BAD))
    assert prepare(settings).proxy.score(GENOME, supernet).score > 0.8


def test_only_the_training_part_is_read(settings, tmp_path):
    proxy = prepare(settings).proxy
    assert isinstance(proxy, GlueProxy)
    for name, rows in proxy.tasks.items():
        assert len(rows.train) == 54 and len(rows.validation) == 6, name
    digest = proxy.digest()
    for name in ("rte", "stsb"):
        path = tmp_path / "glue" / name / "validation.jsonl.gz"
        train = (tmp_path / "glue" / name / "train.jsonl.gz").read_bytes()
        path.write_bytes(train)  # another official validation part, the same train part
    assert prepare(settings).proxy.digest() == digest
    assert prepare(settings.replace(seed=7)).proxy.digest() != digest


def test_missing_packages_of_the_metrics_end_a_run_at_its_start(settings, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    with pytest.raises(ValueError, match="proxy: expected sklearn for glue"):
        prepare(settings)


def test_the_settings_know_the_tasks():
    assert set(GLUE_TASKS) == set(TASKS)
    for wrong in (["RTE"], [], ["rte", "rte"]):
        with pytest.raises(ValueError, match=r"proxy_tasks: expected any of \['cola', "):
            GlueSettings(proxy_tasks=wrong)


def test_a_failure_is_an_outcome(settings):
    problem = prepare(settings.replace(glue_learning_rate=1e30))
    outcome = problem.proxy.score(GENOME, problem.new_supernet())
    assert outcome.score is None and outcome.reason.startswith("FloatingPointError")


def test_a_search(settings, tmp_path, capsys):
    write_corpus(tmp_path / "corpus.txt")
    command = [sys.executable, "-m", "autobert_zero.search", *command_line(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "GLUE, train + validation rows: rte 54 + 6, stsb 54 + 6." in done.stdout
    header, *records = map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    assert header["data"]["glue"] and len(records) == settings.strategy.max_evaluations
    assert all(-1 <= record["score"] <= 1 for record in records)
    with pytest.raises(SystemExit, match="2"):
        main([*command_line(settings), "--proxy_tasks", "rte", "cola"])
    assert "expected cola/train.jsonl.gz" in capsys.readouterr().err
