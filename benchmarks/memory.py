"""The memory that a search takes, measured as the peak of a process, beside its estimate.

    python benchmarks/memory.py --output results/memory.json --scale 0.5

The model has 12 layers, and with a scale of 1 the size of BERT-base (768 wide); sequences have 128 tokens. Measured in a process
of its own are two steps of the super-network, and then of a candidate, beyond what the process had before.
"""

import argparse
import sys

import torch
from throughput import process_peak

from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.run.estimate import memory_bytes
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import SearchSettings


MIB = 1 << 20
HEADS = 12
STEPS = 2


def problem_of(scale: float, batch_size: int, micro_batch_size: int | None, checkpointing: bool) -> Problem:
    hidden_size = round(64 * scale) * HEADS
    settings = SearchSettings.from_dict(
        {
            "num_hidden_layers": 12,
            "hidden_size": hidden_size,
            "num_attention_heads": HEADS,
            "intermediate_size": 4 * hidden_size,
            "sequence_length": 128,
            "batch_size": batch_size,
            "micro_batch_size": micro_batch_size,
            "gradient_checkpointing": checkpointing,
            "supernet_steps": STEPS,
            "candidate_steps": STEPS,
            "eval_sequences": batch_size,
        }
    )
    return Problem.prepare(settings, torch.device("cpu"))


def measure(problem: Problem) -> dict[str, float]:
    before = process_peak()
    supernet = problem.new_supernet()
    problem.train_supernet(supernet)
    after_supernet = process_peak()
    outcome = problem.proxy.score(problem.first[0].genome, supernet)
    if outcome.status != "ok":
        sys.exit(f"error: the candidate failed: {outcome.reason}")
    return {"super-network": (after_supernet - before) / MIB, "whole": (process_peak() - before) / MIB}


def main() -> None:
    commit = current_commit()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", required=True, help="JSON file for the results.")
    parser.add_argument("--scale", type=float, default=0.5, help="Width, relative to BERT-base.")
    parser.add_argument("--batch_size", type=int, default=32, help="Sequences in a batch.")
    parser.add_argument("--micro_batch_size", type=int, help="As in a search.")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="As in a search.")
    given = parser.parse_args()
    problem = problem_of(given.scale, given.batch_size, given.micro_batch_size, given.gradient_checkpointing)
    with torch.device("meta"):
        supernet = problem.make_supernet()
    estimated = memory_bytes(problem, supernet) / MIB
    measured = measure(problem)
    results = {
        **provenance(commit, "cpu"),
        "hidden_size": problem.settings.model.hidden_size,
        "batch_size": given.batch_size,
        "micro_batch_size": given.micro_batch_size,
        "gradient_checkpointing": given.gradient_checkpointing,
        "store_parameters": sum(parameter.numel() for parameter in supernet.parameters()),
        "estimated_mib": round(estimated),
        "measured_mib": {name: round(value) for name, value in measured.items()},
    }
    write_json(given.output, results)
    print(
        f"estimated {estimated:,.0f} MiB, measured {measured['whole']:,.0f} MiB (super-network {measured['super-network']:,.0f})"
    )


if __name__ == "__main__":
    main()
