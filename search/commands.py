"""The command `autobert-zero`: what it can do, each with a `--help` of its own.

autobert-zero search --train_file text.txt --output_dir runs/mine
autobert-zero show runs/mine --output backbone.svg
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from autobert_zero.configuration_autobert_zero import (
    PRESETS,
    Attention,
    AutoBertZeroConfig,
    Expression,
    Genome,
)
from autobert_zero.search import drawing, notation, reporting
from autobert_zero.search.factory import load_genome
from autobert_zero.search.history import read_history
from autobert_zero.search.records import Archive
from autobert_zero.search.report import RunHistory, page, same_text, standard_error, summarize


def find_genome(source: str) -> Genome:
    """The genome of a preset, an expression (one layer), a JSON file, a run (while it goes on, its best so far), a model
    folder or a model of the Hub.

    Raises: ValueError for what is none of these; OSError for a model that cannot be loaded.
    """
    if source in PRESETS:
        return PRESETS[source][0]
    if "(" in source:
        return Genome([Attention(Expression.parse(source))])
    path = Path(source)
    if path.is_file():
        return load_genome(path)
    if path.is_dir():
        for name in ("summary.json", "config.json"):
            if (path / name).exists():
                return load_genome(path / name)
        if not (path / "history.jsonl").exists():
            raise ValueError(f"expected a summary.json, config.json or history.jsonl in {source!r}, got none")
        best = Archive(read_history(path / "history.jsonl")[1]).best(1)
        if not best:
            raise ValueError(f"{source!r} has no candidate with a score yet")
        return best[0].genome
    return AutoBertZeroConfig.from_pretrained(source).parsed_genome()


def _show(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="autobert-zero show",
        description="Show a backbone: its layers and the attentions among them.",
        epilog="example: autobert-zero show autobert-zero-base --output published.svg",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        help=f"One of {', '.join(PRESETS)}, an expression, a JSON file, the folder of a run or a model, or a model of the Hub.",
    )
    parser.add_argument("--output", type=Path, help="Picture to write: a file that ends in .svg or .png.")
    parser.add_argument("--latex", action="store_true", help="Print formulas.")
    given = parser.parse_args(arguments)
    try:
        genome = find_genome(given.source)
    except (ValueError, OSError) as error:
        parser.error(f"source: {error}")
    if given.output is None:
        print(notation.genome_latex(genome) if given.latex else notation.genome_text(genome))
        return
    picture = drawing.draw_genome(genome)
    try:
        match given.output.suffix.lower():
            case ".svg":
                given.output.write_text(drawing.to_svg(picture), encoding="utf-8")
            case ".png":
                drawing.save_png(picture, given.output)
            case suffix:
                parser.error(f"--output: expected a file that ends in .svg or .png, got {suffix!r}")
    except OSError as error:
        parser.error(f"--output: cannot write {given.output}: {error.strerror}")
    except ImportError:
        parser.error("--output: pictures in .png need matplotlib (pip install matplotlib); .svg needs nothing")


def _read_runs(parser: argparse.ArgumentParser, sources: list[str]) -> list[RunHistory]:
    try:
        return [RunHistory.read(source) for source in sources]
    except (ValueError, OSError) as error:
        parser.error(f"runs: {error}")


def _report(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="autobert-zero report",
        description="Make the page of a search, or one of several side by side, from their histories.",
        epilog="example: autobert-zero report runs/mine runs/other --output both.html",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", help="Folders of runs, or history files; also while a search still runs.")
    parser.add_argument(
        "--output", type=Path, help="HTML file to write; default: report.html in the folder of the run, if it is one."
    )
    given = parser.parse_args(arguments)
    runs = _read_runs(parser, given.runs)
    output = given.output
    if output is None:
        if len(runs) > 1 or not Path(given.runs[0]).is_dir():
            parser.error("--output: expected a file for what is not the folder of one run")
        output = Path(given.runs[0]) / "report.html"
    try:
        reporting.write_text(output, page(runs))
    except OSError as error:
        parser.error(f"--output: cannot write {output}: {error.strerror}")
    print(output)


def _report_losses(runs: list[RunHistory]) -> Iterator[tuple[float | None, float | None]]:
    """Mean and standard error of the losses of the found models, then of BERT, over the runs that are finished."""
    results = [
        json.loads(file.read_text(encoding="utf-8"))["results"]
        for run in runs
        if run.folder is not None and (file := run.folder / "summary.json").exists()
    ]
    for name in ("AutoBERT-Zero (found)", "BERT"):
        losses = [result[name]["loss"] for result in results if result[name]["loss"] is not None]
        yield (statistics.fmean(losses) if losses else None, standard_error(losses))


def _shown(value: tuple[float | None, float | None]) -> str:
    mean, error = value
    return "" if mean is None else f"{mean:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _compare(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="autobert-zero compare",
        description="Compare searches: best scores, with means and standard errors over runs that differ in nothing but "
        "their seeds, and the report losses of those that are finished.",
        epilog="example: autobert-zero compare runs/*",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", help="Folders of runs, or history files.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    given = parser.parse_args(arguments)
    runs = _read_runs(parser, given.runs)
    rows = summarize(runs)
    if given.json:
        names = ("found", "bert")
        for row in rows:
            losses = zip(names, _report_losses(row["runs"]), strict=True)
            row |= {"runs": [run.name for run in row["runs"]], "losses": dict(losses)}
        print(json.dumps(rows, indent=2))
        return
    cells = [("group", "runs", "best score", "found: loss", "BERT: loss")]
    for row in rows:
        score = (row["mean"], row["error"])
        cells.append((row["label"], str(len(row["runs"])), *map(_shown, (score, *_report_losses(row["runs"])))))
    print(reporting.text_table(cells))
    if not same_text(runs):
        print("The runs are not of the same text: their scores are no measure of each other.", file=sys.stderr)


def _export(arguments: list[str]) -> None:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    from autobert_zero.search.publishing import export, push

    parser = argparse.ArgumentParser(
        prog="autobert-zero export",
        description="Make a folder for the Hub of the model that a search has found: weights, configuration, tokenizer, code, "
        "picture and model card. Upload it, if asked to.",
        epilog="example: autobert-zero export runs/mine --output exported --push_to_hub me/my-bert --private",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="Folder of a finished run.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to make.")
    parser.add_argument("--license", help="License of the model, for its card: `apache-2.0`, say.")
    parser.add_argument("--language", nargs="+", help="Languages of the text, for its card: `en`, say.")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="Upload it to this repository of the Hub.")
    parser.add_argument("--private", action="store_true", help="Make a repository that others do not see.")
    given = parser.parse_args(arguments)
    if given.private and not given.push_to_hub:
        parser.error("--private: expected --push_to_hub with it")
    try:
        export(given.run, given.output, given.push_to_hub, license=given.license, language=given.language)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(given.output)
    if given.push_to_hub:
        try:
            print(push(given.output, given.push_to_hub, given.private))
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            sys.exit(f"error: not uploaded: {error}\n{given.output} is ready; `hf upload` takes it, too.")


def _search(arguments: list[str]) -> None:
    from autobert_zero.search.cli import main as search  # torch and transformers take seconds to import

    search(arguments)


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "search": (_search, "evolve a backbone from text"),
    "show": (_show, "show a backbone in text, LaTeX or a picture"),
    "export": (_export, "make a folder for the Hub of a found model, and upload it"),
    "report": (_report, "make the page of a search, or of several side by side"),
    "compare": (_compare, "compare searches in a table"),
}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="autobert-zero", description="Evolved BERT backbones.", allow_abbrev=False)
    commands = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{commands}\n\n`autobert-zero COMMAND --help` says more."
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=f"One of {', '.join(COMMANDS)}.")
    run, _ = COMMANDS[parser.parse_args(arguments[:1]).command]
    run(arguments[1:])
