"""Settings as command-line arguments, by argparse alone: transformers takes seconds to import, and help must not."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autobert_zero.search.settings import GROUPS, RENAMED, check_text


_METAVARS = {int: "N", float: "X"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults other than None, False and []."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_trivial = action.default is None or action.default is False or action.default == []
        return action.help if is_trivial else super()._get_help_string(action)


class ScriptHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Also keeps the layout of the description, which is the docstring of a script."""


class ArgumentParser(argparse.ArgumentParser):
    """Also accepts `--some-name` for `--some_name`, and the old names of settings."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(
            list(map(self._current_name, sys.argv[1:] if args is None else args)), namespace
        )

    def _current_name(self, argument: str) -> str:
        if not argument.startswith("--"):
            return argument
        flag, equals, value = argument.partition("=")
        name = flag[2:].replace("-", "_")
        name = RENAMED.get(name, name)
        return f"--{name}{equals}{value}" if f"--{name}" in self._option_string_actions else argument


def described(command: Any) -> dict[str, Any]:
    """Arguments of the parser of a command: a module with DESCRIPTION, EXAMPLE and, if the usual one is too long, USAGE."""
    return {
        "usage": getattr(command, "USAGE", None),
        "description": command.DESCRIPTION,
        "epilog": f"example: {command.EXAMPLE}",
        "allow_abbrev": False,
        "formatter_class": HelpFormatter,
    }


def path(text: str) -> Path:
    """A path on the command line, in which `~` is the home folder."""
    try:
        check_text(text, "path")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(os.path.expanduser(text))


def _boolean(text: str) -> bool:
    """As transformers' HfArgumentParser reads it."""
    yes, no = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
    if text.lower() not in (*yes, *no):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() in yes


def add_fields(parser: argparse.ArgumentParser, title: str, dataclass: type) -> None:
    """Add an argument for each field of a dataclass: a string, a number, a boolean, a choice, a list, or None."""
    section = parser.add_argument_group(title)
    hints = get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        hint, many = hints[field.name], False
        if get_origin(hint) in (Union, UnionType):
            [hint] = set(get_args(hint)) - {NoneType}
        if get_origin(hint) is list:
            [hint], many = get_args(hint), True
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        arguments: dict[str, Any] = {"help": field.metadata["help"]}
        if default is dataclasses.MISSING:
            arguments["required"] = True
        else:
            arguments["default"] = default
        if get_origin(hint) is Literal:
            arguments["choices"] = get_args(hint)
        elif hint is bool:
            arguments |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
        else:
            arguments |= {"type": hint, "metavar": _METAVARS.get(hint), "nargs": "+" if many else None}
        section.add_argument(f"--{field.name}", **arguments)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a search, group by group."""
    for group in GROUPS.values():
        add_fields(parser, group.title, group)


def parse_with_settings(
    description: str | None, dataclass: type, title: str, arguments: Sequence[str] | None = None
) -> tuple[argparse.ArgumentParser, dict[str, Any], Any]:
    """Parse the command line of a script that has the settings of a search and options of its own.

    Returns: the parser, the settings in a flat mapping, and the options as an instance of `dataclass`.
    """
    parser = ArgumentParser(description=description, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    add_settings(parser)
    add_fields(parser, title, dataclass)
    given = vars(parser.parse_args(arguments))
    options = {field.name: given.pop(field.name) for field in dataclasses.fields(dataclass)}
    return parser, given, dataclass(**options)
