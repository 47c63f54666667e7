"""The picture of the README."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from reproduce.picture import main


SUMMARY = Path(__file__).resolve().parents[1] / "fixtures" / "run-0.1" / "summary.json"


def test_the_picture(tmp_path, capsys):
    with pytest.raises(SystemExit):  # a run of a version that recorded no losses
        main([str(SUMMARY), str(tmp_path / "found.svg")])
    assert "summary: expected losses of the final trainings, got none" in capsys.readouterr().err
    summary = json.loads(SUMMARY.read_text())
    names = [name for name in summary["results"] if name != "unigram"]
    for name in names:
        summary["results"][name]["training_losses"] = [[2, 5.0], [4, 4.5], [6, 4.0], [8, 3.5]]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    main([str(tmp_path / "summary.json"), str(tmp_path / "found.svg")])
    root = ElementTree.parse(tmp_path / "found.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    panels = root.findall("svg:svg", space)
    assert len(panels) == 3 and all(panel.get("width") and panel.get("height") for panel in panels)
    right = [float(panel.get("x")) + float(panel.get("width")) for panel in panels]
    left = [float(panel.get("x")) for panel in panels]
    assert all(a < b for a, b in zip(right, left[1:], strict=False)) and right[-1] <= float(root.get("width")) + 1
    curves = panels[-1].findall("svg:polyline", space)
    assert len(curves) == len(names) and len(curves[0].get("points").split()) == 3  # without the first
    texts = "".join(root.itertext())
    assert "Found" in texts and "BERT" in texts and all(name in texts for name in names)
