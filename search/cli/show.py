"""`autobert-zero show`: a backbone as text, LaTeX or a picture."""

import argparse

from autobert_zero.search.cli.arguments import path


SUMMARY = "show a backbone as text, LaTeX or a picture"
DESCRIPTION = "Show a backbone: its layers and their attentions."
EXAMPLE = "autobert-zero show autobert-zero-base --output published.svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="A preset such as autobert-zero-base, an expression, a JSON file, the folder of a run or a model, or a model "
        "of the Hub.",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--output", type=path, help="Picture to write: a file that ends in .svg or .png.")
    either.add_argument("--latex", action="store_true", help="Print formulas.")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from autobert_zero.search.genomes import read_genome
    from autobert_zero.search.report import drawing, notation

    try:
        genome = read_genome(arguments.source)
    except (ValueError, OSError) as error:
        parser.error(f"source: {error}")
    output = arguments.output
    if output is None:
        print(notation.genome_latex(genome) if arguments.latex else notation.genome_text(genome))
        return
    picture = drawing.draw_genome(genome)
    try:
        match output.suffix.lower():
            case ".svg":
                output.write_text(drawing.to_svg(picture), encoding="utf-8")
            case ".png":
                drawing.save_png(picture, output)
            case suffix:
                parser.error(f"--output: expected a file that ends in .svg or .png, got {suffix!r}")
    except OSError as error:
        parser.error(f"--output: cannot write {output}: {error.strerror}")
    except ImportError:
        parser.error("--output: pictures in .png need matplotlib (pip install matplotlib); .svg needs nothing")
    print(output)
