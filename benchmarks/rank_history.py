"""How well inherited weights, and short trainings from scratch, rank the candidates of a finished search by real trainings.

    python benchmarks/rank_history.py --history results/model/history.jsonl --prepared_dir runs/model/text \\
        --supernet_steps 1500 --scratch_steps 100 250 --output_dir runs/rank-history --results results/rank_history.json

`rank_fidelity.py` ranks random genomes, many of which learn nothing; here all descend from good ones, and differ by less.
The settings are those of the search, but for the steps of the super-network. Trains one by each scheme of
`rank_fidelity.py`, scores every candidate by its inherited weights without a step, then by short trainings from scratch,
and compares the orders with that of the search. Candidates that the search pruned or that failed are left out.

Scores are rows of `rows.jsonl` in the folder; the same command resumes.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rank_fidelity import SCHEMES, Rows, Trainer, tau

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.cli.arguments import ScriptHelpFormatter
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import Checkpoint
from autobert_zero.search.evolution.history import read_history
from autobert_zero.search.files import write_json
from autobert_zero.search.genomes import decode_genome
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


def ranked(scores: dict[int, float], trained: np.ndarray, better: np.ndarray) -> dict[str, Any]:
    """Tau of scores with those of the search, of all candidates and of the better ones."""
    values = np.array(list(scores.values()))
    return {"all": tau(values, trained), "better half": tau(values[better], trained[better]), "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("--history", required=True, help="history.jsonl of the finished search.")
    parser.add_argument("--supernet_steps", type=int, default=1500, help="Steps of each super-network.")
    parser.add_argument("--scratch_steps", type=int, nargs="*", default=[], help="Steps of trainings from scratch.")
    parser.add_argument("--output_dir", required=True, help="Folder of the super-networks; the same command resumes.")
    parser.add_argument("--prepared_dir", help="Folder of the tokenized text.")
    parser.add_argument("--num_threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--results", help="JSON file for the results.")
    given = vars(parser.parse_args())
    history, results, scratch_steps = (given.pop(name) for name in ("history", "results", "scratch_steps"))
    transformers.utils.logging.set_verbosity_error()
    commit = current_commit()
    try:
        header, records = read_history(history, decode_genome)
        settings = SearchSettings.from_dict({**header["settings"], **given})
        problem = Problem.prepare(settings, torch.device("cpu"))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if header["data"] != problem.data:
        sys.exit(f"error: {history} is of another text")
    torch.set_num_threads(settings.run.num_threads)
    folder = Path(settings.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    known = [record for record in records if record.score is not None]
    trained = np.array([record.score for record in known])
    better = trained >= np.median(trained)
    rows = Rows(folder / "rows.jsonl", {"settings": settings.identity(), "data": problem.data})

    def scores_of(method: str, prepare: Callable[[], Callable[[Genome], float]]) -> dict[int, float]:
        """Scores by the number of the candidate; `prepare` makes the function of the missing ones."""
        missing = [record for record in known if str(record.index) not in rows.values[method]]
        loss = prepare() if missing else None
        for record in missing:
            rows.add({"method": method, "candidate": str(record.index), "score": -round(loss(record.genome), 4)})
        return {record.index: rows.values[method][str(record.index)]["score"] for record in known}

    def inherited(changes: dict[str, Any]) -> Callable[[Genome], float]:
        changed = problem.replace(**changes)
        supernet = trained_supernet(changed, folder)
        return lambda genome: changed.proxy.loss(supernet.candidate(genome), "validation")

    found = {name: scores_of(name, functools.partial(inherited, changes)) for name, changes in SCHEMES.items()}
    trainer = Trainer(problem)
    for steps in scratch_steps:

        def loss(genome: Genome, steps: int = steps) -> float:
            return trainer.scratch(genome, steps)["loss"]

        found[f"{steps} steps from scratch"] = scores_of(f"scratch, {steps}", lambda loss=loss: loss)
    found = {name: ranked(scores, trained, better) for name, scores in found.items()}
    cells = [
        [name, *("{:.2f} [{:.2f}, {:.2f}]".format(*each[k]) for k in ("all", "better half"))]
        for name, each in found.items()
    ]
    print(text_table([("Kendall's tau", f"all {len(known)}", "better half"), *cells]))
    if results:
        facts = {**provenance(commit, "cpu"), "settings": settings.to_dict()}
        write_json(results, {**facts, "candidates": len(known), "schemes": found})


if __name__ == "__main__":
    main()
