"""The picture of the README: a found backbone and a rival of equal size, and the losses of both and of other rivals.

python examples/reproduce/picture.py results/model/comparison.json docs/found.svg
"""

import argparse
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.cli.arguments import ScriptHelpFormatter, path
from autobert_zero.search.files import write_text
from autobert_zero.search.report import charts, notation
from autobert_zero.search.report.charts import Series
from autobert_zero.search.report.drawing import COLUMN_GAP, Picture, draw_attention, draw_backbone, to_svg
from autobert_zero.search.report.page import TEMPLATES


# Rows that are drawn as backbones, and the others whose losses are drawn.
FOUND, RIVAL = "found", "bert_rotary"
OTHERS = ("hybrid_rotary", "convbert")
# The part of the training whose losses are shown: before, all lines fall steeply, and none can be told from another.
FIRST = 0.2
# Height of a title and of an entry of the legend, and the space between panels.
LINE, GAP = 26, 44
FONT = 'font-family="system-ui, sans-serif" font-size="15" fill="var(--ink)"'


def picture(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """SVG without references, for light and dark pages.

    Args:
        rows: of the JSON file of a comparison.

    Raises: ValueError without the rows `FOUND` and `RIVAL`, with their losses.
    """
    for row in (FOUND, RIVAL):
        if not rows.get(row, {}).get("curve"):
            raise ValueError(f"rows: expected {row} with its losses, got {', '.join(rows)}")
    series = []
    for color, row in enumerate(rows[name] for name in (FOUND, RIVAL, *OTHERS) if name in rows):
        points = [(part * row["tokens"], loss) for part, loss in row["curve"] if part >= FIRST]
        if not points:
            raise ValueError(f"rows: expected losses after {FIRST} of the training of {row['name']}, got none")
        series.append(Series(row["name"], *zip(*points, strict=True), color))
    chart = charts.plot("Losses during pre-training", series, "tokens", "loss in nats")
    panels = [
        (rows[FOUND]["name"], *_backbone(rows[FOUND])),
        (rows[RIVAL]["name"], *_backbone(rows[RIVAL])),
        ("Pre-trained from scratch, at equal size", chart, charts.WIDTH, charts.HEIGHT),
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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 0 {width + 4:.0f} {height:.0f}" width="{width + 4:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="A found backbone, a rival of equal size, and their losses">'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _backbone(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """SVG, width and height of the layers of a row and of its first attention."""
    genome = notation.simplified(Genome.from_list(row["genome"]))
    drawn = draw_backbone(genome)
    for attention, letter in notation.distinct_attentions(genome).items():
        graph = draw_attention(attention.expression, letter)
        both = Picture(max(drawn.width, graph.width), drawn.height + COLUMN_GAP + graph.height, "genome")
        both.add(drawn, 0, 0)
        both.add(graph, 0, drawn.height + COLUMN_GAP)
        drawn = both
        break
    drawn.width, drawn.height = drawn.width + 2, drawn.height + 2  # half of a line, at the edges
    return to_svg(drawn), drawn.width, drawn.height


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("comparison", type=path, help="JSON file that compare.py wrote by --results.")
    parser.add_argument("output", type=path, help="File to write, in SVG.")
    given = parser.parse_args(arguments)
    try:
        comparison = json.loads(Path(given.comparison).read_text(encoding="utf-8"))
        if not isinstance(comparison, dict) or "rows" not in comparison:
            raise ValueError(f"expected a file that compare.py wrote, got {str(given.comparison)!r}")
        write_text(given.output, picture(comparison["rows"]))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(given.output)


if __name__ == "__main__":
    main()
