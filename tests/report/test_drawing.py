"""Pictures of genomes: each can be read back, nothing overlaps, and files are valid."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from autobert_zero.configuration_autobert_zero import (
    INPUTS,
    OPERATIONS,
    PUBLISHED_GENOME,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.search.report.drawing import (
    SHORT_NAMES,
    Box,
    Line,
    Picture,
    Text,
    draw_attention,
    draw_genome,
    save_png,
    to_svg,
)
from autobert_zero.search.report.notation import distinct_attentions, genome_latex, genome_text, latex, layer_names
from tests.conftest import random_genome


RANDOM = sorted({g.expression for i in range(60) for g in random_genome(i) if isinstance(g, Attention)}, key=str)
NAMES = {SHORT_NAMES.get(name, name): name for name in (*OPERATIONS, *INPUTS)}


def read_back(picture: Picture) -> Expression:
    """The expression that a picture shows: lines come from operands, in order from left to right."""
    boxes = [shape for shape in picture.shapes if isinstance(shape, Box)]
    lines = [shape.points for shape in picture.shapes if isinstance(shape, Line)]

    def at(point: tuple[float, float], edge: float) -> Box:
        x, y = point
        [box] = [b for b in boxes if abs(x - b.x) <= b.width / 2 and abs(y - (b.y + edge * b.height / 2)) < 0.01]
        return box

    ways = [(at(points[-1], 1), points[-1][0], at(points[0], -1)) for points in lines]

    def expression(box: Box) -> Expression:
        operands = [lower for upper, _, lower in sorted(ways, key=lambda way: way[1]) if upper is box]
        return Expression(NAMES[box.text], tuple(map(expression, operands)))

    assert len(boxes) == len(set(map(expression, boxes)))  # shared nodes are drawn once
    return expression(min(boxes, key=lambda box: box.y))


@pytest.mark.parametrize("expression", RANDOM, ids=range(len(RANDOM)))
def test_a_picture_shows_its_expression(expression):
    picture = draw_attention(expression)
    assert read_back(picture) == expression
    boxes = [shape for shape in picture.shapes if isinstance(shape, Box)]
    for box in boxes:
        assert box.width / 2 - 0.01 <= box.x <= picture.width - box.width / 2 + 0.01
        assert box.height / 2 - 0.01 <= box.y <= picture.height - box.height / 2 + 0.01
    for a, b in itertools.combinations(boxes, 2):
        assert abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2, (a, b)
    # Lines do not cross boxes: at the height of a box they are vertical and outside of it.
    for (x1, y1), (x2, y2) in (p for s in picture.shapes if isinstance(s, Line) for p in itertools.pairwise(s.points)):
        for box in boxes:
            if max(y1, y2) > box.y - box.height / 2 + 0.01 and min(y1, y2) < box.y + box.height / 2 - 0.01:
                assert x1 == x2 and abs(x1 - box.x) > box.width / 2, (box, (x1, y1), (x2, y2))


def test_the_published_backbone():
    attentions = distinct_attentions(PUBLISHED_GENOME)
    assert list(attentions.values()) == ["A", "B", "C", "D", "E"]
    assert layer_names(PUBLISHED_GENOME) == [
        *("convolution 65", "attention A", "convolution 9", "attention B", "convolution 3", "attention C"),
        *("convolution 7", "attention C", "convolution 7", "attention D", "convolution 3", "attention E"),
    ]
    shapes = draw_genome(PUBLISHED_GENOME).shapes
    row = [s.text for s in shapes if isinstance(s, Box) and s.kind in ("convolution", "attention")]
    assert row == ["conv 65", "A", "conv 9", "B", "conv 3", "C", "conv 7", "C", "conv 7", "D", "conv 3", "E"]
    assert [s.text for s in shapes if isinstance(s, Text)] == [*map(str, range(1, 13)), "A", "B", "C", "D", "E"]
    formulas = [latex(attention.expression) for attention in attentions]
    assert formulas[2] == (
        r"\operatorname{softmax}\left(\frac{Q\,\left(-\log\sigma\left(K\right)^{\top}\right)}{\sqrt{d}}\right)\,Q"
    )
    assert formulas[4].endswith(r"\left(\frac{K}{\sqrt{d}} + V\right)^{\top}}{\sqrt{d}}\right)\,V")
    text = genome_text(PUBLISHED_GENOME)
    assert "  1  convolution 65\n  2  attention A\n" in text and f"E = {PUBLISHED_GENOME[11].expression}" in text
    assert genome_latex(PUBLISHED_GENOME).count("&=") == 5
    assert genome_latex(Genome([Convolution(3)])) == "% 1: convolution 3"


def test_files(tmp_path):
    genome = Genome([*PUBLISHED_GENOME, *PUBLISHED_GENOME, Convolution(5)])
    picture = draw_genome(genome)
    root = ElementTree.fromstring(to_svg(picture))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "conv 65" in texts and "softmax" in texts and "25" in texts
    save_png(picture, tmp_path / "g.png", scale=1)
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == pytest.approx((picture.width, picture.height), abs=1)
        assert len(np.unique(np.array(image.convert("L")))) > 5
