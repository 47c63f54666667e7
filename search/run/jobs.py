"""The jobs of a run, done in any process: scoring a candidate, and training a model from scratch."""

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import Checkpoint
from autobert_zero.search.evolution.archive import Outcome
from autobert_zero.search.files import JsonLines, json_digest
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.progress import Console
from autobert_zero.search.run.workers import Future


def score_job(problem: Problem, genome: Genome, threshold: float | None) -> dict[str, Any]:
    """Score a candidate, which is pruned if its intermediate score is below the threshold."""
    return {"kind": "score", "genome": genome.to_list(), "threshold": threshold, "run": problem.identity}


def training_job(
    problem: Problem, name: str, genome: list[dict[str, Any]], steps: int, model: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a model from scratch, for a part or all of the final steps.

    Args:
        model: settings of the model that differ from those of the run.
    """
    job = {"kind": "train", "name": name, "genome": genome, "steps": steps, "run": problem.full_identity}
    return {**job, "model": model or {}}


# Points of the loss curve of a training.
CURVE_POINTS = 40


class LossCurve:
    """Losses of the batches of a training before they are trained on, as means over parts of the training, in a file that
    survives an interruption.

    Args:
        path: of the file, of JSON lines.
        steps: of the whole training.
    """

    def __init__(self, path: Path, steps: int):
        self.lines = JsonLines(path)
        self.every = max(1, steps // CURVE_POINTS)
        self.losses: list[float] = []
        self.done = 0
        self.points: dict[int, float] = dict(self.lines.values)

    def add(self, done: int, loss: float) -> None:
        if done != self.done + 1:  # again from a checkpoint
            self.losses = []
        self.done = done
        self.losses.append(loss)
        if done % self.every == 0:
            # Steps after the last checkpoint are trained again: the later point replaces the earlier one. After an
            # interruption the first part lacks the losses from before the checkpoint.
            if len(self.losses) == self.every:
                self.points[done] = round(math.fsum(self.losses) / self.every, 4)
                self.lines.append([done, self.points[done]])
            self.losses = []

    def values(self) -> list[tuple[int, float]]:
        """Numbers of completed steps, and losses in nats."""
        return sorted(self.points.items())


@dataclass(frozen=True)
class ScoreFuture:
    """The outcome of a score job, with the costs that are known without evaluation."""

    job: Future
    costs: dict[str, float]

    def result(self) -> Outcome:
        outcome = Outcome(**self.job.result())
        return dataclasses.replace(outcome, costs={**self.costs, **outcome.costs})


class JobRunner:
    """Does jobs in one process.

    Args:
        problem: of the run.
        supernet: trained; candidates inherit its weights.
        folder: of the checkpoints.
        console: for progress.
    """

    def __init__(self, problem: Problem, supernet: SuperNetwork, folder: Path, console: Console):
        self.problem = problem
        self.supernet = supernet
        self.folder = folder
        self.console = console

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        problem = self.problem
        genome = Genome.from_list(job["genome"], problem.custom_operations.rules)
        if job["kind"] == "score":
            return dataclasses.asdict(problem.proxy.score(genome, self.supernet, job["threshold"]))
        name = f"#{job['name']}" if job["name"].isdigit() else job["name"]  # of a candidate, or a baseline
        bar = self.console.bar(f"train {name}", job["steps"])
        identity = self._identity(genome, job["model"])
        curve = LossCurve(self.folder / f"final-{job['name']}-{identity}.jsonl", problem.settings.final.final_steps)

        def progress(done: int, loss: float) -> None:
            bar(done, loss)
            curve.add(done, loss)

        try:
            model = self.train(job["name"], genome, job["steps"], progress, job["model"])
            if job["steps"] < problem.settings.final.final_steps:
                return {"score": problem.proxy.final_score(model, problem.proxy.stop.check)}
            loss = problem.proxy.loss(model, "test")
        except FloatingPointError as error:
            return {"score": None, "loss": None, "reason": str(error)}
        finally:
            bar.close()
            curve.lines.close()
        result: dict[str, Any] = {
            "loss": loss,
            "parameters": model.num_parameters(),
            "training_losses": curve.values(),
        }
        with contextlib.suppress(FloatingPointError):  # without a mixer, a model may overflow
            without = [problem.proxy.loss_without_mixer(model, layer) for layer in range(len(genome))]
            result["layer_importance"] = [round(other - loss, 4) for other in without]
        result["attention_by_distance"] = problem.proxy.attention_by_distance(model)
        return result

    def _identity(self, genome: Genome, model: dict[str, Any] | None) -> str:
        return json_digest([self.problem.full_identity, genome.to_list(), model or {}])

    def train(
        self,
        name: str,
        genome: Genome,
        steps: int | None = None,
        progress: Any = None,
        model: dict[str, Any] | None = None,
    ) -> AutoBertZeroForMaskedLM:
        """The final training of a genome, or its first steps, resumed from its checkpoint."""
        settings, proxy = self.problem.settings, self.problem.proxy
        schedule = proxy.schedule(settings.final.final_steps, settings.training.learning_rate)
        checkpoint = make_checkpoint(self.problem, self.folder, f"final-{name}", self._identity(genome, model))
        builder = dataclasses.replace(proxy.builder, settings=dataclasses.replace(settings.model, **(model or {})))
        return proxy.train_from_scratch(genome, schedule, checkpoint, progress, steps, builder)


def make_checkpoint(problem: Problem, folder: Path, name: str, identity: str, writes: bool = True) -> Checkpoint:
    path = folder / f"{name}.safetensors"
    return Checkpoint(path, f"{name} {identity}", problem.settings.run.checkpoint_seconds, writes)
