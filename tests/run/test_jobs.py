"""The jobs of a run."""

import pytest
import torch

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.run.jobs import CURVE_POINTS, JobRunner, LossCurve, training_job
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
    runner.train("bert", GENOME, steps=2)
    other = runner.train("bert", GENOME, steps=2, model=change)
    again = JobRunner(runner.problem, runner.supernet, tmp_path / "empty", runner.console)
    again.folder.mkdir()
    expected = again.train("bert", GENOME, steps=2, model=change)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected.parameters(), strict=True))
    assert not list(tmp_path.glob("*.damaged"))


def test_the_loss_curve_of_an_interrupted_training(tmp_path):
    """Steps after the last checkpoint are trained again; the file has at most one point of each part."""
    every = 3
    losses = {step: 8 - step / 40 for step in range(1, every * CURVE_POINTS + 1)}
    whole = LossCurve(tmp_path / "whole.jsonl", len(losses))
    for step, loss in losses.items():
        whole.add(step, loss)
    whole.lines.close()
    values = whole.values()
    assert [step for step, _ in values] == list(range(every, len(losses) + 1, every))
    assert values[0][1] == pytest.approx((losses[1] + losses[2] + losses[3]) / 3, abs=1e-4)
    for start in (43, 44, 45):  # after a checkpoint at the end of a part, or in it
        first = LossCurve(tmp_path / f"{start}.jsonl", len(losses))
        for step in range(1, 50):
            first.add(step, losses[step])
        first.lines.close()
        second = LossCurve(tmp_path / f"{start}.jsonl", len(losses))
        for step in range(start, len(losses) + 1):
            second.add(step, losses[step])
        second.lines.close()
        assert second.values() == values


def test_a_training_that_needs_too_much_memory_goes_on_in_smaller_micro_batches(runner, monkeypatch, caplog):
    """A candidate that was scored in smaller ones may be a finalist."""
    original, sizes, enough = AutoBertZeroForMaskedLM.forward, [], 1

    def forward(self, input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        if self.training and len(input_ids) > enough:
            raise torch.OutOfMemoryError("of 8 GiB")
        return original(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", forward)
    job = training_job(runner.problem, "1", GENOME.to_list(), runner.problem.settings.final.final_steps)
    assert runner(job)["loss"] is not None
    assert {1, 2, 4} == set(sizes) and "micro_batch_size 1" in caplog.text
    enough = 0
    with pytest.raises(MemoryError, match="OutOfMemoryError: of 8 GiB"):
        runner({**job, "name": "2"})


def test_the_losses_of_a_training(runner):
    """Those of a finalist are followed by those of its continuation, and equal those of a whole training."""
    steps = runner.problem.settings.final.final_steps
    half, whole = (training_job(runner.problem, "1", GENOME.to_list(), n) for n in (steps // 2, steps))
    assert set(runner(half)) == {"score"}
    other = [{**job, "model": {"intermediate_size": 24}} for job in (half, whole)]
    runner(other[0])  # of one name; its losses are not those of this training
    continued = runner(whole)["training_losses"]
    assert runner(other[1])["training_losses"] != continued
    at_once = runner({**whole, "name": "2"})["training_losses"]
    assert [step for step, _ in continued] == list(range(1, steps + 1)) and continued == at_once
