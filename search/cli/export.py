"""`autobert-zero export`: the found model as a folder for the Hub."""

import argparse
import sys

from autobert_zero.search.cli.arguments import path


SUMMARY = "make a folder for the Hub from a found model, and upload it"
DESCRIPTION = (
    "Make a folder for the Hub from the model that a search has found: weights, configuration, tokenizer, code, picture "
    "and model card. Optionally upload it."
)
EXAMPLE = "autobert-zero export runs/mine --output exported --push_to_hub me/my-bert --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="Folder of a finished run.")
    parser.add_argument("--output", type=path, required=True, help="Folder to create.")
    parser.add_argument("--license", help="License of the model, for its card, such as `apache-2.0`.")
    parser.add_argument("--language", nargs="+", help="Languages of the text, for the card, such as `en`.")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="Upload it to this repository of the Hub.")
    parser.add_argument(
        "--private", action="store_true", help="Create a private repository; an existing one must be private."
    )


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from huggingface_hub.utils import validate_repo_id

    from autobert_zero.search.files import first_line
    from autobert_zero.search.genomes import HUB_ERRORS
    from autobert_zero.search.report.model_card import export, push

    repository = arguments.push_to_hub
    if arguments.private and not repository:
        parser.error("--private: expected --push_to_hub with it")
    card = {"license": arguments.license, "language": arguments.language}
    try:
        if repository:
            validate_repo_id(repository)
        export(arguments.run, arguments.output, repository, **card)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(arguments.output)
    if repository:
        try:
            print(push(arguments.output, repository, arguments.private))
        except (ValueError, *HUB_ERRORS) as error:
            sys.exit(
                f"error: not uploaded: {first_line(error)}\n{arguments.output} is ready; `hf upload` can upload it, too."
            )
