"""Search strategies on spaces that others have evaluated: the project's loop and strategies, with a small adapter.

    python benchmarks/nas_bench.py --data nas_bench --output results/nas_bench.json

NAS-Bench-Graph (Qin et al., NeurIPS 2022; Apache-2.0): 26,206 graph networks, each a DAG of four nodes with one operation
per node, evaluated on eight data sets, and 2,021 of them on a ninth, proteins. Strategies search by validation accuracy
(proteins: ROC AUC); regret is in points, relative to the best of the table. The files `nas-bench-graph/light/*.bench` of
github.com/THUMNLab/NAS-Bench-Graph belong into the folder `--data`.

`bert_encoders`: 500 BERT-like encoders from a space of millions, with their mean GLUE scores (Serianni and Kalita, 2023;
CC-BY-4.0): `data/BERT_benchmark.json` of github.com/aaronserianni/training-free-nas. Strategies select from this pool: a
mutation is one of the most similar encoders.

`backbones`: this project's own space, by a model of the backbones in tables (`surrogate.py`). Scores are predicted, so
regret, relative to the best of the tables, may be below 0. `--seed_genomes known` starts with known designs, as a search does
by default.

All strategies run with the same seeds, so that differences are paired.
"""

import argparse
import dataclasses
import itertools
import json
import pickle
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from surrogate import BackboneTable

from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.loop import Completed, evolve
from autobert_zero.search.evolution.strategies import (
    Evolution,
    LargestFirst,
    OpNas,
    RandomSearch,
    RegularizedEvolution,
    ThompsonOpNas,
)
from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.tables import mean_and_error
from autobert_zero.search.run.factory import read_seed_genomes


GRAPHS = ("cora", "pubmed", "arxiv", "cs")
# No default of a strategy was chosen on these.
HELD_OUT_GRAPHS = ("citeseer", "computers", "photo", "physics", "proteins")
ENCODERS, BACKBONES = "bert_encoders", "backbones"
CHECKPOINTS = {
    **dict.fromkeys((*GRAPHS, *HELD_OUT_GRAPHS), (25, 50, 100, 150, 200, 300)),
    ENCODERS: (10, 20, 30, 60),
    BACKBONES: (16, 28, 40, 64, 100),
}
NODES = range(4)
# In the order of their numbers in the files, as are the inputs of the four nodes.
OPERATIONS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
LINKS = (
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 2), (0, 0, 1, 3)),
    *((0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 2, 2), (0, 1, 2, 3)),
)

# Inputs of the four nodes (0 is the raw input, i the i-th node), and their operations.
Architecture = tuple[tuple[int, ...], tuple[str, ...]]


