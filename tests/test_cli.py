"""The command line: real processes, killed and counted; bad input; the model in a process without the package."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.cli import main, parse_settings
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.settings import SearchSettings

from .conftest import TINY_RUN, command_line, random_genome, run_without_package, tiny_config, write_corpus


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
    lines = Path(settings.output_dir, "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def results(settings: SearchSettings) -> dict:
    summary = json.loads(Path(settings.output_dir, "summary.json").read_text(encoding="utf-8"))
    losses = {name: result["loss"] for name, result in summary["results"].items()}
    return {"losses": losses, **{name: summary[name] for name in ("status", "best", "counts", "tokens", "identity")}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[SearchSettings, str]:
    """A whole tiny run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    corpus = write_corpus(folder / "corpus.txt")
    settings = SearchSettings(output_dir=str(folder / "run"), train_file=[corpus], **TINY_RUN)
    return settings, finish(start(settings))


def test_arguments_become_settings(tiny_settings):
    assert parse_settings(command_line(tiny_settings)) == tiny_settings
    assert parse_settings([]) == SearchSettings()


def test_a_run_leaves_what_it_promises(finished):
    settings, out = finished
    assert "1 process on cpu, 1 thread each" in out
    folder = Path(settings.output_dir)
    assert json.loads((folder / "settings.json").read_text()) == settings.to_dict()
    _, *records = history_without_times(settings)
    assert len(records) == settings.max_evaluations
    assert len({record["key"] for record in records}) == len(records)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["counts"]["evaluated"] == settings.max_evaluations
    assert summary["best"]["score"] == max(record["score"] for record in records if record["status"] == "ok")
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
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "history.jsonl",
        "model",
        "settings.json",
        "summary.json",
        "supernet.safetensors",
    }


def test_the_model_is_the_one_that_was_measured(finished):
    from autobert_zero.search.data import Corpus

    settings, _ = finished
    model = AutoBertZeroForMaskedLM.from_pretrained(Path(settings.output_dir, "model"))
    loss = MaskedLMProxy(settings, Corpus.build(settings), torch.device("cpu")).loss(model, "report")
    assert loss == pytest.approx(results(settings)["losses"]["AutoBERT-Zero (found)"], rel=1e-6)


def test_the_same_command_on_a_finished_run_shows_it_again(capsys, finished):
    settings, out = finished
    before = {path: path.stat().st_mtime_ns for path in Path(settings.output_dir).glob("model/*")}
    main(command_line(settings))
    printed = capsys.readouterr().out
    assert "holds this run, finished" in printed and out[out.index("Best of") :] in printed
    assert before == {path: path.stat().st_mtime_ns for path in Path(settings.output_dir).glob("model/*")}


def test_killed_at_any_moment_it_continues(finished, tmp_path):
    """`kill -9` in the super-network, among the candidates and in the final training; then the same command."""
    expected, _ = finished
    settings = dataclasses.replace(expected, output_dir=str(tmp_path / "run"), checkpoint_seconds=0.0)
    folder = Path(settings.output_dir)

    def lines() -> int:
        file = folder / "history.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    moments = [
        lambda: (folder / "supernet.safetensors").exists(),
        lambda: lines() >= 2,
        lambda: lines() >= 6,
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
    assert killed_with[0] == 1 and killed_with[1] < 1 + settings.max_evaluations
    finish(start(settings))
    assert history_without_times(settings) == history_without_times(expected)
    assert results(settings) == results(expected)


@pytest.mark.parametrize("launch", TWO_PROCESSES, ids=["torchrun", "accelerate"])
def test_two_processes_give_the_same_history(finished, tmp_path, launch):
    """From the same super-network. That there are two is what the run says; the next test sees both at work."""
    expected, _ = finished
    settings = dataclasses.replace(expected, output_dir=str(tmp_path / "run"))
    os.mkdir(settings.output_dir)
    shutil.copy(Path(expected.output_dir, "supernet.safetensors"), settings.output_dir)
    out = finish(start(settings, launch))
    assert "2 processes on cpu, 1 thread each" in out
    assert history_without_times(settings) == history_without_times(expected)
    assert results(settings) == results(expected)


