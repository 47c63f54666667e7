"""How well inherited weights rank the candidates of a finished search by real trainings.

    python benchmarks/rank_history.py --history results/model/history.jsonl --prepared_dir runs/model/text \\
        --supernet_steps 1500 --output_dir runs/rank-history --results results/rank_history.json

`rank_fidelity.py` ranks random genomes, many of which learn nothing; here all descend from good ones, and differ by less.
The settings are those of the search, but for the steps of the super-network. Trains one by each scheme of
`rank_fidelity.py`, scores every candidate by its inherited weights without a step, and compares the order with that of
the search. Candidates that the search pruned or that failed are left out.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rank_fidelity import SCHEMES, tau

from autobert_zero.search.cli.arguments import ScriptHelpFormatter
from autobert_zero.search.evaluation.training import Checkpoint
from autobert_zero.search.evolution.history import read_history
from autobert_zero.search.files import write_json
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.tables import text_table
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import SearchSettings


def inherited_scores(problem: Problem, genomes: list[Any], folder: Path) -> list[float]:
    """Minus the validation loss of each genome, with the weights of a super-network trained by the settings."""
    settings, supernet = problem.settings, problem.new_supernet()
    checkpoint = Checkpoint(
        folder / f"supernet-{problem.identity}.safetensors", problem.identity, settings.run.checkpoint_seconds
    )
    problem.train_supernet(supernet, checkpoint=checkpoint)
    return [-problem.proxy.loss(supernet.candidate(genome), "validation") for genome in genomes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("--history", required=True, help="history.jsonl of the finished search.")
    parser.add_argument("--supernet_steps", type=int, default=1500, help="Steps of each super-network.")
    parser.add_argument("--output_dir", required=True, help="Folder of the super-networks; the same command resumes.")
    parser.add_argument("--prepared_dir", help="Folder of the tokenized text.")
    parser.add_argument("--num_threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--results", help="JSON file for the results.")
    given = vars(parser.parse_args())
    history, results = given.pop("history"), given.pop("results")
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
    found = {}
    for name, changes in SCHEMES.items():
        scores = np.array(inherited_scores(problem.replace(**changes), [r.genome for r in known], folder))
        found[name] = {
            "all": tau(scores, trained),
            "better half": tau(scores[better], trained[better]),
            "scores": {record.index: round(float(score), 4) for record, score in zip(known, scores, strict=True)},
        }
    cells = [
        [name, *("{:.2f} [{:.2f}, {:.2f}]".format(*each[k]) for k in ("all", "better half"))]
        for name, each in found.items()
    ]
    print(text_table([("Kendall's tau of inherited weights", f"all {len(known)}", "better half"), *cells]))
    if results:
        facts = {**provenance(commit, "cpu"), "settings": settings.to_dict()}
        write_json(results, {**facts, "candidates": len(known), "schemes": found})


if __name__ == "__main__":
    main()
