"""Strategies on the real space: what they find in as many evaluations, and in as much time.

    accelerate launch benchmarks/search_efficiency.py --output_dir runs/efficiency --train_file novels.txt.xz \\
        --vocab_size 4096 --results results/search_efficiency.json

For every seed one super-network, which all strategies search with; scores are the search's own (minus the *select* loss
after a short training). Takes the settings of a search. Every search has a history in the folder: the same command
goes on where the last one stopped.
"""

import dataclasses
import json
import math
import platform
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from transformers import HfArgumentParser

from autobert_zero.search import reporting
from autobert_zero.search.data import Corpus
from autobert_zero.search.evolution import evolve
from autobert_zero.search.factory import make_sizes, make_space, make_strategy
from autobert_zero.search.history import History, read_history
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.records import Archive, Record
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.supernet import PathSampler, SuperNetwork, train_supernet
from autobert_zero.search.training import Checkpoint, seed_torch
from autobert_zero.search.workers import Workers


@dataclasses.dataclass
class EfficiencySettings:
    repetitions: int = dataclasses.field(default=5, metadata={"help": "Paired repetitions: seeds of the run and on."})
    strategies: list[str] = dataclasses.field(
        default_factory=lambda: ["random", "evolution", "regularized_evolution", "op_nas", "thompson_op_nas"],
        metadata={"help": "Strategies of a search; the first is what the others are compared with."},
    )
    results: str | None = dataclasses.field(default=None, metadata={"help": "JSON file for the table."})


class Searches:
    """Whole searches, each in one process; the super-network of a seed is trained by the first that needs it."""

    def __init__(self, settings: SearchSettings, corpus: Corpus, accelerator: accelerate.Accelerator):
        self.settings = settings
        self.corpus = corpus
        self.device = accelerator.device

    def supernet(self, settings: SearchSettings) -> SuperNetwork:
        """Trained, from its checkpoint."""
        corpus = self.corpus
        seed_torch(settings.seed, "supernet")
        supernet = SuperNetwork(settings, len(corpus.tokenizer), corpus.tokenizer.pad_token_id).to(self.device)
        path = Path(settings.output_dir) / f"supernet-{settings.seed}.safetensors"
        identity = json.dumps([dataclasses.replace(settings, strategy="random").identity(), corpus.digest()])
        checkpoint = Checkpoint(path, identity, settings.checkpoint_seconds)
        paths = PathSampler(make_space(settings, make_sizes(settings, len(corpus.tokenizer))), settings)
        alone = types.SimpleNamespace(num_processes=1, process_index=0, device=self.device)
        train_supernet(supernet, paths, corpus, settings, alone, checkpoint)
        return supernet

    def __call__(self, job: dict[str, Any]) -> Any:
        settings = dataclasses.replace(self.settings, seed=job["seed"], strategy=job.get("strategy", "random"))
        supernet = self.supernet(settings)
        if "strategy" not in job:
            return None
        space = make_space(settings, make_sizes(settings, len(self.corpus.tokenizer)))
        proxy = MaskedLMProxy(settings, self.corpus, self.device)

        def submit(record: Record, archive: Archive) -> Callable[[], Record]:
            return lambda: record.evaluated(**proxy.score(record.genome, supernet))

        header = {"settings": settings.identity(), "data": self.corpus.digest()}
        with History(history_path(settings), header, ("settings", "data")) as history:
            evolve(space, make_strategy(settings, space), submit, history, settings.seed, settings.max_evaluations)
        return None


def history_path(settings: SearchSettings) -> Path:
    return Path(settings.output_dir) / f"{settings.strategy}-{settings.seed}.jsonl"


def best_so_far(records: list[Record]) -> np.ndarray:
    return np.maximum.accumulate([-math.inf if r.score is None else r.score for r in records])


def mean_and_error(values: np.ndarray) -> list[float]:
    return [round(float(values.mean()), 4), round(float(values.std(ddof=1) / math.sqrt(len(values))), 4)]


def summarise(histories: dict[str, list[list[Record]]], evaluations: int) -> dict[str, Any]:
    """Best score after shares of the evaluations, and after as many seconds as the fastest search of the seed took."""
    counts = sorted({max(1, evaluations * share // 4) for share in (1, 2, 3, 4)})
    curves = {name: np.array([best_so_far(records) for records in runs]) for name, runs in histories.items()}
    baseline = next(iter(curves))
    limits = [
        min(sum(r.seconds for r in records) for records in runs) for runs in zip(*histories.values(), strict=True)
    ]
    in_time = {
        name: np.array(
            [
                curve[max(0, int(np.searchsorted(np.cumsum([r.seconds for r in records]), limit, "right")) - 1)]
                for curve, records, limit in zip(curves[name], runs, limits, strict=True)
            ]
        )
        for name, runs in histories.items()
    }
    return {
        name: {
            "best_after": {str(n): mean_and_error(curve[:, n - 1]) for n in counts},
            f"minus {baseline}": mean_and_error(curve[:, -1] - curves[baseline][:, -1]),
            f"minus {baseline}, equal time": mean_and_error(in_time[name] - in_time[baseline]),
            "each": curve[:, -1].round(4).tolist(),
        }
        for name, curve in curves.items()
    }


def main() -> None:
    parser = HfArgumentParser((SearchSettings, EfficiencySettings), description=__doc__)
    settings, efficiency = parser.parse_args_into_dataclasses()
    if efficiency.repetitions < 2:
        parser.error(f"repetitions: expected at least 2, got {efficiency.repetitions}")
    for name in ("other_paths", "objectives", "hurdle", "lookahead", "crossover_probability", "seed_genomes"):
        if getattr(settings, name) != getattr(SearchSettings(), name):
            parser.error(f"{name}: expected its default, got {getattr(settings, name)!r}")
    transformers.utils.logging.set_verbosity_error()
    accelerator = accelerate.Accelerator(cpu=not torch.accelerator.is_available() or None)
    commit = reporting.commit()
    torch.set_num_threads(settings.num_threads or 1)
    corpus = Corpus.build(settings)
    folder = Path(settings.output_dir)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    workers = Workers(accelerator, Searches(settings, corpus, accelerator), folder / "jobs")
    if not accelerator.is_main_process:
        workers.serve()
        accelerator.end_training()
        return
    common = {"settings": settings.to_dict(), "data": corpus.digest()}
    seeds = range(settings.seed, settings.seed + efficiency.repetitions)
    for jobs in (
        {f"supernet-{seed}": {**common, "seed": seed} for seed in seeds},
        {
            f"{name}-{seed}": {**common, "seed": seed, "strategy": name}
            for seed in seeds
            for name in efficiency.strategies
        },
    ):
        for name, _ in zip(jobs, workers.map(jobs), strict=True):
            print(name, "done", flush=True)
    workers.release()
    histories: dict[str, list[list[Record]]] = {
        name: [
            read_history(history_path(dataclasses.replace(settings, seed=seed, strategy=name)))[1] for seed in seeds
        ]
        for name in efficiency.strategies
    }
    summary = summarise(histories, settings.max_evaluations)
    for name, values in summary.items():
        print(f"{name:24}", json.dumps({k: v for k, v in values.items() if k != "each"}))
    if efficiency.results:
        provenance = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit,
            "versions": reporting.versions(),
            "machine": platform.processor() or platform.machine(),
            "processes": accelerator.num_processes,
            "settings": settings.identity(),
            "repetitions": efficiency.repetitions,
        }
        reporting.write_json(Path(efficiency.results), {**provenance, "results": summary})
    accelerator.end_training()


if __name__ == "__main__":
    main()
