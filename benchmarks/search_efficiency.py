"""Strategies on the real space: what they find in equal numbers of evaluations, and in equal time.

    accelerate launch benchmarks/search_efficiency.py --output_dir runs/efficiency --train_file novels.txt.xz \\
        --vocab_size 4096 --results results/search_efficiency.json

For every seed all strategies use the same super-network; scores are those of the search (minus the validation loss after a
short training). Accepts the settings of a search. Every search has a history in the folder: the same command resumes.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.cli.arguments import parse_with_settings
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import Checkpoint
from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.history import History, read_history
from autobert_zero.search.evolution.loop import evolve
from autobert_zero.search.files import write_json
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.tables import mean_and_error
from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.run.launcher import apply_requests, check_precision
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.workers import Workers
from autobert_zero.search.settings import SearchSettings


# Searches, as changes of the settings. The others are compared with the first.
VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random"},
    "evolution": {"strategy": "evolution"},
    "OP-NAS": {"strategy": "op_nas"},
    "Thompson OP-NAS": {"strategy": "thompson_op_nas"},
    "OP-NAS, pruning": {"strategy": "op_nas", "prune_after": 0.0, "prune_fraction": 0.5},
}


@dataclasses.dataclass
class EfficiencySettings:
    repetitions: int = dataclasses.field(default=5, metadata={"help": "Paired repetitions, with consecutive seeds."})
    results: str | None = dataclasses.field(default=None, metadata={"help": "JSON file for the table."})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A candidate that is scored when its outcome is requested."""

    problem: Problem
    supernet: SuperNetwork
    genome: Genome
    threshold: float | None

    def result(self) -> Outcome:
        return self.problem.proxy.score(self.genome, self.supernet, self.threshold)


class Searches:
    """Whole searches, each in one process; the super-network of a seed is trained by the first search that needs it."""

    def __init__(self, problem: Problem):
        self.problem = problem

    def supernet(self, problem: Problem) -> SuperNetwork:
        """Trained, or loaded from its checkpoint."""
        settings = problem.settings
        supernet = problem.new_supernet()
        path = Path(settings.run.output_dir) / f"supernet-{settings.run.seed}.safetensors"
        checkpoint = Checkpoint(path, problem.identity, settings.run.checkpoint_seconds)
        problem.train_supernet(supernet, checkpoint=checkpoint)
        return supernet

    def __call__(self, job: dict[str, Any]) -> Any:
        problem = self.problem.replace(seed=job["seed"])
        supernet = self.supernet(problem)
        if "variant" not in job:
            return None
        problem = problem.replace(**VARIANTS[job["variant"]])
        settings, pruning = problem.settings, problem.settings.candidates

        def submit(record: Record, archive: Archive) -> Evaluation:
            threshold = None
            if pruning.prune_after is not None:
                threshold = archive.pruning_threshold(pruning.prune_fraction)
            return Evaluation(problem, supernet, record.genome, threshold)

        header = {
            "settings": settings.identity(),
            "data": problem.data,
            "custom_operations": dict(problem.custom_operations.rules),
        }
        path = history_path(settings.run.output_dir, job["variant"], settings.run.seed)
        with History(path, header, ("settings", "data"), decode_genome) as history:
            for _ in evolve(
                problem.space,
                problem.strategy,
                submit,
                history,
                settings.run.seed,
                settings.strategy.max_evaluations,
            ):
                pass
        return None


def history_path(folder: str, variant: str, seed: int) -> Path:
    return Path(folder) / f"{variant.lower().replace(', ', '-').replace(' ', '-')}-seed-{seed}.jsonl"


def best_so_far(records: list[Record]) -> np.ndarray:
    return np.maximum.accumulate([-math.inf if r.score is None else r.score for r in records])


def finite(scores: np.ndarray) -> list[float | None]:
    """Scores, None for a search that has none so far."""
    return [None if math.isinf(score) else score for score in scores.tolist()]


