"""Pictures of genomes: the backbone as a row of layers, and each distinct attention as a graph of operations, inputs below
and the result above, with every shared node drawn once. Needs no other program: SVG is written here, PNG by matplotlib.
"""

import html
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autobert_zero.configuration_autobert_zero import (
    KERNEL_SIZES,
    Attention,
    Convolution,
    CustomLayer,
    Expression,
    Genome,
)
from autobert_zero.search.report.notation import distinct_attentions


# In pixels.
BOX_HEIGHT, LEVEL_HEIGHT, COLUMN_GAP, MARGIN = 24, 46, 16, 16
LETTER_WIDTH, PADDING, FONT_SIZE = 7.4, 9, 13
PAGE_WIDTH = 1080
LAYER_WIDTH, LAYER_HEIGHT = 64, 44
SWEEPS = 12

# Fill and border of boxes; they differ in lightness, for colour-blind readers and for print.
KINDS = {
    "input": ("#ffffff", "#4d4d4d"),
    "mixing": ("#9ecae1", "#08519c"),
    "softmax": ("#fdd0a2", "#a63603"),
    "operation": ("#f0f0f0", "#737373"),
    "convolution": ("#c7e9c0", "#006d2c"),
    "attention": ("#9ecae1", "#08519c"),
}
INK, DARK_INK = "#1a1a1a", "#e6e6e6"
SHORT_NAMES = {"cosine_similarity": "cosine", "euclidean_distance": "distance", "scale": "scale ÷√d"}


@dataclass(frozen=True)
class Box:
    """A labelled box around (x, y)."""

    x: float
    y: float
    width: float
    height: float
    text: str
    kind: str


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Text:
    """Starts at x; y is its middle."""

    x: float
    y: float
    text: str
    size: int = FONT_SIZE
    bold: bool = False


Shape = Box | Line | Text


@dataclass
class Picture:
    """Shapes in an area that starts at (0, 0); y grows downwards."""

    width: float
    height: float
    title: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, other: "Picture", x: float, y: float) -> None:
        for shape in other.shapes:
            match shape:
                case Line(points):
                    self.shapes.append(Line(tuple((a + x, b + y) for a, b in points)))
                case Box() | Text():
                    self.shapes.append(replace(shape, x=shape.x + x, y=shape.y + y))


def _kind(node: Expression) -> str:
    if not node.operands:
        return "input"
    if node.name in ("matmul", "cosine_similarity", "euclidean_distance", *KERNEL_SIZES):
        return "mixing"
    return "softmax" if node.name == "softmax" else "operation"


