"""What the figures of results/ rest on: reading of foreign tables, and the model of the tables of trained backbones."""

import functools
import io
import itertools
import math
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nas_bench
import numpy as np
import pytest
import rank_fidelity
import rank_history
import run_blimp
import run_pretraining
import search_efficiency
import surrogate
import throughput
import torch
from reproduce import compare

from autobert_zero.configuration_autobert_zero import Convolution
from autobert_zero.search.cli.search import parse
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evolution.archive import Outcome
from autobert_zero.search.evolution.history import History
from autobert_zero.search.evolution.strategies import RandomSearch
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.run.factory import make_space
from autobert_zero.search.settings import SearchSettings
from tests.evolution.conftest import search
from tests.examples.test_run_blimp import write_set


ROOT = Path(__file__).resolve().parents[1]


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def unpickled(value):
    return nas_bench.NumbersUnpickler(io.BytesIO(pickle.dumps(value))).load()


def test_tables_of_others_are_read_without_running_their_code(capsys):
    rows = {7: {"valid_perf": np.float64(0.5), "para": 3, "curve": [0.25, np.float32(1)]}}
    assert unpickled(rows) == rows
    for harmful in (Harmful(), {"rows": [Harmful()]}):
        with pytest.raises(pickle.UnpicklingError, match=r"expected numbers, got builtins\.print"):
            unpickled(harmful)
    assert not capsys.readouterr().out


def test_graphs_that_differ_in_numbering_alone_are_one():
    """The first two nodes read the input, the third the second node, the fourth the third."""
    graph = ((0, 0, 2, 3), ("gat", "gcn", "gin", "fc"))
    found = nas_bench.renumbered(graph)
    assert graph in found and ((0, 1, 2, 0), ("gcn", "gin", "fc", "gat")) in found
    assert len(set(found)) == 4  # the chain of three keeps its order, the first node goes anywhere
    assert all(set(nas_bench.renumbered(other)) == set(found) for other in found)


def value(genome) -> float:
    """A score that a regression can learn: what most of the layers are."""
    return sum(gene.kernel_size / 65 if isinstance(gene, Convolution) else -1.0 for gene in genome)


@pytest.fixture
def make_table(tmp_path, monkeypatch):
    monkeypatch.setattr(surrogate, "TREES", 50)  # for speed, as are fewer resamples
    monkeypatch.setattr(surrogate, "tau", functools.partial(surrogate.tau, resamples=20))

    def make(name, count=80, score=value, **changes):
        settings = SearchSettings.from_dict({"operations": ["paper"], **changes})
        header = {
            "settings": {**settings.identity(), "final_steps": settings.final.final_steps},
            "data": {"text": "a"},
        }
        space = make_space(settings.space, settings.strategy, settings.model, CustomOperations())
        path = tmp_path / name

        def evaluate(record):
            if record.index == 3:
                return Outcome("failed", reason="FloatingPointError: loss")
            final = score(record.genome)
            return Outcome(score=final, costs={"validation_5": 0.0 - final, "validation_10": -final})

        with History(path, header, ("settings", "data"), decode_genome) as history:
            search(RandomSearch(space, 10), seed=settings.run.seed, count=count, history=history, evaluate=evaluate)
        return path

    return make


def test_the_surrogate_predicts_what_it_has_not_seen(make_table):
    table = surrogate.BackboneTable([make_table("one.jsonl"), make_table("two.jsonl", seed=43)])
    assert len(table.records) == 158  # all but the failed ones
    _, [other] = surrogate.read_tables([make_table("three.jsonl", seed=44)])
    predicted = [table.scores[record.genome] for record in other]
    inputs = table.columns.transform([surrogate.describe(record.genome) for record in other])
    assert predicted == pytest.approx(table.regression.predict(inputs).tolist())
    assert np.corrcoef(predicted, [record.score for record in other])[0, 1] > 0.8


def test_the_quality_of_a_table(make_table):
    """Cross-validation must not see the genome itself: scores that are noise cannot be predicted, scores that a genome
    determines can, and other tables are compared by genome."""
    rng = np.random.default_rng(0)
    good = surrogate.BackboneTable([make_table("good.jsonl")])
    noise = surrogate.BackboneTable([make_table("noise.jsonl", score=lambda genome: float(rng.normal()))])
    found = surrogate.quality(
        good, {"opposite": [record.evaluated(Outcome(score=-record.score)) for record in good.records]}
    )
    name = "predicted without the genome"
    assert found[name]["tau"][0] > 0.5
    assert surrogate.quality(noise, {})[name]["tau"][0] < 0.2
    assert found["validation_5"]["tau"][0] == pytest.approx(1.0)
    assert found["opposite"]["tau"][0] == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="against: expected at least 4 genomes of the tables, got 1 in short"):
        surrogate.quality(good, {"short": good.records[:1]})