class NumbersUnpickler(pickle.Unpickler):
    """Reads numbers and their containers, and refuses everything else, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar"):
                return np._core.multiarray.scalar
            case "numpy", "dtype":
                return np.dtype
        raise pickle.UnpicklingError(f"expected numbers, got {module}.{name}")


def choose_uniformly(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


class GraphSpace:
    """The table as a space: `random`, `mutate`, `operations`, `key`, `size`."""

    def __init__(self, path: Path):
        self.scores: dict[Architecture, float] = {}
        self.parameters: dict[Architecture, float] = {}
        with open(path, "rb") as file:
            rows = NumbersUnpickler(file).load()
        for number, row in rows.items():
            links, *operations = map(int, f"{number:05}")
            architecture = (LINKS[links], tuple(OPERATIONS[operation] for operation in operations))
            self.scores[architecture] = 100 * float(row["valid_perf"])
            self.parameters[architecture] = float(row["para"])
        self.links = sorted({links for links, _ in self.scores})
        known = {name for _, operations in self.scores for name in operations}
        self.names = tuple(name for name in OPERATIONS if name in known)
        self.best = max(self.scores.values())
        self._known: dict[Architecture, Architecture | None] = {}

    def canonical(self, architecture: Architecture) -> Architecture | None:
        """The row of the table with the same graph up to the numbering of nodes; None if there is none."""
        if architecture not in self._known:
            self._known[architecture] = next((a for a in renumbered(architecture) if a in self.scores), None)
        return self._known[architecture]

    def random(self, rng: np.random.Generator, choose: Callable = choose_uniformly) -> Architecture:
        links = self.links[int(rng.integers(len(self.links)))]
        return self._legal(lambda: (links, tuple(choose(self.names, rng) for _ in NODES)))

    def mutate(
        self, genome: Architecture, rng: np.random.Generator, choose: Callable = choose_uniformly
    ) -> Architecture:
        """Change the links, or the operation of one node, which the strategy chooses."""
        links, operations = genome

        def child() -> Architecture:
            if rng.random() < 0.2:
                return self.links[int(rng.integers(len(self.links)))], operations
            node = int(rng.integers(len(NODES)))
            others = [name for name in self.names if name != operations[node]]
            return links, (*operations[:node], choose(others, rng), *operations[node + 1 :])

        return self._legal(child)

    def _legal(self, make: Callable[[], Architecture]) -> Architecture:
        for _ in range(100):
            if (found := self.canonical(make())) is not None:
                return found
        raise AssertionError("no architecture of the table in 100 tries")

    def crossover(self, genome: Architecture, other: Architecture, rng: np.random.Generator) -> Architecture:
        """The links of the first, and the operation of each node from either of them."""
        links = genome[0]
        pairs = list(zip(genome[1], other[1], strict=True))
        return self._legal(lambda: (links, tuple(pair[int(rng.integers(2))] for pair in pairs)))

    def operations(self, genome: Architecture) -> list[str]:
        return sorted(set(genome[1]))

    def features(self, genome: Architecture) -> list[str]:
        links, operations = genome
        return [f"links {links}", *(f"{node} {name}" for node, name in enumerate(operations))]

    def size(self, genome: Architecture) -> float:
        return self.parameters[genome]

    def key(self, genome: Architecture) -> str:
        return repr(genome)


def renumbered(architecture: Architecture) -> list[Architecture]:
    """All numberings of the nodes in which every node follows its input."""
    links, operations = architecture
    found = []
    for order in itertools.permutations(NODES):  # order[i] is the old node that becomes node i + 1
        number = {0: 0} | {old + 1: new + 1 for new, old in enumerate(order)}
        new_links = tuple(number[links[old]] for old in order)
        if all(source <= node for node, source in enumerate(new_links)):
            found.append((new_links, tuple(operations[old] for old in order)))
    return found


class EncoderSpace:
    """The pool as a space: a genome is the number of an encoder."""

    NEAR = 20  # number of most similar encoders that are mutations

    def __init__(self, path: Path):
        rows = json.loads(path.read_text(encoding="utf-8"))
        models = [row["hparams"]["model_hparam_overrides"] for row in rows]
        encoders = [{"hidden_size": m["hidden_size"], "layers": m["nas_config"]["encoder_layers"]} for m in models]
        self.scores = [row["scores"]["glue"] for row in rows]
        self.best = max(self.scores)
        self._features = [self._describe(encoder) for encoder in encoders]
        self._operations = [
            sorted({f"{layer['operation_type']} {layer['operation_parameter']}" for layer in encoder["layers"]})
            for encoder in encoders
        ]
        self._sizes = [self._parameters(encoder) for encoder in encoders]
        names = sorted({name for names in self._features for name in names})
        present = np.array([[name in names_ for name in names] for names_ in map(set, self._features)], dtype=float)
        distances = (present[:, None] != present[None]).sum(2)
        self._near = [
            [int(j) for j in np.argsort(row, kind="stable") if j != i][: self.NEAR] for i, row in enumerate(distances)
        ]

    @staticmethod
    def _describe(encoder: dict) -> list[str]:
        found = [f"hidden {encoder['hidden_size']}", f"layers {len(encoder['layers'])}"]
        for number, layer in enumerate(encoder["layers"]):
            found += [f"{number} {layer['operation_type']}", f"{number} operation {layer['operation_parameter']}"]
            found += [f"{number} {name} {layer[name]}" for name in ("feed_forward_dimension", "num_feed_forward")]
            found += [f"{number} heads {layer['num_operation_heads']}"]
        return found

    @staticmethod
    def _parameters(encoder: dict) -> int:
        """Parameters in matrices: embeddings, maps of the mixers (a linear transform has none), feed-forward parts."""
        width = encoder["hidden_size"]
        total = 30522 * width
        for layer in encoder["layers"]:
            total += {"SA": 4, "LT": 0, "DSC": 2}[layer["operation_type"]] * width**2
            total += layer["num_feed_forward"] * 2 * width * layer["feed_forward_dimension"]
        return total

    def random(self, rng: np.random.Generator, choose: Callable = choose_uniformly) -> int:
        return int(rng.integers(len(self.scores)))

    def mutate(self, genome: int, rng: np.random.Generator, choose: Callable = choose_uniformly) -> int:
        """One of the most similar encoders, with an operation that the strategy chooses."""
        near = self._near[genome]
        name = choose(sorted({name for other in near for name in self._operations[other]}), rng)
        having = [other for other in near if name in self._operations[other]]
        return having[int(rng.integers(len(having)))]

    def operations(self, genome: int) -> list[str]:
        return self._operations[genome]

    def features(self, genome: int) -> list[str]:
        return self._features[genome]

    def size(self, genome: int) -> int:
        return self._sizes[genome]

    def key(self, genome: int) -> str:
        return str(genome)


STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "random": lambda space: RandomSearch(space, 25),
    "largest first": lambda space: LargestFirst(space, 25),
    "evolution": lambda space: Evolution(space, 50, 5, 5),
    "regularized evolution": lambda space: RegularizedEvolution(space, 50, 10),
    "OP-NAS": lambda space: OpNas(space, 50, 5, 5, alpha=0.2, temperature=0.3),
    "Thompson OP-NAS": lambda space: ThompsonOpNas(space, 50, 5, 5),
    "OP-NAS, lookahead 1": lambda space: OpNas(space, 50, 5, 5),
    "OP-NAS, decay 0.98": lambda space: OpNas(space, 50, 5, 5, decay=0.98),
    "OP-NAS, crossover 0.5": lambda space: OpNas(space, 50, 5, 5, crossover_probability=0.5),
}
LOOKAHEAD = {"OP-NAS, lookahead 1": 1}


# Budgets and generations are smaller on the pool, and "largest first" compares more encoders.
ENCODER_STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "random": lambda space: RandomSearch(space, 10),
    "largest first": lambda space: LargestFirst(space, 10, pool_size=40),
    "evolution": lambda space: Evolution(space, 10, 3, 2),
    "regularized evolution": lambda space: RegularizedEvolution(space, 10, 5),
    "OP-NAS": lambda space: OpNas(space, 10, 3, 2),
    "Thompson OP-NAS": lambda space: ThompsonOpNas(space, 10, 3, 2),
}


# As in a search with default settings.
BACKBONE_STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "random": lambda space: RandomSearch(space, 16),
    "largest first": lambda space: LargestFirst(space, 16),
    "evolution": lambda space: Evolution(space, 16, 3, 4),
    "regularized evolution": lambda space: RegularizedEvolution(space, 16, 5, 12),
    "OP-NAS": lambda space: OpNas(space, 16, 3, 4),
    "Thompson OP-NAS": lambda space: ThompsonOpNas(space, 16, 3, 4),
}
STRATEGIES_ON = {ENCODERS: ENCODER_STRATEGIES, BACKBONES: BACKBONE_STRATEGIES}


def regrets(space: Any, strategy: Any, seed: int, evaluations: int, lookahead: int = 0) -> list[float]:
    """Regret after each evaluation."""

    def submit(record: Record, archive: Archive) -> Completed:
        return Completed(Outcome(score=space.scores[record.genome]))

    history = list(evolve(space, strategy, submit, [], seed, evaluations, lookahead))
    return (space.best - np.maximum.accumulate([record.score for record in history])).tolist()


_SPACES: dict[str, Any] = {}


def run(job: tuple[Any, list[str], str, str, int]) -> list[float]:
    """Regrets of a search; the first entries of the job are the folder of the data, or the files of the tables, and genomes
    to start with."""
    data, seed_genomes, name, data_set, seed = job
    if data_set not in _SPACES:
        if data_set == BACKBONES:
            _SPACES[data_set] = BackboneTable(data)
        elif data_set == ENCODERS:
            _SPACES[data_set] = EncoderSpace(Path(data) / "BERT_benchmark.json")
        else:
            _SPACES[data_set] = GraphSpace(Path(data) / f"{data_set}.bench")
    space = _SPACES[data_set]
    strategy = STRATEGIES_ON.get(data_set, STRATEGIES)[name](space)
    if seed_genomes:
        strategy = dataclasses.replace(strategy, seeds=read_seed_genomes(seed_genomes, space.space))
    return regrets(space, strategy, seed, CHECKPOINTS[data_set][-1], LOOKAHEAD.get(name, 0))


def summarize(curves: dict[str, np.ndarray], baseline: str, checkpoints: Sequence[int]) -> dict[str, Any]:
    """Mean regrets with standard errors, and the paired difference of the last one to the baseline."""
    random_final = curves["random"][:, -1].mean()
    summary = {}
    for name, curve in curves.items():
        difference = curve[:, -1] - curves[baseline][:, -1]
        below = np.flatnonzero(curve.mean(0) <= random_final)
        summary[name] = {
            "regret": {n: list(mean_and_error(curve[:, n - 1].tolist())) for n in checkpoints},
            f"minus {baseline}": list(mean_and_error(difference.tolist())),
            "evaluations_like_random": int(below[0]) + 1 if len(below) else None,
        }
    return summary


def table(results: dict[str, Any], baseline: str) -> str:
    lines = []
    for data_set, summary in results.items():
        checkpoints = CHECKPOINTS[data_set]
        lines += [f"{data_set}: regret in points after evaluations, and difference to {baseline} after the last"]
        lines += [f"{'':24}" + "".join(f"{n:>8}" for n in checkpoints) + "   difference ± s.e.   like random"]
        for name, s in summary.items():
            difference, error = s[f"minus {baseline}"]
            cells = "".join(f"{s['regret'][n][0]:8.3f}" for n in checkpoints)
            lines.append(f"{name:24}{cells}   {difference:+.3f} ± {error:.3f}     {s['evaluations_like_random']}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        help="folder with <data set>.bench and BERT_benchmark.json; needed unless only backbones",
    )
    parser.add_argument("--tables", type=Path, nargs="+", help="of trained backbones, for the data set backbones")
    parser.add_argument("--seed_genomes", nargs="+", default=[], help="genomes to start with, for backbones alone")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, default=100, help="number of paired repetitions, with seeds 0, 1, ...")
    parser.add_argument(
        "--data_sets",
        nargs="+",
        default=[*GRAPHS, *HELD_OUT_GRAPHS, ENCODERS],
        choices=[*GRAPHS, *HELD_OUT_GRAPHS, ENCODERS, BACKBONES],
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=list(STRATEGIES),
        choices=list(dict.fromkeys([*STRATEGIES, *ENCODER_STRATEGIES, *BACKBONE_STRATEGIES])),
    )
    parser.add_argument("--processes", type=int, default=None)
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"seeds: expected at least 2, for standard errors, got {args.seeds}")
    for data_set in args.data_sets:
        if (args.tables if data_set == BACKBONES else args.data) is None:
            parser.error(f"data_sets: expected {'--tables' if data_set == BACKBONES else '--data'} for {data_set}")
    if args.seed_genomes and args.data_sets != [BACKBONES]:
        parser.error(f"seed_genomes: expected {BACKBONES} as the only data set, got {' '.join(args.data_sets)}")
    commit, start, baseline = current_commit(), time.perf_counter(), "regularized evolution"
    results: dict[str, Any] = {}
    with Pool(args.processes) as pool:
        for data_set in args.data_sets:
            known = STRATEGIES_ON.get(data_set, STRATEGIES)
            source = args.tables if data_set == BACKBONES else args.data
            names = [name for name in known if name in {*args.strategies, "random", baseline}]
            jobs = [(source, args.seed_genomes, name, data_set, seed) for name in names for seed in range(args.seeds)]
            curves = np.array(pool.map(run, jobs, chunksize=5)).reshape(len(names), args.seeds, -1)
            results[data_set] = summarize(dict(zip(names, curves, strict=True)), baseline, CHECKPOINTS[data_set])
            print(table({data_set: results[data_set]}, baseline), flush=True)
    if args.output:
        facts = {
            **provenance(commit),
            "seeds": args.seeds,
            "seed_genomes": args.seed_genomes,
            "seconds": round(time.perf_counter() - start),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, {**facts, "results": json.loads(json.dumps(results))})


if __name__ == "__main__":
    main()
