"""The comparison script: all scales and rows give valid commands, sizes are equal, results are read from files."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import run_blimp
import run_glue
import run_pretraining
import yaml
from reproduce import compare
from reproduce.compare import (
    HERE,
    Comparison,
    draw_curves,
    grid_table,
    load_yaml,
    of_seeds,
    run_all,
    table,
)
from training_scripts import model_identity
from transformers import HfArgumentParser

from autobert_zero.configuration_autobert_zero import PAPER_OPERATIONS, Attention, Convolution
from autobert_zero.search.cli.search import parse
from autobert_zero.search.genomes import read_genome
from autobert_zero.search.report.tables import mean_and_error
from autobert_zero.search.settings import TextSettings
from tests.conftest import write_corpus
from tests.evaluation.glue_files import write_task
from tests.examples.test_run_blimp import write_set


ROWS = sorted(path.stem for path in (HERE / "rows").glob("*.yaml"))
SCALES = sorted(path.stem for path in (HERE / "scales").glob("*.yaml"))
FOUND = [
    {"kind": "convolution", "kernel_size": 65},
    {"kind": "attention", "expression": "matmul(matmul(q, transpose(q)), q)"},
]


def comparison(folder: Path, scale: str, rows: list[str]) -> Comparison:
    made = Comparison(
        load_yaml("scales", scale),
        {row: load_yaml("rows", row) for row in rows},
        folder,
        [],
        ["more.txt"],
        None,
        [sys.executable],
    )
    for row in rows:  # as if all searches were finished
        if "search" in made.rows[row]:
            made.search_folder(row).mkdir(parents=True)
            genome = (FOUND * 6)[: made.scale["model"]["num_hidden_layers"]]
            (made.search_folder(row) / "summary.json").write_text(json.dumps({"best": {"genome": genome}}))
        made.write_genome(row)
    return made


def test_the_rows_and_scales():
    assert set(ROWS) >= {
        "bert",
        "published",
        "attentions",
        "convolutions",
        "one_kernel_size",
        "random_search",
        "searched",
    }
    assert SCALES == ["babylm", "base", "cpu", "gpu", "model", "rotary", "tiny"]


def test_the_row_of_the_root(tmp_path):
    """The row `found` is the backbone of the model in the root."""
    assert comparison(tmp_path, "babylm", ["found"]).genome("found") == read_genome(str(HERE.parents[1]))


@pytest.mark.parametrize("scale", SCALES)
def test_all_commands_are_valid(tmp_path, scale):
    made = comparison(tmp_path, scale, ROWS)
    searches = {Path(c[c.index("--output_dir") + 1]).parent.name: c for c in made.searches()}
    settings = {row: parse(command[3:])[0] for row, command in searches.items()}
    searched = {"attentions", "convolutions", "one_kernel_size", "random_search", "searched", "searched_paper"}
    assert set(settings) == searched
    absolute = {row for row, each in settings.items() if each.model.position_embedding_type == "absolute"}
    assert absolute == searched - {"searched"}
    layers = made.scale["model"]["num_hidden_layers"]
    assert settings["attentions"].space.min_attention_layers == layers
    assert settings["searched"].strategy.strategy == "thompson_op_nas"
    assert settings["convolutions"].space.max_attention_layers == 0
    assert settings["one_kernel_size"].space.kernel_sizes == [7]
    in_the_papers_space = {"attentions", "one_kernel_size", "random_search", "searched_paper"}
    paper = {row for row, each in settings.items() if each.space.named_operations() == PAPER_OPERATIONS}
    assert paper >= in_the_papers_space and "searched" not in paper

    pretraining = HfArgumentParser(
        (run_pretraining.ModelArguments, TextSettings, run_pretraining.PretrainingArguments, _Arguments)
    )
    plan = made.scale["pretraining"]
    commands = [*made.grids(), *made.pretrainings()]
    grids = len(ROWS) - 2  # two rows use the choice of another
    choices = len(plan["grid"]) if len(plan["grid"]) > 1 else 0
    assert len(commands) == grids * choices + len(ROWS) * len(plan["seeds"])
    steps = {Path(c[c.index("--output_dir") + 1]).parent.name: c[c.index("--max_steps") + 1] for c in commands}
    assert int(steps["bert_longer"]) == 3 * int(steps["bert"]) == 3 * plan["max_steps"]
    assert steps["untrained"] == "1"
    for command in commands:
        *_, arguments = pretraining.parse_args_into_dataclasses(command[2:])
        assert {"learning_rate": arguments.learning_rate, "warmup_steps": arguments.warmup_steps} in plan["grid"]
    assert not any("--validation_file" in command for command in made.grids())
    assert all("--validation_file" in command for command in made.pretrainings())
    blimp = [run_blimp.make_parser().parse_args(command[2:]) for command in made.blimp()]
    assert {arguments.trust_remote_code for arguments in blimp} == {True}
    assert {arguments.fraction for arguments in blimp} == {0.1 if scale in ("babylm", "model") else 1.0}
    glue = HfArgumentParser((run_glue.GlueArguments, _Arguments))
    fine_tunings = list(made.fine_tunings())
    for command in fine_tunings:
        glue.parse_args_into_dataclasses(command[2:])
    for stage in (list(made.pretrainings()), fine_tunings):
        firsts = [any("seed-0" in part for part in command) for command in stage]
        assert firsts == sorted(firsts, reverse=True) and sum(firsts) * len(plan["seeds"]) == len(stage)


class _Arguments:
    """Replaced below: the arguments of Trainer without its check of the device, which a CPU may fail."""


_Arguments = type("_Arguments", (run_pretraining.TrainingArguments,), {"__post_init__": lambda self: None})


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_all_rows_have_equal_numbers_of_parameters(tmp_path, scale):
    made = comparison(tmp_path, scale, ROWS)
    counts = {row: made._count(row, made.intermediate_size(row)) for row in ROWS}
    assert made.intermediate_size("bert") == made.scale["model"]["intermediate_size"]
    assert max(counts.values()) < 1.03 * min(counts.values()), counts
    hybrid = made.genome("hybrid")
    assert isinstance(hybrid[0], Convolution) and isinstance(hybrid[1], Attention) and made.genome("convbert") is None


def test_a_table_of_the_results_so_far(tmp_path):
    made = comparison(tmp_path, "cpu", ["bert", "bert_longer", "convbert", "searched"])
    assert made.results() == {} and grid_table(made) == ""
    choices = made.scale["pretraining"]["grid"]
    assert made.choice("bert") == choices[0]
    for choice, loss in zip(choices, (5.0, 4.0, None), strict=False):
        folder = made.grid_folder("bert", choice)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"losses": {"validation": {"1": loss}}}))
    assert (
        made.choice("bert_longer") == made.choice("bert") == choices[1] == {"learning_rate": 2e-3, "warmup_steps": 0.1}
    )
    assert grid_table(made).splitlines()[2:] == ["| BERT | 5.000 | 4.000 | diverged |  |"]
    result = {
        "parameters": 1000,
        "tokens": 1_230_000,
        "unigram_losses": {"test": 6.5},
        "steps": 40,
        "training_losses": [[10, 7.0], [20, 6.0], [40, 5.0]],
        "bits_per_byte": {"test": 1.5},
        "tokens_per_second": 9.0,
        "seconds_of_last_session": 11.0,
        "commit": "abc",
        "machine": "m",
        "versions": {},
        "command": "python",
        "identity": {"text": "0"},
    }
    for seed, loss in ((0, 4.0), (1, 4.5)):
        folder = made.seed_folder("bert", seed)
        folder.mkdir(parents=True)
        losses = {"test": {"0.25": 6.0, "0.5": None, "1": loss}, "validation": {"1": 0.0}}
        (folder / "results.json").write_text(json.dumps({**result, "losses": losses}))
        (folder / "config.json").write_text("{}")
        weights = model_identity(argparse.Namespace(model_name_or_path=folder))
        blimp = {"fraction": 1.0, "within_word": False, "weights": weights, "accuracy": 60.0 + seed}
        (folder / "blimp").mkdir()
        (folder / "blimp" / "results.json").write_text(json.dumps({**blimp, "fields": {"syntax": {"accuracy": 55.0}}}))
    for task, scores in (("rte", [50.0, 52.0]), ("cola", [10.0, 12.0])):
        folder = made.seed_folder("bert", 0) / "glue" / task
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"tasks": {task: {"scores": scores}}}))
    found = made.results()
    assert list(found) == ["bert"]
    assert found["bert"]["blimp"] == {"accuracy": (60.5, 0.5), "fields": {"syntax": (55.0, 0.0)}}
    runs = found["bert"]["runs"]
    assert [(seed, run["losses"]["test"]["1"], run["blimp"]) for seed, run in runs.items()] == [
        ("0", 4.0, 60.0),
        ("1", 4.5, 61.0),
    ]
    assert found["bert"]["bits_per_byte"] == {"test": (1.5, 0.0)}
    assert found["bert"]["curve"] == [[0.25, 7.0], [0.5, 6.0], [1, 5.0]]
    tokens, minutes, losses = compare.curve(found["bert"])
    assert tokens == pytest.approx([0.615, 1.23]) and losses == [6.0, 5.0]
    assert minutes == pytest.approx([1_230_000 / 9 / 60 / 2, 1_230_000 / 9 / 60])
    draw_curves(found, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert "million tokens" in drawn and "minutes, at the mean speed of each" in drawn
    assert found["bert"]["losses"]["test"] == {"0.25": (6.0, 0.0), "0.5": (None, None), "1": (4.25, 0.25)}
    assert found["bert"]["grid"]["rate-0.002-warmup-0.1"] == 4.0
    assert found["bert"]["glue"]["tasks"] == {"cola": (11.0, 1.0), "rte": (51.0, 1.0)}
    assert found["bert"]["glue"]["mean"] is None  # tasks are missing
    shown = table(found)
    assert (
        "| BERT | 1,000 | " in shown
        and " | 1.2 M | 9 | 2,278 | rate" in shown
        and "1.500 ± 0.000" in shown
        and "4.250 ± 0.250" in shown
        and "6.500" in shown
        and "51.0 ± 1.0" in shown
    )
    assert (
        "rate-0.002-warmup-0.1" in shown and "diverged" in shown and " | BLiMP | " in shown and "60.5 ± 0.5" in shown
    )


def test_what_is_measured_on_blimp(tmp_path):
    """Weights that were not, with these options, and whose training did not diverge."""
    made = comparison(tmp_path, "cpu", ["bert"])
    made.scale["pretraining"]["seeds"] = [0]
    folder = made.seed_folder("bert", 0)
    (folder / "blimp").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert len(list(made.blimp())) == 1
    weights = model_identity(argparse.Namespace(model_name_or_path=folder))
    result = {"fraction": 1.0, "within_word": False, "weights": weights, "accuracy": 60.0}
    (folder / "blimp" / "results.json").write_text(json.dumps(result))
    assert made.blimp_result("bert", 0) == result and not list(made.blimp())
    for options in ({"fraction": 0.1}, {"within_word": True}):
        made.scale["blimp"] = options
        assert made.blimp_result("bert", 0) is None and len(list(made.blimp())) == 1
    made.scale["blimp"] = {"batch_tokens": 64}
    assert not list(made.blimp())
    del result["weights"]  # which older results lack
    (folder / "blimp" / "results.json").write_text(json.dumps(result))
    assert made.blimp_result("bert", 0) == result
    (folder / "blimp" / "results.json").write_text(json.dumps({**result, "weights": weights}))
    (folder / "config.json").write_text('{"other": "weights"}')
    assert made.blimp_result("bert", 0) is None and len(list(made.blimp())) == 1
    (folder / "results.json").write_text(json.dumps({"losses": {"test": {"1": None}}}))
    assert not list(made.blimp())


def test_rte_and_wnli_are_not_in_the_mean(tmp_path):
    made = comparison(tmp_path, "cpu", ["bert"])
    made.scale["glue"]["tasks"] = ["cola", "rte", "wnli", "sst2"]
    for task, score in (("rte", 1.0), ("cola", 10.0), ("wnli", 2.0), ("sst2", 70.0)):
        folder = made.seed_folder("bert", 0) / "glue" / task
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"tasks": {task: {"scores": [score]}}}))
    glue = made._glue("bert", [0])
    assert glue["mean"][0] == 40 and set(glue["tasks"]) == {"cola", "rte", "wnli", "sst2"}
    row = {"losses": {}, "unigram_losses": {}, "blimp": {"accuracy": None}, "bits_per_byte": {}, "tokens": 9}
    row |= {"name": "B", "parameters": 1, "flops": 1, "tokens_per_second": [0.0], "chosen": "c", "glue": glue}
    head, _, line, _ = table({"bert": row}).splitlines()
    assert head.endswith("| cola | sst2 | GLUE | rte | wnli |")
    assert line.endswith("| 10.0 | 70.0 | 40.00 | 1.0 | 2.0 |")


def test_errors():
    assert mean_and_error([3.0]) == (3.0, None)
    assert mean_and_error([3.0, None]) == (None, None)
    assert of_seeds([[1.0, 3.0, 5.0]]) == (3.0, pytest.approx(2 / 3**0.5, abs=1e-4))
    # Of two pre-trainings, whatever the number of fine-tunings.
    assert of_seeds([[1.0, 3.0], [4.0, 6.0]]) == (3.5, 1.5)


def test_a_command_that_fails_ends_the_run_with_its_output(tmp_path, capsys):
    fails = [sys.executable, "-c", "import sys; sys.exit('no such thing')", "--output_dir", str(tmp_path / "a" / "b")]
    works = [sys.executable, "-c", "print('done')", "--output_dir", str(tmp_path / "c")]
    with pytest.raises(RuntimeError, match=r"exit code 1 \(.*a-b.log\):\nno such thing"):
        run_all([fails, works], 2, tmp_path)
    assert (tmp_path / "logs" / "c.log").read_text() == "done\n"
    assert capsys.readouterr().out.count("$ python -c") == 2


def test_a_rate_of_another_row(tmp_path, capsys):
    """It is known if there is only one, or if all short trainings of the other row are finished, even if one diverged."""
    tiny = load_yaml("scales", "tiny")
    [first, *_] = tiny["pretraining"]["grid"]
    (tmp_path / "one.yaml").write_text(
        yaml.safe_dump({**tiny, "pretraining": {**tiny["pretraining"], "grid": [first]}})
    )
    arguments = ["--rows", "bert_longer", "--output_dir", str(tmp_path), "--table_only"]
    compare.main(["--scale", str(tmp_path / "one.yaml"), *arguments])
    for choice, loss in zip(tiny["pretraining"]["grid"], (5.0, *[None] * 9), strict=False):
        folder = tmp_path / "bert" / "grid" / compare.name_of(choice)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"losses": {"validation": {"1": loss}}}))
    compare.main(["--scale", "tiny", *arguments])
    assert capsys.readouterr().out.count("No row is pre-trained yet.") == 2


def test_bad_input(tmp_path, capsys):
    odd, broken, empty, nameless, wrong = (
        tmp_path / f"{name}.yaml" for name in ("odd", "broken", "empty", "nameless", "wrong")
    )
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "bert.yaml").write_text("name: another\ngenome: bert")
    tiny = load_yaml("scales", "tiny")
    odd.write_text(yaml.safe_dump({**tiny, "pretraining": {**tiny["pretraining"], "max_steps": 6}}))
    broken.write_text("a: [")
    empty.write_text("name: nothing")
    nameless.write_text("genome: bert")
    wrong.write_text("name: wrong\ngenome: bert\nconfig: {hidden: 3}")
    (tmp_path / "dropout.yaml").write_text("name: dropout\ngenome: bert\nconfig: {hidden_dropout_prob: 2.0}")
    for arguments, message in (
        (["--scale", "huge"], "expected one of ["),
        (["--scale", "tiny", "--rows", "gpt"], "expected one of ["),
        (["--scale", "tiny", "--rows", "bert_longer"], "expected bert with bert_longer, which uses its learning rate"),
        (["--scale", "tiny", "--train_file", "no.txt"], "train_file: expected a file, got 'no.txt'"),
        (["--scale", "tiny", "--validation_file", "no.txt"], "validation_file: expected a file, got 'no.txt'"),
        (["--scale", "tiny", "--data_dir", "nowhere"], "data_dir: expected rte/train.jsonl.gz in 'nowhere', got none"),
        (["--scale", "tiny", "--jobs", "0"], "jobs: expected at least 1, got 0"),
        (["--scale", str(odd)], "scale: expected a multiple of 4 as max_steps, for losses at each quarter, got 6"),
        (["--scale", str(broken)], "scales: cannot read"),
        (["--scale", "tiny", "--rows", str(empty)], "rows: expected genome, layers, model_type or search in empty"),
        (["--scale", "tiny", "--rows", str(nameless)], "rows: expected a name in nameless, got ['genome']"),
        (["--scale", "tiny", "--rows", str(wrong)], "rows: wrong: config_overrides:"),
        (["--scale", "tiny", "--rows", str(tmp_path / "dropout.yaml")], "rows: dropout: "),
        (["--scale", "tiny", "--rows", "bert", str(tmp_path / "again" / "bert.yaml")], "expected each name once"),
    ):
        with pytest.raises(SystemExit, match="2"):
            compare.main([*arguments, "--output_dir", str(tmp_path)])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_all_stages(tmp_path):
    """From the search to the table, twice: the second time everything is finished."""
    write_corpus(tmp_path / "text.txt", documents=80)
    for name in ("rte", "mrpc"):
        write_task(tmp_path / "glue", name)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    scale = load_yaml("scales", "tiny")
    scale["model"] = {**sizes, "initializer_range": 0.1}
    scale["vocab_size"] = 150
    scale["search"] |= {"sequence_length": 16, "supernet_steps": 4, "max_evaluations": 4, "population_size": 3}
    scale["search"] |= {"eval_sequences": 8, "kernel_sizes": [3, 5]}
    scale["pretraining"] |= {"max_seq_length": 16, "max_steps": 8, "max_eval_sequences": 8, "seeds": [0]}
    scale["glue"] |= {"max_seq_length": 16}
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(scale))
    command = [
        sys.executable,
        str(HERE / "compare.py"),
        "--scale",
        str(tmp_path / "scale.yaml"),
        "--rows",
        "bert",
        "searched",
    ]
    command += ["--output_dir", str(tmp_path / "out"), "--train_file", str(tmp_path / "text.txt")]
    command += ["--data_dir", str(tmp_path / "glue"), "--jobs", "2", "--results", str(tmp_path / "table.json")]
    (tmp_path / "blimp").mkdir()
    write_set(tmp_path / "blimp", "number")
    command += ["--blimp_dir", str(tmp_path / "blimp"), "--picture", str(tmp_path / "curves.png")]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    assert outputs[0].splitlines()[-4:] == outputs[1].splitlines()[-4:]
    results = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert results["searched"]["glue"]["mean"] and results["bert"]["genome"] != results["searched"]["genome"]
    assert results["searched"]["losses"]["test"]["1"][0] > results["searched"]["bits_per_byte"]["test"][0] > 0
    assert results["bert"]["blimp"]["accuracy"][0] in range(0, 101, 10)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "finished" in (tmp_path / "out" / "logs" / "searched-seed-0.log").read_text()
