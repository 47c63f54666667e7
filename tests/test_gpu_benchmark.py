"""The command for machines with a GPU, rehearsed on any: every step runs or is stopped in time, and what it leaves is kept."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import gpu
import psutil
import pytest


ROOT = Path(__file__).resolve().parent.parent


def step(tmp_path: Path, code: str) -> gpu.Step:
    return gpu.Step("step", [sys.executable, "-c", code], 1.0, tmp_path / "logs" / "step.log")


def test_outcomes(tmp_path):
    assert gpu.run_step(step(tmp_path, "print(1)"), 60) == gpu.FINISHED
    assert (tmp_path / "logs" / "step.log").read_text() == "1\n"
    assert gpu.run_step(step(tmp_path, "raise SystemExit(3)"), 60) == f"{gpu.FAILED}: exit code 3"


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_step_is_stopped_with_its_children(tmp_path, monkeypatch, is_deaf):
    """Also one that does not react to a signal."""
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    code_of_child = "import time; time.sleep(100)"
    if is_deaf:
        code_of_child = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {code_of_child}"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {code_of_child!r}]); print(p.pid, flush=True); p.wait()"
    start = time.monotonic()
    assert gpu.run_step(step(tmp_path, code), 3.0) == gpu.STOPPED
    assert time.monotonic() - start < 20
    number = int((tmp_path / "logs" / "step.log").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(number)
        deadline = time.monotonic() + 10  # a killed process takes a moment to die
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """The same command continues, without the steps that are finished."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--scale", "tiny", "--max_seconds", "40"]
    command += ["--output_dir", tmp_path / "out", "--results", tmp_path / "results"]
    start = time.monotonic()
    first = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert time.monotonic() - start < 40 + 2 * gpu.GRACE
    steps = json.loads((tmp_path / "results" / "steps.json").read_text())
    assert list(steps)[:4] == ["tests", "throughput", "search-speed", "estimate"]
    assert {each["outcome"] for each in steps.values()} <= {gpu.FINISHED, gpu.STOPPED} and gpu.STOPPED in first.stdout
    steps["tests"]["outcome"] = gpu.FINISHED
    (tmp_path / "results" / "steps.json").write_text(json.dumps(steps))
    second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert "tests: " not in second.stdout and "throughput: " in second.stdout
