"""The cost of the search beside training, and how busy it keeps many processes.

    python benchmarks/scaling.py driver --output results/scaling/driver.json
    python benchmarks/scaling.py processes --output results/scaling/processes.json
    python benchmarks/scaling.py simulation --history results/first-light/eltec-history.jsonl \\
        --output results/scaling/simulation.json

`driver`: the loop alone, with a toy fitness: time of a proposal, memory, and replay, by length of the history.
`processes`: the same real search with one process and with two, in turn: candidates per hour, and the fraction of time spent
outside candidates; other arguments are those of the search.
`simulation`: how busy 8, 64 and 512 processes are with the measured spread of candidate times, by lookahead.
"""

import argparse
import heapq
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.history import History
from autobert_zero.search.evolution.loop import Completed, evolve, propose
from autobert_zero.search.evolution.strategies import OpNas, RegularizedEvolution, ThompsonOpNas
from autobert_zero.search.files import write_json
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds


SPACE = BackboneSpace(
    Bounds(num_layers=12, kernel_sizes=(3, 5, 7, 9, 15, 31, 65), max_nodes=14, min_attention_layers=1)
)
STRATEGIES = {
    "OP-NAS": OpNas(SPACE, 100, 5, 5),
    "Thompson OP-NAS": ThompsonOpNas(SPACE, 100, 5, 5),
    "regularized evolution": RegularizedEvolution(SPACE, 100, 10, 25),
}


def evaluate(record: Record) -> Outcome:
    """A toy fitness: deterministic noise, and a small trend."""
    text = str(record.genome)
    score = zlib.crc32(text.encode()) % 1000 / 1000 + 0.1 * text.count("softmax")
    return Outcome(score=score, costs={"parameters": 1.0, "flops": 1.0})


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def measure_replay(history: list[Record]) -> dict[str, float]:
    """Seconds to read the history back, and the size of its file."""
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch("os.fsync"):  # only reading is measured
        path = Path(folder, "history.jsonl")
        with History(path, {}, (), decode_genome) as file:
            for record in history:
                file.append(record)
        start = time.perf_counter()
        with History(path, {}, (), decode_genome) as file:
            assert len(file) == len(history)
        return {
            "replay_seconds": round(time.perf_counter() - start, 2),
            "file_mib": round(path.stat().st_size / 2**20, 1),
        }


def measure_driver(lengths: list[int], generations: int) -> list[dict[str, Any]]:
    """Milliseconds of a proposal after a history of OP-NAS, by its length and strategy."""
    rows = []
    history: list[Record] = []
    before = resident_mib()
    for length in lengths:
        for _ in evolve(SPACE, STRATEGIES["OP-NAS"], lambda r, _: Completed(evaluate(r)), history, 0, length):
            pass
        row = {"records": length, "history_mib": round(resident_mib() - before), **measure_replay(history)}
        for name, strategy in STRATEGIES.items():
            archive, known = Archive(history), {record.key for record in history}
            times = []
            # The first one processes all of the history, as a run does once when it starts.
            for generation in range(100_000, 100_001 + generations):
                start = time.perf_counter()
                proposers = strategy(generation, archive)
                proposals = propose(SPACE, proposers, generation, len(archive), known, 0)
                times.append(1000 * (time.perf_counter() - start) / len(proposals))
                for record in proposals:
                    archive.append(record.evaluated(evaluate(record)))
            rows.append(
                {
                    **row,
                    "strategy": name,
                    "milliseconds_of_a_proposal": round(statistics.median(times[1:]), 3),
                    "slowest": round(max(times[1:]), 3),
                    "milliseconds_at_start": round(25 * times[0]),
                }
            )
            print(rows[-1], flush=True)
    return rows


