"""Command line of a search: arguments, exit codes and error messages.

accelerate launch -m autobert_zero.search --output_dir runs/demo
"""

import os
import sys

import accelerate
import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers import HfArgumentParser

from autobert_zero.search.run import Run, SearchFailed, UsageError
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.stopping import Stop, Stopped


CONTINUE = "What is done is kept: the same command continues it."


def parse_settings(arguments: list[str] | None = None) -> SearchSettings:
    parser = HfArgumentParser(
        SearchSettings,  # type: ignore[arg-type]
        prog="python -m autobert_zero.search",
        description="Evolve a BERT backbone from text: train a bi-branch super-network, search by OP-NAS, "
        "then train the best backbone and a BERT of the same depth and width from scratch.",
        allow_abbrev=False,
    )
    try:
        namespace, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return SearchSettings.from_dict(vars(namespace))
    except ValueError as error:
        parser.error(str(error))


def main(arguments: list[str] | None = None) -> None:
    settings = parse_settings(arguments)
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
            Run(settings, accelerator, stop).execute()
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
