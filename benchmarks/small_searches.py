"""The search of `make search` with other seeds and settings: how much the result varies, and what a setting is worth.

    python benchmarks/small_searches.py --output_dir runs/small --results results/small_searches.json --jobs 2

Every search runs in a process of one thread. All variants of a seed split the text in the same way and train on the same
batches, so that differences are paired. Finished searches are not repeated, interrupted ones resume.
"""

import argparse
import concurrent.futures
import subprocess
import sys
from pathlib import Path
from typing import Any

from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.recorded_run import read_summary
from autobert_zero.search.report.tables import MODELS, mean_and_error, summary_genome, text_table, with_error
from autobert_zero.search.settings import flags


# Changes of the default settings. Others are compared with the first.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "two_designs": {"seed_genomes": ["bert-rotary", "hybrid-rotary"]},
    "absolute": {"position_embedding_type": "absolute"},
    "random": {"seed_genomes": ["none"]},
    "without_steps": {"candidate_steps": 0},
    "without_minimum": {"min_attention_layers": 0},
}
FOUND, BETTER_BASELINE = MODELS["found"], MODELS["bert_rotary"]


def search(folder: Path, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Run a search, unless it is finished. Returns what its summary says."""
    arguments = flags({"output_dir": str(folder), "seed": seed, "num_threads": 1, **changes})
    subprocess.run([sys.executable, "-m", "autobert_zero.search", "--quiet", *arguments], check=True)
    summary = read_summary(folder / "summary.json")
    return {
        "seed": seed,
        "commit": summary["commit"],
        "losses": {name: result["loss"] for name, result in summary["results"].items()},
        "parameters": {name: result.get("parameters") for name, result in summary["results"].items()},
        "layer_importance": {
            name: result["layer_importance"]
            for name, result in summary["results"].items()
            if "layer_importance" in result
        },
        "genome": [str(gene) for gene in summary_genome(summary)],
        "index": summary["best"]["index"],
        "seconds": summary["seconds_of_candidates"],
    }


def summarize(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """For each variant, means with standard errors over the seeds that it has."""

    def losses(variant: str, model: str) -> dict[int, float | None]:
        return {row["seed"]: row["losses"][model] for row in rows[variant]}

    def differences(a: dict[int, float | None], b: dict[int, float | None]) -> list[float | None]:
        pairs = [(a[seed], b[seed]) for seed in a if seed in b]
        return [None if x is None or y is None else x - y for x, y in pairs]  # None: a training diverged

    first = next(iter(rows))
    found = {}
    for variant in rows:
        mine, baseline, reference = losses(variant, FOUND), losses(variant, BETTER_BASELINE), losses(first, FOUND)
        found[variant] = {
            "seeds": list(mine),
            "found": mean_and_error(list(mine.values())),
            "BERT": mean_and_error(list(losses(variant, "BERT").values())),
            BETTER_BASELINE: mean_and_error(list(baseline.values())),
            f"found minus {BETTER_BASELINE}": mean_and_error(differences(mine, baseline)),
            f"found minus that of {first}": mean_and_error(differences(mine, reference)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the searches")
    parser.add_argument("--results", type=Path, help="JSON file for the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46, 47])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=1, help="searches at the same time")
    args = parser.parse_args()
    commit = current_commit()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {
            (variant, seed): pool.submit(search, args.output_dir / f"{variant}-{seed}", seed, VARIANTS[variant])
            for seed in args.seeds
            for variant in args.variants
        }
        rows: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
        for (variant, seed), future in futures.items():
            rows[variant].append(future.result())
            print(f"{variant}, seed {seed}: {rows[variant][-1]['losses']}", flush=True)
    summary = summarize(rows)
    columns = [name for name in next(iter(summary.values())) if name != "seeds"]
    table = [("variant", "seeds", *columns)]
    for variant, values in summary.items():
        table.append((variant, str(len(values["seeds"])), *(with_error(values[name], 3) for name in columns)))
    print(text_table(table))
    if args.results:
        write_json(args.results, {**provenance(commit), "summary": summary, "searches": rows})


if __name__ == "__main__":
    main()
