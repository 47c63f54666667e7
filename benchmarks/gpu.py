"""Everything that a machine with a GPU is needed for, in one command and a limited time: `make gpu`.

    python benchmarks/gpu.py --train_file text.txt --output_dir runs/gpu --results results/gpu --max_seconds 1700

One after another: the tests with the marker `gpu`; the speed of the model, and of the trainings of a search; a search, after
its estimate; and the comparison of backbones, row by row until the time is up. A step that exceeds its share of the time
is stopped, and so is the last one. The same command continues: finished steps are skipped, and the others resume.

The files in `results` are small, and written after every step: what happened to each step, the two benchmarks, the history
and the summary of the search beside its estimate, and the table of the comparison. With `--scale tiny` it is a rehearsal
that a CPU can do, in five minutes. A text that `compare.py` prepared elsewhere, in `OUTPUT_DIR/compare/text`, needs no network.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_speed import SIZES


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "reproduce"))

from compare import Comparison, load_yaml  # noqa: E402

from autobert_zero.search.cli.arguments import ScriptHelpFormatter  # noqa: E402
from autobert_zero.search.evaluation.measure import default_device  # noqa: E402
from autobert_zero.search.files import read_json, write_json  # noqa: E402
from autobert_zero.search.provenance import commit as current_commit  # noqa: E402
from autobert_zero.search.provenance import provenance  # noqa: E402


# The first row searches; then the baselines, the better ones first.
ROWS = ("searched", "bert_rotary", "found", "hybrid_rotary", "rotary_both", "convbert", "bert")
# Seconds that a step has to end after it is asked to.
GRACE = 30.0
FINISHED, STOPPED, FAILED = "finished", "stopped: its time was up", "failed"


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        share: of the whole time, at most.
        log: file of its output.
    """

    name: str
    command: list[str]
    share: float
    log: Path


def run_step(step: Step, seconds: float) -> str:
    """Run a command for at most `seconds`. Returns what became of it."""
    step.log.parent.mkdir(parents=True, exist_ok=True)
    with open(step.log, "w", encoding="utf-8") as log:
        # A session of its own, because commands start others.
        process = subprocess.Popen(step.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return STOPPED
        finally:
            if process.poll() is None or _has_members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return FINISHED if code == 0 else f"{FAILED}: exit code {code}"


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def steps(given: argparse.Namespace, comparison: Comparison) -> list[Step]:
    """All steps, in their order."""
    python, logs, results = sys.executable, given.output_dir / "logs", given.results

    def step(name: str, share: float, *command: Any) -> Step:
        return Step(name, [python, *map(str, command)], share, logs / f"{name}.log")

    [search] = comparison.searches()
    compare = [ROOT / "examples" / "reproduce" / "compare.py", "--scale", given.scale]
    compare += ["--output_dir", comparison.folder, "--train_file", *given.train_file]
    if given.blimp_dir:
        compare += ["--blimp_dir", given.blimp_dir]
    speed = ROOT / "benchmarks" / "search_speed.py"
    sizes = list(SIZES)[:2] if given.scale == "tiny" else SIZES
    return [
        step("tests", 0.1, "-m", "pytest", "-q", "-m", "gpu", ROOT / "tests"),
        step(
            *("throughput", 0.15, ROOT / "benchmarks" / "throughput.py"),
            *("--rounds", 5, "--output", results / "throughput.json"),
        ),
        step("search-speed", 0.1, speed, "--rounds", 5, "--sizes", *sizes, "--output", results / "search_speed.json"),
        step("estimate", 0.05, *search[1:], "--estimate"),
        *(step(f"compare-{row}", 0.35 if row == ROWS[0] else 1.0, *compare, "--rows", row) for row in ROWS),
    ]


def collect(given: argparse.Namespace, comparison: Comparison) -> None:
    """Write what there is of the estimate, the search and the comparison into the folder of results."""
    if (estimate := given.output_dir / "logs" / "estimate.log").exists():
        shutil.copy(estimate, given.results / "search-estimate.txt")
    for name in ("history.jsonl", "summary.json"):
        if (file := comparison.search_folder(ROWS[0]) / name).exists():
            shutil.copy(file, given.results / f"search-{name}")
    if rows := comparison.results():
        write_json(given.results / "comparison.json", {"scale": comparison.scale, "rows": rows})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu"), help="Folder of all that is large.")
    parser.add_argument("--results", type=Path, default=Path("results/gpu"), help="Folder of small files.")
    parser.add_argument("--scale", default="gpu", help="Of the search and the comparison, as of compare.py.")
    parser.add_argument("--max_seconds", type=float, default=1700.0, help="For everything.")
    parser.add_argument("--train_file", nargs="*", default=[], help="Text; default: Python's language reference.")
    parser.add_argument("--blimp_dir", help="Folder of the sets of BLiMP.")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        scale = load_yaml("scales", given.scale)
    except ValueError as error:
        parser.error(str(error))
    comparison = Comparison(
        scale,
        {row: load_yaml("rows", row) for row in ROWS},
        given.output_dir / "compare",
        given.train_file,
        [],
        None,
        [sys.executable],
        given.blimp_dir,
    )
    try:
        comparison.check()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    given.results.mkdir(parents=True, exist_ok=True)
    facts = provenance(current_commit(), default_device().type)
    file = given.results / "steps.json"
    done = read_json(file) if file.exists() else {}
    for step in steps(given, comparison):
        command = " ".join(["python", *step.command[1:]]).replace(f"{ROOT}/", "")
        known = done.get(step.name, {})
        if (known.get("outcome"), known.get("command"), known.get("commit")) == (FINISHED, command, facts["commit"]):
            continue
        began = time.monotonic()
        left = given.max_seconds - (began - start)
        if left <= 0:
            break
        outcome = run_step(step, min(left, step.share * given.max_seconds))
        seconds = round(time.monotonic() - began, 1)
        done[step.name] = {**facts, "outcome": outcome, "seconds": seconds, "command": command}
        print(f"{step.name}: {outcome}, {seconds} s", flush=True)
        collect(given, comparison)
        write_json(file, done)


if __name__ == "__main__":
    main()
