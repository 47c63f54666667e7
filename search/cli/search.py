"""`autobert-zero search`, and `python -m autobert_zero.search`: arguments, exit codes and error messages.

accelerate launch -m autobert_zero.search --output_dir runs/demo
"""

import argparse
import json
import os
import sys
from typing import Any

import yaml

from autobert_zero.search.cli.arguments import ArgumentParser, add_settings, described
from autobert_zero.search.cli.encoding import degrade_output
from autobert_zero.search.settings import GROUP_OF, RENAMED, SearchSettings, did_you_mean, without_removed


SUMMARY = "evolve a backbone from text"
DESCRIPTION = (
    "Evolve a BERT backbone from text: train a bi-branch super-network, search by operation-priority evolution, then train the best backbone "
    "and two baselines, BERT and BERT with rotary positions, from scratch."
)
USAGE = "%(prog)s [options]"  # there are too many to list
EXAMPLE = "accelerate launch -m autobert_zero.search --train_file text.txt --output_dir runs/mine"
MAX_CONFIG_BYTES = 1 << 20
RESUME = "All results so far are kept: the same command resumes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings, and options of the command itself."""
    add_settings(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML or JSON file of settings, such as settings.json of a run; flags override it.",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="Print what the run would cost on this machine, and end."
    )
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument("-v", "--verbose", action="store_true", help="Print the outcome of each candidate.")
    verbosity.add_argument("-q", "--quiet", action="store_true", help="Print nothing but errors.")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file becomes a large value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"no aliases, got one in line {self.peek_event().start_mark.line + 1}")
        return super().compose_node(parent, index)


