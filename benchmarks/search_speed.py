"""How close the trainings of a search come to a bare loop, and to what the machine multiplies.

    python benchmarks/search_speed.py --output results/search_speed.json --num_threads 1

For each size, steps of the super-network and of a candidate as a search takes them (batches, masks, checks, schedule), in
turn with a loop that does nothing but forward, backward, clipping and AdamW on batches in memory, on the same modules.
The ratio is tokens per second of the search by those of the loop in the same round; the other figure is the fraction of
the measured rate of matrix products of that size.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from throughput import matmul_rate, summary

from autobert_zero.search.evaluation.measure import default_device, synchronize
from autobert_zero.search.evaluation.training import MAX_GRADIENT_NORM
from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.tables import text_table
from autobert_zero.search.run.estimate import WARMUP_STEPS, step_seconds
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.settings import SearchSettings


# Layers, width, heads, sequences and tokens of a batch.
SIZES = {
    "4 × 64": (4, 64, 2, 8, 64),
    "4 × 128": (4, 128, 4, 16, 64),
    "12 × 256": (12, 256, 4, 8, 128),
    "12 × 768": (12, 768, 12, 32, 128),
}
STEPS = 12  # of a round, after those that warm up


def settings_of(size: str) -> SearchSettings:
    layers, width, heads, batch, tokens = SIZES[size]
    return SearchSettings.from_dict(
        {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "batch_size": batch,
            "sequence_length": tokens,
            "supernet_steps": STEPS + WARMUP_STEPS,
            "paths_per_step": 1,
        }
    )


def bare_loop(module: torch.nn.Module, losses: list[Callable[[], torch.Tensor]]) -> float:
    """Seconds of the same steps without anything around them."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    module.train()
    start = 0.0
    for number, loss in enumerate(losses):
        if number == WARMUP_STEPS:
            synchronize()
            start = time.perf_counter()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    return time.perf_counter() - start


def measure(size: str, rounds: int, device: torch.device) -> dict[str, Any]:
    problem = Problem.prepare(settings_of(size), device)
    settings, proxy, corpus = problem.settings, problem.proxy, problem.corpus
    supernet, sample = problem.new_supernet(), problem.paths()
    genome = problem.first[0].genome
    model = proxy.builder.model(genome).to(device)
    batch_tokens = settings.training.batch_size * settings.model.sequence_length

    def in_memory(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batches = [corpus.batch(name, step, settings.training.batch_size) for step in range(STEPS + WARMUP_STEPS)]
        return [(ids.to(device), labels) for ids, labels in batches]

    paths = [sample(step, 0) for step in range(STEPS + WARMUP_STEPS)]
    path_losses = [
        lambda path=path, batch=batch: supernet(path, *batch)
        for path, batch in zip(paths, in_memory("supernet"), strict=True)
    ]
    model_losses = [lambda batch=batch: model(batch[0], labels=batch[1]).loss for batch in in_memory("candidate")]
    schedule = proxy.schedule(STEPS + WARMUP_STEPS, 1e-4)
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "super-network": (
            lambda: STEPS * step_seconds(lambda progress: problem.train_supernet(supernet, progress=progress)),
            lambda: bare_loop(supernet, path_losses),
        ),
        "candidate": (
            lambda: (
                STEPS * step_seconds(lambda progress: proxy.train(model, schedule, "candidate", progress=progress))
            ),
            lambda: bare_loop(model, model_losses),
        ),
    }
    flops = {
        "super-network": sum(problem.costs.flops(path) for path in paths[WARMUP_STEPS:]) / STEPS,
        "candidate": problem.costs.flops(genome),
    }
    rate = matmul_rate(batch_tokens, torch.float32, device, settings.model.hidden_size)
    found: dict[str, Any] = {}
    for name, (searched, bare) in pairs.items():
        searched(), bare()  # warm up
        ours, theirs, rates = [], [], []
        for _ in range(rounds):
            ours.append(searched())
            theirs.append(bare())
            rates.append(rate())
        ratio = summary(ours, theirs)
        computed = 3 * flops[name] * settings.training.batch_size * STEPS
        median = sorted(ours)[rounds // 2]
        found[name] = {
            "tokens_per_second": round(STEPS * batch_tokens / median),
            "of_a_bare_loop": ratio["relative"],
            "quartiles": ratio["relative_quartiles"],
            "of_the_matrix_product_rate": round(computed / median / sorted(rates)[rounds // 2], 3),
        }
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    rows = [("size", "training", "tokens/s", "of a bare loop", "of the matrix-product rate")]
    for size, found in results.items():
        for name, values in found.items():
            low, high = values["quartiles"]
            ratio = f"{values['of_a_bare_loop']:.2f} [{low:.2f}, {high:.2f}]"
            rows.append(
                (size, name, f"{values['tokens_per_second']:,}", ratio, f"{values['of_the_matrix_product_rate']:.0%}")
            )
    return text_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES)[:3], help="of the backbones")
    parser.add_argument("--rounds", type=int, default=9, help="of pairs of measurements")
    parser.add_argument("--num_threads", type=int, default=1, help="of torch, on a CPU")
    arguments = parser.parse_args()
    commit = current_commit()
    torch.set_num_threads(arguments.num_threads)
    device = default_device()
    facts = {**provenance(commit, device.type), "rounds": arguments.rounds, "threads": arguments.num_threads}
    results = {}
    for size in arguments.sizes:
        results[size] = measure(size, arguments.rounds, device)
        if arguments.output:
            write_json(arguments.output, {**facts, "sizes": results})
    print(table(results))


if __name__ == "__main__":
    main()
