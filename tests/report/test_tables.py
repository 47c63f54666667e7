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


def test_layer_importance_is_shown_only_with_that_of_the_found_model():
    genes = [{"kind": "convolution", "kernel_size": 3}, {"kind": "convolution", "kernel_size": 5}]
    results = {"found": {"layer_importance": [0.5, -0.25]}, "BERT": {"layer_importance": [0.1, 0.2]}, "unigram": {}}
    summary = {"best": {"genome": genes}, "custom_operations": {}, "results": results}
    assert tables.layers_text(summary) == "  1   +0.500  convolution 3\n  2   -0.250  convolution 5"
    names = ["convolution 3", "convolution 5"]
    assert tables.layer_rows(summary, names)[0] == ("1", "convolution 3", "+0.500", "+0.100")
    assert tables.layers_note(summary, names) == (
        "Layer 1, convolution 3, matters most: without it the test loss rises by 0.500 nats. Layer 2, convolution 5, matters "
        "least: -0.250."
    )
    del results["found"]["layer_importance"]
    assert tables.layers_note(summary, names) == ""
    assert tables.layers_text(summary) == "  1  convolution 3\n  2  convolution 5"
    assert tables.layer_importance(summary) == {} and tables.layer_rows(summary, names)[1] == ("2", "convolution 5")


def test_attentions_without_weights_are_named():
    genes = [{"kind": "attention", "expression": "add(matmul(q, matmul(transpose(k), v)), rotary(v))"}] * 2
    results = {"found": {"attention_by_distance": {"2": [[0.0, 1.0, 0.0]]}}}
    summary = {"best": {"genome": genes}, "custom_operations": {}, "results": results}
    names = ["attention A", "attention A"]
    note = tables.unweighted_note(summary, names)
    assert note == "No weights between pairs of tokens are computed by attention A (layer 1)."
    results["found"]["attention_by_distance"]["1"] = [[0.0, 1.0, 0.0]]
    assert tables.unweighted_note(summary, names) == ""
    del results["found"]["attention_by_distance"]  # of a version that did not measure them
    assert tables.unweighted_note(summary, names) == ""


def test_a_warning_if_candidates_do_not_learn():
    results = {"found": {"loss": 3.0}, "unigram": {"loss": 4.0}}

    def note(better: int | None) -> str:
        counts = {"evaluated": 10, "failed": 0} | ({} if better is None else {"better_than_unigram": better})
        return tables.learning_note({"results": results, "counts": counts})

    assert note(None) == note(5) == note(10) == ""
    assert note(4).startswith("Only 4 of the 10 candidates scored better than token frequencies")
    results["found"]["loss"] = 4.0
    assert note(10).startswith("The found model has learned no more than token frequencies")


def test_where_an_attention_looks_in_words():
    heads = [[0.1, 0.2, 0.3, 0.1, 0.0], [0.1, 0.0, 0.1, 0.3, 0.2]]
    assert tables.attention_text(heads) == "to the left 20%, itself 20%, to the right 30%, more than 2 tokens away 30%"
