"""The command `search`: real processes, killed and stopped; bad input; the model in a process without the package."""

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import PartialState

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.cli.arguments import parse_with_settings
from autobert_zero.search.cli.main import main as autobert_zero
from autobert_zero.search.cli.search import main, parse
from autobert_zero.search.evaluation.proxy import MaskedLMProxy
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.progress import ProgressBar
from autobert_zero.search.settings import GROUP_OF, SearchSettings, flags
from tests.conftest import TINY_RUN, command_line, random_genome, run_without_package, tiny_config, write_corpus


SEARCH = ["-m", "autobert_zero.search"]
TWO_PROCESSES = [
    ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *SEARCH],
    ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", *SEARCH],
]


def start(settings: SearchSettings, launch=SEARCH, **kwargs) -> subprocess.Popen:
    command = [sys.executable, *launch, *command_line(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **kwargs)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def history_without_times(settings: SearchSettings) -> list[dict]:
    """The entries of a history that do not depend on the machine and its speed."""
    lines = Path(settings.run.output_dir, "history.jsonl").read_text(encoding="utf-8").splitlines()
    changing = ("seconds", "machine", "command", "commit", "digest")
    return [{k: v for k, v in json.loads(line).items() if k not in changing} for line in lines]


def results(settings: SearchSettings) -> dict:
    summary = json.loads(Path(settings.run.output_dir, "summary.json").read_text(encoding="utf-8"))
    losses = {name: result["loss"] for name, result in summary["results"].items()}
    return {"losses": losses, **{name: summary[name] for name in ("status", "best", "counts", "tokens", "identity")}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[SearchSettings, str]:
    """A complete tiny run, and its output."""
    folder = tmp_path_factory.mktemp("finished")
    corpus = write_corpus(folder / "corpus.txt")
    settings = SearchSettings.from_dict({"output_dir": str(folder / "run"), "train_file": [corpus], **TINY_RUN})
    return settings, finish(start(settings))


def test_arguments_become_settings(tiny_settings):
    assert parse(command_line(tiny_settings))[0] == tiny_settings
    assert parse([]) == (SearchSettings(), 0, False)


def test_the_output_of_a_run(finished):
    settings, out = finished
    assert "1 process on cpu, 1 thread each" in out
    folder = Path(settings.run.output_dir)
    assert json.loads((folder / "settings.json").read_text()) == settings.to_dict()
    _, *records = history_without_times(settings)
    assert len(records) == settings.strategy.max_evaluations
    assert len({record["key"] for record in records}) == len(records)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["counts"]["evaluated"] == settings.strategy.max_evaluations
    scores = {record["index"]: record["score"] for record in records if record["status"] == "ok"}
    finalists = {finalist["index"]: finalist for finalist in summary["finalists"]}
    assert set(finalists) == set(sorted(scores, key=scores.get)[-3:])
    assert {finalist["steps_from_scratch"] for finalist in finalists.values()} == {3}  # half of 6
    assert summary["best"] == max(finalists.values(), key=lambda f: f["score_from_scratch"])
    assert len({finalist["score_from_scratch"] for finalist in finalists.values()}) == 3
    assert all(record["costs"].keys() == {"parameters", "flops"} for record in records)
    [best] = [record for record in records if record["index"] == summary["best"]["index"]]
    assert best["costs"]["parameters"] == summary["results"]["AutoBERT-Zero (found)"]["parameters"]
    assert summary["tokens"]["final_each"] == 6 * 4 * 16
    for name in ("AutoBERT-Zero (found)", "BERT", "unigram"):
        assert f"{summary['results'][name]['loss']:.4f}" in out
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["genome"] == summary["best"]["genome"] and not config["sparse_prediction"]
    model_files = {path.name for path in (folder / "model").iterdir()}
    assert model_files >= {
        "README.md",
        "config.json",
        "configuration_autobert_zero.py",
        "model.safetensors",
        "modeling_autobert_zero.py",
        "tokenizer.json",
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f">{max(scores.values()):.4f}<".replace("-", "−") in page and "http-equiv" not in page
    winner, found = summary["best"]["index"], summary["results"]["AutoBERT-Zero (found)"]
    assert f"Candidate #{winner} and its ancestors" in page and f'<h3 id="backbone">#{winner}</h3>' in page
    assert f'<td class="n">{found["loss"]:.4f}</td>' in page
    for name, result in summary["results"].items():
        assert (name == "unigram") == ("layer_importance" not in result)
        if name != "unigram":  # the found model's began as a finalist
            assert [step for step, _ in result["training_losses"]] == [1, 2, 3, 4, 5, 6]
    for name in ("BERT", "BERT, rotary positions"):
        attentions = summary["results"][name]["attention_by_distance"]
        assert set(attentions) == {"1", "2"} and {len(heads) for heads in attentions.values()} == {3}
    assert ("Where its attentions look" in page) == bool(found["attention_by_distance"])
    assert "Learning from scratch" in page and not list(folder.glob("final-*"))
    for number, rise in enumerate(found["layer_importance"], start=1):
        assert re.search(rf"^ +{number} +{re.escape(f'{rise:+.3f}')} +\S", out, re.MULTILINE)
        assert f'<td class="n">{rise:+.3f}</td>' in page
        row = rf"^\| {number} \| [^|]+ \| {re.escape(f'{rise:+.3f}')} \|"
        assert re.search(row, (folder / "model" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert "The number beside a layer is how much the test loss rises" in out and "What each layer contributes" in page
    assert ("no more than token frequencies" in page) == (found["loss"] >= summary["results"]["unigram"]["loss"])
    assert ("no more than token frequencies" in out) == ("no more than token frequencies" in page)
    header = json.loads((folder / "history.jsonl").read_text(encoding="utf-8").splitlines()[0])
    better = sum(score > header["unigram_score"] for score in scores.values())
    assert summary["counts"]["better_than_unigram"] == better
    assert summary["command"].startswith("python -m autobert_zero.search --")
    assert summary["commit"] is None or summary["commit"] in page
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        ".lock",
        "history.jsonl",
        "model",
        "settings.json",
        "summary.json",
        "supernet.safetensors",
    }


def test_the_model_is_the_one_that_was_measured(finished):
    settings, _ = finished
    model = AutoBertZeroForMaskedLM.from_pretrained(Path(settings.run.output_dir, "model"))
    loss = Problem.prepare(settings, torch.device("cpu")).proxy.loss(model, "test")
    assert loss == pytest.approx(results(settings)["losses"]["AutoBERT-Zero (found)"], rel=1e-6)


def test_the_same_command_on_a_finished_run_shows_it_again(capsys, finished):
    settings, out = finished
    before = {path: path.stat().st_mtime_ns for path in Path(settings.run.output_dir).glob("model/*")}
    main(command_line(settings))
    printed = capsys.readouterr().out
    assert "contains this run, finished" in printed and out[out.index("Best of") :] in printed
    assert before == {path: path.stat().st_mtime_ns for path in Path(settings.run.output_dir).glob("model/*")}


def test_a_run_that_was_killed_after_its_summary_is_finished_by_the_next_start(capsys, finished):
    settings, _ = finished
    folder = Path(settings.run.output_dir)
    report = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").write_text("the page during the search", encoding="utf-8")
    left = [folder / "final-1-a.safetensors", folder / "final-1-a.jsonl", folder / "results" / "1.json"]
    (folder / "results").mkdir()
    for path in left:
        path.touch()
    main(command_line(settings))
    assert (folder / "report.html").read_text(encoding="utf-8") == report
    assert not any(path.exists() for path in (*left, folder / "results"))


@pytest.mark.parametrize(
    "lost",
    [
        "model",
        "history.jsonl",
        *(pytest.param(f"model/{name}", marks=pytest.mark.slow) for name in ("model.safetensors", "tokenizer.json")),
    ],
)
def test_what_a_finished_run_lost_is_made_again(finished, tmp_path, lost):
    settings, _ = finished
    copied = settings.replace(output_dir=str(tmp_path / "run"))
    shutil.copytree(settings.run.output_dir, tmp_path / "run")
    path = tmp_path / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    main(command_line(copied))
    assert results(copied) == results(settings) and history_without_times(copied) == history_without_times(settings)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        one, other = (Path(each.run.output_dir, "model", name).read_bytes() for each in (settings, copied))
        assert one == other


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_model_that_is_not_a_folder_is_replaced(finished, tmp_path, kind):
    settings, _ = finished
    copied = settings.replace(output_dir=str(tmp_path / "run"))
    shutil.copytree(settings.run.output_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "run" / "model").touch()
    main(command_line(copied))
    assert (tmp_path / "run" / "model" / "config.json").exists() and not list((tmp_path / "elsewhere").iterdir())


def test_a_run_killed_at_any_moment_resumes(finished, tmp_path):
    """`kill -9` in the super-network, among the candidates and in the final training; then the same command."""
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"), checkpoint_seconds=0.0)
    folder = Path(settings.run.output_dir)

    def lines() -> int:
        file = folder / "history.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    moments = [
        lambda: (folder / "supernet.safetensors").exists(),
        lambda: lines() >= 4,
        lambda: any(folder.glob("results/finalist-*")),
        lambda: (folder / "final-bert.safetensors").exists(),
    ]
    killed_with = []
    for moment in moments:
        process = start(settings)
        while not moment():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        killed_with.append(lines())
    assert killed_with[0] == 1 and killed_with[1] < 1 + settings.strategy.max_evaluations
    finish(start(settings))
    assert history_without_times(settings) == history_without_times(expected)
    assert results(settings) == results(expected)


def test_a_quiet_run_prints_nothing(capfd, finished):
    settings, _ = finished
    main([*command_line(settings), "--quiet"])
    assert capfd.readouterr() == ("", "")


def test_settings_from_a_file(tmp_path, tiny_settings, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "train_file: [a.txt, b.txt]\nlearning_rate: 1e-3\nstreaming: false\nmax_parameters: null\nseed: 7\n"
    )
    settings, verbosity, _ = parse(["--seed", "8", "-v", "--config", str(file), "--train_file", "c.txt"])
    assert verbosity == 1
    assert settings == SearchSettings.from_dict({"train_file": ["c.txt"], "learning_rate": 1e-3, "seed": 8})
    # What would not survive as arguments, and JSON that is not YAML.
    file.write_text("dataset_name: me/data\ndataset_config_name: 20231101\nstreaming: 1\nmax_documents: 9")
    text = parse(["--config", str(file)])[0].text
    assert text.dataset_config_name == "20231101" and text.streaming is True
    for text in (
        "text_column: -x\nlayer_mutations: [1, 0, -0.0]\nkernel_sizes: 3\ntrain_file: '~/\U0001f600'",
        '{\n\t"text_column": "-x", "layer_mutations": [1, 0, -0.0], "kernel_sizes": 3, '
        '"train_file": ["~/\\ud83d\\ude00"]}',
    ):
        file.write_text(text)
        settings = parse(["--config", str(file)])[0]
        assert settings.text.text_column == "-x" and settings.strategy.layer_mutations == [1, 0, 0]
        assert settings.space.kernel_sizes == [3] and settings.text.train_file == [os.path.expanduser("~/\U0001f600")]
    # settings.json of a run is such a file, too.
    file.write_text(json.dumps(tiny_settings.to_dict()))
    assert parse(["--config", str(file)]) == (tiny_settings, 0, False)
    settings = tiny_settings.replace(seed_genomes=["none"])  # recorded as []
    file.write_text(json.dumps(settings.to_dict()))
    assert parse(["--config", str(file)])[0] == parse(flags(settings.to_dict()))[0] == settings
    for text, message in {
        "sead: 7": "expected settings of a search in '{file}': got 'sead'; did you mean seed?",
        "- 7": "expected settings of a search in '{file}': expected a mapping, got [7]",
        "": "expected settings of a search in '{file}': expected a mapping, got None",
        "seed: {": "expected settings of a search in '{file}': expected YAML or JSON: ",
        "[" * 5000: "expected YAML or JSON: maximum recursion depth exceeded",
        "train_file: &a [a.txt]\nlog_with: *a": "expected YAML or JSON: no aliases, got one in line 2",
        "train_file: [{a: 1}]": "train_file: expected text, numbers, or a list of them, got {'a': 1}",
        "train_file: [2026-11-28]": "train_file: expected text, numbers, or a list of them, got datetime.date(",
        "seed: {a: 1}": "seed: expected text, numbers, or a list of them, got {'a': 1}",
        "text_column: ~\n1: 2": "got 1",
        "# " + "x" * (1 << 20): "expected at most 1048576 bytes, got more",
        "".join(f"a{i}: 1\n" for i in range(5_000)): "got 'a0'",
        "train_file: [~]": "train_file: expected text, numbers, or a list of them, got None",
        "seed: !!int ''": "expected YAML or JSON: ",
        "seed: !!bool maybe": "expected YAML or JSON: ",
        "seed: !!timestamp x": "expected YAML or JSON: ",
        "text_column: !!python/object/apply:os.getcwd []": "could not determine a constructor",
        "seed: many": "settings of a search in '{file}': seed: expected int, got 'many'",
        "seed: [1, 2]": "seed: expected an integer, got [1, 2]",
        "text_column: no": "text_column: expected a string, got False",
        "strategy: other": "strategy: expected one of ",
        "kernel_sizes: []\nlog_with: []": "settings of a search in '{file}': kernel_sizes: expected values, got none",
    }.items():
        file.write_text(text)
        assert message.replace("{file}", str(file)) in fails(capsys, ["--config", str(file)])
    assert "No such file" in fails(capsys, ["--config", "nowhere.yaml"])
    assert "quiet: expected without --estimate" in fails(capsys, ["--estimate", "--quiet"])


def test_hyphens_and_old_names(monkeypatch):
    expected = SearchSettings.from_dict({"hidden_size": 128, "prune_after": 0.5, "streaming": False, "seed": 3})
    given = ["--hidden-size", "128", "--hurdle=0.5", "--streaming", "no", "--seed=3"]
    assert parse(given)[0] == expected
    assert parse(["--prune-after", "0.5", "--hidden_size=128", "--seed", "3"])[0] == expected
    monkeypatch.setattr(sys, "argv", ["script", *given, "--own-count", "5"])

    @dataclasses.dataclass
    class Options:
        own_count: int = dataclasses.field(default=1, metadata={"help": "Of a script."})

    _, values, options = parse_with_settings("A script.", Options, "options")
    assert SearchSettings.from_dict(values) == expected and options.own_count == 5


def test_help_has_every_setting_in_its_group(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    groups = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    shown = {
        name: re.findall(r"^  --(\w+)", text, re.MULTILINE)
        for name, text in zip(groups[1::2], groups[2::2], strict=True)
    }
    expected = {group.title: [f.name for f in dataclasses.fields(group)] for group in SearchSettings().groups}
    assert {name: shown[name] for name in expected} == expected
    assert sum(map(len, expected.values())) == len(GROUP_OF) and "" not in expected


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["export", "--help"]])
def test_the_command_is_installed(arguments):
    command = Path(sys.executable).with_name("autobert-zero")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0 and "usage: autobert-zero" in done.stdout and "\x1b" not in done.stdout
    assert len(arguments) == 1 or "example: " in done.stdout


@pytest.mark.parametrize("command", ["search", "show", "report", "compare", "export", "completion"])
def test_help_imports_no_large_library(command):
    code = (
        "import contextlib, io, sys; from autobert_zero.search.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main([sys.argv[1], '--help'])\n"
        "print({'torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        autobert_zero(["--version"])
    assert capsys.readouterr().out == f"autobert-zero {importlib.metadata.version('autobert-zero')}\n"


def test_a_reader_that_has_enough():
    """`autobert-zero show … | head -1` ends without a traceback."""
    code = "from autobert_zero.search.cli.main import main; main(['show', 'autobert-zero-base'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=60) == 1 and process.stderr.read() == b""
    process.stderr.close()


def test_the_environment_of_a_bug_report(capsys):
    autobert_zero(["env"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__ and lines["device"].startswith("cpu: ")
    assert {"python", "transformers", "autobert-zero", "commit", "system"} <= set(lines)


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", "1 +/- 2 -> sigma?"), ("cp1252", "1 ± 2 -> sigma?")])
def test_output_in_other_encodings(encoding, expected):
    code = "from autobert_zero.search.cli import encoding; encoding.degrade_output(); print('1 ± 2 → σ語')"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).strip() == expected


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_is_printed_in_other_encodings(finished, tmp_path, encoding):
    """A model and its description, and the output of each command."""
    run = finished[0].run.output_dir
    code = f"""
from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.cli.main import main
model = AutoBertZeroForMaskedLM(AutoBertZeroConfig(hidden_size=24, num_attention_heads=2, intermediate_size=32))
print(model, model.config, model.describe())
for arguments in (["show", {run!r}], ["show", {run!r}, "--latex"], ["compare", {run!r}, {run!r}],
                  ["report", {run!r}, "--output", {str(tmp_path / "page.html")!r}],
                  ["export", {run!r}, "--output", {str(tmp_path / "exported")!r}]):
    main(arguments)
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "convolution" in done.stdout.decode(encoding)


def test_completion(tmp_path):
    script = tmp_path / "completion"
    command = Path(sys.executable).with_name("autobert-zero")
    script.write_bytes(subprocess.run([command, "completion", "bash"], capture_output=True, check=True).stdout)
    ask = f"source {script}; COMP_WORDS=(autobert-zero sh); COMP_CWORD=1; _shtab_autobert_zero; echo ${{COMPREPLY[@]}}"
    assert subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split() == ["show"]


@pytest.mark.parametrize(
    "launch",
    # Other tests start two processes by torchrun, too.
    [
        pytest.param(TWO_PROCESSES[0], id="torchrun", marks=pytest.mark.slow),
        pytest.param(TWO_PROCESSES[1], id="accelerate", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_same_history(finished, tmp_path, launch):
    """With the same super-network. The output says that there are two; the next test shows that both work."""
    expected, _ = finished
    kept = tmp_path / "kept"
    settings = expected.replace(output_dir=str(tmp_path / "run"), prepared_dir=str(kept), processes_per_device=2)
    os.mkdir(settings.run.output_dir)
    shutil.copy(Path(expected.run.output_dir, "supernet.safetensors"), settings.run.output_dir)
    out = finish(start(settings, launch))
    assert "2 processes on cpu, 1 thread each" in out and (kept / "text.json").exists()
    assert history_without_times(settings) == history_without_times(expected)
    assert results(settings) == results(expected)


def test_a_killed_worker_ends_the_run_and_nothing_is_lost(finished, tmp_path):
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"))
    os.mkdir(settings.run.output_dir)
    shutil.copy(Path(expected.run.output_dir, "supernet.safetensors"), settings.run.output_dir)
    process = start(settings, TWO_PROCESSES[0])
    file = Path(settings.run.output_dir, "history.jsonl")
    while not file.exists() or file.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    assert sorted(ranks) == ["0", "1"]
    ranks["1"].kill()
    process.communicate(timeout=15)  # not after the 20 s that processes have which were not killed
    assert process.returncode != 0 and not any(rank.is_running() for rank in ranks.values())
    main(command_line(settings))
    assert history_without_times(settings) == history_without_times(expected)


@pytest.mark.slow
def test_four_processes_give_the_same_history(finished, tmp_path):
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"))
    os.mkdir(settings.run.output_dir)
    shutil.copy(Path(expected.run.output_dir, "supernet.safetensors"), settings.run.output_dir)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", *SEARCH]
    assert "4 processes on cpu" in finish(start(settings, launch))
    assert history_without_times(settings) == history_without_times(expected)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
@pytest.mark.parametrize(
    "launch", [SEARCH, pytest.param(TWO_PROCESSES[0], marks=pytest.mark.slow)], ids=["one process", "two processes"]
)
def test_a_signal_stops_a_run_gracefully(finished, tmp_path, number, launch):
    """In the super-network, whose checkpoint is not due yet, and among the candidates; the same command resumes."""
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"), supernet_steps=200, checkpoint_seconds=1e9)
    whole = settings.replace(output_dir=str(tmp_path / "whole"))
    main(command_line(whole))
    folder = Path(settings.run.output_dir)
    if launch != SEARCH:  # float sums of the super-network may differ with the number of processes
        os.mkdir(folder)
        shutil.copy(Path(whole.run.output_dir, "supernet.safetensors"), folder)

    def history_has(lines: int) -> bool:
        file = folder / "history.jsonl"
        return file.exists() and file.read_bytes().count(b"\n") >= lines

    for lines in (1, 4) if launch == SEARCH else (4,):
        process = start(settings, launch)
        while not history_has(lines):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(0.3 if lines == 1 else 0.0)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert f"Stopped: received {number.name}. All results so far are kept" in err, err
        assert launch != SEARCH or process.returncode == 128 + number
        assert launch != SEARCH or "Traceback" not in err
        assert not (folder / "summary.json").exists()
    finish(start(settings, launch))
    assert history_without_times(settings) == history_without_times(whole)
    assert results(settings) == results(whole)


@pytest.mark.parametrize(
    "launch",
    [
        pytest.param(SEARCH, id="one process"),
        pytest.param(TWO_PROCESSES[0], id="two processes", marks=pytest.mark.slow),
    ],
)
def test_max_seconds(finished, tmp_path, launch):
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"), max_seconds=0.001)
    process = start(settings, launch)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and "Stopped: max_seconds have passed. All results so far are kept" in err, err
    assert (Path(settings.run.output_dir) / "supernet.safetensors").exists() and "Best of" not in out
    main(command_line(settings.replace(max_seconds=None)))
    if launch == SEARCH:
        assert history_without_times(settings) == history_without_times(expected)


def test_a_run_is_extended_with_more_evaluations(finished, tmp_path, capsys):
    expected, _ = finished
    settings = expected.replace(output_dir=str(shutil.copytree(expected.run.output_dir, tmp_path / "run")))
    before = Path(settings.run.output_dir, "supernet.safetensors").stat().st_mtime_ns
    fewer = fails(capsys, command_line(settings.replace(max_evaluations=5)))
    assert "max_evaluations: expected at least 9, the candidates of this folder, got 5" in fewer
    main(command_line(settings.replace(max_evaluations=12, final_steps=7)))
    assert "Best of 12 candidates" in capsys.readouterr().out
    assert history_without_times(settings)[:10] == history_without_times(expected)
    assert Path(settings.run.output_dir, "supernet.safetensors").stat().st_mtime_ns == before


def test_a_winner_that_diverges_is_replaced_by_the_next_best(finished, tmp_path, monkeypatch, capsys):
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"))
    first, second = json.loads(Path(expected.run.output_dir, "summary.json").read_text())["finalists"][:2]
    original = MaskedLMProxy.train_from_scratch

    def train_from_scratch(self, genome, schedule, checkpoint, progress=None, steps=None, builder=None):
        if genome.to_list() == first["genome"] and steps == settings.final.final_steps:
            raise FloatingPointError("loss: expected a finite number, got nan at step 3")
        return original(self, genome, schedule, checkpoint, progress, steps, builder)

    monkeypatch.setattr(MaskedLMProxy, "train_from_scratch", train_from_scratch)
    main([*command_line(settings), "--verbose"])
    out = capsys.readouterr().out
    history = history_without_times(settings)[1:]
    printed = re.findall(r"^#(\d+): (-?[\d.]+|\w+)", out, re.MULTILINE)
    assert [int(index) for index, _ in printed] == list(range(len(history)))
    assert all(
        text == f"{r['score']:.4f}" for (_, text), r in zip(printed, history, strict=True) if r["status"] == "ok"
    )
    assert f"Candidate {first['index']} cannot be trained: loss: expected a finite" in out
    summary = json.loads(Path(settings.run.output_dir, "summary.json").read_text())
    assert summary["best"] == second
    found, *baselines = [result["parameters"] for name, result in summary["results"].items() if name != "unigram"]
    before = json.loads(Path(expected.run.output_dir, "summary.json").read_text())["results"]
    size_of_first = next(iter(before.values()))["parameters"]
    for baseline in baselines:  # of the size of the second, which is not that of the first
        assert abs(baseline - found) < abs(size_of_first - found)


@pytest.mark.slow
def test_all_features_of_a_search_at_once(tiny_settings, tmp_path):
    """Limits, objectives, pruning, crossover, seeds, lookahead and a tracker, in one process and in two."""
    settings = tiny_settings.replace(
        max_evaluations=24,
        max_parameters=7200,
        objectives=["score", "parameters"],
        prune_after=0.5,
        crossover_probability=0.5,
        seed_genomes=["bert"],
        position_embedding_type="absolute",
        lookahead=1,
        strategy="thompson_op_nas",
        candidate_seconds=100.0,
        log_with=["tensorboard"],
    )
    finish(start(settings))
    summary = json.loads(Path(settings.run.output_dir, "summary.json").read_text())
    _, *records = history_without_times(settings)
    assert records[0]["genome"] == [SELF_ATTENTION.to_dict()] * 2
    assert all(record["costs"]["parameters"] <= 7200 for record in records)
    assert summary["counts"]["pruned"] > 0 and all(record["intermediate_score"] is not None for record in records)
    assert len(summary["front"]) > 1
    assert any(Path(settings.run.output_dir, "autobert_zero_search").glob("events.out.tfevents*"))
    other = settings.replace(output_dir=str(tmp_path / "other"))
    os.mkdir(other.run.output_dir)
    shutil.copy(Path(settings.run.output_dir, "supernet.safetensors"), other.run.output_dir)
    finish(start(other, TWO_PROCESSES[0]))
    assert history_without_times(settings) == history_without_times(other)


def test_progress_in_a_pipe_is_lines(capsys):
    progress = ProgressBar("training", 3)
    for done in (1, 2, 3):
        progress(done, loss=0.5)
    progress.close()
    first, *_, last = lines = capsys.readouterr().err.split("\n")[:-1]
    assert first.startswith("training: 0/3 [00:00<?") and re.fullmatch(r"training: 3/3 \[.*, loss=0.500\]", last)
    assert len(set(lines)) == len(lines) and not any("\r" in line for line in lines)


def fails(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_bad_arguments(capsys, tiny_settings):
    arguments = command_line(tiny_settings)
    assert "unrecognized arguments: --hiden_size 64; did you mean --hidden_size?" in fails(
        capsys, [*arguments, "--hiden_size", "64"]
    )
    assert "kernel_size: expected an odd integer" in fails(capsys, [*arguments, "--kernel_sizes", "3", "4"])
    assert "invalid int value: 'many'" in fails(capsys, [*arguments, "--max_evaluations", "many"])
    assert "invalid choice: 'annealing'" in fails(capsys, [*arguments, "--strategy", "annealing"])
    assert not Path(tiny_settings.run.output_dir).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "train_file: expected a file, got"),
        (b"", "train_file: expected text, got none"),
        (b"a\n\nb\n", "expected at least 3 documents"),
        (b"a\n\nb\n\nc\n", "too short"),
        (b"\xff\n\nb\n\nc\n", "expected UTF-8"),
    ],
)
def test_bad_text(capsys, tiny_settings, content, message):
    path = Path(tiny_settings.text.train_file[0])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert message in fails(capsys, command_line(tiny_settings))
    assert not Path(tiny_settings.run.output_dir).exists()
    Path(tiny_settings.run.output_dir).mkdir()  # not ours to remove
    fails(capsys, command_line(tiny_settings))
    assert {file.name for file in Path(tiny_settings.run.output_dir).iterdir()} == {".lock"}


def test_folder_of_another_run(capsys, finished, tmp_path):
    settings, _ = finished
    before = {path: path.read_bytes() for path in Path(settings.run.output_dir).glob("*.json*")}
    assert "expected seed=42 (got 7)" in fails(capsys, [*command_line(settings), "--seed", "7"])
    other = write_corpus(tmp_path / "corpus.txt", seed=1)
    shutil.copy(settings.text.train_file[0], tmp_path / "kept.txt")
    try:
        shutil.copy(other, settings.text.train_file[0])
        assert "is the history of another run: expected digest=" in fails(capsys, command_line(settings))
    finally:
        shutil.copy(tmp_path / "kept.txt", settings.text.train_file[0])
    assert before == {path: path.read_bytes() for path in Path(settings.run.output_dir).glob("*.json*")}


def test_processes_that_are_not_connected(capsys, tiny_settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    PartialState._reset_state()
    try:
        assert "started 2 processes, but they run as 1" in fails(capsys, command_line(tiny_settings))
    finally:
        PartialState._reset_state()


def test_a_search_whose_candidates_all_fail_ends(tiny_settings, monkeypatch, capsys):
    monkeypatch.setattr(MaskedLMProxy, "_score", lambda *arguments: 1 / 0)
    with pytest.raises(SystemExit) as exit_:
        main(command_line(tiny_settings.replace(max_evaluations=50)))
    assert exit_.value.code == 1
    assert "20 candidates in a row failed, the last one: ZeroDivisionError" in capsys.readouterr().err
    assert len(history_without_times(tiny_settings)) == 1 + 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"seed_genomes": ["no.json"]},
            "seed_genomes: expected a file, a folder, or a model of the Hub (USER/NAME), got 'no.json'",
        ),
        ({"max_parameters": 5}, "max_parameters=5: expected limits that some genomes keep"),
        ({"log_with": ["paper"]}, "log_with: "),
    ],
)
def test_bad_input_before_anything_is_trained(tiny_settings, capsys, settings, message):
    assert message in fails(capsys, command_line(tiny_settings.replace(**settings)))
    assert not list(Path(tiny_settings.run.output_dir).glob("*.safetensors"))


def test_folder_in_use(capsys, tiny_settings):
    import filelock

    os.mkdir(tiny_settings.run.output_dir)
    with filelock.FileLock(Path(tiny_settings.run.output_dir, ".lock")):
        assert "is in use by another run" in fails(capsys, command_line(tiny_settings))


def test_folder_that_cannot_be_written(capsys, tiny_settings, tmp_path):
    (tmp_path / "file").touch()
    settings = tiny_settings.replace(output_dir=str(tmp_path / "file" / "run"))
    assert "output_dir: cannot write to" in fails(capsys, command_line(settings))
    settings = tiny_settings.replace(output_dir=f"{tmp_path}/a\0b")
    assert "output_dir: expected the name of a folder, got" in fails(capsys, command_line(settings))


def test_disk_without_space_for_the_checkpoints(capsys, tiny_settings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 20, 1 << 20, 1000))
    assert "MiB free" in fails(capsys, command_line(tiny_settings))


def test_checkpoints_that_exist_need_no_more_space(capsys, tiny_settings, monkeypatch):
    folder = Path(tiny_settings.run.output_dir)
    folder.mkdir(parents=True)
    (folder / "final-1-a.safetensors").write_bytes(bytes(1 << 24))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 20, 1 << 20, 1000))
    main(command_line(tiny_settings))
    assert "Best of" in capsys.readouterr().out


_WITHOUT_PACKAGE = """
import sys
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline
folder = sys.argv[1]
fill_mask = pipeline("fill-mask", model=folder, trust_remote_code=True)
print("TOKENS", [answer["token_str"] for answer in fill_mask("the cat [MASK] near house 3 .")])
model, info = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert type(model).__module__.startswith("transformers_modules."), type(model)
from safetensors.torch import load_file
for name, tensor in load_file(folder + "/model.safetensors").items():
    assert (model.state_dict()[name] == tensor).all(), name
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokens = AutoTokenizer.from_pretrained(folder)(["the cat", "a dog barks"], padding=True, return_tensors="pt")
assert encoder(**tokens).last_hidden_state.isfinite().all()
model.save_pretrained(folder + "-again")
again = AutoModelForMaskedLM.from_pretrained(folder + "-again", trust_remote_code=True)
assert all((again.state_dict()[name] == tensor).all() for name, tensor in model.state_dict().items())
"""


def test_the_model_in_a_process_without_the_package(finished, tmp_path):
    settings, _ = finished
    folder = shutil.copytree(Path(settings.run.output_dir, "model"), tmp_path / "model")
    out, _ = run_without_package(_WITHOUT_PACKAGE, str(folder), cwd=tmp_path)
    assert "TOKENS [" in out


def test_a_saved_model_names_every_auto_class(tmp_path):
    genome = random_genome(1)
    AutoBertZeroForMaskedLM(tiny_config(genome)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    assert Genome.from_list(config["genome"]) == genome
