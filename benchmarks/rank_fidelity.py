"""How well a cheap score ranks candidates: Kendall's tau with their loss after full training from scratch.

    accelerate launch benchmarks/rank_fidelity.py --output_dir runs/rank --train_file novels.txt.xz --seed_genomes none \\
        --vocab_size 4096 --eval_sequences 1024 --batch_size 32 --final_steps 1500 --results results/rank_fidelity.json

Accepts the settings of a search and uses all of its parts: text, space, candidates (a random first generation),
super-network, proxy. Trainings are rows of `rows.jsonl` in the folder; the same command resumes.
"""

import copy
import dataclasses
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from scipy.stats import kendalltau

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.cli.arguments import parse_with_settings
from autobert_zero.search.evaluation.proxy import MaskedLMProxy
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import Checkpoint, seed_torch
from autobert_zero.search.files import JsonLines, differing_keys, write_json
from autobert_zero.search.genomes import read_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.run.launcher import apply_requests, check_precision
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.workers import Workers
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space.bounds import Bounds


# Ways to train the super-network, as changes of the settings.
SCHEMES: dict[str, dict[str, Any]] = {
    "space": {"paths": "space"},
    "self-attention": {"paths": "self_attention"},
}
# Settings that no row depends on: those of schemes are in the name of a method, the others are not used. Fewer candidates
# are the first of more.
IRRELEVANT = {
    "population_size",
    *("supernet_steps", "paths", "candidate_steps", "candidate_seconds", "strategy"),
    *("num_parents", "num_children", "tournament_size", "objectives", "lookahead", "crossover_probability"),
    *("layer_mutations", "operation_mutations", "priority_alpha", "priority_temperature", "priority_decay"),
    *("prune_after", "prune_fraction", "proxy", "proxy_tasks", "glue_dir", "glue_steps", "glue_learning_rate"),
}
# Known genomes, trained beside the random ones.
KNOWN = {"BERT": "bert", "BERT, rotary": "bert-rotary", "hybrid": "hybrid", "hybrid, rotary": "hybrid-rotary"}
# Added to the seed, so that short trainings from scratch have other initial weights than full trainings.
SCRATCH_SEED = 1000
# Fractions of a full training at which its loss is measured: has the order settled?
FRACTIONS = (0.25, 0.5, 1.0)
# Fractions that pruning may remove, and how many of the best it must keep to be harmless.
PRUNED_FRACTIONS = (0.3, 0.5, 0.7)
BEST = 10
# Numbers of finalists.
FINALISTS = (1, 3, 5)


@dataclasses.dataclass
class RankSettings:
    candidates: int = dataclasses.field(default=60, metadata={"help": "Size of the first generation of a search."})
    full_seeds: int = dataclasses.field(default=2, metadata={"help": "Full trainings of each candidate."})
    short_steps: list[int] = dataclasses.field(
        default_factory=lambda: [0, 75], metadata={"help": "Numbers of steps of short trainings."}
    )
    schemes: list[str] = dataclasses.field(
        default_factory=lambda: list(SCHEMES), metadata={"help": f"Any of {list(SCHEMES)}."}
    )
    table_only: bool = dataclasses.field(default=False, metadata={"help": "Only print the table of the rows so far."})
    results: str | None = dataclasses.field(default=None, metadata={"help": "JSON file for the table."})


def known_genomes(bounds: Bounds) -> dict[str, Genome]:
    """BERT, and alternating convolution and self-attention, for orientation: those that the space contains."""
    genomes = {name: read_genome(source, bounds.num_layers) for name, source in KNOWN.items()}
    return {name: genome for name, genome in genomes.items() if bounds.contains(genome)}


class Rows:
    """Results by method and candidate, in a file of JSON lines that starts with what they depend on."""

    def __init__(self, path: Path, header: dict[str, Any]):
        self.lines = JsonLines(path)
        self.values: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        if not self.lines.values:
            self.lines.append(header)
            return
        found, *rows = self.lines.values
        if different := differing_keys(found, header):
            sys.exit(f"error: {path} is of a run that differs in {', '.join(different)}")
        for row in rows:
            self.values[row["method"]][row["candidate"]] = row

    def add(self, row: dict[str, Any]) -> None:
        self.lines.append(row)
        self.values[row["method"]][row["candidate"]] = row


