"""A page about one search or several, made from their histories alone: also while a search still runs. No torch.

One run is told at length; several are laid side by side, with means and standard errors over those that differ in nothing
but their seeds. The page is one file without scripts; the same histories give the same page.
"""

import itertools
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from autobert_zero.configuration_autobert_zero import OPERATIONS, Attention, Convolution, Genome
from autobert_zero.search import charts, notation, reporting
from autobert_zero.search.charts import Bar, Series
from autobert_zero.search.drawing import SHORT_NAMES, draw_genome, to_svg
from autobert_zero.search.history import read_history
from autobert_zero.search.priority import AdditivePriority, OperationPriority
from autobert_zero.search.records import Archive, Record, pareto_front
from autobert_zero.search.settings import BUDGET, SearchSettings
from autobert_zero.search.space import BackboneSpace


TEMPLATES = Path(__file__).with_name("templates")
NUM_BEST = 5
NUM_EFFECTS = 14
NUM_TIMES = 6
MOST_SHADE = 60  # per cent
LOWEST_QUANTILE = 0.2
# Of a page that a browser still likes.
MOST_POINTS = 2000
MOST_DRAWN = 200
# A level further away than this many times the height of the curves is told and not drawn.
FAR = 1.0
COST_NAMES = {"parameters": "parameters", "flops": "FLOPs of a sequence", "latency": "latency (ms)"}


@dataclass(frozen=True)
class RunHistory:
    """A run as its history tells it, and, once it is finished, with its summary."""

    name: str
    header: dict[str, Any]
    records: list[Record]
    summary: dict[str, Any] | None = None
    later: dict[str, Any] = field(default_factory=dict)  # settings that the history does not depend on

    @classmethod
    def read(cls, path: str | os.PathLike) -> "RunHistory":
        """The run of a folder, or of a history file. Raises: ValueError or OSError for what is none."""
        path = Path(path)
        folder = path if path.is_dir() else None
        file = path / "history.jsonl" if folder else path
        if not file.exists():
            raise FileNotFoundError(f"expected the folder of a run, or a history, got {str(path)!r}")
        header, records = read_history(file)
        summary = None
        if folder and (folder / "summary.json").exists():
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            if summary["counts"]["evaluated"] != len(records):
                summary = None  # of before the search went on
        later = {}
        if folder and (folder / "settings.json").exists():
            settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            later = {name: settings[name] for name in BUDGET if name in settings}
        return cls(path.resolve().name if folder else path.stem, header, records, summary, later)

    @property
    def settings(self) -> dict[str, Any]:
        """Those that the history depends on, of the header; by default what an older one does not say; and the budget, as
        far as it is known."""
        return {**SearchSettings().to_dict(), **self.header["settings"], **self.later}

    @property
    def winner(self) -> Record | None:
        """The finalist that was trained from scratch; before that the best by score."""
        return self.records[self.summary["best"]["index"]] if self.summary else self.best

    @property
    def best(self) -> Record | None:
        scored = (record for record in self.records if record.score is not None)
        return max(scored, key=lambda record: record.score, default=None)  # type: ignore[arg-type, return-value]

    @property
    def seconds(self) -> float:
        """What all evaluations took, in whatever processes."""
        return sum(record.seconds for record in self.records)

    def best_so_far(self) -> list[float]:
        """After each record the best score; nan before the first success."""
        scores = [-math.inf if record.score is None else record.score for record in self.records]
        best = np.maximum.accumulate(np.array(scores)) if scores else np.array([])
        return [value if value > -math.inf else math.nan for value in best.tolist()]

    def random_baseline(self) -> list[float]:
        """Mean best score of 1, 2, … genomes drawn from the random ones of the first generation, without putting back; of at
        most `MOST_DRAWN`."""
        seeds = set(self.header.get("seed_genomes") or ())
        first = [r for r in self.records if r.generation == 0 and str(r.genome) not in seeds]
        scores = sorted(r.score for r in first if r.score is not None)
        # With i worse ones below it, a score is the best of n in C(i, n - 1) of all C(count, n) draws.
        expected, ways = [], np.ones(len(scores))
        for drawn in range(1, min(len(scores), MOST_DRAWN) + 1):
            expected.append(float(np.dot(ways, scores) / ways.sum()))
            ways = ways * np.maximum(np.arange(len(scores)) - drawn + 1, 0)
            ways /= ways.max() or 1.0
        return expected

    def facts(self) -> dict[str, str]:
        """What it ran on, as far as the header says."""
        header = self.header
        found = {"text": header.get("text")}
        data = header.get("data")
        if isinstance(data, dict):
            found |= {f"tokens to {role}": f"{count:,}" for role, count in data.get("tokens", {}).items()}
        found["evaluation"] = f"{len(self.records):,} candidates in {duration(self.seconds)}"
        found["seed"] = str(self.settings.get("seed"))
        if machine := header.get("machine"):
            found["machine"] = reporting.machine_text(machine)
        found |= {name: header.get(name) for name in ("command", "commit")}
        found["versions"] = ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items())
        return {name: text for name, text in found.items() if text}

    def score_name(self) -> str:
        return "mean GLUE score" if self.settings["proxy"] == "glue" else "score: minus the loss, in nats"

    def group(self) -> str:
        """What it shares with the runs that differ from it in the seed alone."""
        settings = {name: value for name, value in self.settings.items() if name != "seed"}
        return json.dumps([settings, self.text()], sort_keys=True)

    def text(self) -> str:
        """What its text is: its split and its tokens depend on the seed, too."""
        names = ("train_file", "dataset_name", "dataset_config_name", "max_documents", "proxy_tasks", "proxy")
        return json.dumps([self.header.get("text_digest"), *(self.settings[name] for name in names)])


