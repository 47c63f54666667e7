"""The summary of a finished run, as JSON and as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autobert_zero.search.evolution.archive import Record, pareto_front
from autobert_zero.search.report import tables
from autobert_zero.search.run.problem import Problem


def summarize(
    problem: Problem,
    history: list[Record],
    status: str,
    results: dict[str, dict[str, Any]],
    finalists: list[dict[str, Any]],
    winner: dict[str, Any],
) -> dict[str, Any]:
    """What `summary.json` holds, but for provenance and seconds.

    Args:
        status: why the search ended.
        results: of the final trainings, by name.
        finalists, winner: as `final` returns them.
    """
    settings, corpus = problem.settings, problem.corpus
    unigram = {"loss": corpus.unigram_loss("test", settings.training.eval_sequences), "parameters": None}
    objectives = settings.strategy.objectives
    front = [
        {"index": record.index, "score": record.score, "costs": record.result.costs, "genome": record.genome.to_list()}
        for record in (pareto_front(history, objectives) if len(objectives) > 1 else [])
    ]
    batch_tokens = settings.training.batch_size * settings.model.sequence_length
    return {
        "identity": problem.full_identity,
        "status": status,
        "custom_operations": dict(problem.custom_operations.rules),
        "best": winner,
        "finalists": finalists,
        "front": front,
        "results": {
            name: {**result, "perplexity": tables.perplexity(result["loss"])}
            for name, result in {**results, "unigram": unigram}.items()
        },
        "counts": {
            "evaluated": len(history),
            "failed": sum(record.result.status == "failed" for record in history),
            "pruned": sum(record.result.status == "pruned" for record in history),
            "duplicates avoided": sum(record.duplicates for record in history),
            **_better_than(problem.unigram_score(), history),
        },
        "tokens": {
            **corpus.num_tokens(),
            "supernet": settings.supernet.supernet_steps * settings.supernet.paths_per_step * batch_tokens,
            "candidate_each": settings.candidates.candidate_steps * batch_tokens,
            "final_each": settings.final.final_steps * batch_tokens,
        },
        "seconds_of_candidates": sum(record.result.seconds for record in history),
        "seed": settings.run.seed,
        "data": {"source": problem.source, **{k: v for k, v in problem.data.items() if k != "tokens"}},
        "settings": settings.to_dict(),
    }


def _better_than(unigram_score: float | None, history: Sequence[Record]) -> dict[str, int]:
    """How many candidates score better than token frequencies; empty if scores are not losses."""
    if unigram_score is None:
        return {}
    return {"better_than_unigram": sum(r.score is not None and r.score > unigram_score for r in history)}


def closing_text(summary: dict[str, Any], folder: Path) -> str:
    """What a run prints at its end."""
    counts = summary["counts"]
    labels = {"failed": "failed", "pruned": "pruned", "duplicates avoided": "duplicate proposals"}
    notes = [summary["status"], *(f"{counts[name]} {label}" for name, label in labels.items() if counts.get(name))]
    lines = [
        f"\nBest of {counts['evaluated']} candidates ({', '.join(notes)}):\n",
        tables.layers_text(summary),
    ]
    if tables.layer_importance(summary):
        lines.append(
            "\nThe number beside a layer is how much the test loss rises without its convolution or attention."
        )
    lines += [
        f"\nTrained from scratch on {summary['tokens']['final_each']:,} tokens each:\n",
        tables.results_table(summary),
    ]
    if note := tables.learning_note(summary):
        lines.append(f"\n{note}")
    return "\n".join([*lines, f"\nModel: {folder / 'model'}\nReport: {folder / 'report.html'}"])
