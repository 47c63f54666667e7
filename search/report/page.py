"""The page of one run or of several side by side, from their histories alone: also during a search.

One run is shown in full; several with means and standard errors over those that differ only in their seeds. The page is
one file without scripts; equal histories give equal pages.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.evolution.archive import Archive, Record
from autobert_zero.search.report import charts, figures, notation, tables
from autobert_zero.search.report.charts import Series
from autobert_zero.search.report.drawing import draw_genome, to_svg
from autobert_zero.search.report.recorded_run import RecordedRun, groups_of, same_text
from autobert_zero.search.settings import SearchSettings


TEMPLATES = Path(__file__).with_name("templates")
NUM_BEST = 5


def page(runs: Sequence[RecordedRun], refresh_seconds: int | None = None) -> str:
    """HTML of one run, or of several side by side.

    Args:
        runs: in the order in which they are shown.
        refresh_seconds: after which browsers reload the page; None for a page that does not change any more.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": figures.score_text, "seconds": tables.duration, "with_error": tables.with_error}
    if len(runs) == 1:
        template, title, content = "run.html", runs[0].name, _one(runs[0])
    else:
        template, title, content = "runs.html", f"{len(runs)} runs", _several(runs)
    return environment.get_template(template).render(title=title, refresh_seconds=refresh_seconds, **content)


def _picture(genome: Genome) -> Markup:
    return Markup(to_svg(draw_genome(notation.simplified(genome))))


# One run


def _one(run: RecordedRun) -> dict[str, Any]:
    archive = Archive(run.records)
    counts = Counter(record.result.status for record in run.records)
    best = archive.best(NUM_BEST)
    winner = run.winner
    if winner is not None and winner not in best:
        best = [*best[:-1], winner]
    settings = run.all_settings
    names = notation.layer_names(tables.summary_genome(run.summary)) if run.summary else []
    return {
        "run": run,
        "settings": settings,
        "counts": counts,
        "top_score": None if run.best is None else run.best.score,
        "headline": tables.headline(run.summary) if run.summary else "",
        "final_losses": figures.final_losses(run),
        "results": tables.result_rows(run.summary) if run.summary else [],
        "note": tables.learning_note(run.summary) if run.summary else "",
        "measured_models": list(tables.layer_importance(run.summary)) if run.summary else [],
        "layer_rows": tables.layer_rows(run.summary, names) if run.summary else [],
        "layers_note": tables.layers_note(run.summary, names) if run.summary else "",
        "unweighted_note": tables.unweighted_note(run.summary, names) if run.summary else "",
        "last_session": sum(run.summary.get("seconds_of_last_session", {}).values()) if run.summary else 0,
        "attentions": figures.attentions(run.summary),
        "finalists": run.summary["finalists"] if run.summary else [],
        "winner": winner,
        "picture": _picture(winner.genome) if winner else "",
        "best": [
            {"record": record, "layers": notation.layer_names(record.genome), "picture": _picture(record.genome)}
            for record in best
        ],
        "text_of_winner": notation.genome_text(winner.genome) if winner else "",
        "progress": figures.progress(run),
        "operations": figures.operations(run),
        "effects": figures.effects(run, archive),
        "layers": figures.layers(run, archive),
        "fronts": figures.fronts(run),
        "family": _family(run.records, winner) if winner else None,
        "failures": Counter(_reason(r) for r in run.records if r.result.status in ("failed", "pruned")).most_common(),
        "changed": _changed(settings),
    }


def _reason(record: Record) -> str:
    return str(record.result.reason).partition(":")[0] if record.result.status == "failed" else "pruned"


def _family(records: Sequence[Record], youngest: Record) -> list[dict[str, Any]]:
    """A record and all its ancestors, youngest first, each with its changes from each parent.

    The line of first parents is the trunk; the others are parents of crossovers.
    """
    trunk, ancestors, waiting = {youngest.index}, {youngest.index}, [youngest.index]
    while waiting:
        index = waiting.pop()
        new = set(records[index].parents) - ancestors
        ancestors |= new
        waiting += new
    last = youngest
    while last.parents:
        last = records[last.parents[0]]
        trunk.add(last.index)
    members = []
    for index in sorted(ancestors, reverse=True):
        record = records[index]
        edges = []
        for place, parent in enumerate(records[i] for i in record.parents):
            if place == 0:
                changes = notation.differences(parent.genome, record.genome)
            else:
                first = records[record.parents[0]].genome
                taken = [
                    str(layer + 1)
                    for layer, (mine, theirs) in enumerate(zip(record.genome, parent.genome, strict=True))
                    if mine == theirs != first[layer]
                ]
                changes = [f"gave layers {', '.join(taken)}"] if taken else ["gave no layer"]
            edges.append({"parent": parent.index, "changes": changes})
        members.append({"record": record, "edges": edges, "trunk": index in trunk})
    return members


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    default = SearchSettings().to_dict()
    return {name: value for name, value in settings.items() if default.get(name) != value}


