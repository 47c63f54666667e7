"""What every published number carries: command, commit, versions and machine."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any


# The checkout, if the package runs from one.
ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("autobert-zero", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device_type: str = "cpu") -> str:
    """The machine of a measurement: the accelerator, or the number and name of the cores."""
    if device_type == "cuda":
        import torch

        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{num_cores()} cores of {name}"


def commit() -> str | None:
    """Commit of the checkout that this package runs from, with `+changes` if files differ; None without a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes.strip() else "")


def command() -> str:
    """The command line of this process; scripts of the checkout relative to it."""
    program = Path(sys.argv[0]).resolve()
    script = str(program.relative_to(ROOT)) if program.is_relative_to(ROOT) else sys.argv[0]
    return shlex.join(["python", script, *sys.argv[1:]])


def provenance(commit: str | None, device_type: str = "cpu") -> dict[str, Any]:
    """Command, commit, versions and machine.

    Args:
        commit: of the running code, taken when the program started.
        device_type: of the device that was measured.
    """
    return {"command": command(), "commit": commit, "versions": versions(), "machine": machine(device_type)}
