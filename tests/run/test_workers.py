"""The pool of processes, with two real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from autobert_zero.search.run.workers import Workers


_SCRIPT = """
import os, sys, time
from accelerate import Accelerator
from autobert_zero.search.run.workers import Workers
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
def run(job):
    with open(sys.argv[1] + "/started", "a") as file:
        print(job, os.getpid(), file=file)
    time.sleep(job)
    return [job, os.getpid()]
workers = Workers(accelerator, run, sys.argv[1] + "/results")
"""


def launch(script: Path, code: str) -> subprocess.Popen:
    script.write_text(_SCRIPT + code + "accelerator.end_training()\n")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(script.parent)]
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(process: subprocess.Popen) -> list:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [json.loads(line.split(" ", 1)[1]) for line in out.splitlines() if line.startswith("RESULTS")]


def test_two_processes_share_the_work(tmp_path):
    """Both of two real processes do jobs, and the pool can be released and used again."""
    code = """
for jobs in ([1.0] + [0.1] * 7, [], [0.0, 0.1, 0.0]):
    if accelerator.is_main_process:
        print("RESULTS", list(workers.map({f"{len(jobs)}-{i}": job for i, job in enumerate(jobs)})), flush=True)
        workers.release()
    else:
        workers.serve()
"""
    rounds = results(launch(tmp_path / "jobs.py", code))
    assert [[job for job, _ in results] for results in rounds] == [[1.0] + [0.1] * 7, [], [0.0, 0.1, 0.0]]
    by = {pid: [job for job, p in rounds[0] if p == pid] for _, pid in rounds[0]}
    assert len(by) == 2
    # While one did the slow job, the other did all the others.
    assert sorted(map(len, by.values())) == [1, 7]


def test_jobs_submitted_while_others_wait(tmp_path):
    """The main process submits more before it has waited for all; jobs that nobody took are discarded at the end."""
    code = """
if accelerator.is_main_process:
    futures = [workers.submit(f"a{i}", 0.1) for i in range(3)]
    first = futures[0].result()
    futures += [workers.submit(f"b{i}", 0.1) for i in range(3)]
    print("RESULTS", [first] + [future.result() for future in futures[1:]], flush=True)
    for i in range(20):
        workers.submit(f"c{i}", 0.5)
    workers.release()
else:
    workers.serve()
"""
    [done] = results(launch(tmp_path / "jobs.py", code))
    assert [job for job, _ in done] == [0.1] * 6
    started = (tmp_path / "started").read_text().splitlines()
    assert 6 <= len(started) <= 8  # the other process took at most one or two of the twenty


def test_results_outlive_their_processes(tmp_path):
    """Results that wait for an earlier, slow one are not lost if all processes are killed."""
    code = """
if accelerator.is_main_process:
    print("RESULTS", list(workers.map({"slow": 3.0, "b": 0.01, "c": 0.02, "d": 0.03})), flush=True)
    workers.release()
else:
    workers.serve()
"""
    process = launch(tmp_path / "jobs.py", code)
    while not (tmp_path / "results" / "d.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    started = (tmp_path / "started").read_text().split()
    for pid in {int(pid) for pid in started[1::2]}:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    (tmp_path / "started").unlink()
    [done] = results(launch(tmp_path / "jobs.py", code))
    assert [job for job, _ in done] == [3.0, 0.01, 0.02, 0.03]
    assert [line.split()[0] for line in (tmp_path / "started").read_text().splitlines()] == ["3.0"]


def test_one_process(tmp_path):
    done = []
    workers = Workers(Accelerator(cpu=True), lambda job: done.append(job) or job + 1, tmp_path / "results")
    assert list(workers.map({"a": 1, "b": 2})) == [2, 3] and done == [1, 2]
    # The result of an earlier run is used if it is of the same job and not damaged.
    file = tmp_path / "results" / "b.json"
    stored = json.loads(file.read_text())
    for damaged in ("{", "{}", "[]", "null", "[" * 9000, json.dumps({**stored, "result": 7}), json.dumps({"job": 2})):
        file.write_text(damaged)
        assert list(workers.map({"a": 1, "b": 2})) == [2, 3] and done == [1, 2, 2]
        done.pop()
    assert list(workers.map({"a": 5})) == [6] and done == [1, 2, 5]
    workers.forget("a")
    workers.forget("unknown")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["b.json"]
    workers.release()


def test_stopped_by_the_main_process(tmp_path):
    """It tells the other process, which is in the middle of a long job, and both end gracefully."""
    code = """
from autobert_zero.search.stopping import Stop, Stopped
stop = Stop(2.0 if accelerator.is_main_process else None)
def run(job):
    while True:
        stop.check()
        time.sleep(0.01)
workers.run, workers.check = run, stop.check
if not accelerator.is_main_process:
    stop.requested_elsewhere = workers.stop_requested
try:
    if accelerator.is_main_process:
        list(workers.map({"a": 0, "b": 1, "c": 2}))
    else:
        workers.serve()
except Stopped as stopped:
    if accelerator.is_main_process:
        workers.stop()
    sys.stdout.write(f'RESULTS ["{stopped}"]\\n')  # in one piece: both processes write to one pipe
    sys.stdout.flush()
"""
    process = launch(tmp_path / "jobs.py", code)
    assert sorted(reason for [reason] in results(process)) == [
        "max_seconds have passed",
        "the main process was stopped",
    ]


def test_a_main_process_that_dies_is_not_a_result(tmp_path):
    """Killed while the other process polls for a stop in a job: that one ends, and writes no result."""
    code = """
from autobert_zero.search.stopping import Stopped
def wait(job):
    run(job)
    try:
        while not workers.stop_requested():
            time.sleep(0.05)
    except Stopped:
        raise
    except Exception as error:  # as in a proxy: every failure is an outcome
        return repr(error)
workers.run = wait
if accelerator.is_main_process:
    workers.submit("a", 0.0)
    workers.submit("b", 0.0)
    time.sleep(60)
else:
    workers.serve()
"""
    script = tmp_path / "jobs.py"
    script.write_text(_SCRIPT + code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without a launcher, which would end the other process at once (but not on another machine).
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    first, other = (
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    while not (tmp_path / "started").exists():
        assert first.poll() is None and other.poll() is None, other.communicate()
        time.sleep(0.01)
    time.sleep(0.3)
    first.kill()
    first.communicate()
    _, err = other.communicate(timeout=60)
    assert other.returncode != 0 and "Stopped: the main process is gone" in err, err
    assert not list((tmp_path / "results").glob("*.json"))