# Several runs


# Of losses; of None if a training diverged.
MeanAndError = tuple[float | None, float | None]


def mean_test_losses(runs: Sequence[RecordedRun]) -> dict[str, MeanAndError | None]:
    """Mean and standard error of the test losses over the finished runs, by the keys of `MODELS`; None for a model that none
    of them trained."""
    results = [run.summary["results"] for run in runs if run.summary]
    losses = {key: [r[name]["loss"] for r in results if name in r] for key, name in tables.MODELS.items()}
    return {key: tables.mean_and_error(values) if values else None for key, values in losses.items()}


def mean_lead(runs: Sequence[RecordedRun]) -> MeanAndError | None:
    """Mean and standard error of how far the found model is ahead of the better baseline, over the finished runs; None if
    none of them trained both."""
    found, *baselines = tables.MODELS.values()
    leads: list[float | None] = []
    for run in runs:
        losses = {name: each["loss"] for name, each in run.summary["results"].items()} if run.summary else {}
        known = [losses[name] for name in baselines if name in losses]
        if found in losses and known:
            trained = [loss for loss in known if loss is not None]
            leads.append(min(trained) - losses[found] if trained and losses[found] is not None else None)
    return tables.mean_and_error(leads) if leads else None


def summarize(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """For each group of runs its label, its runs, the mean and standard error of their best scores, their test losses, and the
    lead of the found model."""
    rows = []
    for label, members in groups_of(runs).items():
        scores = [run.best.score for run in members if run.best is not None and run.best.score is not None]
        average = tables.mean(scores) if scores else None
        error = tables.standard_error(scores)
        rows.append(
            {
                "label": label,
                "runs": members,
                "mean": average,
                "error": error,
                "losses": mean_test_losses(members),
                "lead": mean_lead(members),
            }
        )
    return rows


def _several(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    rows = summarize(runs)
    curves = {id(run): run.best_so_far() for run in runs}
    # The start of a curve is random, and would compress the rest.
    starts = [curve[len(curve) // 10] for curve in curves.values() if curve]
    floor = min((score for score in starts if not math.isnan(score)), default=-math.inf)
    single, means = [], []
    for color, row in enumerate(rows):
        members = row["runs"]
        name = f"{row['label']} ({len(members)} runs)" if len(members) > 1 else row["label"]
        for run in members:
            points = [(number, score) for number, score in figures.improvements(curves[id(run)]) if score >= floor]
            if points:
                single.append(Series(run.name, *zip(*points, strict=True), color, "steps"))  # type: ignore[arg-type]
        # As long as all of them are, from where all have a score.
        length = min(len(curves[id(run)]) for run in members)
        columns = [(i + 1, [curves[id(run)][i] for run in members]) for i in range(length)]
        columns = [(i, scores) for i, scores in columns if all(score >= floor for score in scores)]
        if columns:
            errors = [tables.standard_error(scores) or 0.0 for _, scores in columns] if len(members) > 1 else None
            numbers = [i for i, _ in columns]
            means.append(Series(name, numbers, [statistics.fmean(v) for _, v in columns], color, "line", errors))
    shown = {"Mean best so far, with its standard error": means, "Best so far of each run": single}
    if len(rows) == len(runs):  # every group is a run: the charts would be equal
        shown.pop("Mean best so far, with its standard error")
    names = {run.score_name() for run in runs}
    y_label = names.pop() if len(names) == 1 else "score"
    return {
        "groups": rows,
        "comparable": same_text(runs),
        "progress": [
            figures.figure(
                title, charts.plot(title, series, "candidates", y_label), series if len(rows) == len(runs) else means
            )
            for title, series in shown.items()
        ],
        "models": tables.MODELS,
        "has_losses": any(run.summary for run in runs),
        "found": [
            {"run": run, "record": run.winner, "picture": _picture(run.winner.genome)}
            for run in runs
            if run.winner is not None
        ],
    }
