"""How well inherited weights, and short trainings from scratch, rank genomes that were trained: candidates of a finished search
by real trainings, or the backbones of tables.

    python benchmarks/rank_history.py --history results/model/history.jsonl --prepared_dir runs/model/text \\
        --supernet_steps 1500 --scratch_steps 100 250 --output_dir runs/rank-history --results results/rank_history.json

`rank_fidelity.py` ranks random genomes, many of which learn nothing; here all descend from good ones, and differ by less.
The settings are those of the first history, but for the steps of the super-network. Trains one by each scheme of
`rank_fidelity.py`, scores every candidate by its inherited weights, without a step and after some, then by short trainings
from scratch, and compares the orders with that of the histories, and of each of them. Candidates that were pruned or that failed are left
out. A table `--another_seed` of some of them says what a full training with another seed is worth: the ceiling.

Scores are rows of `rows.jsonl` in the folder; the same command resumes.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from rank_fidelity import SCHEMES, Rows, Trainer, tau
from surrogate import earlier_losses, read_tables

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.cli.arguments import ScriptHelpFormatter
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import Checkpoint
from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.tables import text_table
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import SearchSettings


def trained_supernet(problem: Problem, folder: Path) -> SuperNetwork:
    settings, supernet = problem.settings, problem.new_supernet()
    checkpoint = Checkpoint(
        folder / f"supernet-{problem.identity}.safetensors", problem.identity, settings.run.checkpoint_seconds
    )
    problem.train_supernet(supernet, checkpoint=checkpoint)
    return supernet


def ranked(scores: dict[str, float], trained: dict[str, float]) -> dict[str, list[float]]:
    """Tau of scores with those of full trainings, of all candidates that have both, and of the better half of these."""
    names = sorted(scores.keys() & trained.keys(), key=trained.__getitem__, reverse=True)
    a, b = (np.array([values[name] for name in names]) for values in (scores, trained))
    better = b >= np.median(b)
    return {"all": tau(a, b), "better half": tau(a[better], b[better])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--history", type=Path, nargs="+", required=True, help="history.jsonl of a finished search, or tables."
    )
    parser.add_argument(
        "--another_seed",
        type=Path,
        nargs=1,
        default=[],
        help="Table of some of the candidates, trained in full with another seed.",
    )
    parser.add_argument("--supernet_steps", type=int, default=1500, help="Steps of each super-network.")
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=list(SCHEMES), help="Super-networks.")
    parser.add_argument(
        "--inherited_steps",
        type=int,
        nargs="+",
        default=[0],
        help="Steps of trainings that begin with inherited weights.",
    )
    parser.add_argument("--scratch_steps", type=int, nargs="*", default=[], help="Steps of trainings from scratch.")
    parser.add_argument("--output_dir", required=True, help="Folder of the super-networks; the same command resumes.")
    parser.add_argument("--prepared_dir", help="Folder of the tokenized text.")
    parser.add_argument("--num_threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--results", help="JSON file for the results.")
    given = vars(parser.parse_args())
    histories, another_seed, results, schemes, inherited_steps, scratch_steps = (
        given.pop(name)
        for name in ("history", "another_seed", "results", "schemes", "inherited_steps", "scratch_steps")
    )
    transformers.utils.logging.set_verbosity_error()
    commit = current_commit()
    try:
        header, tables = read_tables([*histories, *another_seed])
        settings = SearchSettings.from_dict({**header["settings"], **given})
        problem = Problem.prepare(settings, torch.device("cpu"))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if header["data"] != problem.data:
        sys.exit(f"error: {histories[0]} is of another text")
    torch.set_num_threads(settings.run.num_threads)
    folder = Path(settings.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tables, repeated = tables[: len(histories)], tables[len(histories) :]
    known = [record for table in tables for record in table]
    groups = {"all": known}
    if len(tables) > 1:
        groups |= {path.stem: table for path, table in zip(histories, tables, strict=True)}
    rows = Rows(folder / "rows.jsonl", {"settings": settings.identity(), "data": problem.data})

    def scores_of(method: str, prepare: Callable[[], Callable[[Genome], float]]) -> dict[str, float]:
        """Scores by the key of the candidate; `prepare` makes the function of the missing ones."""
        missing = [record for record in known if record.key not in rows.values[method]]
        loss = prepare() if missing else None
        for record in missing:
            try:
                score = -round(loss(record.genome), 4)
            except FloatingPointError:
                score = None
            rows.add({"method": method, "candidate": record.key, "score": score})
        scores = {record.key: rows.values[method][record.key]["score"] for record in known}
        return {key: score for key, score in scores.items() if score is not None}

    @functools.cache
    def trainer_with_supernet(scheme: str) -> Trainer:
        trainer = Trainer(problem.replace(**SCHEMES[scheme]))
        trainer.supernet = trained_supernet(trainer.problem, folder)
        return trainer

    def inherited(scheme: str, steps: int) -> Callable[[Genome], float]:
        trainer = trainer_with_supernet(scheme)
        return lambda genome: trainer.inherited(genome, steps)["loss"]

    def from_scratch(steps: int) -> Callable[[Genome], float]:
        trainer = Trainer(problem)
        return lambda genome: trainer.scratch(genome, steps)["loss"]

    found = {}
    for scheme in schemes:
        for steps in inherited_steps:
            name = f"{scheme}, {steps} steps" if steps else scheme
            found[name] = scores_of(name, functools.partial(inherited, scheme, steps))
    for steps in scratch_steps:
        name = f"{steps} steps from scratch"
        found[name] = scores_of(f"scratch, {steps}", functools.partial(from_scratch, steps))
    for name in earlier_losses(known):
        steps = name.removeprefix("validation_")
        found[f"the full training after {steps} steps"] = {r.key: -r.result.costs[name] for r in known}
    if repeated:
        again = {record.key: record.score for record in repeated[0]}
        found["the full training with another seed"] = again
        # For a comparison with the ceiling, of equal candidates.
        groups["with another seed"] = [record for record in known if record.key in again]
    taus = {
        group: {name: ranked(scores, {r.key: r.score for r in records}) for name, scores in found.items()}
        for group, records in groups.items()
    }
    for group, records in groups.items():
        cells = [
            [name, *("{:.2f} [{:.2f}, {:.2f}]".format(*each[k]) for k in ("all", "better half"))]
            for name, each in taus[group].items()
        ]
        print(text_table([(f"{group}: {len(records)}", "tau", "tau, better half"), *cells]), end="\n\n")
    if results:
        facts = {**provenance(commit, "cpu"), "settings": settings.to_dict()}
        counts = {group: len(records) for group, records in groups.items()}
        write_json(results, {**facts, "candidates": counts, "taus": taus, "scores": found})


if __name__ == "__main__":
    main()
