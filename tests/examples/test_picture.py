"""The picture of the README."""

import json
from xml.etree import ElementTree

import pytest
from reproduce.picture import main

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Convolution, Genome


def row(name: str, genome: Genome | None, loss: float) -> dict:
    curve = [[part / 10, loss - part / 10] for part in range(1, 11)]
    return {"name": name, "genome": genome and genome.to_list(), "tokens": 1000, "curve": curve}


def test_the_picture(tmp_path, capsys):
    rows = {
        "found": row("Found", Genome([ROTARY_ATTENTION, Convolution(5)]), 5.0),
        "bert_rotary": row("BERT, rotary", Genome([ROTARY_ATTENTION] * 2), 5.5),
        "convbert": row("ConvBERT", None, 6.0),
        "untrained": {**row("untrained", None, 9.0), "curve": []},
    }
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps({"rows": {name: rows[name] for name in ("found", "convbert")}}))
    with pytest.raises(SystemExit):
        main([str(file), str(tmp_path / "found.svg")])
    assert "rows: expected bert_rotary with its losses, got found, convbert" in capsys.readouterr().err
    early = {**rows["convbert"], "curve": rows["convbert"]["curve"][:1]}
    for content, message in (
        (
            {"rows": {**rows, "convbert": early}},
            "rows: expected losses after 0.2 of the training of ConvBERT, got none",
        ),
        ({}, "expected a file that compare.py wrote"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(SystemExit):
            main([str(file), str(tmp_path / "found.svg")])
        assert message in capsys.readouterr().err
    file.write_text(json.dumps({"rows": rows}))
    main([str(file), str(tmp_path / "found.svg")])
    root = ElementTree.parse(tmp_path / "found.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    panels = root.findall("svg:svg", space)
    assert len(panels) == 3 and all(panel.get("width") and panel.get("height") for panel in panels)
    right = [float(panel.get("x")) + float(panel.get("width")) for panel in panels]
    left = [float(panel.get("x")) for panel in panels]
    assert all(a < b for a, b in zip(right, left[1:], strict=False)) and right[-1] <= float(root.get("width")) + 1
    curves = panels[-1].findall("svg:polyline", space)
    assert len(curves) == 3 and len(curves[0].get("points").split()) == 9  # without the first fifth
    texts = list(root.itertext())
    assert "conv 5" in texts and texts.count("A") == 5 and {"Found", "BERT, rotary", "ConvBERT"} <= set(texts)
    assert "untrained" not in texts
