"""Genomes as text, formulas and pictures: a picture can be read back, nothing overlaps, and files are what they say."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser
from PIL import Image

from autobert_zero.configuration_autobert_zero import (
    INPUTS,
    OPERATIONS,
    PUBLISHED_GENOME,
    SELF_ATTENTION,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.search.commands import find_genome, main
from autobert_zero.search.drawing import (
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
from autobert_zero.search.notation import distinct_attentions, genome_latex, genome_text, latex, layer_names, tree

from .conftest import random_genome


# Drawn, not typed: a picture of each has to be looked at once; what it says is tested here.
RANDOM = sorted({g.expression for i in range(60) for g in random_genome(i) if isinstance(g, Attention)}, key=str)
NAMES = {SHORT_NAMES.get(name, name): name for name in (*OPERATIONS, *INPUTS)}


def read_back(picture: Picture) -> Expression:
    """The expression that a picture shows: operands are what lines come from, from left to right."""
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
    # Lines run beside boxes, not through them: in the height of a box they stand upright, outside of it.
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


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        (str(SELF_ATTENTION.expression), r"\operatorname{softmax}\left(\frac{Q\,K^{\top}}{\sqrt{d}}\right)\,V"),
        ("matmul(q, matmul(transpose(k), v))", r"Q\,\left(K^{\top}\,V\right)"),
        ("matmul(matmul(q, transpose(k)), v)", r"Q\,K^{\top}\,V"),
        (
            "matmul(cosine_similarity(q, k), add(q, neg(v)))",
            r"\cos\left(Q, K\right)\,\left(Q + \left(-V\right)\right)",
        ),
        ("neg(add(q, k))", r"-\left(Q + K\right)"),
        ("transpose(transpose(neg(q)))", r"\left(\left(-Q\right)^{\top}\right)^{\top}"),
        ("add(q, add(k, v))", r"Q + \left(K + V\right)"),
        ("scale(softsign(q))", r"\frac{\operatorname{softsign}\left(Q\right)}{\sqrt{d}}"),
    ],
)
def test_formulas(expression, formula):
    assert latex(Expression.parse(expression)) == formula


def test_every_formula_is_one_that_can_be_set():
    parser = MathTextParser("path")
    for expression in RANDOM:
        parser.parse(f"${latex(expression)}$")


def test_trees():
    assert tree(SELF_ATTENTION.expression) == (
        "matmul\n  softmax\n    scale\n      matmul\n        q\n        transpose(k)\n  v"
    )
    shared = Expression.parse("matmul(matmul(neg(q), transpose(neg(q))), neg(q))")
    assert tree(shared) == "matmul\n  matmul\n    neg [1](q)\n    transpose\n      [1]\n  [1]"
    for expression in RANDOM:
        lines = tree(expression).splitlines()
        assert sum(line.split("[")[0].split("(")[0].strip() in OPERATIONS for line in lines) == sum(
            bool(node.operands) for node in expression.nodes()
        )


def test_files(tmp_path, capsys):
    genome = Genome([*PUBLISHED_GENOME, *PUBLISHED_GENOME, Convolution(5)])
    picture = draw_genome(genome)
    root = ElementTree.fromstring(to_svg(picture))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "conv 65" in texts and "softmax" in texts and "25" in texts
    save_png(picture, tmp_path / "g.png", scale=1)
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == pytest.approx((picture.width, picture.height), abs=1)
        assert len(np.unique(np.array(image.convert("L")))) > 5

    for name in ("a.svg", "b.png"):
        main(["show", "autobert-zero-base", "--output", str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_text() == to_svg(draw_genome(PUBLISHED_GENOME))
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == f"{tmp_path / 'a.svg'}\n{tmp_path / 'b.png'}\n"
    for arguments, message in (
        (
            ["show", "bert-small", "--output", str(tmp_path / "a.pdf")],
            "expected a file that ends in .svg or .png, got '.pdf'",
        ),
        (["show", "bert-small", "--output", str(tmp_path / "no" / "a.svg")], "cannot write"),
        (["show", "softmax(q"], "source: expression: expected"),
        (["show", str(tmp_path)], "expected a summary.json, config.json or history.jsonl"),
        (["draw"], "invalid choice: 'draw'"),
        ([], "the following arguments are required: COMMAND"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_genomes_are_found_where_they_are(tmp_path, capsys, monkeypatch):
    genome = random_genome(3)
    (tmp_path / "genome.json").write_text(json.dumps(genome.to_list()))
    assert find_genome(str(tmp_path / "genome.json")) == genome
    for name, value in (
        ("config.json", {"genome": genome.to_list()}),
        ("summary.json", {"best": {"genome": genome.to_list()}}),
    ):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(json.dumps(value))
        assert find_genome(str(folder)) == genome
    assert find_genome("bert-small") == Genome([SELF_ATTENTION] * 12)
    monkeypatch.setattr(AutoBertZeroConfig, "get_config_dict", lambda name: ({"model_type": "bert"}, {}))
    with pytest.raises(ValueError, match="a model of type 'bert' has no genome: 'me/bert'"):
        find_genome("me/bert")
    config = AutoBertZeroConfig(genome=genome.to_list()).to_dict()
    monkeypatch.setattr(AutoBertZeroConfig, "get_config_dict", lambda name: (config, {}))
    assert find_genome("me/found") == genome
    main(["show", str(SELF_ATTENTION.expression)])
    assert capsys.readouterr().out.startswith("  1  attention A\n\nA = matmul(softmax(")
    main(["show", str(SELF_ATTENTION.expression), "--latex"])
    assert r"\mathrm{A} &= \operatorname{softmax}" in capsys.readouterr().out


def test_a_running_search_shows_its_best(tmp_path):
    run = Path(__file__).parent / "fixtures" / "run-0.1"
    (tmp_path / "history.jsonl").write_bytes((run / "history.jsonl").read_bytes())
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()[1:]]
    best = max((record for record in records if record["score"] is not None), key=lambda record: record["score"])
    assert find_genome(str(tmp_path)) == Genome.from_list(best["genome"])
