"""What results carry (machine, commit, versions), how they are written, and tables of them in text."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autobert_zero.configuration_autobert_zero import Genome


# Of the checkout, where this is one.
ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("autobert-zero", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "safetensors")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def machine(device_type: str = "cpu") -> str:
    """What was measured on: the accelerator, or the number and name of the cores."""
    if device_type == "cuda":
        import torch

        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{cores} cores of {name}"


def machine_text(machine: dict[str, Any]) -> str:
    """The machine of a run in words."""
    count, threads = machine["processes"], machine["threads"]
    return f"{machine['device']}, {count} process{'es'[: 2 * (count > 1)]} of {threads} thread{'s'[: threads > 1]}"


def commit() -> str | None:
    """Commit of the checkout that this package runs from, `+changes` behind it if files differ; None elsewhere."""
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


def provenance(commit: str | None, device_type: str = "cpu") -> dict[str, Any]:
    """What every published number carries: command, commit (taken when the program began), versions and machine."""
    program = Path(sys.argv[0]).resolve()
    in_checkout = program.is_relative_to(ROOT)
    return {
        "command": shlex.join(
            ["python", str(program.relative_to(ROOT)) if in_checkout else sys.argv[0], *sys.argv[1:]]
        ),
        "commit": commit,
        "versions": versions(),
        "machine": machine(device_type),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """None where a value is None: what diverged has no mean."""
    return None if None in values else statistics.fmean(values)  # type: ignore[arg-type]


def standard_error(values: Sequence[float]) -> float | None:
    """Of a mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file as a whole: the old one stays until the new one is safe."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def perplexity(loss: float | None) -> float | None:
    """Of a loss in nats; None where it is too large for a number."""
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None


def result_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, parameters, report loss and perplexity of the found model, of BERT, and of knowing no context."""
    rows = []
    for name, result in summary["results"].items():
        parameters = "" if result.get("parameters") is None else f"{result['parameters']:,}"
        loss = "diverged" if result["loss"] is None else f"{result['loss']:.4f}"
        known = result.get("perplexity")
        rows.append((name, parameters, loss, "" if known is None else f"{known:,.1f}"))
    return rows


def learning_note(summary: dict[str, Any]) -> str:
    """A warning where the found model knows no more than token frequencies, else nothing."""
    found, unigram = next(iter(summary["results"].values())), summary["results"]["unigram"]
    if found["loss"] is not None and found["loss"] < unigram["loss"]:
        return ""
    return "The found model has learned no more than token frequencies: train it longer (final_steps)."


def results_table(summary: dict[str, Any]) -> str:
    """The closing table."""
    return text_table([("model", "parameters", "report loss", "perplexity"), *result_rows(summary)])


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the heads, in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * sum([*widths, 2 * len(widths) - 2]), *lines[1:]])


def genome_table(genome: Genome) -> str:
    return "\n".join(f"{number:>3}  {gene}" for number, gene in enumerate(genome, start=1))