def _label(node: Expression) -> str:
    return SHORT_NAMES.get(node.name, node.name)


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Positions closest to the wanted ones (least squares) at which boxes, in this order, do not overlap."""
    offsets = [0.0, *itertools.accumulate((a + b) / 2 + COLUMN_GAP for a, b in itertools.pairwise(widths))]
    # Without the offsets: the closest non-decreasing sequence, by pooling adjacent violators.
    pools: list[list[float]] = []
    for value in (w - o for w, o in zip(wanted, offsets, strict=True)):
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    flat = [value for value, count in pools for _ in range(int(count))]
    return [value + offset for value, offset in zip(flat, offsets, strict=True)]


class _Layout:
    """Levels of nodes, with a bend on every level that an edge crosses; ordered and placed by the mean of neighbours."""

    def __init__(self, expression: Expression):
        self.width: dict[object, float] = {}
        self.levels: dict[int, list[object]] = defaultdict(list)
        self.above: dict[object, list[object]] = defaultdict(list)
        self.below: dict[object, list[object]] = defaultdict(list)
        # For each operand of each node, the operand and the bends of its edge.
        self.ways: list[tuple[Expression, int, list[object]]] = []
        for node in expression.nodes():
            self.width[node] = len(_label(node)) * LETTER_WIDTH + 2 * PADDING
            self.levels[node.depth].append(node)
        for node in expression.nodes():
            for place, operand in enumerate(node.operands):
                way: list[object] = [operand]
                for level in range(operand.depth + 1, node.depth):
                    bend = (node, place, level)
                    self.width[bend] = 0.0
                    self.levels[level].append(bend)
                    way.append(bend)
                self.ways.append((node, place, way))
                for lower, upper in itertools.pairwise([*way, node]):
                    self.above[lower].append(upper)
                    self.below[upper].append(lower)
        self._order()
        self.x = self._place()

    def _order(self) -> None:
        position = {item: i for level in self.levels.values() for i, item in enumerate(level)}
        depths = sorted(self.levels)
        for sweep in range(SWEEPS):
            upwards = sweep % 2 == 0
            near = self.below if upwards else self.above
            for depth in depths if upwards else depths[::-1]:
                middle = {
                    item: np.mean([position[other] for other in near[item]]) if near[item] else position[item]
                    for item in self.levels[depth]
                }
                self.levels[depth].sort(key=middle.__getitem__)
                position |= {item: i for i, item in enumerate(self.levels[depth])}

    def _place(self) -> dict[object, float]:
        x: dict[object, float] = {}
        for level in self.levels.values():
            x |= zip(level, _apart([0.0] * len(level), [self.width[item] for item in level]), strict=True)
        depths = sorted(self.levels)
        for sweep in range(SWEEPS):
            for depth in depths if sweep % 2 == 0 else depths[::-1]:
                level = self.levels[depth]
                wanted = [float(np.mean([x[o] for o in (*self.above[i], *self.below[i])] or [x[i]])) for i in level]
                x |= zip(level, _apart(wanted, [self.width[item] for item in level]), strict=True)
        left = min(x[item] - self.width[item] / 2 for item in x)
        return {item: value - left for item, value in x.items()}


def draw_attention(expression: Expression, title: str = "") -> Picture:
    """The graph of an attention. The first operand of a node enters on the left, the second on the right."""
    layout = _Layout(expression)
    top = MARGIN + BOX_HEIGHT if title else 0
    height = top + expression.depth * LEVEL_HEIGHT + BOX_HEIGHT
    width = max(x + layout.width[item] / 2 for item, x in layout.x.items())

    def y(depth: int) -> float:
        return height - BOX_HEIGHT / 2 - depth * LEVEL_HEIGHT

    picture = Picture(max(width, 4 * LETTER_WIDTH), height, title or str(expression))
    if title:
        picture.shapes.append(Text(0, BOX_HEIGHT / 2, title, FONT_SIZE + 2, bold=True))
    for node, place, (operand, *bends) in layout.ways:
        assert isinstance(operand, Expression)
        side = 0.0 if len(node.operands) == 1 else (place - 0.5) * 0.5 * layout.width[node]
        points = [(layout.x[operand], y(operand.depth) - BOX_HEIGHT / 2)]
        for depth, bend in enumerate(bends, start=operand.depth + 1):
            # Vertical between the boxes of the level, so that it touches none.
            points += [(layout.x[bend], y(depth) + BOX_HEIGHT / 2), (layout.x[bend], y(depth) - BOX_HEIGHT / 2)]
        picture.shapes.append(Line((*points, (layout.x[node] + side, y(node.depth) + BOX_HEIGHT / 2))))
    for node in expression.nodes():
        size = (layout.width[node], BOX_HEIGHT)
        picture.shapes.append(Box(layout.x[node], y(node.depth), *size, _label(node), _kind(node)))
    return picture


def draw_backbone(genome: Genome) -> Picture:
    """A row of layers, from first to last; attentions are labelled with letters."""
    letters = distinct_attentions(genome)
    texts = [
        letters[gene]
        if isinstance(gene, Attention)
        else f"conv {gene.kernel_size}"
        if isinstance(gene, Convolution)
        else gene.kind
        for gene in genome
    ]
    layer_width = max(LAYER_WIDTH, max(map(len, texts)) * LETTER_WIDTH + PADDING)
    each = layer_width + COLUMN_GAP
    in_a_row = max(1, int((PAGE_WIDTH + COLUMN_GAP) // each))
    rows = -(-len(genome) // in_a_row)
    picture = Picture(min(len(genome), in_a_row) * each - COLUMN_GAP, rows * (LAYER_HEIGHT + 2 * MARGIN), "backbone")
    for number, (gene, text) in enumerate(zip(genome, texts, strict=True)):
        row, column = divmod(number, in_a_row)
        x, y = column * each + layer_width / 2, row * (LAYER_HEIGHT + 2 * MARGIN) + MARGIN + LAYER_HEIGHT / 2
        if column:
            picture.shapes.append(Line(((x - layer_width / 2 - COLUMN_GAP, y), (x - layer_width / 2, y))))
        kind = "operation" if isinstance(gene, CustomLayer) else gene.kind
        picture.shapes.append(Box(x, y, layer_width, LAYER_HEIGHT, text, kind))
        picture.shapes.append(Text(x - layer_width / 2, y - LAYER_HEIGHT / 2 - 8, str(number + 1), FONT_SIZE - 3))
    return picture


def draw_genome(genome: Genome) -> Picture:
    """The backbone, and below it its distinct attentions, side by side if they fit."""
    parts = [draw_attention(gene.expression, letter) for gene, letter in distinct_attentions(genome).items()]
    row = draw_backbone(genome)
    limit = max(PAGE_WIDTH, row.width, *(part.width for part in parts), 0)
    picture = Picture(0, 0, "genome")
    picture.add(row, MARGIN, 0)
    y, widest = row.height + MARGIN, row.width
    for line in _lines(parts, limit):
        tallest = max(part.height for part in line)
        x = float(MARGIN)
        for part in line:
            picture.add(part, x, y + tallest - part.height)  # inputs on one line
            x += part.width + 3 * COLUMN_GAP
        widest = max(widest, x - MARGIN - 3 * COLUMN_GAP)
        y += tallest + 2 * MARGIN
    picture.width, picture.height = widest + 2 * MARGIN, y
    return picture


def _lines(parts: Iterable[Picture], limit: float) -> list[list[Picture]]:
    lines: list[list[Picture]] = []
    left = 0.0
    for part in parts:
        if not lines or left < part.width:
            lines.append([])
            left = limit
        lines[-1].append(part)
        left -= part.width + 3 * COLUMN_GAP
    return lines


def to_svg(picture: Picture) -> str:
    """Self-contained SVG, also inside a page; the ink follows the reader's light or dark mode."""
    fills = "".join(f".genome .{kind}{{fill:{fill};stroke:{edge}}}" for kind, (fill, edge) in KINDS.items())
    style = (
        f".genome text{{font:{FONT_SIZE}px system-ui,sans-serif;fill:{INK};dominant-baseline:central}}"
        f".genome polyline{{fill:none;stroke:{INK};stroke-width:1.2}}{fills}"
        f"@media screen and (prefers-color-scheme:dark){{.genome .out{{fill:{DARK_INK}}}.genome polyline{{stroke:{DARK_INK}}}}}"
    )
    title = html.escape(picture.title)
    width, height = (f"{value:.0f}" for value in (picture.width, picture.height))
    lines = [
        f'<svg class="genome" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{title}">',
        f"<title>{title}</title><style>{style}</style>",
    ]
    for shape in picture.shapes:
        match shape:
            case Line(points):
                lines.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
            case Box(x, y, w, h, text, kind):
                corner = f'x="{x - w / 2:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="5"'
                lines.append(f'<rect class="{kind}" {corner}/>')
                lines.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{html.escape(text)}</text>')
            case Text(x, y, text, size, bold):
                font = f'style="font-size:{size}px;font-weight:{"bold" if bold else "normal"}"'
                lines.append(f'<text class="out" x="{x:.1f}" y="{y:.1f}" {font}>{html.escape(text)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def save_png(picture: Picture, path: str | os.PathLike, scale: float = 2.0) -> None:
    """Write a PNG file. Raises: ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(picture.width / 100, picture.height / 100), dpi=100 * scale, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.axis("off")
    points = 72 / 100  # of a pixel
    for shape in picture.shapes:
        match shape:
            case Line(places):
                axes.plot(*zip(*places, strict=True), color=INK, linewidth=1.2 * points, zorder=1)
            case Box(x, y, w, h, text, kind):
                fill, edge = KINDS[kind]
                style = "round,pad=0,rounding_size=5"
                axes.add_patch(
                    FancyBboxPatch((x - w / 2, y - h / 2), w, h, style, fc=fill, ec=edge, lw=points, zorder=2)
                )
                axes.text(x, y, text, ha="center", va="center", size=FONT_SIZE * points, color=INK, zorder=3)
            case Text(x, y, text, size, bold):
                weight = "bold" if bold else "normal"
                axes.text(x, y, text, va="center", size=size * points, color=INK, weight=weight, zorder=3)
    FigureCanvasAgg(figure).print_png(Path(path))
