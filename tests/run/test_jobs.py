"""The jobs of a run."""

import pytest
import torch

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Genome
from autobert_zero.search.run.jobs import JobRunner
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.progress import Console


GENOME = Genome([ROTARY_ATTENTION] * 2)


@pytest.fixture
def runner(tiny_settings, tmp_path) -> JobRunner:
    problem = Problem.prepare(tiny_settings, torch.device("cpu"))
    return JobRunner(problem, problem.new_supernet(), tmp_path, Console(-1))


@pytest.mark.parametrize("change", [{"intermediate_size": 24}, {"position_embedding_type": "absolute"}])
def test_a_checkpoint_belongs_to_one_model(runner, tmp_path, change):
    """Also if trainings have one name: the size of a baseline follows from the winner."""
    runner.train("baseline-0", GENOME, steps=2)
    other = runner.train("baseline-0", GENOME, steps=2, model=change)
    again = JobRunner(runner.problem, runner.supernet, tmp_path / "empty", runner.console)
    again.folder.mkdir()
    expected = again.train("baseline-0", GENOME, steps=2, model=change)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected.parameters(), strict=True))
    assert not list(tmp_path.glob("*.damaged"))
