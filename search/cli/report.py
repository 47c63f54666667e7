"""`autobert-zero report`: the page of a search, or of several side by side."""

import argparse
from pathlib import Path
from typing import Any

from autobert_zero.search.cli.arguments import path


SUMMARY = "make the page of a search, or of several side by side"
DESCRIPTION = "Make the page of a search, or of several side by side, from their histories."
EXAMPLE = "autobert-zero report runs/mine runs/other --output both.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path, nargs="+", help="Folders of runs, or history files; also during a search.")
    parser.add_argument(
        "--output", type=path, help="HTML file to write; default: report.html in the folder of a single run."
    )


def read_runs(parser: argparse.ArgumentParser, sources: list[Path]) -> list[Any]:
    """The recorded runs, each once. Ends with a usage error if one cannot be read."""
    from autobert_zero.search.report.recorded_run import RecordedRun

    found: dict[Path, Path] = {}
    try:
        for source in sources:
            history = (source / "history.jsonl" if source.is_dir() else source).resolve()
            if history not in found or source.is_dir():  # a folder also has the results
                found[history] = source
        return [RecordedRun.read(source) for source in found.values()]
    except (ValueError, OSError, RuntimeError) as error:  # the last is that of links in a circle
        parser.error(f"runs: {error}")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from autobert_zero.search.files import write_text
    from autobert_zero.search.report.page import page

    runs = read_runs(parser, arguments.runs)
    output = arguments.output
    if output is None:
        if len(runs) > 1 or not arguments.runs[0].is_dir():
            parser.error("--output: expected a file, unless the page is of one folder")
        output = arguments.runs[0] / "report.html"
    try:
        write_text(output, page(runs))
    except OSError as error:
        parser.error(f"--output: cannot write {output}: {error.strerror}")
    print(output)
