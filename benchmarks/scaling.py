"""What the search costs beside training, and how busy it keeps many processes.

    python benchmarks/scaling.py driver --output results/scaling/driver.json
    python benchmarks/scaling.py processes --output results/scaling/processes.json
    python benchmarks/scaling.py simulation --history results/first-light/eltec-history.jsonl \\
        --output results/scaling/simulation.json

`driver`: the loop alone, with a toy fitness: time of a proposal, memory, and replay, by length of the history.
`processes`: the same real search in one process and in two, in turn: candidates per hour, and the driver's share;
arguments that are not its own are those of the search.
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

from autobert_zero.search import reporting
from autobert_zero.search.evolution import evolve, propose
from autobert_zero.search.history import History
from autobert_zero.search.records import Archive, Record
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.strategies import OpNas, RegularizedEvolution, ThompsonOpNas


SPACE = BackboneSpace(num_layers=12, kernel_sizes=(3, 5, 7, 9, 15, 31, 65), max_nodes=14, min_attention_layers=1)
STRATEGIES = {
    "OP-NAS": OpNas(SPACE, 100, 5, 5),
    "Thompson OP-NAS": ThompsonOpNas(SPACE, 100, 5, 5),
    "regularized evolution": RegularizedEvolution(SPACE, 100, 10, 25),
}


def evaluated(record: Record) -> Record:
    """A toy fitness: noise of the genome's own, and a little to climb."""
    text = str(record.genome)
    score = zlib.crc32(text.encode()) % 1000 / 1000 + 0.1 * text.count("softmax")
    return record.evaluated(score=score, costs={"parameters": 1.0, "flops": 1.0})


def resident_mib() -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def measure_replay(history: list[Record]) -> dict[str, float]:
    """Seconds to read the history back, and the size of its file."""
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch("os.fsync"):  # only reading is measured
        path = Path(folder, "history.jsonl")
        with History(path, {}, ()) as file:
            for record in history:
                file.append(record)
        start = time.perf_counter()
        with History(path, {}, ()) as file:
            assert len(file) == len(history)
        return {
            "replay_seconds": round(time.perf_counter() - start, 2),
            "file_mib": round(path.stat().st_size / 2**20, 1),
        }


def measure_driver(lengths: list[int], generations: int) -> list[dict[str, Any]]:
    """Of each length of a history of OP-NAS, and each strategy, milliseconds of a proposal after it."""
    rows = []
    history: list[Record] = []
    before = resident_mib()
    for length in lengths:
        evolve(SPACE, STRATEGIES["OP-NAS"], lambda record, _: lambda: evaluated(record), history, 0, length)
        row = {"records": length, "history_mib": round(resident_mib() - before), **measure_replay(history)}
        for name, strategy in STRATEGIES.items():
            archive, known = Archive(history), {record.key for record in history}
            times = []
            # The first one reads all of the history, as a run does once when it starts.
            for generation in range(100_000, 100_001 + generations):
                start = time.perf_counter()
                births = strategy(generation, archive)
                proposals = propose(SPACE, births, generation, len(archive), known, 0)
                times.append(1000 * (time.perf_counter() - start) / len(proposals))
                for record in proposals:
                    archive.append(evaluated(record))
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
    """Seconds of the search phase of one run, in one process and in two of one thread each, in turn."""
    launchers = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    shares, spread = [], []
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
                shares.append(1 - sum(times) / seconds[count][-1])
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
        "driver_share": [round(share, 4) for share in shares],
        "candidate_seconds": [round(float(f(spread)), 3) for f in (min, statistics.median, max)],
        "settings": {name: value for name, value in summary["settings"].items() if name != "output_dir"},
    }


def busy(seconds: np.ndarray, processes: int, generation_size: int, lookahead: float) -> float:
    """Share of their time that processes train candidates, which they take in order, each as soon as it is proposed.

    One of them, which proposes, trains as well: it proposes when it is done with what it has.
    """
    free = [(0.0, process) for process in range(processes)]
    mine: list[tuple[float, float]] = []  # when the one that proposes trained
    done: list[float] = []  # when the last candidate of each generation, and of all before, was done
    for generation, start in enumerate(range(0, len(seconds), generation_size)):
        before = int(max(1, generation - lookahead)) if generation else 0
        proposed = done[before - 1] if before else 0.0
        proposed = next((end for begin, end in mine if begin <= proposed < end), proposed)
        ends = []
        for duration in seconds[start : start + generation_size]:
            since, process = heapq.heappop(free)
            begin = max(since, proposed)
            heapq.heappush(free, (begin + duration, process))
            ends.append(begin + duration)
            if process == 0:
                mine.append((begin, ends[-1]))
        done.append(max([*ends, *done[-1:]]))
    return float(seconds.sum() / (processes * done[-1]))


def simulate(history: Path, generations: int) -> dict[str, Any]:
    lines = history.read_text(encoding="utf-8").splitlines()[1:]
    measured = np.array([json.loads(line)["seconds"] for line in lines])
    rows = []
    for processes in (8, 64, 512):
        for generation_size in (25, processes, 4 * processes):
            drawn = np.random.default_rng(0).choice(measured, generations * generation_size)
            shares = {
                str(lookahead): round(busy(drawn, processes, generation_size, lookahead), 3)
                for lookahead in (0, 1, 2, 4, math.inf)
            }
            rows.append({"processes": processes, "generation_size": generation_size, "busy_by_lookahead": shares})
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
    parser.add_argument("--generations", type=int, default=20, help="to measure, or to simulate")
    parser.add_argument("--rounds", type=int, default=3, help="of both numbers of processes")
    parser.add_argument("--history", type=Path, help="history.jsonl that candidate times are taken from")
    args, search_arguments = parser.parse_known_args()
    if search_arguments and args.part != "processes":
        parser.error(f"unrecognized arguments: {' '.join(search_arguments)}")
    commit, start = reporting.commit(), time.perf_counter()
    if args.part == "driver":
        results: Any = {"rows": measure_driver(args.lengths, args.generations)}
    elif args.part == "processes":
        results = measure_processes(args.rounds, search_arguments)
    elif args.history:
        results = simulate(args.history, args.generations)
    else:
        parser.error("simulation: expected --history")
    provenance = {
        **reporting.provenance(commit),
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(results, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        reporting.write_json(args.output, {**provenance, **results})


if __name__ == "__main__":
    main()
