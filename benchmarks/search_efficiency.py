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


# Searches, as settings that differ from those of the command line. The first is what the others are compared with.
VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random"},
    "evolution": {"strategy": "evolution"},
    "OP-NAS": {"strategy": "op_nas"},
    "Thompson OP-NAS": {"strategy": "thompson_op_nas"},
    "OP-NAS, hurdle": {"strategy": "op_nas", "hurdle": 0.0, "hurdle_share": 0.5},
}


@dataclasses.dataclass
class EfficiencySettings:
    repetitions: int = dataclasses.field(default=5, metadata={"help": "Paired repetitions: seeds of the run and on."})
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
        identity = json.dumps([settings.identity(), corpus.digest()])
        checkpoint = Checkpoint(path, identity, settings.checkpoint_seconds)
        paths = PathSampler(make_space(settings, make_sizes(settings, len(corpus.tokenizer))), settings)
        alone = types.SimpleNamespace(num_processes=1, process_index=0, device=self.device)
        train_supernet(supernet, paths, corpus, settings, alone, checkpoint)
        return supernet

    def __call__(self, job: dict[str, Any]) -> Any:
        settings = dataclasses.replace(self.settings, seed=job["seed"])
        supernet = self.supernet(settings)
        if "variant" not in job:
            return None
        settings = dataclasses.replace(settings, **VARIANTS[job["variant"]])
        space = make_space(settings, make_sizes(settings, len(self.corpus.tokenizer)))
        proxy = MaskedLMProxy(settings, self.corpus, self.device)

        def submit(record: Record, archive: Archive) -> Callable[[], Record]:
            hurdle = None if settings.hurdle is None else archive.hurdle(settings.hurdle_share)
            return lambda: record.evaluated(**proxy.score(record.genome, supernet, hurdle))

        header = {"settings": settings.identity(), "data": self.corpus.digest()}
        path = history_path(settings.output_dir, job["variant"], settings.seed)
        with History(path, header, ("settings", "data")) as history:
            evolve(space, make_strategy(settings, space), submit, history, settings.seed, settings.max_evaluations)
        return None


def history_path(folder: str, variant: str, seed: int) -> Path:
    return Path(folder) / f"{variant}, seed {seed}.jsonl"


def best_so_far(records: list[Record]) -> np.ndarray:
    return np.maximum.accumulate([-math.inf if r.score is None else r.score for r in records])


def mean_and_error(values: np.ndarray) -> list[float]:
    return [round(float(values.mean()), 4), round(float(values.std(ddof=1) / math.sqrt(len(values))), 4)]


def summarise(histories: dict[str, list[list[Record]]], evaluations: int) -> dict[str, Any]:
    """Best score after shares of the evaluations, and the difference to the first variant: after all evaluations, and
    after as many seconds as the faster one of the two took."""
    counts = sorted({max(1, evaluations * share // 4) for share in (1, 2, 3, 4)})
    curves = {name: np.array([best_so_far(records) for records in runs]) for name, runs in histories.items()}
    seconds = {name: [np.cumsum([r.seconds for r in records]) for records in runs] for name, runs in histories.items()}
    baseline = next(iter(curves))

    def in_equal_time(name: str) -> np.ndarray:
        differences = []
        for seed, (own, other) in enumerate(zip(seconds[name], seconds[baseline], strict=True)):
            limit = min(own[-1], other[-1])
            at = [max(0, int(np.searchsorted(times, limit, "right")) - 1) for times in (own, other)]
            differences.append(curves[name][seed][at[0]] - curves[baseline][seed][at[1]])
        return np.array(differences)

    return {
        name: {
            "best_after": {str(n): mean_and_error(curve[:, n - 1]) for n in counts},
            f"minus {baseline}": mean_and_error(curve[:, -1] - curves[baseline][:, -1]),
            f"minus {baseline}, equal time": mean_and_error(in_equal_time(name)),
            "seconds": mean_and_error(np.array([times[-1] for times in seconds[name]])),
            "dropped": sum(r.status == "dropped" for records in histories[name] for r in records),
            "each": curve[:, -1].round(4).tolist(),
        }
        for name, curve in curves.items()
    }


def main() -> None:
    parser = HfArgumentParser((SearchSettings, EfficiencySettings), description=__doc__)
    settings, efficiency = parser.parse_args_into_dataclasses()
    if efficiency.repetitions < 2:
        parser.error(f"repetitions: expected at least 2, got {efficiency.repetitions}")
    for name in ("strategy", "other_paths", "objectives", "hurdle", "lookahead", "seed_genomes"):
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
        {f"{name}, seed {seed}": {**common, "seed": seed, "variant": name} for seed in seeds for name in VARIANTS},
    ):
        for name, _ in zip(jobs, workers.map(jobs), strict=True):
            print(name, "done", flush=True)
    workers.release()
    histories: dict[str, list[list[Record]]] = {
        name: [read_history(history_path(settings.output_dir, name, seed))[1] for seed in seeds] for name in VARIANTS
    }
    summary = summarise(histories, settings.max_evaluations)
    for name, values in summary.items():
        print(f"{name:24}", json.dumps({k: v for k, v in values.items() if k != "each"}))
    if efficiency.results:
        provenance = {
            **reporting.provenance(commit, accelerator.device.type),
            "processes": accelerator.num_processes,
            "settings": settings.identity(),
            "repetitions": efficiency.repetitions,
        }
        reporting.write_json(Path(efficiency.results), {**provenance, "results": summary})
    accelerator.end_training()


if __name__ == "__main__":
    main()
