"""After the search: the winner among the best candidates, and its training from scratch beside the baselines."""

import dataclasses
from collections.abc import Callable
from typing import Any

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, SELF_ATTENTION, Genome
from autobert_zero.search.evolution.archive import Archive, Record
from autobert_zero.search.report.tables import MODELS
from autobert_zero.search.run.errors import SearchFailed
from autobert_zero.search.run.jobs import training_job
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.workers import Workers
from autobert_zero.search.settings import FinalSettings


# Baselines by their keys in `MODELS`: the attention of all layers, and the position embeddings.
BASELINES = {
    "bert": (SELF_ATTENTION, "absolute"),
    "bert_rotary": (ROTARY_ATTENTION, "none"),
}


def baseline_jobs(problem: Problem, parameters: int) -> dict[str, dict[str, Any]]:
    """The trainings of the baselines, by name. Their feed-forward width is chosen so that they have as many parameters
    as the winner."""
    found = {}
    settings = problem.settings
    for key, (attention, positions) in BASELINES.items():
        genome = Genome([attention] * settings.model.num_hidden_layers)
        costs = dataclasses.replace(problem.costs, absolute_positions=positions == "absolute")
        width = settings.model.intermediate_size
        count = costs.parameters(genome)
        each = costs.parameters(genome) - dataclasses.replace(costs, intermediate_size=width - 1).parameters(genome)
        model = {
            "position_embedding_type": positions,
            "intermediate_size": max(1, width + round((parameters - count) / each)),
        }
        found[MODELS[key]] = training_job(problem, key, genome.to_list(), settings.final.final_steps, model)
    return found


def finalist_steps(settings: FinalSettings) -> int:
    """Steps after which the winner is chosen among the finalists; 0 if the best score wins."""
    return int(settings.finalist_fraction * settings.final_steps) if settings.finalists > 1 else 0


def rank_finalists(problem: Problem, history: list[Record], workers: Workers) -> list[dict[str, Any]]:
    """The best candidates by score, ranked by the first part of the final training.

    A short score is noisy, and favours what learns early. The first part of the final training ranks the best better, at
    a small cost: the winner continues from there.

    Raises: SearchFailed without a candidate that has a score.
    """
    settings = problem.settings.final
    finalists = [
        {"index": record.index, "score": record.score, "genome": record.genome.to_list()}
        for record in Archive(history).best(settings.finalists)
    ]
    if not finalists:
        raise SearchFailed(f"no candidate could be evaluated; the last one: {history[-1].result.reason}")
    steps = finalist_steps(settings)
    if not steps or len(finalists) == 1:
        return finalists
    jobs = {f"finalist-{f['index']}": training_job(problem, str(f["index"]), f["genome"], steps) for f in finalists}
    for finalist, result in zip(finalists, workers.map(jobs), strict=True):
        finalist |= {"steps_from_scratch": steps, "score_from_scratch": result["score"]}
    return sorted(finalists, key=lambda f: (f["score_from_scratch"] is None, -(f["score_from_scratch"] or 0)))


def train_final(
    problem: Problem, finalists: list[dict[str, Any]], workers: Workers, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Train the best finalist, and baselines of the same depth, width and number of parameters, from scratch.

    Returns: test losses by name, and the winner: the best finalist whose training does not diverge.

    Raises: SearchFailed if all of them diverge.
    """

    for finalist in finalists:
        genome = Genome.from_list(finalist["genome"], problem.custom_operations.rules)
        found = training_job(problem, str(finalist["index"]), finalist["genome"], problem.settings.final.final_steps)
        jobs = {MODELS["found"]: found, **baseline_jobs(problem, problem.costs.parameters(genome))}
        futures = {name: workers.submit(f"final-{job['name']}", job) for name, job in jobs.items()}
        results = {name: future.result() for name, future in futures.items()}
        result = results[MODELS["found"]]
        if result["loss"] is not None:
            return results, finalist
        say(f"Candidate {finalist['index']} cannot be trained: {result['reason']}. Trying the next best.")
    raise SearchFailed("none of the finalists can be trained; try a lower learning_rate in another output_dir")
