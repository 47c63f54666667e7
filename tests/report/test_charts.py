"""Charts: their scales, and charts of little."""

import xml.etree.ElementTree as ElementTree

from autobert_zero.search.report import charts
from autobert_zero.search.report.charts import Bar, Series


def test_ticks_are_round_and_within():
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.ticks(-5.33, -5.02) == [-5.3, -5.25, -5.2, -5.15, -5.1, -5.05]
    assert charts.ticks(3, 3) == [3]
    assert charts.number(-0.25) == "−0.25" and charts.number(1.5e7) == "15M" and charts.number(9000) == "9000"


def test_charts_of_little():
    assert charts.plot("none", [Series("none", [], [])], "x", "y") == ""
    for chart in (
        charts.plot("one", [Series("<one>", [1], [2.0], band=[0.0])], "x", "y", {"level": 2.0}),
        charts.bars("zero", [Bar("zero")]),
        charts.bars("nothing", []),
        charts.stacked_bars("half", [Bar("half", parts=[("k0", 0.5, "a"), ("attention", 0.5, "b")])]),
    ):
        assert "nan" not in chart and ElementTree.fromstring(chart).attrib["role"] == "img"
