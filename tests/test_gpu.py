"""What only a GPU can show: equal results, no waiting, 16 bits, and processes that share it. Run by `make gpu`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroModel
from autobert_zero.search.genomes import read_genome
from autobert_zero.search.settings import SearchSettings
from tests.conftest import (
    BATCH,
    TINY_RUN,
    TOKENS,
    VOCAB,
    command_line,
    padding_mask,
    random_genome,
    tiny_config,
    write_corpus,
)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

GENOMES = {
    "published": PUBLISHED_GENOME,
    "bert_rotary": read_genome("bert-rotary", 3),
    **{f"random {number}": random_genome(number) for number in range(8)},
}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (BATCH, TOKENS))


@pytest.mark.parametrize("genome", GENOMES.values(), ids=GENOMES)
@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
def test_results_are_those_of_a_cpu(genome: Genome, is_padded: bool, ids):
    model = AutoBertZeroModel(tiny_config(genome)).eval()
    mask = padding_mask() if is_padded else torch.ones(BATCH, TOKENS, dtype=torch.bool)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
        found = model.cuda()(ids.cuda(), attention_mask=mask.cuda()).last_hidden_state.cpu()
    assert (found - expected)[mask].abs().max() <= 1e-4 * expected.abs().max()


def test_compiled_results_are_those_of_eager_ones(ids):
    model = AutoBertZeroModel(tiny_config(GENOMES["bert_rotary"])).eval().cuda()
    with torch.no_grad():
        expected = model(ids.cuda()).last_hidden_state
        found = torch.compile(model)(ids.cuda()).last_hidden_state
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("genome", [GENOMES["published"], GENOMES["bert_rotary"]], ids=["published", "bert_rotary"])
def test_a_step_without_a_mask_does_not_wait_for_the_gpu(genome: Genome, ids):
    config = tiny_config(genome)
    config.sparse_prediction = False
    model = AutoBertZeroForMaskedLM(config).cuda()
    ids = ids.cuda()
    model(ids, labels=ids).loss.backward()  # kernels and libraries are loaded once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(ids, labels=ids).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def search(settings: SearchSettings, *launch: str) -> str:
    command = [sys.executable, *launch, "-m", "autobert_zero.search", *command_line(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> SearchSettings:
    corpus = write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")
    return SearchSettings.from_dict({"train_file": [corpus], **TINY_RUN})


def scores(settings: SearchSettings) -> list[float]:
    lines = Path(settings.run.output_dir, "history.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["score"] for line in lines]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_search(settings, tmp_path, precision):
    settings = settings.replace(output_dir=str(tmp_path / "run"), mixed_precision=precision)
    assert "1 process on cuda" in search(settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["settings"]["mixed_precision"] == precision
    assert all(result["loss"] is not None for result in summary["results"].values())


def test_processes_that_share_a_gpu(settings, tmp_path):
    """They take turns at the same candidates as one process, whose scores differ by rounding only."""
    alone = settings.replace(output_dir=str(tmp_path / "alone"))
    devices = torch.cuda.device_count()
    shared = settings.replace(output_dir=str(tmp_path / "shared"), processes_per_device=2, population_size=8)
    alone = alone.replace(population_size=8, max_evaluations=8)
    search(alone)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={2 * devices}"]
    assert f"{2 * devices} processes on cuda" in search(shared.replace(max_evaluations=8), *launch)
    assert scores(shared) == pytest.approx(scores(alone), rel=0.02)
