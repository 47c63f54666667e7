import pytest

from autobert_zero.search.settings import SearchSettings, stream


def test_round_trip():
    settings = SearchSettings(seed=7, kernel_sizes=[3, 9], train_file=["a.txt"])
    assert SearchSettings(**settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_sizes": [3, 4]}, "kernel_size: expected an odd integer .*got 4"),
        ({"kernel_sizes": []}, "kernel_sizes: expected at least one size"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes: expected distinct sizes"),
        ({"num_attention_heads": 5}, "num_attention_heads: expected a divisor of hidden_size, got 5"),
        ({"max_nodes": 33}, "max_nodes: expected from 5 to 32, got 33"),
        ({"min_attention_layers": 9}, "min_attention_layers: .*got 9"),
        ({"max_attention_layers": 0}, "max_attention_layers: expected at least min_attention_layers=1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"select_fraction": 0.7}, "select_fraction"),
        ({"strategy": "annealing"}, "strategy: .*'annealing'"),
        ({"train_file": ["a"], "dataset_name": "b"}, "either train_file or dataset_name"),
        ({"streaming": True, "dataset_name": "b"}, "streaming: expected max_documents"),
        ({"max_evaluations": 0}, "max_evaluations: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"max_parameters": 0}, "max_parameters: expected a positive number, got 0"),
        ({"priority_decay": 0.0}, "priority_decay: expected a number above 0 and at most 1, got 0.0"),
        ({"hurdle": 1.0}, "hurdle: expected a number from 0 to below 1"),
        ({"layer_mutations": [1.0, 1.0]}, "layer_mutations: expected 3 numbers"),
        ({"operation_mutations": [0.0, 0.0, 0.0, 0.0]}, "operation_mutations: expected 4 numbers .*not all"),
        ({"operation_mutations": [1.0, -1.0, 1.0, 1.0]}, "operation_mutations: expected 4 numbers of at least 0"),
        ({"objectives": ["latency"]}, "objectives: expected score and any others of"),
        ({"objectives": ["score", "beauty"]}, r"objectives: .*got \['score', 'beauty'\]"),
        ({"other_paths": "none"}, "other_paths: expected one of"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a positive number, got nan"),
    ],
)
def test_illegal_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**values)


def test_identity_leaves_out_the_machine_and_how_long_a_run_goes_on():
    a = SearchSettings(output_dir="a", num_threads=1).identity()
    assert a == SearchSettings(output_dir="b", num_threads=2, max_seconds=5.0, max_evaluations=9).identity()
    assert a != SearchSettings(seed=1).identity()


def test_streams_are_independent_and_named():
    draws = {
        tuple(stream(seed, *names).integers(1 << 60, size=3).tolist())
        for seed in (0, 1)
        for names in [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", 0, 0)]
    }
    assert len(draws) == 12
    assert stream(3, "x", 2).random() == stream(3, "x", 2).random()