def train_with_losses(
    proxy: MaskedLMProxy,
    model: AutoBertZeroForMaskedLM,
    steps: int,
    evaluate: Callable[[], float],
    losses: dict[float, float],
) -> None:
    """Train a model from scratch.

    Args:
        proxy: its corpus determines the batches.
        evaluate: gives the loss of the model.
        losses: after each of `FRACTIONS` of the steps; filled in, also if the training diverges later.
    """
    at = {round(fraction * steps): fraction for fraction in FRACTIONS}

    def progress(done: int, _: float) -> None:
        if done in at:
            losses[at[done]] = evaluate()
            model.train()

    proxy.train(model, proxy.schedule(steps, proxy.training.learning_rate), "final", progress=progress)


class Trainer:
    """The trainings that a row may be."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.settings = problem.settings
        self.proxy = problem.proxy
        self.supernet: SuperNetwork | None = None

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        genome = Genome.from_list(job["genome"], self.problem.custom_operations.rules)
        start = time.perf_counter()
        try:
            losses = getattr(self, job["kind"])(genome, **job["arguments"])
        except FloatingPointError as error:
            losses = {"error": str(error)}
        row = {"method": job["method"], "candidate": job["candidate"], **losses}
        return {**row, "seconds": round(time.perf_counter() - start, 2)}

    def full(self, genome: Genome, seed: int) -> dict[str, Any]:
        """Initial weights, order of the text and masks depend on the seed; the evaluation does not."""
        steps, seed = self.settings.final.final_steps, self.settings.run.seed + seed
        proxy = copy.copy(self.proxy)
        proxy.corpus = self.proxy.corpus.with_seed(seed)
        model = self.new_model(genome, seed)
        losses: dict[float, float] = {}
        # Evaluated with the masks of the first seed.
        train_with_losses(proxy, model, steps, lambda: self.proxy.loss(model, "test"), losses)
        return {"loss": losses.pop(1.0), "earlier": {str(fraction): loss for fraction, loss in losses.items()}}

    def new_model(self, genome: Genome, seed: int) -> AutoBertZeroForMaskedLM:
        seed_torch(seed, "final")
        return self.proxy.builder.model(genome).to(self.proxy.device)

    def scratch(self, genome: Genome, steps: int) -> dict[str, Any]:
        model = self.new_model(genome, self.settings.run.seed + SCRATCH_SEED)
        self.proxy.train(model, self.proxy.schedule(steps, self.settings.training.learning_rate), "candidate")
        return {"loss": self.proxy.loss(model, "validation")}

    def inherited(self, genome: Genome, steps: int) -> dict[str, Any]:
        assert self.supernet is not None
        model = self.supernet.candidate(genome).to(self.proxy.device)
        schedule = self.proxy.schedule(steps, self.settings.candidates.candidate_learning_rate)
        self.proxy.train(model, schedule, "candidate")
        return {"loss": self.proxy.loss(model, "validation")}


def tau(a: np.ndarray, b: np.ndarray, resamples: int = 2000) -> list[float]:
    """Kendall's tau-b with the 2.5 and 97.5 % quantiles of a bootstrap over candidates."""
    rng = np.random.default_rng(0)
    samples = (rng.integers(len(a), size=len(a)) for _ in range(resamples))
    values = [kendalltau(a[i], b[i]).statistic for i in samples]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return [round(float(v), 3) for v in (kendalltau(a, b).statistic, low, high)]


def kept_of_the_best(column: dict[str, float], full: dict[str, float], fraction: float) -> int:
    """How many of the best after full training are not in the worst fraction by another score."""
    kept = sorted(full, key=column.__getitem__)[: round((1 - fraction) * len(full))]
    return len(set(kept) & set(sorted(full, key=full.__getitem__)[:BEST]))


