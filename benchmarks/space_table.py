"""A table of trained backbones: what each is worth after a part, and after all, of a training from scratch.

    python benchmarks/space_table.py --strategy evolution --seed_genomes none --population_size 150 --num_parents 10 --num_children 2 \\
        --max_evaluations 400 --processes 2 --output_dir results/space_table

The first generation is random; the strategy proposes the others from the losses of full trainings, so that the table covers
good backbones, too. The table, `history.jsonl`, is that of a search: minus the validation loss is the score, and the costs of a
candidate contain its losses by number of steps. The same command resumes. `--genomes_of TABLE … --every 8` trains every eighth
genome of other tables with other settings: longer, or with another seed.
"""

import dataclasses
import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from rank_fidelity import train_with_losses

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.cli.arguments import parse_with_settings
from autobert_zero.search.evaluation.training import seed_torch
from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.history import History, read_history
from autobert_zero.search.evolution.loop import evolve
from autobert_zero.search.evolution.strategies import RandomSearch
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import SearchSettings


@dataclasses.dataclass
class TableSettings:
    processes: int = dataclasses.field(default=1, metadata={"help": "Trainings at the same time, one thread each."})
    genomes_of: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "Other tables, whose genomes are trained instead of proposed ones."}
    )
    every: int = dataclasses.field(default=1, metadata={"help": "Every n-th genome of each of these tables."})


_PROBLEM: list[Problem] = []  # of a worker process


def prepare(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    _PROBLEM[:] = [Problem.prepare(SearchSettings.from_dict(settings), torch.device("cpu"))]


def train(genome: Genome) -> Outcome:
    """Train a genome from scratch. Initial weights, order of the text and masks depend on the seed of the settings."""
    [problem] = _PROBLEM
    settings, proxy = problem.settings, problem.proxy
    start, steps = time.perf_counter(), settings.final.final_steps
    losses: dict[float, float] = {}
    costs: dict[str, float] = dict(problem.costs.costs(genome))
    seed_torch(settings.run.seed, "final")
    model = proxy.builder.model(genome)

    try:
        train_with_losses(proxy, model, steps, lambda: proxy.loss(model, "validation"), losses)
        costs["test"] = round(proxy.loss(model, "test"), 5)
        found: dict[str, Any] = {"score": -round(losses[1.0], 5)}
    except FloatingPointError as error:
        found = {"status": "failed", "reason": str(error)}
    costs |= {f"validation_{round(fraction * steps)}": round(loss, 5) for fraction, loss in losses.items()}
    return Outcome(**found, costs=costs, seconds=round(time.perf_counter() - start, 1))


def main() -> None:
    parser, given, arguments = parse_with_settings(__doc__, TableSettings, "this benchmark")
    commit = current_commit()
    try:
        settings = SearchSettings.from_dict(given)
        problem = Problem.prepare(settings, torch.device("cpu"))
        strategy, count = problem.strategy, settings.strategy.max_evaluations
        if arguments.genomes_of:
            tables = [read_history(path, decode_genome)[1] for path in arguments.genomes_of]
            # Tables may share genomes.
            genomes = tuple({r.key: r.genome for records in tables for r in records[:: arguments.every]}.values())
            strategy, count = RandomSearch(problem.space, len(genomes), seeds=genomes), len(genomes)
    except ValueError as error:
        parser.error(str(error))
    folder = Path(settings.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance(commit)
    header = {
        "settings": {**settings.identity(), "final_steps": settings.final.final_steps},
        "data": problem.data,
        "custom_operations": dict(problem.custom_operations.rules),
        "text": problem.source,
        "unigram_score": problem.unigram_score(),
        "seed": settings.run.seed,
        "threads": 1,
        **facts,
        "machine": {"processes": arguments.processes, "threads": 1, "device": facts["machine"]},
    }
    try:
        table = History(folder / "history.jsonl", header, ("settings", "data"), decode_genome)
        if arguments.processes < 1:
            raise ValueError(f"processes: expected at least 1, got {arguments.processes}")
    except ValueError as error:
        parser.error(str(error))
    with (
        ProcessPoolExecutor(
            arguments.processes, multiprocessing.get_context("spawn"), prepare, (settings.to_dict(),)
        ) as pool,
        table,
    ):

        def submit(record: Record, archive: Archive) -> Future[Outcome]:
            return pool.submit(train, record.genome)

        for record in evolve(problem.space, strategy, submit, table, settings.run.seed, count):
            print(
                f"{record.index + 1}/{count}: {record.score}, {record.result.seconds} s, {record.genome}", flush=True
            )


if __name__ == "__main__":
    main()
