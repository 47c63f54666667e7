"""`autobert-zero compare`: searches in a table."""

import argparse
import json
import sys

from autobert_zero.search.cli.arguments import path
from autobert_zero.search.cli.report import read_runs


SUMMARY = "compare searches in a table"
DESCRIPTION = (
    "Compare searches: best scores, with means and standard errors over runs that differ only in their seeds, and the "
    "test losses of finished runs. The last column is how far the found model is ahead of the better baseline."
)
EXAMPLE = "autobert-zero compare runs/*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path, nargs="+", help="Folders of runs, or history files.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from autobert_zero.search.report.comparison import compared, comparison_table
    from autobert_zero.search.report.recorded_run import same_text

    runs = read_runs(parser, arguments.runs)
    print(json.dumps(compared(runs), indent=2) if arguments.json else comparison_table(runs))
    if not arguments.json and not same_text(runs):
        print("The runs used different texts: their scores are not comparable.", file=sys.stderr)
