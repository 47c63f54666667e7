"""GLUE as the proxy: a score that learning raises, repeats itself, and never sees a validation part."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.search.data import Corpus
from autobert_zero.search.glue import TASKS
from autobert_zero.search.glue_proxy import GlueProxy, read_tasks
from autobert_zero.search.settings import GLUE_TASKS, SearchSettings
from autobert_zero.search.supernet import SuperNetwork
from autobert_zero.search.training import seed_torch

from .conftest import command_line, write_corpus
from .test_run_glue import BAD, GOOD, write_task


GENOME = Genome([Convolution(3), SELF_ATTENTION])


@pytest.fixture
def settings(tiny_settings, tmp_path) -> SearchSettings:
    for name in ("rte", "stsb"):
        write_task(tmp_path / "glue", name)
    glue = {"proxy": "glue", "proxy_tasks": ["rte", "stsb"], "glue_dir": str(tmp_path / "glue")}
    values = {"glue_steps": 30, "glue_learning_rate": 1e-2, "initializer_range": 0.3, "batch_size": 8}
    return SearchSettings(**{**tiny_settings.to_dict(), **glue, **values})


def make(settings: SearchSettings) -> tuple[GlueProxy, SuperNetwork]:
    corpus = Corpus.build(settings)
    seed_torch(0)
    supernet = SuperNetwork(settings, len(corpus.tokenizer), corpus.tokenizer.pad_token_id)
    return GlueProxy(settings, corpus, torch.device("cpu"), read_tasks(settings, corpus)), supernet


def test_the_score(settings, tmp_path):
    proxy, supernet = make(settings)
    outcome = proxy.score(GENOME, supernet)
    assert outcome["reason"] is None and outcome["score"] > 0.8, outcome
    assert proxy.score(GENOME, supernet)["score"] == outcome["score"]
    # The other way round it is learned as well: it is learning, and not what the weights happened to say.
    for name in ("rte", "stsb"):
        write_task(tmp_path / "glue", name, texts=(GOOD, BAD))
    opposite, _ = make(settings)
    assert opposite.score(GENOME, supernet)["score"] > 0.8


def test_only_the_training_part_is_read(settings, tmp_path):
    proxy, _ = make(settings)
    for name, rows in proxy.tasks.items():
        assert len(rows.search) == 54 and len(rows.select) == 6, name
    digest = proxy.digest()
    for name in ("rte", "stsb"):
        path = tmp_path / "glue" / name / "validation.jsonl.gz"
        train = (tmp_path / "glue" / name / "train.jsonl.gz").read_bytes()
        path.write_bytes(train)  # another validation part, the same rows to search with
    assert make(settings)[0].digest() == digest
    other = SearchSettings(**{**settings.to_dict(), "seed": 7})
    assert make(other)[0].digest() != digest


def test_metrics_that_cannot_be_computed_end_a_run_at_its_start(settings, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    with pytest.raises(ValueError, match="proxy: expected sklearn for glue"):
        make(settings)


def test_the_settings_know_the_tasks():
    assert set(GLUE_TASKS) == set(TASKS)
    for wrong in (["RTE"], [], ["rte", "rte"]):
        with pytest.raises(ValueError, match=r"proxy_tasks: expected any of \['cola', "):
            SearchSettings(proxy="glue", proxy_tasks=wrong)


def test_a_failure_is_an_outcome(settings):
    proxy, supernet = make(SearchSettings(**{**settings.to_dict(), "glue_learning_rate": 1e30}))
    outcome = proxy.score(GENOME, supernet)
    assert outcome["score"] is None and outcome["reason"].startswith("FloatingPointError")


def test_a_search(settings, tmp_path):
    write_corpus(tmp_path / "corpus.txt")
    command = [sys.executable, "-m", "autobert_zero.search", *command_line(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "GLUE, rows to fine-tune on + to select: rte 54 + 6, stsb 54 + 6." in done.stdout
    header, *records = map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    assert header["data"]["glue"] and len(records) == settings.max_evaluations
    assert all(-1 <= record["score"] <= 1 for record in records)
    wrong = [*command, "--proxy_tasks", "rte", "cola"]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "expected cola/train.jsonl.gz" in done.stderr
