"""`autobert-zero compare`: searches in a table."""

import argparse
import json
import sys
from collections.abc import Iterator

from autobert_zero.search.cli.report import read_runs
from autobert_zero.search.report.page import summarize
from autobert_zero.search.report.recorded_run import RecordedRun, same_text
from autobert_zero.search.report.tables import mean, standard_error, text_table, with_error


SUMMARY = "compare searches in a table"
DESCRIPTION = (
    "Compare searches: best scores, with means and standard errors over runs that differ only in their seeds, and the "
    "test losses of finished runs. Another seed also splits the text in another way."
)
EXAMPLE = "autobert-zero compare runs/*"
MODELS = {"found": "AutoBERT-Zero (found)", "bert": "BERT", "bert_rotary": "BERT, rotary positions"}

MeanAndError = tuple[float | None, float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="Folders of runs, or history files.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _test_losses(runs: list[RecordedRun]) -> Iterator[MeanAndError]:
    """Mean and standard error of the test losses of each of `MODELS` over the finished runs."""
    results = [run.summary["results"] for run in runs if run.summary]
    for name in MODELS.values():
        losses = [r[name]["loss"] for r in results if name in r and r[name]["loss"] is not None]
        yield (mean(losses) if losses else None, standard_error(losses))


def _cell(value: MeanAndError) -> str:
    return "" if value[0] is None else with_error(value)


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    runs = read_runs(parser, arguments.runs)
    rows = summarize(runs)
    if arguments.json:
        for row in rows:
            losses = zip(MODELS, _test_losses(row["runs"]), strict=True)
            row |= {"runs": [each.name for each in row["runs"]], "losses": dict(losses)}
        print(json.dumps(rows, indent=2))
        return
    cells: list[tuple[str, ...]] = [("group", "runs", "best score", "found: loss", "BERT: loss", "BERT, rotary: loss")]
    for row in rows:
        score = (row["mean"], row["error"])
        cells.append((row["label"], str(len(row["runs"])), *map(_cell, (score, *_test_losses(row["runs"])))))
        for each in row["runs"] if len(row["runs"]) > 1 else []:
            score = (None if each.best is None else each.best.score, None)
            cells.append((f"  {each.name}", "", *map(_cell, (score, *_test_losses([each])))))
    print(text_table(cells))
    if not same_text(runs):
        print("The runs used different texts: their scores are not comparable.", file=sys.stderr)