def test_two_processes_share_the_work(tmp_path):
    """Every job is done by one of two real processes, and both do some."""
    script = tmp_path / "jobs.py"
    script.write_text(
        "import os, sys, time\n"
        "from accelerate import Accelerator\n"
        "from autobert_zero.search.workers import Workers\n"
        "accelerator = Accelerator(cpu=True)\n"
        "def run(job):\n"
        "    time.sleep(1.0 if job == 0 else 0.1)\n"
        "    return [job, os.getpid()]\n"
        "workers = Workers(accelerator, run)\n"
        "if not accelerator.is_main_process:\n"
        "    workers.serve()\n"
        "else:\n"
        "    for jobs in (8, 0, 3):\n"
        "        print('RESULTS', list(workers.map(range(jobs))))\n"
        "    workers.release()\n"
        "accelerator.end_training()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    out = subprocess.run(launch, capture_output=True, text=True, check=True, timeout=120).stdout
    rounds = [json.loads(line.split(" ", 1)[1]) for line in out.splitlines() if line.startswith("RESULTS")]
    assert [[job for job, _ in results] for results in rounds] == [list(range(8)), [], [0, 1, 2]]
    by = {pid: [job for job, p in rounds[0] if p == pid] for _, pid in rounds[0]}
    assert len(by) == 2
    # While one had the slow job, the other took all that was left.
    assert sorted(map(len, by.values())) == [1, 7]


def fails(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_bad_arguments(capsys, tiny_settings):
    arguments = command_line(tiny_settings)
    assert "unrecognized arguments: --hiden_size 64" in fails(capsys, [*arguments, "--hiden_size", "64"])
    assert "kernel_size: expected an odd integer" in fails(capsys, [*arguments, "--kernel_sizes", "3", "4"])
    assert "invalid int value: 'many'" in fails(capsys, [*arguments, "--max_evaluations", "many"])
    assert "invalid choice: 'annealing'" in fails(capsys, [*arguments, "--strategy", "annealing"])
    assert not Path(tiny_settings.output_dir).exists()


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
    path = Path(tiny_settings.train_file[0])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert message in fails(capsys, command_line(tiny_settings))
    assert {file.name for file in Path(tiny_settings.output_dir).iterdir()} <= {".lock"}


def test_folder_of_another_run(capsys, finished, tmp_path):
    settings, _ = finished
    before = {path: path.read_bytes() for path in Path(settings.output_dir).glob("*.json*")}
    assert "expected seed=42 (got 7)" in fails(capsys, [*command_line(settings), "--seed", "7"])
    other = write_corpus(tmp_path / "corpus.txt", seed=1)
    shutil.copy(settings.train_file[0], tmp_path / "kept.txt")
    try:
        shutil.copy(other, settings.train_file[0])
        assert "is the history of another run: expected digest=" in fails(capsys, command_line(settings))
    finally:
        shutil.copy(tmp_path / "kept.txt", settings.train_file[0])
    assert before == {path: path.read_bytes() for path in Path(settings.output_dir).glob("*.json*")}


def test_processes_that_did_not_find_each_other(capsys, tiny_settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    PartialState._reset_state()
    try:
        assert "started 2 processes, but they run as 1" in fails(capsys, command_line(tiny_settings))
    finally:
        PartialState._reset_state()


def test_a_defect_in_a_training_is_no_bad_input(tiny_settings, monkeypatch):
    def defect(*arguments):
        raise ValueError("a defect")

    monkeypatch.setattr(MaskedLMProxy, "score", defect)
    with pytest.raises(ValueError, match="a defect"):
        main(command_line(tiny_settings))


def test_folder_in_use(capsys, tiny_settings):
    import filelock

    os.mkdir(tiny_settings.output_dir)
    with filelock.FileLock(Path(tiny_settings.output_dir, ".lock")):
        assert "is in use by another run" in fails(capsys, command_line(tiny_settings))


def test_folder_that_cannot_be_written(capsys, tiny_settings, tmp_path):
    (tmp_path / "file").touch()
    settings = dataclasses.replace(tiny_settings, output_dir=str(tmp_path / "file" / "run"))
    assert "output_dir: cannot write to" in fails(capsys, command_line(settings))


def test_disk_without_room_for_the_checkpoints(capsys, tiny_settings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 20, 1 << 20, 1000))
    assert "MiB free" in fails(capsys, command_line(tiny_settings))


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
    folder = shutil.copytree(Path(settings.output_dir, "model"), tmp_path / "model")
    out, _ = run_without_package(_WITHOUT_PACKAGE, str(folder), cwd=tmp_path)
    assert "TOKENS [" in out


def test_heads_of_a_saved_model_keep_every_auto_class(tmp_path):
    genome = random_genome(1)
    AutoBertZeroForMaskedLM(tiny_config(genome)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    assert Genome.from_list(config["genome"]) == genome
