"""The command `autobert-zero`, with a subcommand per module of this folder.

autobert-zero search --train_file text.txt --output_dir runs/mine
autobert-zero show runs/mine --output backbone.svg
"""

import argparse
import importlib.metadata
import os
import sys

from autobert_zero.search.cli import compare, env, export, report, search, show
from autobert_zero.search.cli.arguments import ArgumentParser, described
from autobert_zero.search.cli.encoding import degrade_output


COMMANDS = {"search": search, "show": show, "report": report, "compare": compare, "export": export, "env": env}


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command, and those of its subcommands."""
    parser = ArgumentParser(
        prog="autobert-zero", description="Evolve, show, compare and export BERT backbones.", allow_abbrev=False
    )
    version = importlib.metadata.version("autobert-zero")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = subparsers.add_parser(name, help=command.SUMMARY, **described(command))
        command.add_arguments(parsers[name])
    parsers["completion"] = subparsers.add_parser(
        "completion",
        help="print a script for tab completion",
        description="Print a script that completes these commands and their options with the tab key.",
        epilog="example: autobert-zero completion bash > ~/.local/share/bash-completion/completions/autobert-zero",
        allow_abbrev=False,
    )
    parsers["completion"].add_argument("shell", choices=("bash", "zsh", "tcsh"), help="Shell of the script.")
    return parser, parsers


def main(arguments: list[str] | None = None) -> None:
    degrade_output()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, parsers = make_parser()
    if arguments[:1] == ["search"]:
        search.use_config(parsers["search"], arguments[1:])
    given, unknown = parser.parse_known_args(arguments)
    subparser = parsers[given.command]
    search.refuse_unknown(subparser, unknown)
    if given.command == "search":
        search.search(*search.read(subparser, given))
    elif given.command == "completion":
        _print_completion(subparser, given.shell)
    else:
        try:
            COMMANDS[given.command].run(subparser, given)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
            sys.exit(1)


def _print_completion(parser: argparse.ArgumentParser, shell: str) -> None:
    try:
        import shtab
    except ImportError:
        parser.error("needs shtab (pip install shtab)")
    print(shtab.complete(make_parser()[0], shell))