def read_config(path: str) -> dict[str, Any]:
    """Names and values of settings in a YAML or JSON file. Raises: OSError; ValueError for anything else."""
    with open(path, "rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise ValueError(f"expected at most {MAX_CONFIG_BYTES} bytes, got more")
    try:
        try:
            values = json.loads(content)  # YAML is nearly a superset: it has neither tabs nor pairs of surrogates
        except ValueError:
            values = yaml.load(content, _PlainLoader)
    except (yaml.YAMLError, RecursionError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"expected YAML or JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping, got {values!r:.200}")
    values = without_removed(values)
    for name, value in values.items():
        if name not in GROUP_OF and name not in RENAMED:
            raise ValueError(f"got {name!r:.200}{did_you_mean([name], GROUP_OF)}")
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(each, str | int | float):
                raise ValueError(f"{name}: expected text, numbers, or a list of them, got {each!r:.200}")
    return values


def _as_given(action: argparse.Action, name: str, value: Any) -> Any:
    """A value of a file as the command line would give it: texts are converted, numbers are texts where texts are
    expected, one value stands for a list of one. Raises: ValueError."""

    def convert(each: Any) -> Any:
        is_number = isinstance(each, int | float) and not isinstance(each, bool)
        is_given_as_text = isinstance(each, str) or (is_number and action.type not in (int, float))
        return action.type(str(each)) if callable(action.type) and is_given_as_text else each

    values = value if isinstance(value, list) else [value]
    try:
        values = list(map(convert, values))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None
    except ValueError:
        kind = getattr(action.type, "__name__", "another type")
        raise ValueError(f"{name}: expected {kind}, got {value!r:.200}") from None
    if not values and action.default != [] and name != "seed_genomes":  # of which none is recorded as []
        raise ValueError(f"{name}: expected values, got none")
    return values if action.nargs == "+" or isinstance(value, list) else values[0]


def use_config(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Make the settings of the file that `--config` names the defaults of the parser."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(arguments)[0].config
    if path is None:
        return
    actions = {action.dest: action for action in parser._actions}
    try:
        for old_name, value in read_config(os.path.expanduser(path)).items():
            name = RENAMED.get(old_name, old_name)
            if value is not None:
                parser.set_defaults(**{name: _as_given(actions[name], old_name, value)})
    except (OSError, ValueError) as error:
        parser.error(f"config: expected settings of a search in {path!r}: {error}")


def refuse_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    """End with a usage error if arguments are left over."""
    if unknown:
        given = (argument.partition("=")[0] for argument in unknown if argument.startswith("-"))
        known = (option for action in parser._actions for option in action.option_strings)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(given, known)}")


def read(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> tuple[SearchSettings, int, bool]:
    """Settings, verbosity, and whether only an estimate is wanted, of a parsed command line."""
    try:
        settings = SearchSettings.from_dict({n: value for n, value in vars(namespace).items() if n in GROUP_OF})
    except ValueError as error:
        parser.error(str(error))
    if namespace.estimate and namespace.quiet:
        parser.error("quiet: expected without --estimate, which only prints")
    return settings, namespace.verbose - namespace.quiet, namespace.estimate


def parse(arguments: list[str]) -> tuple[SearchSettings, int, bool]:
    """Settings, verbosity, and whether only an estimate is wanted, of `python -m autobert_zero.search`."""
    parser = ArgumentParser(prog="python -m autobert_zero.search", **described(sys.modules[__name__]))
    add_arguments(parser)
    use_config(parser, arguments)
    namespace, unknown = parser.parse_known_args(arguments)
    refuse_unknown(parser, unknown)
    return read(parser, namespace)


def main(arguments: list[str] | None = None) -> None:
    degrade_output()
    search(*parse(sys.argv[1:] if arguments is None else arguments))


def search(settings: SearchSettings, verbosity: int = 0, estimate: bool = False) -> None:
    """Run a search. Ends the process if it fails or is stopped.

    Args:
        settings: of the run.
        verbosity: 1 to print the outcome of each candidate, -1 to print nothing but errors.
        estimate: whether to print what it would cost instead.
    """
    # Imported here: they take seconds to load, which help and usage errors do not need.
    import accelerate
    import datasets
    import torch
    import transformers
    from safetensors import SafetensorError

    from autobert_zero.search.evaluation.training import Precision
    from autobert_zero.search.run.errors import SearchFailed, UsageError
    from autobert_zero.search.run.launcher import apply_requests, check_precision, check_sharing, communication
    from autobert_zero.search.run.run import Run
    from autobert_zero.search.stopping import Stop, Stopped

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    precision = settings.training.mixed_precision
    try:
        accelerate.tracking.filter_trackers(settings.run.log_with, settings.run.output_dir)
    except ValueError as error:
        sys.exit(_complain(f"log_with: {error}", code=2))
    try:
        check_precision(settings)
        # On a machine without an accelerator, the processes of a launcher find each other only with `cpu=True`.
        accelerator = accelerate.Accelerator(
            cpu=not torch.accelerator.is_available() or None,
            mixed_precision=None if precision == "no" else precision,
            log_with=settings.run.log_with or None,
            project_dir=settings.run.output_dir,
            kwargs_handlers=communication(settings),
        )
    except (UsageError, ValueError) as error:
        sys.exit(_complain(str(error), code=2))
    # The main process decides for all: the clocks of processes that started at different times differ.
    stop = Stop(settings.run.max_seconds if accelerator.is_main_process else None)
    try:
        settings = apply_requests(settings, accelerator)
        check_sharing(settings, accelerator.device)
        if accelerator.is_main_process:
            Precision(settings.training.mixed_precision, accelerator.device.type).warn_if_emulated()
        with stop.listening():
            run = Run(settings, accelerator, stop, verbosity)
            run.estimate() if estimate else run.execute()
    except UsageError as error:
        sys.exit(_complain(str(error), code=2))
    except SearchFailed as error:
        sys.exit(_complain(str(error), code=1))
    except FloatingPointError as error:
        sys.exit(_complain(f"{error}: a training diverged; try a lower learning_rate in another output_dir", code=1))
    except (MemoryError, torch.OutOfMemoryError) as error:
        hint = "With --micro_batch_size, --gradient_checkpointing or fewer processes on a device the run goes on."
        sys.exit(_complain(f"memory does not suffice: {error}. {hint}", code=1))
    except (OSError, SafetensorError) as error:
        sys.exit(_complain(f"{error}. {RESUME}", code=1))
    except Stopped as stopped:
        if accelerator.is_main_process:
            print(f"Stopped: {stopped}. {RESUME}", file=sys.stderr)
        sys.exit(stopped.code)
    finally:
        accelerator.end_training()


def _complain(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
