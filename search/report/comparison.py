"""Searches in a table: best scores and test losses, over runs that differ only in their seeds."""

from collections.abc import Sequence
from typing import Any

from autobert_zero.search.report.page import mean_lead, mean_test_losses, summarize
from autobert_zero.search.report.recorded_run import RecordedRun
from autobert_zero.search.report.tables import text_table, with_error


def compared(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """For every group of runs its label, names, best scores, and the test losses of its finished runs."""
    return [{**row, "runs": [each.name for each in row["runs"]]} for row in summarize(runs)]


def comparison_table(runs: Sequence[RecordedRun]) -> str:
    """A row for every group of runs, followed by its runs."""
    cells: list[tuple[str, ...]] = [
        ("group", "runs", "best score", "found: loss", "BERT: loss", "BERT, rotary: loss", "ahead by")
    ]
    for row in summarize(runs):
        score = None if row["mean"] is None else (row["mean"], row["error"])
        values = (score, *row["losses"].values(), row["lead"])
        cells.append((row["label"], str(len(row["runs"])), *map(with_error, values)))
        for each in row["runs"] if len(row["runs"]) > 1 else []:
            score = None if each.best is None else (each.best.score, None)
            values = (score, *mean_test_losses([each]).values(), mean_lead([each]))
            cells.append((f"  {each.name}", "", *map(with_error, values)))
    return text_table(cells)
