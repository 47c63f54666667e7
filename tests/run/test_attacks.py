"""Malformed input and failures: fuzzed genomes and histories, `kill -9` at any moment, a failing disk."""

import errno
import json
import os
import random
import signal
import sys
import time
import types
from pathlib import Path

import pytest

from autobert_zero.configuration_autobert_zero import INPUTS, OPERATIONS, Genome
from autobert_zero.search.cli.search import main
from autobert_zero.search.evolution.archive import Outcome, Record
from autobert_zero.search.evolution.history import History, read_history
from autobert_zero.search.evolution.loop import evolve
from autobert_zero.search.evolution.strategies import OpNas
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.run.workers import Future, Workers
from autobert_zero.search.settings import SearchSettings
from tests.cli.test_cli import finished, history_without_times, results  # noqa: F401 (a fixture)
from tests.conftest import PAPER_SPACE, command_line, random_genome


MANY = [pytest.param(3_000, id="some"), pytest.param(100_000, id="many", marks=pytest.mark.slow)]

_FORBIDDEN = ("exec", "compile", "import", "os.system", "os.exec", "subprocess.Popen", "pickle.find_class")
_events: list[str] | None = None


def _watch(event: str, arguments: object) -> None:
    if _events is not None and event in _FORBIDDEN:
        _events.append(event)


sys.addaudithook(_watch)


@pytest.fixture
def nothing_is_executed():
    """No code is compiled, imported, unpickled or started while the test runs."""
    global _events
    _events = []
    yield
    found, _events = _events, None
    assert not found


def fuzzed(text: str, rng: random.Random) -> str:
    """One to four random changes: characters, names of operations, cuts, repetitions, numbers out of range."""
    words = [*INPUTS, *OPERATIONS, "(", ")", ",", '"', "{", "}", "[", "]", "null", "true", "-1", "1e400", "NaN"]
    words += [
        "__import__('os')",
        "9" * 400,
        "\\u0000",
        "\\ud800",
        "é",
        "[" * 60,
        "neg(" * 50,
        "kind",
        "kernel_size",
        " ",
    ]
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 0, 1, 2, 8, 40]))
        new = rng.choice([rng.choice(words), text[start:end] * 2, "", chr(rng.randrange(1, 0x3000))])
        text = text[:start] + new + text[end:]
    return text


@pytest.mark.parametrize("count", MANY)
def test_fuzzed_genomes(count, nothing_is_executed):
    rng = random.Random(0)
    texts = [json.dumps(random_genome(i).to_list()) for i in range(50)]
    legal = 0
    for _ in range(count):
        try:
            value = json.loads(fuzzed(rng.choice(texts), rng))
        except (ValueError, RecursionError):
            continue
        try:
            genome = Genome.from_list(value)
        except ValueError:
            continue
        assert Genome.from_list(json.loads(json.dumps(genome.to_list()))) == genome
        legal += 1
    assert count > legal > count // 100


@pytest.mark.parametrize("count", MANY)
def test_fuzzed_history_lines(count, nothing_is_executed, tmp_path):
    rng = random.Random(1)
    path = tmp_path / "history.jsonl"
    search(path, count=12)
    lines = path.read_text(encoding="utf-8").splitlines()
    legal = 0
    for _ in range(count):
        number = rng.randrange(len(lines))
        changed = [*lines[:number], fuzzed(lines[number], rng), *lines[number + 1 :]]
        path.write_text("\n".join(changed) + "\n", encoding="utf-8", errors="surrogatepass")
        try:
            header, records = read_history(path, decode_genome)
        except ValueError as error:
            assert ", line " in str(error) or "without a complete line" in str(error)
            continue
        assert isinstance(header, dict)
        assert all((r.score is None) == (r.result.status != "ok") for r in records)
        assert all(isinstance(r.genome, Genome) for r in records)
        legal += 1
    assert count > legal


# A toy search with the real loop, history and pool of processes.