def page(runs: Sequence[RunHistory], refresh_seconds: int | None = None) -> str:
    """HTML of one run, or of several side by side. A browser loads it again every so many seconds, if given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": _score, "seconds": duration}
    if len(runs) == 1:
        template, title, told = "run.html", runs[0].name, _tell(runs[0])
    else:
        template, title, told = "runs.html", f"{len(runs)} runs", _compare(runs)
    return environment.get_template(template).render(title=title, refresh_seconds=refresh_seconds, **told)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".replace("-", "−")


def _figure(title: str, svg: str, series: Sequence[Series] = (), text: str = "") -> dict[str, Any]:
    return {
        "title": title,
        "svg": Markup(svg),
        "legend": Markup(charts.legend(series) if series else ""),
        "text": text,
    }


def _picture(genome: Genome) -> Markup:
    return Markup(to_svg(draw_genome(genome)))


# One run


def _tell(run: RunHistory) -> dict[str, Any]:
    archive = Archive(run.records)
    counts = Counter(record.status for record in run.records)
    best = archive.best(NUM_BEST)
    winner = run.winner
    if winner is not None:
        best = [winner, *(record for record in best if record is not winner)]
    settings = {**run.settings, **(run.summary["settings"] if run.summary else {})}
    return {
        "run": run,
        "settings": settings,
        "counts": counts,
        "top_score": None if run.best is None else run.best.score,
        "results": reporting.result_rows(run.summary) if run.summary else [],
        "note": reporting.learning_note(run.summary) if run.summary else "",
        "finalists": run.summary["finalists"] if run.summary else [],
        "best": [
            {"record": record, "layers": notation.layer_names(record.genome), "picture": _picture(record.genome)}
            for record in best
        ],
        "text_of_best": notation.genome_text(best[0].genome) if best else "",
        "progress": _progress(run),
        "operations": _operations(run),
        "effects": _effects(run, archive),
        "layers": _layers(run, archive),
        "fronts": _fronts(run),
        "family": _family(run.records, winner) if winner else None,
        "failures": Counter(_reason(r) for r in run.records if r.status in ("failed", "dropped")).most_common(),
        "changed": _changed(settings),
    }


def _reason(record: Record) -> str:
    return str(record.reason).partition(":")[0] if record.status == "failed" else "dropped at the hurdle"


def _levels(run: RunHistory, scores: Sequence[float]) -> tuple[dict[str, float], str]:
    """Baselines near enough to be drawn, and words for the others."""
    levels = {}
    if (unigram := run.header.get("unigram_score")) is not None:
        levels["unigram"] = unigram
    for record in run.records:
        if record.score is not None and notation.is_bert(record.genome):
            levels["BERT"] = record.score
    reach = FAR * (max(scores) - min(scores))
    near = {name: level for name, level in levels.items() if min(scores) - reach <= level <= max(scores) + reach}
    far = [f"{name} {_score(level)}" for name, level in levels.items() if name not in near]
    return near, f"Not drawn, far away: {', '.join(far)}." if far else ""


def _steps(curve: Sequence[float]) -> list[tuple[int, float]]:
    """Number of candidates and best score where a curve begins, wherever it rises, and where it ends."""
    known = [(i + 1, score) for i, score in enumerate(curve) if not math.isnan(score)]
    rises = [b for a, b in itertools.pairwise(known) if b[1] > a[1]]
    return [*known[:1], *rises, *(known[-1:] if len(known) > 1 and known[-1] not in rises else [])]


def _floor(scored: Sequence[Record]) -> float:
    """The lowest score that a chart shows: those far below would press all others together."""
    return float(np.quantile([record.score for record in scored], LOWEST_QUANTILE))  # type: ignore[arg-type]


def _thinned(records: Sequence[Record]) -> Sequence[Record]:
    """At most `MOST_POINTS` of them, evenly spread."""
    return records[:: -(-len(records) // MOST_POINTS)] if records else records


def _progress(run: RunHistory) -> list[dict[str, Any]]:
    curve = _steps(run.best_so_far())
    if not curve:
        return []
    numbers, scores = zip(*curve, strict=True)
    elapsed = np.cumsum([record.seconds for record in run.records]).tolist()
    scored = _thinned([record for record in run.records if record.score is not None])
    floor = _floor(scored)
    candidates = Series(
        "candidates (the worst at the lower edge)",
        [record.index + 1 for record in scored],
        [max(record.score, floor) for record in scored],  # type: ignore[type-var]
        1,
        "points",
        titles=[f"#{record.index}: {_score(record.score)}" for record in scored],
    )
    best = Series("best so far", numbers, [max(score, floor) for score in scores], 0, "steps")
    random = run.random_baseline()
    series = [candidates, best]
    if random:
        shown = [max(score, floor) for score in random]
        series.append(Series("random genomes: mean best of so many", range(1, len(random) + 1), shown, 2))
    levels, far = _levels(run, [scores[-1], floor])
    over_time = Series("best so far", [elapsed[n - 1] for n in numbers], scores, 0, "steps")
    return [
        _figure(
            "Best so far, by candidates",
            charts.plot("Best score so far by candidates", series, "candidates", run.score_name(), levels),
            series,
            far,
        ),
        _figure(
            "Best so far, by time",
            charts.plot(
                "Best score so far by time",
                [over_time],
                "seconds of evaluation",
                run.score_name(),
                _levels(run, scores)[0],
            ),
            [over_time],
            "Seconds are summed over processes; the super-network is not in them.",
        ),
    ]


def _operations(run: RunHistory) -> dict[str, Any] | None:
    """The priority of each operation after some parts of the history; where none is used, the mean rank."""
    if not run.records:
        return None
    by_priority = run.settings["strategy"] == "op_nas"
    arguments = {name: run.settings[f"priority_{name}"] for name in ("alpha", "temperature", "decay")}
    parts = sorted({max(1, round(len(run.records) * (i + 1) / NUM_TIMES)) for i in range(NUM_TIMES)})
    columns: list[dict[str, float]] = []
    for part in parts:
        archive = Archive(run.records[:part])
        priority = OperationPriority(archive.incidence(BackboneSpace.operations), archive.scores, **arguments)
        columns.append({name: priority.upper_bound(name) for name in OPERATIONS} if by_priority else priority.means)
    known = [value for column in columns for value in column.values()] or [0.0]
    low, reach = min(known), (max(known) - min(known)) or 1.0
    rows = [
        {
            "name": _short(name),
            "cells": [
                (column[name], round(MOST_SHADE * (column[name] - low) / reach)) if name in column else None
                for column in columns
            ],
        }
        for name in sorted(OPERATIONS, key=lambda name: -columns[-1].get(name, -math.inf))
    ]
    return {"parts": parts, "rows": rows, "is_priority": by_priority}


def _effects(run: RunHistory, archive: Archive) -> dict[str, Any] | None:
    """What the additive model of `ThompsonOpNas` makes of the history."""
    if not archive.best(1):
        return None
    priority = AdditivePriority(archive.incidence(BackboneSpace.features), archive.scores)
    errors = np.sqrt(np.square(priority.root).sum(1))
    rows = [
        Bar(_feature_label(name), float(priority.mean[i]), float(errors[i])) for name, i in priority.columns.items()
    ]
    rows = sorted(rows, key=lambda row: -abs(row.value))[:NUM_EFFECTS]
    rows.sort(key=lambda row: -row.value)
    return _figure("What lifts the score, and what lowers it", charts.bars("Effects on the score", rows))


def _feature_label(name: str) -> str:
    """`layer 1 conv 7` of `0 convolution 7`."""
    layer, _, what = name.partition(" ")
    return f"layer {int(layer) + 1} {_short(what)}"


def _short(name: str) -> str:
    return name.partition("_")[0] if name in SHORT_NAMES else name.replace("convolution", "conv")


def _layers(run: RunHistory, archive: Archive) -> list[dict[str, Any]]:
    """What stands in each layer, in the first generation and among the best."""
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
            own = sorted(kind for kind in kinds if kind not in sizes and kind != Attention.kind)
            parts = [
                (_layer_class(kind, sizes), kinds[kind] / len(records), str(kind))
                for kind in [*sizes, *own, Attention.kind]
                if kinds[kind]
            ]
            rows.append(Bar(f"layer {layer + 1}", parts=parts))
        figures.append(_figure(title, charts.shares(title, rows)))
    return figures


def _layer_class(kind: int | str, sizes: Sequence[int]) -> str:
    """`k0` for the smallest kernel to `k6` for the largest; `attention`; `own`."""
    if kind in sizes:
        return f"k{round(6 * sizes.index(kind) / max(1, len(sizes) - 1))}"
    return "attention" if kind == Attention.kind else "own"


def _fronts(run: RunHistory) -> list[dict[str, Any]]:
    """Score against each cost, with what nothing beats in both."""
    figures = []
    for cost, name in COST_NAMES.items():
        scored = [record for record in run.records if record.score is not None and cost in record.costs]
        if not scored:
            continue
        front = pareto_front(scored, [cost, "score"])
        on_front = {record.index for record in front}
        others = _thinned([record for record in scored if record.index not in on_front])
        floor = _floor(scored)
        series = [
            Series(
                label,
                [r.costs[cost] for r in records],
                [max(r.score, floor) for r in records],  # type: ignore[type-var]
                color,
                "points",
                titles=[f"#{r.index}: {_score(r.score)}, {charts.number(r.costs[cost])}" for r in records],
            )
            for label, records, color in (
                ("candidates (the worst at the lower edge)", others, 1),
                ("Pareto front", front, 0),
            )
        ]
        figures.append(_figure(f"Score and {name}", charts.plot(name, series, name, run.score_name()), series))
    return figures


def _family(records: Sequence[Record], youngest: Record) -> list[dict[str, Any]]:
    """All ancestors of a record and itself, the youngest first, each with what came of which parent.

    Those on the line of first parents are the trunk; the others came in by crossover.
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
                changes = [f"gave layers {', '.join(taken)}"] if taken else ["gave nothing that stayed"]
            edges.append({"parent": parent.index, "changes": changes})
        members.append({"record": record, "edges": edges, "trunk": index in trunk})
    return members


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not what they are by default."""
    default = SearchSettings().to_dict()
    return {name: value for name, value in settings.items() if default.get(name) != value}


# Several runs


def groups_of(runs: Sequence[RunHistory]) -> dict[str, list[RunHistory]]:
    """Runs that differ in nothing but their seeds, by a name that says what the groups differ in: `strategy=random`."""
    groups: dict[str, list[RunHistory]] = {}
    for run in runs:
        groups.setdefault(run.group(), []).append(run)
    firsts = [members[0] for members in groups.values()]
    names = [
        n for n in SearchSettings().to_dict() if n != "seed" and len({str(r.settings.get(n)) for r in firsts}) > 1
    ]
    labels = [", ".join(f"{name}={run.settings.get(name)}" for name in names) or run.name for run in firsts]
    if len(set(labels)) < len(labels):  # the text is what differs
        labels = [f"{label}, {run.name}" for label, run in zip(labels, firsts, strict=True)]
    return dict(zip(labels, groups.values(), strict=True))


def same_text(runs: Sequence[RunHistory]) -> bool:
    """Whether scores of the runs can be compared."""
    return len({run.text() for run in runs}) == 1


def summarize(runs: Sequence[RunHistory]) -> list[dict[str, Any]]:
    """For each group its name, its runs, and of their best scores the mean and its standard error (None without any)."""
    rows = []
    for label, members in groups_of(runs).items():
        scores = [run.best.score for run in members if run.best is not None and run.best.score is not None]
        rows.append(
            {
                "label": label,
                "runs": members,
                "mean": statistics.fmean(scores) if scores else None,
                "error": reporting.standard_error(scores),
            }
        )
    return rows


def _compare(runs: Sequence[RunHistory]) -> dict[str, Any]:
    rows = summarize(runs)
    curves = {id(run): run.best_so_far() for run in runs}
    # Where a curve begins is chance, and would press all that follows together.
    starts = [curve[len(curve) // 10] for curve in curves.values() if curve]
    floor = min((score for score in starts if not math.isnan(score)), default=-math.inf)
    single, means = [], []
    for color, row in enumerate(rows):
        members = row["runs"]
        name = f"{row['label']} ({len(members)} runs)" if len(members) > 1 else row["label"]
        for run in members:
            points = [(number, max(score, floor)) for number, score in _steps(curves[id(run)])]
            if points:
                single.append(Series(run.name, *zip(*points, strict=True), color, "steps"))  # type: ignore[arg-type]
        # As far as all of them have come, from where all have a score.
        length = min(len(curves[id(run)]) for run in members)
        columns = [(i + 1, [curves[id(run)][i] for run in members]) for i in range(length)]
        columns = [(i, scores) for i, scores in columns if all(score >= floor for score in scores)]
        if columns:
            errors = [reporting.standard_error(scores) or 0.0 for _, scores in columns] if len(members) > 1 else None
            numbers = [i for i, _ in columns]
            means.append(Series(name, numbers, [statistics.fmean(v) for _, v in columns], color, "line", errors))
    names = {run.score_name() for run in runs}
    y_label = names.pop() if len(names) == 1 else "score"
    return {
        "groups": rows,
        "comparable": same_text(runs),
        "progress": [
            _figure(title, charts.plot(title, series, "candidates", y_label), means)
            for title, series in (
                ("Mean best so far, with its standard error", means),
                ("Best so far of each run", single),
            )
        ],
        "found": [
            {"run": run, "record": run.best, "picture": _picture(run.best.genome)}
            for run in runs
            if run.best is not None
        ],
    }