def test_tables_of_other_trainings_are_refused(make_table):
    paths = [make_table("one.jsonl", 8), make_table("two.jsonl", 8, learning_rate=0.5)]
    with pytest.raises(
        ValueError, match=r"tables: expected equal trainings, got another learning_rate in .*two\.jsonl"
    ):
        surrogate.BackboneTable(paths)


@pytest.mark.parametrize(
    ("target", "benchmark"),
    [("rank-fidelity", rank_fidelity), ("search-efficiency", search_efficiency)],
)
def test_the_settings_in_the_makefile_are_accepted(target, benchmark, tmp_path, monkeypatch, capsys):
    """As far as the text, which is not part of the repository."""
    printed = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [command] = [line for line in printed.replace("\\\n", " ").splitlines() if benchmark.__name__ in line]
    words = shlex.split(command)
    arguments = words[1 + next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "train_file: expected a file" in capsys.readouterr().err


def test_the_commands_of_the_model_are_accepted(tmp_path, monkeypatch, capsys):
    """As far as the texts, which are those of the search in the comparison, too; as if the search were finished."""
    (tmp_path / "runs" / "model" / "search").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "model" / "summary.json", tmp_path / "runs" / "model" / "search")
    (tmp_path / "blimp").mkdir()
    write_set(tmp_path / "blimp", "number")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    make = ["make", "-n", "-C", str(ROOT), "model", "BLIMP=blimp"]
    printed = subprocess.run(make, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    [search, comparison, continuing, measuring, publishing] = (
        next(shlex.split(line) for line in printed.splitlines() if name in line)
        for name in ("autobert_zero.search", "compare.py", "run_pretraining.py", "run_blimp.py", "publish.py")
    )
    settings, *_ = parse(search[search.index("autobert_zero.search") + 1 :])
    arguments = comparison[2:]
    first = arguments.index("--train_file") + 1
    assert arguments[first : first + len(settings.text.train_file)] == settings.text.train_file
    with pytest.raises(SystemExit):
        compare.main(arguments)
    assert "validation_file: expected a file, got 'runs/texts/babylm_dev.txt.xz'" in capsys.readouterr().err
    continued = dict(itertools.pairwise(continuing))
    assert f"{arguments[arguments.index('--output_dir') + 1]}/found/seed-0" == continued["--model_name_or_path"]
    measured = vars(run_blimp.make_parser().parse_args(measuring[2:]))
    assert continued["--output_dir"] == measured["model_name_or_path"]
    assert measured["data_dir"] == Path("blimp")
    assert publishing[2:] == [continued["--output_dir"], ".", "--model_max_length", "512"]
    trained = tmp_path / continued["--model_name_or_path"]
    trained.parent.mkdir(parents=True, exist_ok=True)
    trained.symlink_to(ROOT)  # the model of this checkout
    monkeypatch.setattr(sys, "argv", continuing[1:])
    with pytest.raises(SystemExit):
        run_pretraining.main()
    assert f"train_file: expected a file, got '{settings.text.train_file[0]}'" in capsys.readouterr().err


def test_convolutions_are_measured_as_the_model_runs_them():
    found = throughput.measure_convolutions(2, 8, 1, torch.device("cpu"), torch.float32)["milliseconds"]
    assert set(found) == {*(f"convolution {k}" for k in (3, 9, 31, 65)), "linear 768x768"}
    assert all(set(each) == {"inference", "training"} for each in found.values())


def test_a_winner_whose_training_diverges_is_not_one():
    names = [str(i) for i in range(12)]
    full = {name: float(i) for i, name in enumerate(names)} | {"0": math.inf}
    assert math.isfinite(rank_fidelity.behind_the_best(full, full, full, 1, resamples=50))


def test_scores_are_ranked_on_the_candidates_that_both_know():
    trained = {name: float(i) for i, name in enumerate("abcdefgh")}
    scores = {**trained, "e": 7.5, "z": 0.0}  # one of the better half is out of its place
    found = rank_history.ranked(scores, trained)
    assert found["all"][0] == pytest.approx(1 - 2 * 3 / 28, abs=5e-4)
    assert found["better half"][0] == pytest.approx(1 - 2 * 3 / 6, abs=5e-4)
    assert rank_history.ranked({n: scores[n] for n in "abcd"}, trained)["all"][0] == 1