def search(path: Path, count: int, seconds: float = 0.0) -> list[Record]:
    alone = types.SimpleNamespace(num_processes=1, is_main_process=True)

    def run(genome: list) -> float:
        time.sleep(seconds)
        return -float(len(str(genome)))

    with open_history(path) as history:
        workers = Workers(alone, run, path.parent / "results")

        def submit(record, archive) -> Future:
            job = workers.submit(f"candidate-{record.index}", record.genome.to_list())
            workers.forget(f"candidate-{record.index - 1}")
            return Future(lambda: Outcome(score=job.result()))

        for _ in evolve(PAPER_SPACE, OpNas(PAPER_SPACE, 8, 2, 3), submit, history, 0, count, lookahead=1):
            pass
        return list(history)


def open_history(path: Path) -> History:
    return History(path, {"settings": {}}, ("settings",), decode_genome)


def test_killed_at_fifty_random_moments(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    expected = search(tmp_path / "whole" / "history.jsonl", count=60)
    path = tmp_path / "killed" / "history.jsonl"
    rng = random.Random(0)
    lengths = [0]

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    for _ in range(50):
        # On a busy machine nothing may happen for a while: killed only after this much progress.
        wanted = lines() + rng.choice([0, 0, 1, 1, 2, 3])
        pid = os.fork()
        if pid == 0:
            search(path, count=60, seconds=0.002)
            os._exit(0)
        deadline = time.monotonic() + 60
        while lines() < min(wanted, 61) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.005))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if lines():
            _, records = read_history(path, decode_genome)
            assert records == expected[: len(records)]
            lengths.append(len(records))
    assert lengths == sorted(lengths) and len(set(lengths)) > 5, "expected progress, and kills in the middle"
    assert search(path, count=60) == expected


@pytest.mark.parametrize(
    ("error", "writes"),
    [
        (errno.ENOSPC, 0),
        (errno.EROFS, 4),
        (errno.ENOSPC, 22),
        *(pytest.param(errno.ENOSPC, writes, marks=pytest.mark.slow) for writes in (1, 2, 3, 9, 14, 26, 29)),
    ],
)
def test_a_disk_that_fails_during_a_run(finished, tmp_path, monkeypatch, capsys, error, writes):  # noqa: F811
    """After some writes all others fail; later, on a disk that works, the same command gives the same run."""
    expected, _ = finished
    settings = expected.replace(output_dir=str(tmp_path / "run"))
    done = 0

    def fsync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done > writes:
            raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(SystemExit) as exit_:
            main(command_line(settings))
    assert exit_.value.code == 1
    assert f"{os.strerror(error)}. All results so far are kept: the same command resumes." in capsys.readouterr().err
    main(command_line(settings))
    assert history_without_times(settings) == history_without_times(expected)
    assert results(settings) == results(expected)


# Files of earlier releases

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_histories_of_earlier_releases_are_read():
    folders = sorted(FIXTURES.glob("run-*"))
    assert folders
    for folder in folders:
        header, records = read_history(folder / "history.jsonl", decode_genome)
        known = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        assert header["schema"] == known["schema"]
        statuses = {"dropped": "pruned"} if header["schema"] == 2 else {}
        expected = [[statuses.get(status, status), *rest] for status, *rest in known["records"]]
        assert [[r.result.status, r.score, str(r.genome)] for r in records] == expected
        SearchSettings.from_dict(json.loads((folder / "settings.json").read_text(encoding="utf-8")))


def test_a_run_of_an_earlier_release_is_refused_or_resumed(tmp_path):
    """The toy search of this file, started by an earlier release: proposals have not changed."""
    for folder in FIXTURES.glob("toy-*"):
        path = tmp_path / folder.name / "history.jsonl"
        path.parent.mkdir()
        path.write_bytes((folder / "history.jsonl").read_bytes())
        header, records = read_history(path, decode_genome)
        assert len(records) < 40
        if header["schema"] == 2:
            with pytest.raises(ValueError, match=r"is the history of another run: expected schema=2 \(got 3\)"):
                open_history(path)
            path.unlink()
            with open_history(path) as history:  # the same records in the schema of today
                for record in records:
                    history.append(record)
        assert search(path, count=40)[: len(records)] == records
        new = tmp_path / f"new-{folder.name}"
        new.mkdir()
        assert search(new / "history.jsonl", count=40) == read_history(path, decode_genome)[1]
