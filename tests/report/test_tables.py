"""Numbers as text."""

import math

from autobert_zero.search.report import tables


def test_durations():
    assert [tables.duration(s) for s in (0.51, 9.96, 59.6, 61, 7384)] == [
        "0.5 s",
        "10.0 s",
        "1 min 0 s",
        "1 min 1 s",
        "2 h 3 min",
    ]


def test_losses_too_large_for_a_perplexity():
    assert tables.perplexity(1.0) == math.e and tables.perplexity(None) is tables.perplexity(1e4) is None
    results = {name: {"loss": loss, "perplexity": tables.perplexity(loss)} for name, loss in (("a", 1e4), ("b", None))}
    assert tables.result_rows({"results": results}) == [("a", "", "10000.0000", ""), ("b", "", "diverged", "")]
