"""Charts as SVG whose colours come from the page around them, so that one page serves light, dark and print.

A page defines the CSS variables `--ink`, `--faint`, `--paper` and `--series-0` to `--series-7`. Series differ in dashes or
markers as well as in colour. Marks have tooltips. Libraries were considered: Matplotlib writes colours into its SVG, which
do not follow the reader's theme, and Plotly and Vega need a megabyte of JavaScript in every page.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


# In units of the view box, which pages scale.
WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 24, 40
ROW, ROW_GAP, LABEL_WIDTH, LETTER_WIDTH = 20, 5, 122, 6.5
DASHES = ("none", "6 3", "2 2", "8 3 2 3", "4 4", "1 3", "10 3", "6 2 2 2")
MARKERS = ("●", "■", "▲", "◆", "✚", "▼", "★", "✖")
NUM_COLORS = len(DASHES)


@dataclass(frozen=True)
class Series:
    """Points in the order of x: connected by a line, by steps (a value holds until the next), or separate.

    Attributes:
        color: index of the colour and of the dashes or the marker.
        band: half the height of a band around each point, such as a standard error.
        titles: tooltips of separate points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    style: Literal["line", "steps", "points"] = "line"
    band: Sequence[float] | None = None
    titles: Sequence[str] | None = None


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: a value and its error, or parts of a whole as (CSS class, fraction, text)."""

    label: str
    value: float = 0.0
    error: float = 0.0
    parts: Sequence[tuple[str, float, str]] = ()


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """`−0.5`, `12.5k`, `3M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{suffix}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def plot(
    title: str, series: Sequence[Series], x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> str:
    """Series over an x axis. `levels` are horizontal lines, labelled at their ends. Empty if there is no point."""
    levels = levels or {}
    xs = [x for s in series for x in s.x]
    ys = [
        y + sign * b for s in series for y, b in zip(s.y, s.band or [0.0] * len(s.y), strict=True) for sign in (-1, 1)
    ]
    if not xs:
        return ""
    x_low, x_high = _widened(min(xs), max(xs), 0.02)
    y_low, y_high = _widened(min([*ys, *levels.values()]), max([*ys, *levels.values()]), 0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    shapes = []
    for tick in ticks(y_low, y_high):
        _, y = place(x_low, tick)
        shapes.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        shapes.append(_text(LEFT - 6, y, number(tick), "end"))
    for tick in ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        shapes.append(_text(x, HEIGHT - BOTTOM + 14, number(tick), "middle"))
    shapes.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"))
    shapes.append(_text(0, 6, y_label))
    for name, level in levels.items():
        _, y = place(x_low, level)
        shapes.append(f'<line class="level" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        shapes.append(_text(WIDTH - RIGHT, y - 8, name, "end", "halo"))
    for each in series:
        shapes += _drawn(each, [place(x, y) for x, y in zip(each.x, each.y, strict=True)])
        if each.band is not None:
            upper = [place(x, y + b) for x, y, b in zip(each.x, each.y, each.band, strict=True)]
            lower = [place(x, y - b) for x, y, b in zip(each.x, each.y, each.band, strict=True)]
            outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])
            shapes.append(f'<polygon class="band s{each.color % NUM_COLORS}" points="{outline}"/>')
    return _svg(WIDTH, HEIGHT, title, shapes)


def _drawn(series: Series, places: Sequence[tuple[float, float]]) -> Iterable[str]:
    color = series.color % NUM_COLORS
    if series.style == "points":
        for (x, y), title in zip(places, series.titles or [""] * len(places), strict=True):
            tooltip = f"<title>{html.escape(title)}</title>" if title else ""
            yield f'<text class="mark s{color}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{tooltip}{MARKERS[color]}</text>'
        return
    corners = []
    for i, (x, y) in enumerate(places):
        if i and series.style == "steps":
            corners.append((x, places[i - 1][1]))
        corners.append((x, y))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    yield (
        f'<polyline class="s{color}" stroke-dasharray="{DASHES[color]}" points="{points}">'
        f"<title>{html.escape(series.name)}</title></polyline>"
    )


def legend(series: Sequence[Series]) -> str:
    """An HTML list of the series, each with a sample."""
    items = []
    for each in series:
        places = [(13, 6)] if each.style == "points" else [(2, 6), (24, 6)]
        sample = "".join(_drawn(Series("", (), (), each.color, each.style), places))
        items.append(
            f'<li><svg class="chart" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{sample}</svg> '
            f"{html.escape(each.name)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero to a value, with its error."""
    reach = max((abs(row.value) + row.error for row in rows), default=0) or 1.0
    middle, scale = (LABEL_WIDTH + WIDTH) / 2, (WIDTH - LABEL_WIDTH) / 2 / reach
    bottom = len(rows) * (ROW + ROW_GAP)
    shapes = [f'<line class="level" x1="{middle}" y1="0" x2="{middle}" y2="{bottom}"/>']
    for tick in ticks(-reach, reach, 4):
        shapes.append(_text(middle + tick * scale, bottom + 8, number(tick), "middle"))
    for i, row in enumerate(rows):
        y = i * (ROW + ROW_GAP)
        x, width = middle + min(0, row.value) * scale, abs(row.value) * scale
        tooltip = f"<title>{html.escape(row.label)}: {number(row.value)} ± {number(row.error)}</title>"
        kind = "s0" if row.value >= 0 else "s1"
        shapes.append(_text(LABEL_WIDTH - 6, y + ROW / 2, row.label, "end"))
        shapes.append(f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}">{tooltip}</rect>')
        ends = [middle + (row.value + sign * row.error) * scale for sign in (-1, 1)]
        shapes.append(
            f'<line class="error" x1="{ends[0]:.1f}" y1="{y + ROW / 2}" x2="{ends[1]:.1f}" y2="{y + ROW / 2}"/>'
        )
    return _svg(WIDTH, bottom + 16, title, shapes)


def stacked_bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars of equal length, divided into parts; parts that are wide enough are labelled."""
    shapes = []
    for i, row in enumerate(rows):
        x, y = float(LABEL_WIDTH), i * (ROW + ROW_GAP)
        shapes.append(_text(LABEL_WIDTH - 6, y + ROW / 2, row.label, "end"))
        for kind, fraction, text in row.parts:
            width = fraction * (WIDTH - LABEL_WIDTH)
            tooltip = f"<title>{html.escape(text)}: {fraction:.0%}</title>"
            shapes.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}">{tooltip}</rect>'
            )
            if width > len(text) * LETTER_WIDTH + 4:
                shapes.append(_text(x + width / 2, y + ROW / 2, text, "middle", f"on-{kind}"))
            x += width
    return _svg(WIDTH, len(rows) * (ROW + ROW_GAP), title, shapes)


def _widened(low: float, high: float, fraction: float) -> tuple[float, float]:
    margin = fraction * (high - low) or 0.5
    return low - margin, high + margin


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(width: float, height: float, title: str, shapes: Iterable[str]) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(shapes)}</svg>'
    )
