"""Settings in groups, flat in files and flags; independent random streams."""

import dataclasses
import os
from pathlib import Path

import pytest

from autobert_zero.search.files import json_digest
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import GROUP_OF, GROUPS, RENAMED, SearchSettings, StrategySettings


def test_round_trip():
    settings = SearchSettings.from_dict({"seed": 7, "kernel_sizes": [3, 9], "train_file": ["a.txt"]})
    assert SearchSettings.from_dict(settings.to_dict()) == settings
    assert (settings.run.seed, settings.space.kernel_sizes, settings.text.train_file) == (7, [3, 9], ["a.txt"])


def test_groups():
    """Every setting is in one group, so that a flat name is unique."""
    names = [each.name for group in GROUPS.values() for each in dataclasses.fields(group)]
    assert sorted(names) == sorted(GROUP_OF) == sorted(SearchSettings().to_dict())
    changed = SearchSettings().replace(seed=7, strategy="random")
    assert (changed.run.seed, changed.strategy) == (7, StrategySettings(strategy="random"))
    assert dataclasses.replace(changed, run=SearchSettings().run, strategy=StrategySettings()) == SearchSettings()
    with pytest.raises(ValueError, match=r"expected settings of a search, got 'sead'; did you mean seed\?"):
        SearchSettings().replace(sead=7)


def test_old_names_are_accepted():
    assert RENAMED["hurdle"] == "prune_after"
    values = {old: SearchSettings().to_dict()[new] for old, new in RENAMED.items()} | {"hurdle": 0.25}
    assert SearchSettings.from_dict(values) == SearchSettings().replace(prune_after=0.25)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_sizes": [3, 4]}, "^kernel_sizes: kernel_size: expected an odd integer .*got 4"),
        ({"num_threads": 100_000}, "num_threads: expected a number from 0 to 1024, got 100000"),
        ({"vocab_size": 10**14}, "vocab_size: expected a number from 64 to 16777216"),
        ({"batch_size": 10**14}, "batch_size: expected a number from 1 to 1048576"),
        ({"hidden_size": 10**14}, "hidden_size: expected a number from 1 to 1048576"),
        ({"layer_mutations": [1e308, 1e308, 1e308]}, "layer_mutations: expected 3 to 5 numbers"),
        ({"dataset_name": ""}, "dataset_name: expected a value, got ''"),
        ({"output_dir": ""}, "output_dir: expected a value, got ''"),
        ({"train_file": ["a", ""]}, "train_file: expected a value, got ''"),
        ({"train_file": ["caf\udce9.txt"]}, "train_file: expected text that UTF-8 can encode"),
        ({"kernel_sizes": []}, "kernel_sizes: expected at least one size"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes: expected distinct sizes"),
        ({"num_attention_heads": 5}, "num_attention_heads: expected a divisor of hidden_size, got 5"),
        ({"max_nodes": 33}, "max_nodes: expected at most 32, got 33"),
        ({"min_attention_layers": 9}, "min_attention_layers: .*got 9"),
        ({"max_attention_layers": 0}, "max_attention_layers: expected at least min_attention_layers=1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"validation_fraction": 0.7}, "validation_fraction: expected a number above 0 and below 0.5, got 0.7"),
        ({"strategy": "annealing"}, "strategy: .*'annealing'"),
        ({"train_file": ["a"], "dataset_name": "b"}, "either train_file or dataset_name"),
        ({"streaming": True, "dataset_name": "b"}, "streaming: expected max_documents"),
        ({"max_evaluations": 0}, "max_evaluations: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"max_parameters": 0}, "max_parameters: expected a positive number, got 0"),
        ({"priority_decay": 0.0}, "priority_decay: expected a number above 0 and at most 1, got 0.0"),
        ({"prune_after": 1.0}, "prune_after: expected a number from 0 to below 1"),
        ({"layer_mutations": [1.0, 1.0]}, "layer_mutations: expected 3 to 5 numbers"),
        ({"operation_mutations": [0.0, 0.0, 0.0, 0.0]}, "operation_mutations: expected 4 numbers .*not all"),
        ({"operation_mutations": [1.0, -1.0, 1.0, 1.0]}, "operation_mutations: expected 4 numbers of at least 0"),
        ({"objectives": ["latency"]}, "objectives: expected score and any others of"),
        ({"objectives": ["score", "beauty"]}, r"objectives: .*got \['score', 'beauty'\]"),
        ({"paths": "none"}, "paths: expected one of"),
        (
            {"convolution_paths": 0.5},
            "convolution_paths: expected none, because paths and random_attention_paths replace",
        ),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number, got nan"),
        ({"learning_rate": "fast"}, "learning_rate: expected a finite number, got 'fast'"),
        ({"seed": "1"}, "seed: expected an integer, got '1'"),
        ({"seed": 1.5}, "seed: expected an integer, got 1.5"),
        ({"seed": True}, "seed: expected an integer, got True"),
        ({"streaming": "no"}, "streaming: expected true or false, got 'no'"),
        ({"train_file": "a.txt"}, "train_file: expected a list, got 'a.txt'"),
        ({"train_file": [{"a": 1}]}, r"train_file, 0: expected a string, got \{'a': 1\}"),
        ({"kernel_sizes": [3, "5"]}, "kernel_sizes, 1: expected an integer, got '5'"),
        ({"output_dir": None}, "output_dir: expected a string, got None"),
        ({"max_flops": "1e9"}, "max_flops: expected a finite number, got '1e9'"),
    ],
)
def test_errors_name_the_setting(values, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings.from_dict(values)


def test_paths_and_tuples_of_python_code():
    settings = SearchSettings.from_dict({"output_dir": Path("runs") / "a", "kernel_sizes": (3, 5)})
    assert settings.run.output_dir == os.path.join("runs", "a") and settings.space.kernel_sizes == [3, 5]


def test_identity_omits_the_machine_and_the_budget():
    defaults = SearchSettings()
    identity = defaults.replace(output_dir="a", num_threads=1).identity()
    longer = defaults.replace(output_dir="b", num_threads=2, max_seconds=5.0, max_evaluations=9)
    assert identity == longer.identity() and longer.budget() == {**defaults.budget(), "max_evaluations": 9}
    assert identity != defaults.replace(seed=1).identity()


def test_the_home_folder_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = SearchSettings.from_dict({"train_file": ["~/a.txt", "b~c"], "output_dir": "~/runs", "text_column": "~"})
    assert settings.text.train_file == [f"{tmp_path}/a.txt", "b~c"]
    assert settings.run.output_dir == f"{tmp_path}/runs" and settings.text.text_column == "~"


def test_streams_are_independent_and_named():
    samples = {
        tuple(random_stream(seed, *names).integers(1 << 60, size=3).tolist())
        for seed in (0, 1)
        for names in [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", 0, 0)]
    }
    assert len(samples) == 12
    assert random_stream(3, "x", 2).random() == random_stream(3, "x", 2).random()


def test_equal_settings_have_one_digest():
    """An integer is a legal value of a setting that is a float."""
    values = {"weight_decay": 0, "priority_decay": 1, "layer_mutations": [1, 0, 0], "max_flops": 10**9}
    floats = {"weight_decay": 0.0, "priority_decay": 1.0, "layer_mutations": [1.0, 0.0, 0.0], "max_flops": 1e9}
    one, other = (SearchSettings.from_dict(each).identity() for each in (values, floats))
    assert json_digest(one) == json_digest(other)
