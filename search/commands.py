"""The command `autobert-zero`: what it can do, each with a `--help` of its own.

autobert-zero search --train_file text.txt --output_dir runs/mine
autobert-zero show runs/mine --output backbone.svg
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import HfArgumentParser

from autobert_zero.configuration_autobert_zero import (
    PRESETS,
    Attention,
    AutoBertZeroConfig,
    Expression,
    Genome,
)
from autobert_zero.search import cli, drawing, notation, reporting
from autobert_zero.search.factory import load_genome
from autobert_zero.search.history import read_history
from autobert_zero.search.records import Archive
from autobert_zero.search.report import RunHistory, page, same_text, summarize


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
    local = path.is_absolute() or path.suffix == ".json" or len(path.parts) > 2 or Path(path.parts[0]).is_dir()
    if local:  # or the Hub would be asked, again and again, for what is a mistyped path
        raise ValueError(
            f"expected a file, a folder, or a model of the Hub (USER/NAME), got {source!r}, which is none"
        )
    config, _ = AutoBertZeroConfig.get_config_dict(source)
    if config.get("model_type") != AutoBertZeroConfig.model_type:
        raise ValueError(f"a model of type {config.get('model_type')!r} has no genome: {source!r}")
    return AutoBertZeroConfig.from_dict(config).parsed_genome()


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help=f"One of {', '.join(PRESETS)}, an expression, a JSON file, the folder of a run or a model, or a model of the Hub.",
    )
    parser.add_argument("--output", type=Path, help="Picture to write: a file that ends in .svg or .png.")
    parser.add_argument("--latex", action="store_true", help="Print formulas.")


def _show(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
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
    print(given.output)


def _read_runs(parser: argparse.ArgumentParser, sources: list[str]) -> list[RunHistory]:
    try:
        return [RunHistory.read(source) for source in sources]
    except (ValueError, OSError) as error:
        parser.error(f"runs: {error}")


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="Folders of runs, or history files; also while a search still runs.")
    parser.add_argument(
        "--output", type=Path, help="HTML file to write; default: report.html in the folder of the run, if it is one."
    )


def _report(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
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
    results = [run.summary["results"] for run in runs if run.summary]
    for name in ("AutoBERT-Zero (found)", "BERT"):
        losses = [result[name]["loss"] for result in results if result[name]["loss"] is not None]
        yield (statistics.fmean(losses) if losses else None, reporting.standard_error(losses))


def _shown(value: tuple[float | None, float | None]) -> str:
    mean, error = value
    return "" if mean is None else f"{mean:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="Folders of runs, or history files.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _compare(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    runs = _read_runs(parser, given.runs)
    rows = summarize(runs)
    if given.json:
        names = ("found", "bert")
        for row in rows:
            losses = zip(names, _report_losses(row["runs"]), strict=True)
            row |= {"runs": [run.name for run in row["runs"]], "losses": dict(losses)}
        print(json.dumps(rows, indent=2))
        return
    cells: list[tuple[str, ...]] = [("group", "runs", "best score", "found: loss", "BERT: loss")]
    for row in rows:
        score = (row["mean"], row["error"])
        cells.append((row["label"], str(len(row["runs"])), *map(_shown, (score, *_report_losses(row["runs"])))))
        for run in row["runs"] if len(row["runs"]) > 1 else []:
            score = (None if run.best is None else run.best.score, None)
            cells.append((f"  {run.name}", "", *map(_shown, (score, *_report_losses([run])))))
    print(reporting.text_table(cells))
    if not same_text(runs):
        print("The runs are not of the same text: their scores are no measure of each other.", file=sys.stderr)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="Folder of a finished run.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to make.")
    parser.add_argument("--license", help="License of the model, for its card: `apache-2.0`, say.")
    parser.add_argument("--language", nargs="+", help="Languages of the text, for its card: `en`, say.")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="Upload it to this repository of the Hub.")
    parser.add_argument("--private", action="store_true", help="Make a repository that others do not see.")


def _export(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    from autobert_zero.search.publishing import export, push

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


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="The shell to write for.")


def _completion(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError:
        parser.error("needs shtab (pip install shtab)")
    print(shtab.complete(make_parser()[0], given.shell))


def _search(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    cli.search(*cli.read(parser, given))


@dataclass(frozen=True)
class Command:
    """What a command does: how it is told in a line and in full, an example, its arguments, and what runs."""

    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.ArgumentParser, argparse.Namespace], None]


COMMANDS = {
    "show": Command(
        "show a backbone in text, LaTeX or a picture",
        "Show a backbone: its layers and the attentions among them.",
        "autobert-zero show autobert-zero-base --output published.svg",
        _show_arguments,
        _show,
    ),
    "report": Command(
        "make the page of a search, or of several side by side",
        "Make the page of a search, or one of several side by side, from their histories.",
        "autobert-zero report runs/mine runs/other --output both.html",
        _report_arguments,
        _report,
    ),
    "compare": Command(
        "compare searches in a table",
        "Compare searches: best scores, with means and standard errors over runs that differ in nothing but their seeds, and "
        "the report losses of those that are finished. Another seed also splits the text in another way.",
        "autobert-zero compare runs/*",
        _compare_arguments,
        _compare,
    ),
    "export": Command(
        "make a folder for the Hub of a found model, and upload it",
        "Make a folder for the Hub of the model that a search has found: weights, configuration, tokenizer, code, picture and "
        "model card. Upload it, if asked to.",
        "autobert-zero export runs/mine --output exported --push_to_hub me/my-bert --private",
        _export_arguments,
        _export,
    ),
    "completion": Command(
        "print a script for tab completion",
        "Print a script that completes these commands and their options by the tab key.",
        "autobert-zero completion bash > ~/.local/share/bash-completion/completions/autobert-zero",
        _completion_arguments,
        _completion,
    ),
}


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, HfArgumentParser]]:
    """The parser of all, and those of the commands."""
    parser = argparse.ArgumentParser(prog="autobert-zero", description="Evolved BERT backbones.", allow_abbrev=False)
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=HfArgumentParser
    )
    parsers = {"search": subparsers.add_parser("search", help="evolve a backbone from text", **cli.parser_arguments())}
    cli.add_switches(parsers["search"])
    for name, command in COMMANDS.items():
        parsers[name] = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=f"example: {command.example}",
            allow_abbrev=False,
            formatter_class=argparse.HelpFormatter,
        )
        command.add_arguments(parsers[name])
    return parser, parsers


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, parsers = make_parser()
    if arguments[:1] == ["search"]:
        arguments = ["search", *cli.with_config(parsers["search"], arguments[1:])]
    given, unknown = parser.parse_known_args(arguments)
    cli.refuse_unknown(parsers[given.command], unknown)
    run = _search if given.command == "search" else COMMANDS[given.command].run
    run(parsers[given.command], given)
