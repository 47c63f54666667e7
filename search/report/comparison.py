"""Searches in a table: best scores and test losses, over runs that differ only in their seeds."""

from collections.abc import Iterator, Sequence
from typing import Any

from autobert_zero.search.report.page import summarize
from autobert_zero.search.report.recorded_run import RecordedRun
from autobert_zero.search.report.tables import MODELS, mean, standard_error, text_table, with_error


MeanAndError = tuple[float | None, float | None]


def _test_losses(runs: list[RecordedRun]) -> Iterator[MeanAndError]:
    """Mean and standard error of the test losses of each of `MODELS` over the finished runs."""
    results = [run.summary["results"] for run in runs if run.summary]
    for name in MODELS.values():
        losses = [r[name]["loss"] for r in results if name in r and r[name]["loss"] is not None]
        yield (mean(losses) if losses else None, standard_error(losses))


def _cell(value: MeanAndError) -> str:
    return "" if value[0] is None else with_error(value)


def compared(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """For every group of runs its label, names, best scores, and the test losses of its finished runs."""
    rows = summarize(runs)
    for row in rows:
        losses = zip(MODELS, _test_losses(row["runs"]), strict=True)
        row |= {"runs": [each.name for each in row["runs"]], "losses": dict(losses)}
    return rows


def comparison_table(runs: Sequence[RecordedRun]) -> str:
    """A row for every group of runs, followed by its runs."""
    cells: list[tuple[str, ...]] = [("group", "runs", "best score", "found: loss", "BERT: loss", "BERT, rotary: loss")]
    for row in summarize(runs):
        score = (row["mean"], row["error"])
        cells.append((row["label"], str(len(row["runs"])), *map(_cell, (score, *_test_losses(row["runs"])))))
        for each in row["runs"] if len(row["runs"]) > 1 else []:
            score = (None if each.best is None else each.best.score, None)
            cells.append((f"  {each.name}", "", *map(_cell, (score, *_test_losses([each])))))
    return text_table(cells)
