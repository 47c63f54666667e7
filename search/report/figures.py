"""The figures of a run: progress, operations, effects, layers, and score against cost."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from autobert_zero.configuration_autobert_zero import LAYER_RULE, OPERATIONS, Attention, Convolution
from autobert_zero.search.evolution.archive import Archive, Record, pareto_front
from autobert_zero.search.evolution.priority import AdditivePriority, OperationPriority
from autobert_zero.search.report import charts, notation, tables
from autobert_zero.search.report.charts import Bar, Series
from autobert_zero.search.report.drawing import SHORT_NAMES
from autobert_zero.search.report.recorded_run import RecordedRun, Summary
from autobert_zero.search.settings import SpaceSettings
from autobert_zero.search.space.backbone import BackboneSpace


NUM_EFFECTS = 14
# Heads that are shown one by one.
MAX_HEADS = 8
# Standard errors that an effect must be from zero.
DISTINGUISHED = 2.0
NUM_TIMES = 6
MAX_SHADE = 60  # per cent
LOWEST_QUANTILE = 0.2
BELOW = 4  # difference of the colours, and markers, of points that lie below the axis
# Maximum number of points that browsers draw quickly.
MAX_POINTS = 2000
# A baseline further away than this multiple of the height of the curves is mentioned, not drawn.
FAR = 1.0
COST_NAMES = {"parameters": "parameters", "flops": "FLOPs of a sequence", "latency": "latency (ms)"}


def score_text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".replace("-", "−")


def figure(title: str, svg: str, series: Sequence[Series] = (), text: str = "") -> dict[str, Any]:
    return {
        "title": title,
        "svg": Markup(svg),
        "legend": Markup(charts.legend(series) if series else ""),
        "text": text,
    }


def _baselines(run: RecordedRun, scores: Sequence[float]) -> tuple[dict[str, float], str]:
    """Baselines near enough to be drawn, and text about the others."""
    levels = {}
    if (unigram := run.header.get("unigram_score")) is not None:
        levels["unigram"] = unigram
    for record in run.records:
        if record.score is not None and notation.is_bert(record.genome):
            levels["BERT"] = record.score
    reach = FAR * (max(scores) - min(scores))
    near = {name: level for name, level in levels.items() if min(scores) - reach <= level <= max(scores) + reach}
    far = [f"{name} {score_text(level)}" for name, level in levels.items() if name not in near]
    return near, f"Not drawn, far away: {', '.join(far)}." if far else ""


def improvements(curve: Sequence[float]) -> list[tuple[int, float]]:
    """Number of candidates and best score where a curve starts, wherever it rises, and where it ends."""
    known = [(i + 1, score) for i, score in enumerate(curve) if not math.isnan(score)]
    rises = [b for a, b in itertools.pairwise(known) if b[1] > a[1]]
    return [*known[:1], *rises, *(known[-1:] if len(known) > 1 and known[-1] not in rises else [])]


def _points(
    records: Sequence[Record], floor: float, label: str, color: int, x: Callable[[Record], float]
) -> list[Series]:
    """Scores of records; those below the floor as a series of their own at the edge, with another marker."""

    def series(name: str, some: Sequence[Record], color: int) -> Series:
        scores = [max(record.score, floor) for record in some]  # type: ignore[type-var]
        titles = [f"#{record.index}: {score_text(record.score)}" for record in some]
        return Series(name, [x(record) for record in some], scores, color, "points", titles=titles)

    below = [record for record in records if record.score < floor]  # type: ignore[operator]
    shown = [series(label, [record for record in records if record.score >= floor], color)]  # type: ignore[operator]
    return [*shown, series(f"{label} below the axis", below, color + BELOW)] if below else shown


def _floor(scored: Sequence[Record]) -> float:
    """The lowest score that a chart shows: scores far below would compress all others."""
    return float(np.quantile([record.score for record in scored], LOWEST_QUANTILE))  # type: ignore[arg-type]


def _thinned(records: Sequence[Record]) -> Sequence[Record]:
    """At most `MAX_POINTS` of them, evenly spaced."""
    return records[:: -(-len(records) // MAX_POINTS)] if records else records


def progress(run: RecordedRun) -> list[dict[str, Any]]:
    """Best score so far, by candidates and by time."""
    curve = improvements(run.best_so_far())
    if not curve:
        return []
    numbers, scores = zip(*curve, strict=True)
    elapsed = np.cumsum([record.result.seconds for record in run.records]).tolist()
    scored = _thinned([record for record in run.records if record.score is not None])
    floor = _floor(scored)
    shown = [(number, score) for number, score in curve if score >= floor]
    series = _points(scored, floor, "candidates", 1, lambda record: record.index + 1)
    series.append(Series("best so far", *zip(*shown, strict=True), 0, "steps"))  # type: ignore[arg-type]
    random = [(number, score) for number, score in enumerate(run.random_baseline(), start=1) if score >= floor]
    if random:
        series.append(Series("random genomes: mean best of that number", *zip(*random, strict=True), 2))  # type: ignore[arg-type]
    levels, far = _baselines(run, [scores[-1], floor])
    over_time = Series("best so far", [elapsed[n - 1] for n in numbers], scores, 0, "steps")
    return [
        figure(
            "Best so far, by candidates",
            charts.plot("Best score so far by candidates", series, "candidates", run.score_name(), levels),
            series,
            far,
        ),
        figure(
            "Best so far, by time",
            charts.plot(
                "Best score so far by time",
                [over_time],
                "seconds of evaluation",
                run.score_name(),
                _baselines(run, scores)[0],
            ),
            [over_time],
            "Seconds are summed over processes and exclude the super-network.",
        ),
    ]


def losses_of_models(summary: Summary) -> tuple[list[Series], dict[str, float]]:
    """Losses of the models of a run that were trained from scratch, by tokens, if they were recorded; and that of the unigram
    model."""
    total = summary["tokens"]["final_each"] / summary["settings"]["final_steps"]
    curves = {name: result.get("training_losses") for name, result in summary["results"].items()}
    series = [
        # The first losses are those of random weights, of any model; they would compress the rest.
        Series(name, [step * total for step, _ in points[1:]], [loss for _, loss in points[1:]], color)
        for color, (name, points) in enumerate(curves.items())
        if points and len(points) > 2
    ]
    unigram = summary["results"]["unigram"]["loss"]
    return series, {} if unigram is None else {"unigram": unigram}


def final_losses(run: RecordedRun) -> list[dict[str, Any]]:
    """The figure of the losses of the models that were trained from scratch, if they were recorded."""
    series, levels = losses_of_models(run.summary) if run.summary else ([], {})
    if not series:
        return []
    title = "Learning from scratch"
    return [figure(title, charts.plot(title, series, "tokens", "loss of new batches in nats", levels), series)]


def attentions(summary: Summary | None) -> list[dict[str, Any]]:
    """A figure for each attention layer of the found model that has weights: where it looks."""
    if summary is None:
        return []
    found = next(iter(summary["results"].values())).get("attention_by_distance", {})
    figures = []
    for layer, heads in found.items():
        reach = len(heads[0]) // 2
        distances = range(-reach, reach + 1)
        shown = heads if len(heads) <= MAX_HEADS else [[math.fsum(x) / len(heads) for x in zip(*heads, strict=True)]]
        names = [f"head {number}" for number in range(1, len(shown) + 1)] if len(shown) > 1 else ["mean of the heads"]
        series = [
            Series(name, distances, head, color) for color, (name, head) in enumerate(zip(names, shown, strict=True))
        ]
        from_zero = {"": 0.0}  # a line at 0, so that equal weights look equal
        svg = charts.plot(f"Layer {layer}", series, "tokens to the right", "fraction of the weight", from_zero)
        figures.append(figure(f"Layer {layer}", svg, series, f"Of the weight: {tables.attention_text(heads)}."))
    return figures


def operations(run: RecordedRun) -> dict[str, Any] | None:
    """The priority of each operation after parts of the history; the mean rank if the strategy uses no priority."""
    if not run.records:
        return None
    by_priority = run.settings["strategy"] == "op_nas"
    arguments = {name: run.settings[f"priority_{name}"] for name in ("alpha", "temperature", "decay")}
    built_in = SpaceSettings(operations=run.settings["operations"]).named_operations()
    custom = (run.header.get("custom_operations") or {}).items()
    names = [*(n for n in built_in if n in OPERATIONS), *(n for n, rule in custom if rule != LAYER_RULE)]
    parts = sorted({max(1, round(len(run.records) * (i + 1) / NUM_TIMES)) for i in range(NUM_TIMES)})
    columns: list[dict[str, float]] = []
    for part in parts:
        archive = Archive(run.records[:part])
        priority = OperationPriority(archive.incidence(BackboneSpace.operations), archive.scores, **arguments)
        columns.append({name: priority.upper_bound(name) for name in names} if by_priority else priority.means)
    known = [value for column in columns for value in column.values()] or [0.0]
    low, reach = min(known), (max(known) - min(known)) or 1.0
    rows = [
        {
            "name": _short(name),
            "cells": [
                (column[name], round(MAX_SHADE * (column[name] - low) / reach)) if name in column else None
                for column in columns
            ],
        }
        for name in sorted(names, key=lambda name: -columns[-1].get(name, -math.inf))
    ]
    last = sorted((column := columns[-1]), key=column.__getitem__)
    text = f"At the end {_short(last[-1])} ranks highest, and {_short(last[0])} lowest." if len(last) > 1 else ""
    return {"parts": parts, "rows": rows, "is_priority": by_priority, "text": text}


def effects(run: RecordedRun, archive: Archive) -> dict[str, Any] | None:
    """Effects on the score that can be told from none, by the additive model of `ThompsonOpNas`."""
    if not archive.best(1):
        return None
    priority = AdditivePriority(archive.incidence(BackboneSpace.features), archive.scores)
    errors = np.sqrt(np.square(priority.root).sum(1))
    rows = [
        Bar(_feature_label(name), float(priority.mean[i]), float(errors[i])) for name, i in priority.columns.items()
    ]
    rows = [row for row in rows if abs(row.value) > DISTINGUISHED * row.error]
    rows = sorted(rows, key=lambda row: -abs(row.value))[:NUM_EFFECTS]
    rows.sort(key=lambda row: -row.value)
    return figure(
        "What raises the score, and what lowers it", charts.bars("Effects on the score", rows) if rows else ""
    )


def _feature_label(name: str) -> str:
    """`layer 1 conv 7` for `0 convolution 7`."""
    layer, _, what = name.partition(" ")
    return f"layer {int(layer) + 1} {_short(what)}"


def _short(name: str) -> str:
    return name.partition("_")[0] if name in SHORT_NAMES else name.replace("convolution", "conv")


def layers(run: RecordedRun, archive: Archive) -> list[dict[str, Any]]:
    """The genes of each layer, in the first generation and among the best."""
    best = archive.best(max(1, len(run.records) // 5))
    groups = {
        "In the first generation": [record for record in run.records if record.generation == 0],
        f"In the best fifth ({len(best)})": best,
    }
    sizes = sorted(run.settings["kernel_sizes"])
    figures = []
    for title, records in groups.items():
        if not records:
            continue
        rows = []
        for layer in range(len(records[0].genome)):
            kinds = Counter(
                gene.kernel_size if isinstance(gene, Convolution) else gene.kind
                for gene in (r.genome[layer] for r in records)
            )
            custom = sorted(kind for kind in kinds if kind not in sizes and kind != Attention.kind)
            parts = [
                (_layer_class(kind, sizes), kinds[kind] / len(records), str(kind))
                for kind in [*sizes, *custom, Attention.kind]
                if kinds[kind]
            ]
            rows.append(Bar(f"layer {layer + 1}", parts=parts))
        figures.append(figure(title, charts.stacked_bars(title, rows)))
    return figures


def _layer_class(kind: int | str, sizes: Sequence[int]) -> str:
    """`k0` for the smallest kernel to `k6` for the largest; `attention`; `custom`."""
    if kind in sizes:
        return f"k{round(6 * sizes.index(kind) / max(1, len(sizes) - 1))}"
    return "attention" if kind == Attention.kind else "custom"


def _cost(name: str, record: Record) -> float:
    return record.result.costs[name]


def fronts(run: RecordedRun) -> list[dict[str, Any]]:
    """Score against each cost, with the Pareto front."""
    figures = []
    for cost, name in COST_NAMES.items():
        scored = [record for record in run.records if record.score is not None and cost in record.result.costs]
        if not scored:
            continue
        front = pareto_front(scored, [cost, "score"])
        on_front = {record.index for record in front}
        others = _thinned([record for record in scored if record.index not in on_front])
        floor = _floor(scored)
        series = [
            each
            for label, records, color in (("candidates", others, 1), ("Pareto front", front, 0))
            for each in _points(records, floor, label, color, functools.partial(_cost, cost))
        ]
        figures.append(figure(f"Score and {name}", charts.plot(name, series, name, run.score_name()), series))
    return figures
