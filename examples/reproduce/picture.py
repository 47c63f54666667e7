"""The picture of the README: a found backbone, BERT's, and the losses of both during the final training.

python examples/reproduce/picture.py results/first-light/demo.json docs/found.svg
"""

import argparse
import html
from pathlib import Path

import jinja2

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Genome
from autobert_zero.search.cli.arguments import ScriptHelpFormatter, path
from autobert_zero.search.files import write_text
from autobert_zero.search.report import charts, figures, notation, tables
from autobert_zero.search.report.drawing import draw_genome, to_svg
from autobert_zero.search.report.page import TEMPLATES
from autobert_zero.search.report.recorded_run import Summary, read_summary


# Height of a title and of an entry of the legend, and the space between panels.
LINE, GAP = 26, 36
FONT = 'font-family="system-ui, sans-serif" font-size="15" fill="var(--ink)"'


def picture(summary: Summary) -> str:
    """SVG without references, for light and dark pages. Raises: ValueError if the run recorded no losses."""
    series, levels = figures.losses_of_models(summary)
    if not series:
        raise ValueError("summary: expected losses of the final trainings, got none")
    genome = tables.summary_genome(summary)
    chart = charts.plot("Losses of the final trainings", series, "tokens", "loss in nats", levels)
    panels = [
        ("Found", *_genome(genome)),
        ("BERT", *_genome(Genome([SELF_ATTENTION] * len(genome)))),
        ("Trained from scratch, at equal size", chart, charts.WIDTH, charts.HEIGHT),
    ]
    x, parts = 0.0, []
    for title, svg, width, height in panels:
        placed = svg.replace("<svg ", f'<svg x="{x:.0f}" y="{LINE}" ', 1)
        if 'width="' not in placed.split(">", 1)[0]:
            placed = placed.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
        parts.append(f'<text x="{x:.0f}" y="16" font-weight="600" {FONT}>{html.escape(title)}</text>{placed}')
        x += width + GAP
    left, y = x - GAP - charts.WIDTH + charts.LEFT, LINE + charts.HEIGHT + LINE / 2
    for number, each in enumerate(series):
        row = y + number * LINE * 0.8
        line = f'<line x1="{left}" x2="{left + 26}" y1="{row}" y2="{row}" stroke="var(--series-{each.color})" stroke-width="2" '
        line += f'stroke-dasharray="{charts.DASHES[each.color]}"/>'
        parts.append(f'{line}<text x="{left + 34}" y="{row + 5}" {FONT}>{html.escape(each.name)}</text>')
    height = max(LINE + max(h for *_, h in panels), y + len(series) * LINE * 0.8)
    style = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES)).get_template("page.css").render()
    width = x - GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="A found backbone, BERT\'s, and their losses">'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _genome(genome: Genome) -> tuple[str, float, float]:
    drawn = draw_genome(notation.simplified(genome))
    return to_svg(drawn), drawn.width, drawn.height


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("summary", type=path, help="summary.json of a finished run.")
    parser.add_argument("output", type=path, help="File to write, in SVG.")
    given = parser.parse_args(arguments)
    try:
        write_text(given.output, picture(read_summary(Path(given.summary))))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(given.output)


if __name__ == "__main__":
    main()
