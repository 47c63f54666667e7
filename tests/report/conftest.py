"""Recorded runs for the tests of pages, tables and commands."""

from pathlib import Path

import numpy as np
import pytest

from autobert_zero.configuration_autobert_zero import Convolution
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evolution.archive import Outcome, Record
from autobert_zero.search.evolution.history import History
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.run.factory import make_space, make_strategy
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space.costs import CostModel
from tests.evolution.conftest import search


SETTINGS = SearchSettings.from_dict({"population_size": 16, "hidden_size": 16})
COSTS = CostModel(16, 2, 32, 100, 16, 16)


def write_run(folder: Path, seed: int = 0, count: int = 60, **changes) -> Path:
    """A quick search: scores are a toy function, and every seventh candidate fails."""
    settings = SETTINGS.replace(seed=seed, max_evaluations=count, **changes)
    rng = np.random.default_rng(seed)

    def evaluate(record: Record) -> Outcome:
        if record.index % 7 == 3:
            return Outcome("failed", reason=f"FloatingPointError: step {record.index}", seconds=0.5)
        convolutions = sum(isinstance(gene, Convolution) for gene in record.genome)
        score = -6 + 0.3 * convolutions + 0.1 * rng.random()
        return Outcome(score=score, costs=COSTS.costs(record.genome), seconds=1.5)

    folder.mkdir(parents=True)
    header = {"settings": settings.identity(), "data": {"tokens": {"train": 12345}}, "seed_genomes": [], "seed": seed}
    header["data"]["digest"] = f"of seed {seed}"  # the split of the text depends on it
    header |= {
        "text_digest": "0123",
        "unigram_score": -6.4,
        "versions": {"torch": "0"},
        "commit": "c0ffee",
        "command": "search <here>",
    }
    with History(folder / "history.jsonl", header, (), decode_genome) as history:
        space = make_space(settings.space, settings.strategy, settings.model, CustomOperations())
        search(make_strategy(settings.strategy, space), seed, count, history, evaluate, space)
    return folder


def summary_of(winner: Record, count: int = 60) -> dict:
    """The summary of a finished run of `count` candidates."""
    best = {
        "index": winner.index,
        "score": winner.score,
        "genome": winner.genome.to_list(),
        "steps_from_scratch": 1400,
    }
    return {
        "identity": "0123",
        "status": "budget spent",
        "custom_operations": {},
        "best": best,
        "finalists": [best] * 3,
        "front": [],
        "results": {
            "AutoBERT-Zero (found)": {"loss": 3.5, "perplexity": 33.1, "parameters": 1000},
            "BERT": {"loss": None, "perplexity": None},
            "unigram": {"loss": 3.4, "perplexity": 30.0},
        },
        "counts": {"evaluated": count, "failed": count // 7, "pruned": 0, "duplicates avoided": 1},
        "tokens": {"train": 12345, "validation": 12, "test": 34, "final_each": 56},
        "seconds_of_candidates": 60.5,
        "seed": 0,
        "data": {"source": "a text", "digest": "4567"},
        "settings": SETTINGS.to_dict(),
        "command": "search",
        "commit": None,
        "versions": {"torch": "0"},
        "machine": {"processes": 1, "threads": 2, "device": "2 cores of a CPU", "cores": 2},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one & <only>", crossover_probability=0.4)