def summarize(histories: dict[str, list[list[Record]]], evaluations: int) -> dict[str, Any]:
    """Best score after each quarter of the evaluations, and the difference to the first variant: after all evaluations,
    and after the time that the faster one of the two took."""
    counts = sorted({max(1, evaluations * quarter // 4) for quarter in (1, 2, 3, 4)})
    curves = {name: np.array([best_so_far(records) for records in runs]) for name, runs in histories.items()}
    seconds = {
        name: [np.cumsum([r.result.seconds for r in records]) for records in runs] for name, runs in histories.items()
    }
    baseline = next(iter(curves))

    def in_equal_time(name: str) -> np.ndarray:
        differences = []
        for seed, (mine, other) in enumerate(zip(seconds[name], seconds[baseline], strict=True)):
            limit = min(mine[-1], other[-1])
            at = [max(0, int(np.searchsorted(times, limit, "right")) - 1) for times in (mine, other)]
            differences.append(curves[name][seed][at[0]] - curves[baseline][seed][at[1]])
        return np.array(differences)

    return {
        name: {
            "best_after": {str(n): mean_and_error(finite(curve[:, n - 1])) for n in counts},
            f"minus {baseline}": mean_and_error((curve[:, -1] - curves[baseline][:, -1]).tolist()),
            f"minus {baseline}, equal time": mean_and_error(in_equal_time(name).tolist()),
            "seconds": mean_and_error([float(times[-1]) for times in seconds[name]]),
            "pruned": sum(r.result.status == "pruned" for records in histories[name] for r in records),
            "each": curve[:, -1].round(4).tolist(),
        }
        for name, curve in curves.items()
    }


def main() -> None:
    parser, given, efficiency = parse_with_settings(__doc__, EfficiencySettings, "this benchmark")
    if efficiency.repetitions < 2:
        parser.error(f"repetitions: expected at least 2, got {efficiency.repetitions}")
    defaults = SearchSettings().to_dict()
    for name in ("strategy", "paths", "objectives", "prune_after", "lookahead"):
        if given[name] != defaults[name]:
            parser.error(f"{name}: expected its default, got {given[name]!r}")
    transformers.utils.logging.set_verbosity_error()
    accelerator = accelerate.Accelerator(cpu=not torch.accelerator.is_available() or None)
    commit = current_commit()
    try:
        settings = SearchSettings.from_dict(given)
        settings = apply_requests(settings, accelerator)
        check_precision(settings)
        torch.set_num_threads(settings.run.num_threads or 1)
        problem = Problem.prepare(settings, accelerator.device, accelerator=accelerator)
    except (UsageError, ValueError) as error:
        parser.error(str(error))
    folder = Path(settings.run.output_dir)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    workers = Workers(accelerator, Searches(problem), folder / "jobs")
    if not accelerator.is_main_process:
        workers.serve()
        accelerator.end_training()
        return
    common = {"settings": settings.to_dict(), "data": problem.data}
    seeds = range(settings.run.seed, settings.run.seed + efficiency.repetitions)
    for jobs in (
        {f"supernet-{seed}": {**common, "seed": seed} for seed in seeds},
        {f"{name}, seed {seed}": {**common, "seed": seed, "variant": name} for seed in seeds for name in VARIANTS},
    ):
        for name, _ in zip(jobs, workers.map(jobs), strict=True):
            print(name, "done", flush=True)
    workers.release()
    output_dir = settings.run.output_dir
    histories: dict[str, list[list[Record]]] = {
        name: [read_history(history_path(output_dir, name, seed), decode_genome)[1] for seed in seeds]
        for name in VARIANTS
    }
    summary = summarize(histories, settings.strategy.max_evaluations)
    for name, values in summary.items():
        print(f"{name:24}", json.dumps({k: v for k, v in values.items() if k != "each"}))
    if efficiency.results:
        facts = {
            **provenance(commit, accelerator.device.type),
            "processes": accelerator.num_processes,
            "settings": settings.identity(),
            "repetitions": efficiency.repetitions,
        }
        write_json(efficiency.results, {**facts, "results": summary})
    accelerator.end_training()


if __name__ == "__main__":
    main()