def measure_processes(rounds: int, arguments: list[str]) -> dict[str, Any]:
    """Seconds of the search phase of a run with one process and with two, of one thread each, in turn."""
    launchers = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    fractions, spread = [], []
    for _ in range(rounds):
        for count, launcher in launchers.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [*launcher, "-m", "autobert_zero.search", "--output_dir", folder, "--num_threads", "1"]
                subprocess.run([sys.executable, *command, *arguments], check=True, capture_output=True)
                summary = json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))
                lines = Path(folder, "history.jsonl").read_text(encoding="utf-8").splitlines()[1:]
            seconds[count].append(summary["seconds_of_last_session"]["search"])
            if count == 1:
                times = [json.loads(line)["seconds"] for line in lines]
                fractions.append(1 - sum(times) / seconds[count][-1])
                spread += times
            print(count, "processes:", seconds[count][-1], "s", flush=True)
    efficiencies = [one / (2 * two) for one, two in zip(seconds[1], seconds[2], strict=True)]
    candidates = summary["counts"]["evaluated"]
    return {
        "rounds": rounds,
        "candidates": candidates,
        "search_seconds": seconds,
        "candidates_per_hour": {n: round(3600 * candidates / statistics.median(s)) for n, s in seconds.items()},
        "efficiency_of_two": [round(e, 3) for e in efficiencies],
        "median_efficiency": round(statistics.median(efficiencies), 3),
        "driver_fraction": [round(fraction, 4) for fraction in fractions],
        "candidate_seconds": [round(float(f(spread)), 3) for f in (min, statistics.median, max)],
        "settings": {name: value for name, value in summary["settings"].items() if name != "output_dir"},
    }


def busy(seconds: np.ndarray, processes: int, generation_size: int, lookahead: float) -> float:
    """Fraction of the time in which processes train candidates, taken in order, each as soon as it is proposed.

    The process that proposes also trains: it proposes when it has completed its candidate.
    """
    free = [(0.0, process) for process in range(processes)]
    driver: list[tuple[float, float]] = []  # intervals in which the proposing process trained
    done: list[float] = []  # when each generation and all before it were complete
    for generation, start in enumerate(range(0, len(seconds), generation_size)):
        before = int(max(1, generation - lookahead)) if generation else 0
        proposed = done[before - 1] if before else 0.0
        proposed = next((end for begin, end in driver if begin <= proposed < end), proposed)
        ends = []
        for duration in seconds[start : start + generation_size]:
            since, process = heapq.heappop(free)
            begin = max(since, proposed)
            heapq.heappush(free, (begin + duration, process))
            ends.append(begin + duration)
            if process == 0:
                driver.append((begin, ends[-1]))
        done.append(max([*ends, *done[-1:]]))
    return float(seconds.sum() / (processes * done[-1]))


def simulate(history: Path, generations: int) -> dict[str, Any]:
    lines = history.read_text(encoding="utf-8").splitlines()[1:]
    measured = np.array([json.loads(line)["seconds"] for line in lines])
    rows = []
    for processes in (8, 64, 512):
        for generation_size in (25, processes, 4 * processes):
            drawn = np.random.default_rng(0).choice(measured, generations * generation_size)
            busy_fractions = {
                str(lookahead): round(busy(drawn, processes, generation_size, lookahead), 3)
                for lookahead in (0, 1, 2, 4, math.inf)
            }
            rows.append(
                {"processes": processes, "generation_size": generation_size, "busy_by_lookahead": busy_fractions}
            )
            print(rows[-1], flush=True)
    quantiles = np.quantile(measured, [0, 0.1, 0.5, 0.9, 1])
    return {
        "history": history.name,
        "candidates": len(measured),
        "generations": generations,
        "candidate_seconds": {"quantiles 0, 10, 50, 90, 100 %": [round(float(q), 2) for q in quantiles]},
        "relative_spread": round(float(measured.std() / measured.mean()), 3),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["driver", "processes", "simulation"])
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--generations", type=int, default=20, help="number of generations to measure or simulate")
    parser.add_argument("--rounds", type=int, default=3, help="rounds with each number of processes")
    parser.add_argument("--history", type=Path, help="history.jsonl with the candidate times")
    args, search_arguments = parser.parse_known_args()
    if search_arguments and args.part != "processes":
        parser.error(f"unrecognized arguments: {' '.join(search_arguments)}")
    commit, start = current_commit(), time.perf_counter()
    if args.part == "driver":
        results: Any = {"rows": measure_driver(args.lengths, args.generations)}
    elif args.part == "processes":
        results = measure_processes(args.rounds, search_arguments)
    elif args.history:
        results = simulate(args.history, args.generations)
    else:
        parser.error("simulation: expected --history")
    facts = {
        **provenance(commit),
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(results, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, {**facts, **results})


if __name__ == "__main__":
    main()
