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


def test_the_loss_curve_of_a_training_that_goes_on_from_a_checkpoint(tmp_path):
    """In the same process, as after too little memory: losses from before it are not counted twice."""
    curve = LossCurve(tmp_path / "curve.jsonl", 3 * CURVE_POINTS)
    for step in (1, 2, 3, 4, 5, 3, 4, 5, 6):  # the checkpoint was written after step 2
        curve.add(step, float(step))
    assert curve.values() == [(3, 2.0), (6, 5.0)]
    curve.lines.close()


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


def test_a_training_that_needs_too_much_memory_goes_on_in_smaller_micro_batches(
    tiny_settings, tmp_path, monkeypatch, caplog
):
    """A candidate that was scored in smaller ones may be a finalist. From the last checkpoint, with the same losses."""
    settings = tiny_settings.replace(checkpoint_seconds=0.0, dropout=0.0)
    problem = Problem.prepare(settings, torch.device("cpu"))
    runner, steps = JobRunner(problem, problem.new_supernet(), tmp_path, Console(-1)), settings.final.final_steps
    job = training_job(problem, "1", GENOME.to_list(), steps)
    expected = runner(job)
    original, sizes, most = AutoBertZeroForMaskedLM.forward, [], 1

    def forward(self, input_ids, *args, **kwargs):
        if self.training:
            sizes.append(len(input_ids))
            if len(input_ids) > most and len(sizes) > steps // 2:
                raise torch.OutOfMemoryError("of 8 GiB")
        return original(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(AutoBertZeroForMaskedLM, "forward", forward)
    found = runner({**job, "name": "2"})
    assert sizes[: steps // 2 + 2] == [4] * (steps // 2 + 1) + [2]
    ones = sizes[steps // 2 + 2 :]  # of the other steps; parts without a masked token are left out
    assert set(ones) == {1} and len(ones) <= 4 * (steps - steps // 2)
    assert "micro_batch_size 1" in caplog.text
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    assert [step for step, _ in found["training_losses"]] == [step for step, _ in expected["training_losses"]]
    losses = [[loss for _, loss in result["training_losses"]] for result in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    most = 0
    with pytest.raises(MemoryError, match="OutOfMemoryError: of 8 GiB"):
        runner({**job, "name": "3"})


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