def behind_the_best(
    column: dict[str, float], earlier: dict[str, float], full: dict[str, float], finalists: int, resamples: int = 2000
) -> float:
    """Nats by which the winner of a search ends behind the best of its candidates, as a mean over random two thirds of
    the candidates. The winner is the best of the finalists after a part of the full training. Candidates whose full training
    diverged are left out, because a search continues with another finalist then.
    """
    rng = np.random.default_rng(0)
    names = [name for name, loss in full.items() if math.isfinite(loss)]
    behind = []
    for _ in range(resamples):
        some = [str(name) for name in rng.choice(names, size=round(2 / 3 * len(names)), replace=False)]
        winner = min(sorted(some, key=column.__getitem__)[:finalists], key=earlier.__getitem__)
        behind.append(full[winner] - min(full[name] for name in some))
    return round(float(np.mean(behind)), 4)


def summarize(
    rows: dict[str, dict[str, dict]], costs: dict[str, list[int]], unigram: float, settings: SearchSettings
) -> dict:
    """Tau of every method with the first full training: over all random candidates, and over the better half."""
    target = rows["full 0"]
    names = [name for name in target if name.isdigit()]

    def losses(method: str, key: str | None = None) -> dict[str, float]:
        def value(row: dict) -> float:
            return np.inf if "error" in row else (row["loss"] if key is None else row["earlier"][key])

        return {name: value(row) for name, row in rows[method].items()}

    columns = {"parameters": {n: -c[0] for n, c in costs.items()}, "FLOPs": {n: -c[1] for n, c in costs.items()}}
    part = {f"{fraction:.0%}": losses("full 0", str(fraction)) for fraction in FRACTIONS[:-1]}
    columns |= {f"full 0 at {fraction}": earlier for fraction, earlier in part.items()}
    columns |= {method: losses(method) for method in rows if method != "full 0"}
    full = losses("full 0")
    methods = {}
    for method, column in columns.items():
        known = [name for name in names if name in column]
        if len(known) < 8:  # too few to rank
            continue
        better = sorted(known, key=full.__getitem__)[: len(known) // 2]
        seconds = [row["seconds"] for row in rows.get(method, {}).values()]
        methods[method] = {
            "candidates": len(known),
            **{
                label: tau(np.array([column[n] for n in some]), np.array([full[n] for n in some]))
                for label, some in {"all": known, "better half": better}.items()
            },
            f"kept of the best {BEST}": {
                str(fraction): kept_of_the_best({n: column[n] for n in known}, {n: full[n] for n in known}, fraction)
                for fraction in PRUNED_FRACTIONS
            },
            "winner behind the best": {
                f"{count} finalists, {fraction}": behind_the_best(column, earlier, {n: full[n] for n in known}, count)
                for count in FINALISTS
                for fraction, earlier in part.items()
            },
            "seconds": round(float(np.mean(seconds)), 2) if seconds else None,
        }
    return {
        "unigram_loss": unigram,
        "full_tokens": settings.final.final_steps * settings.training.batch_size * settings.model.sequence_length,
        "full_seconds": round(float(np.mean([row["seconds"] for row in target.values()])), 2),
        "known": {n: {m: rows[m][n].get("loss") for m in rows if n in rows[m]} for n in target if not n.isdigit()},
        "methods": methods,
    }


def table(summary: dict) -> str:
    lines = [f"{'Kendall tau to full training':34}{'n':>4}  {'all':22}{'better half':22}{'seconds':>8}"]
    for method, m in summary["methods"].items():
        cells = "".join(f"{'{:.2f} [{:.2f}, {:.2f}]'.format(*m[k]):22}" for k in ("all", "better half"))
        lines.append(f"{method:34}{m['candidates']:>4}  {cells}{m['seconds'] or '':>8}")
    return "\n".join(lines)


def main() -> None:
    parser, given, ranks = parse_with_settings(__doc__, RankSettings, "this benchmark")
    transformers.utils.logging.set_verbosity_error()
    accelerator = accelerate.Accelerator(cpu=not torch.accelerator.is_available() or None)
    main_process, commit = accelerator.is_main_process, current_commit()
    try:
        settings = SearchSettings.from_dict(given)
        settings = settings.replace(population_size=ranks.candidates, strategy="random")
        settings = apply_requests(settings, accelerator)
        check_precision(settings)
        torch.set_num_threads(settings.run.num_threads or 1)
        problem = Problem.prepare(settings, accelerator.device, accelerator=accelerator)
    except (UsageError, ValueError) as error:
        parser.error(str(error))
    population = {str(i): record.genome for i, record in enumerate(problem.first)}
    genomes = {**known_genomes(problem.space.bounds), **population}

    folder = Path(settings.run.output_dir)
    rows = None
    if main_process:
        identity = {name: value for name, value in settings.identity().items() if name not in IRRELEVANT}
        identity["final_steps"] = settings.final.final_steps
        rows = Rows(folder / "rows.jsonl", {"settings": identity, "data": problem.data})

    trainer = Trainer(problem)
    workers = Workers(accelerator, trainer, folder / "results")

    def measure(method: str, kind: str, prepare: Callable[[], Any] = lambda: None, **arguments: Any) -> None:
        """Add the missing rows of a method."""
        jobs = {}
        if rows is not None:
            common = {"method": method, "kind": kind, "arguments": arguments}
            jobs = {
                f"{method} {name}": {**common, "candidate": name, "genome": genome.to_list()}
                for name, genome in genomes.items()
                if name not in rows.values[method]
            }
        [count] = broadcast_object_list([len(jobs)])
        if not count or ranks.table_only:
            return
        prepare()
        if rows is None:
            workers.serve()
            return
        for number, row in enumerate(workers.map(jobs), start=1):
            rows.add(row)
            workers.forget(f"{method} {row['candidate']}")
            print(f"{method}: {number} of {count}, {row}", flush=True)
        workers.release()

    def prepare_supernet(scheme: str) -> None:
        changed = problem.replace(**SCHEMES[scheme])
        supernet = changed.new_supernet()
        name = changed.identity
        checkpoint = Checkpoint(
            folder / f"supernet-{name}.safetensors", name, settings.run.checkpoint_seconds, writes=main_process
        )

        def progress(done: int, loss: float) -> None:
            if main_process and done % 250 == 0:
                print(f"super-network, {scheme}: step {done}, loss {loss:.3f}", flush=True)

        changed.train_supernet(supernet, accelerator, checkpoint, progress)
        trainer.supernet = supernet

    measure("full 0", "full", seed=0)
    for steps in ranks.short_steps:
        if steps:
            measure(f"scratch, {steps} steps", "scratch", steps=steps)
    for scheme in ranks.schemes:
        for steps in ranks.short_steps:
            method = f"{scheme} × {settings.supernet.supernet_steps}, {steps} steps"
            measure(method, "inherited", prepare=lambda scheme=scheme: prepare_supernet(scheme), steps=steps)
    for seed in range(1, ranks.full_seeds):
        measure(f"full {seed}", "full", seed=seed)

    if rows is not None:
        costs = {name: list(problem.costs.costs(genome).values()) for name, genome in genomes.items()}
        unigram = problem.corpus.unigram_loss("test", settings.training.eval_sequences)
        summary = summarize(rows.values, costs, unigram, settings)
        print(table(summary))
        if ranks.results:
            batch_tokens = settings.training.batch_size * settings.model.sequence_length
            facts = {
                **provenance(commit, accelerator.device.type),
                "processes": accelerator.num_processes,
                "settings": settings.identity(),
                "supernet_tokens": settings.supernet.supernet_steps * settings.supernet.paths_per_step * batch_tokens,
            }
            write_json(ranks.results, {**facts, **summary})
    accelerator.end_training()


if __name__ == "__main__":
    main()
