"""Command line of a search: arguments, exit codes and error messages.

accelerate launch -m autobert_zero.search --output_dir runs/demo
"""

import argparse
import dataclasses
import difflib
import os
import sys
from collections.abc import Iterable
from typing import Any, get_type_hints

import yaml
from transformers import HfArgumentParser

from autobert_zero.search.settings import SearchSettings, flags


DESCRIPTION = (
    "Evolve a BERT backbone from text: train a bi-branch super-network, search by OP-NAS, then train the best backbone and "
    "a BERT of the same depth and width from scratch."
)
SETTINGS = {field.name for field in dataclasses.fields(SearchSettings)}
CONTINUE = "What is done is kept: the same command continues it."


def parser_arguments() -> dict[str, Any]:
    """Arguments of the `HfArgumentParser` of a search: its settings, group by group."""
    hints = get_type_hints(SearchSettings)
    groups = []
    for name, settings in SearchSettings.groups().items():
        fields = [
            (
                f.name,
                hints[f.name],
                dataclasses.field(default=f.default, default_factory=f.default_factory, metadata=f.metadata),
            )
            for f in settings
        ]
        groups.append(dataclasses.make_dataclass("Group", fields, namespace={"_argument_group_name": name}))
    return {
        "dataclass_types": groups,
        "usage": "%(prog)s [options]",
        "description": DESCRIPTION,
        "epilog": "example: accelerate launch -m autobert_zero.search --train_file text.txt --output_dir runs/mine",
        "allow_abbrev": False,
    }


def add_switches(parser: argparse.ArgumentParser) -> None:
    """What is about the command and not about the search."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings, as settings.json of a run; flags override it."
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="Say what came of each candidate.")
    loudness.add_argument("-q", "--quiet", action="store_true", help="Say nothing but errors.")


def with_config(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments after those of the file that `--config` names, which they override."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(arguments)[0].config
    if path is None:
        return arguments
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"config: expected a YAML file, got {path!r}: {error}")
    if not isinstance(values, dict) or not set(values) <= SETTINGS:
        unknown = sorted(map(str, set(values) - SETTINGS)) if isinstance(values, dict) else values
        meant = _meant(unknown, SETTINGS) if isinstance(values, dict) else ""
        parser.error(f"config: expected settings of a search in {path!r}, got {unknown!r:.200}{meant}")
    defaults = SearchSettings().to_dict()
    if empty := [name for name, value in values.items() if value == [] and defaults[name] != []]:
        parser.error(f"config: expected values for {', '.join(empty)} in {path!r}, got none")
    return [*flags(values), *arguments]


def _meant(names: Iterable[object], known: Iterable[str]) -> str:
    """`; did you mean seed?` for the first name that a known one is near."""
    known = list(known)
    for name in map(str, names):
        near = difflib.get_close_matches(name, known, n=1)
        if near and near[0] != name:
            return f"; did you mean {near[0]}?"
    return ""


def refuse_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    """End with a usage error where arguments are left over."""
    if unknown:
        flags_given = (argument.partition("=")[0] for argument in unknown if argument.startswith("-"))
        known = (option for action in parser._actions for option in action.option_strings)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(flags_given, known)}")


def read(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> tuple[SearchSettings, int]:
    """Settings and verbosity of a parsed command line."""
    try:
        settings = SearchSettings(**{name: value for name, value in vars(namespace).items() if name in SETTINGS})
    except ValueError as error:
        parser.error(str(error))
    return settings, namespace.verbose - namespace.quiet


def parse(arguments: list[str]) -> tuple[SearchSettings, int]:
    """Settings and verbosity of `python -m autobert_zero.search`."""
    parser = HfArgumentParser(prog="python -m autobert_zero.search", **parser_arguments())
    add_switches(parser)
    namespace, unknown = parser.parse_known_args(with_config(parser, arguments))
    refuse_unknown(parser, unknown)
    return read(parser, namespace)


def main(arguments: list[str] | None = None) -> None:
    search(*parse(sys.argv[1:] if arguments is None else arguments))


def search(settings: SearchSettings, verbosity: int = 0) -> None:
    """Run it, to the end of the process if it fails or is stopped.

    Args:
        settings: of the run.
        verbosity: 1 to say what came of each candidate, -1 to say nothing but errors.
    """
    # Here, for they take seconds to load, which no help and no message should.
    import accelerate
    import datasets
    import torch
    import transformers
    from safetensors import SafetensorError

    from autobert_zero.search.run import Run, SearchFailed, UsageError
    from autobert_zero.search.stopping import Stop, Stopped

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        # On a machine without an accelerator the processes of a launcher find each other only with `cpu=True`.
        accelerator = accelerate.Accelerator(
            cpu=not torch.accelerator.is_available() or None,
            log_with=settings.log_with or None,
            project_dir=settings.output_dir,
        )
    except ValueError as error:
        sys.exit(_complain(f"log_with: {error}", code=2))
    # One decides for all: clocks of processes that started one after the other differ.
    stop = Stop(settings.max_seconds if accelerator.is_main_process else None)
    try:
        launched = int(os.environ.get("WORLD_SIZE", accelerator.num_processes))
        if accelerator.num_processes != launched:
            raise UsageError(
                f"the launcher started {launched} processes, but they run as {accelerator.num_processes}: "
                "set ACCELERATE_USE_CPU=true to run several on CPUs"
            )
        with stop.listening():
            Run(settings, accelerator, stop, verbosity).execute()
    except UsageError as error:
        sys.exit(_complain(str(error), code=2))
    except SearchFailed as error:
        sys.exit(_complain(str(error), code=1))
    except FloatingPointError as error:
        sys.exit(_complain(f"{error}: a training diverged; try a lower learning_rate in another output_dir", code=1))
    except (OSError, SafetensorError) as error:
        sys.exit(_complain(f"{error}. {CONTINUE}", code=1))
    except Stopped as stopped:
        if accelerator.is_main_process:
            print(f"Stopped: {stopped}. {CONTINUE}", file=sys.stderr)
        sys.exit(stopped.code)
    finally:
        accelerator.end_training()


def _complain(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
