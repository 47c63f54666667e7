"""How well a cheap score orders candidates: Kendall's tau to their loss after full training from scratch.

    accelerate launch benchmarks/rank_fidelity.py --output_dir runs/rank --train_file novels.txt.xz \\
        --vocab_size 4096 --eval_sequences 1024 --batch_size 32 --final_steps 1500 --results results/rank_fidelity.json

Takes the settings of a search, and all of its parts: text, candidates (its first generation), super-network, proxy.
Trainings are rows of `rows.jsonl` in the folder, one a line; the same command goes on where the last one stopped.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from scipy.stats import kendalltau
from transformers import HfArgumentParser

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search import reporting
from autobert_zero.search.data import Corpus
from autobert_zero.search.evolution import first_generation
from autobert_zero.search.factory import make_sizes
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.strategies import RandomSearch
from autobert_zero.search.supernet import PathSampler, SuperNetwork, model_config, train_supernet
from autobert_zero.search.training import Checkpoint, Schedule, seed_torch
from autobert_zero.search.workers import Workers


# Ways to train the super-network, as settings that differ from those of the command line.
SCHEMES: dict[str, dict[str, Any]] = {
    "mixed": {"convolution_paths": 0.0},
    "apart": {"convolution_paths": 0.5, "other_paths": "attentions"},
    "convolutions, mixed": {"convolution_paths": 0.75},
    "population": {"convolution_paths": 0.0, "other_paths": "population"},
    "convolutions, population": {"convolution_paths": 0.5, "other_paths": "population"},
}
# Settings that the trainings depend on, beside the text; what differs between schemes stands in the name of a method.
WHAT_ROWS_DEPEND_ON = (
    *("seed", "eval_sequences", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    *("initializer_range", "dropout", "kernel_sizes", "max_nodes", "min_attention_layers", "population_size"),
    *("batch_size", "learning_rate", "warmup_ratio", "weight_decay", "paths_per_step", "candidate_learning_rate"),
    "final_steps",
)
# Added to the seed, so that short trainings from scratch begin with weights that no full training began with.
SCRATCH_SEED = 1000
# Full trainings report their loss at these shares of it: has the order settled?
SHARES = (0.25, 0.5, 1.0)
# What a hurdle would drop, and how many of the best it must keep to be harmless.
DROPPED_SHARES = (0.3, 0.5, 0.7)
BEST = 10
# How many of the best by a score begin the final training.
FINALISTS = (1, 3, 5)


@dataclasses.dataclass
class RankSettings:
    candidates: int = dataclasses.field(default=60, metadata={"help": "Random genomes, beside a few known ones."})
    full_seeds: int = dataclasses.field(default=2, metadata={"help": "Full trainings of each candidate."})
    short_steps: list[int] = dataclasses.field(
        default_factory=lambda: [0, 75], metadata={"help": "Updates of short trainings."}
    )
    schemes: list[str] = dataclasses.field(
        default_factory=lambda: list(SCHEMES), metadata={"help": f"Of {list(SCHEMES)}."}
    )
    table_only: bool = dataclasses.field(default=False, metadata={"help": "Train nothing: a table of what there is."})
    results: str | None = dataclasses.field(default=None, metadata={"help": "JSON file for the table."})


def known_genomes(layers: int) -> dict[str, Genome]:
    """BERT, and convolution and self-attention in turn: for orientation, beside the random ones."""
    hybrid = [Convolution(7) if layer % 2 == 0 else SELF_ATTENTION for layer in range(layers)]
    return {"BERT": Genome([SELF_ATTENTION] * layers), "hybrid": Genome(hybrid)}


class Rows:
    """Results by method and candidate, in a file of JSON lines that begins with what they depend on."""

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path = path
        self.values: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        if path.exists():
            found, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            if found != json.loads(json.dumps(header)):
                sys.exit(f"error: {path} is of other settings or another text")
            for row in rows:
                self.values[row["method"]][row["candidate"]] = row
        else:
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.values[row["method"]][row["candidate"]] = row


class Trainer:
    """The trainings that a row may be."""

    def __init__(self, settings: SearchSettings, corpus: Corpus, device: torch.device):
        self.settings = settings
        self.proxy = MaskedLMProxy(settings, corpus, device)
        self.supernet: SuperNetwork | None = None

    def new_model(self, genome: Genome, seed: int) -> AutoBertZeroForMaskedLM:
        tokenizer = self.proxy.corpus.tokenizer
        seed_torch(seed, "final")
        config = model_config(genome, self.settings, len(tokenizer), tokenizer.pad_token_id)
        return AutoBertZeroForMaskedLM(config).to(self.proxy.device)

    def schedule(self, steps: int, learning_rate: float) -> Schedule:
        return Schedule(steps, learning_rate, self.settings.warmup_ratio, self.settings.weight_decay)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        genome = Genome.from_list(job["genome"])
        start = time.perf_counter()
        try:
            losses = getattr(self, job["kind"])(genome, **job["arguments"])
        except FloatingPointError as error:
            losses = {"error": str(error)}
        row = {"method": job["method"], "candidate": job["candidate"], **losses}
        return {**row, "seconds": round(time.perf_counter() - start, 2)}

    def full(self, genome: Genome, seed: int) -> dict[str, Any]:
        """Initial weights, order of the text and masks differ with the seed; what it is evaluated on does not."""
        steps, seed = self.settings.final_steps, self.settings.seed + seed
        model = self.new_model(genome, seed)
        corpus = self.proxy.corpus
        proxy = MaskedLMProxy(self.settings, Corpus(corpus.arrays, corpus.tokenizer, seed), self.proxy.device)
        at = {round(share * steps): share for share in SHARES}
        losses = {}

        def progress(done: int, _: float) -> None:
            if done in at:
                losses[str(at[done])] = self.proxy.loss(model, "report")
                model.train()

        proxy.train(model, self.schedule(steps, self.settings.learning_rate), "final", progress=progress)
        return {"loss": losses.pop("1.0"), "earlier": losses}

    def scratch(self, genome: Genome, steps: int) -> dict[str, Any]:
        model = self.new_model(genome, self.settings.seed + SCRATCH_SEED)
        self.proxy.train(model, self.schedule(steps, self.settings.learning_rate), "candidate")
        return {"loss": self.proxy.loss(model, "select")}

    def inherited(self, genome: Genome, steps: int) -> dict[str, Any]:
        model = self.supernet.candidate(genome).to(self.proxy.device)
        self.proxy.train(model, self.schedule(steps, self.settings.candidate_learning_rate), "candidate")
        return {"loss": self.proxy.loss(model, "select")}


def tau(a: np.ndarray, b: np.ndarray, resamples: int = 2000) -> list[float]:
    """Kendall's tau-b with the 2.5 and 97.5 % points of a bootstrap over candidates."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(a), size=len(a)) for _ in range(resamples))
    values = [kendalltau(a[i], b[i]).statistic for i in drawn]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return [round(float(v), 3) for v in (kendalltau(a, b).statistic, low, high)]


def kept_of_the_best(column: dict[str, float], full: dict[str, float], share: float) -> int:
    """How many of the best after full training are not in the worst share by another score."""
    kept = sorted(full, key=column.__getitem__)[: round((1 - share) * len(full))]
    return len(set(kept) & set(sorted(full, key=full.__getitem__)[:BEST]))


def behind_the_best(
    column: dict[str, float], earlier: dict[str, float], full: dict[str, float], finalists: int, resamples: int = 2000
) -> float:
    """Nats by which the winner of a search ends behind the best of its candidates: the one of the best few by a score that
    is ahead after a part of the full training. Mean over random two thirds of the candidates."""
    rng = np.random.default_rng(0)
    behind = []
    for _ in range(resamples):
        some = [str(name) for name in rng.choice(list(full), size=round(2 / 3 * len(full)), replace=False)]
        winner = min(sorted(some, key=column.__getitem__)[:finalists], key=earlier.__getitem__)
        behind.append(full[winner] - min(full[name] for name in some))
    return round(float(np.mean(behind)), 4)


def summarise(rows: dict[str, dict[str, dict]], costs: dict[str, list[int]], unigram: float, settings) -> dict:
    """Tau of every method to the first full training: of all random candidates, and of the better half."""
    target = rows["full 0"]
    names = [name for name in target if name.isdigit()]

    def losses(method: str, key: str | None = None) -> dict[str, float]:
        def value(row: dict) -> float:
            return np.inf if "error" in row else (row["loss"] if key is None else row["earlier"][key])

        return {name: value(row) for name, row in rows[method].items()}

    columns = {"parameters": {n: -c[0] for n, c in costs.items()}, "FLOPs": {n: -c[1] for n, c in costs.items()}}
    part = {f"{share:.0%}": losses("full 0", str(share)) for share in SHARES[:-1]}
    columns |= {f"full 0 at {share}": earlier for share, earlier in part.items()}
    columns |= {method: losses(method) for method in rows if method != "full 0"}
    full = losses("full 0")
    methods = {}
    for method, column in columns.items():
        known = [name for name in names if name in column]
        if len(known) < 8:  # no order to speak of
            continue
        better = sorted(known, key=full.__getitem__)[: len(known) // 2]
        seconds = [row["seconds"] for row in rows.get(method, {}).values()]
        methods[method] = {
            "candidates": len(known),
            **{
                label: tau(np.array([column[n] for n in some]), np.array([full[n] for n in some]))
                for label, some in {"all": known, "better half": better}.items()
            },
            f"kept of the best {BEST}": {
                str(share): kept_of_the_best({n: column[n] for n in known}, {n: full[n] for n in known}, share)
                for share in DROPPED_SHARES
            },
            "winner behind the best": {
                f"{count} finalists, {share}": behind_the_best(column, earlier, {n: full[n] for n in known}, count)
                for count in FINALISTS
                for share, earlier in part.items()
            },
            "seconds": round(float(np.mean(seconds)), 2) if seconds else None,
        }
    return {
        "unigram_loss": unigram,
        "full_tokens": settings.final_steps * settings.batch_size * settings.sequence_length,
        "full_seconds": round(float(np.mean([row["seconds"] for row in target.values()])), 2),
        "known": {n: {m: rows[m][n].get("loss") for m in rows if n in rows[m]} for n in target if not n.isdigit()},
        "methods": methods,
    }


def table(summary: dict) -> str:
    lines = [f"{'Kendall tau to full training':34}{'n':>4}  {'all':22}{'better half':22}{'seconds':>8}"]
    for method, m in summary["methods"].items():
        cells = "".join(f"{'{:.2f} [{:.2f}, {:.2f}]'.format(*m[k]):22}" for k in ("all", "better half"))
        lines.append(f"{method:34}{m['candidates']:>4}  {cells}{m['seconds'] or '':>8}")
    return "\n".join(lines)


def main() -> None:
    parser = HfArgumentParser((SearchSettings, RankSettings), description=__doc__)
    settings, ranks = parser.parse_args_into_dataclasses()
    settings = dataclasses.replace(settings, population_size=ranks.candidates)
    transformers.utils.logging.set_verbosity_error()
    accelerator = accelerate.Accelerator(cpu=not torch.accelerator.is_available() or None)
    main_process, commit = accelerator.is_main_process, reporting.commit()
    torch.set_num_threads(settings.num_threads or 1)
    corpus = Corpus.build(settings)
    space = BackboneSpace(
        settings.num_hidden_layers, tuple(settings.kernel_sizes), settings.max_nodes, settings.min_attention_layers
    )
    first = first_generation(space, RandomSearch(space, settings.population_size), settings.seed)
    population = [record.genome for record in first]
    genomes = {**{str(i): genome for i, genome in enumerate(population)}, **known_genomes(settings.num_hidden_layers)}

    folder = Path(settings.output_dir)
    rows = None
    if main_process:
        folder.mkdir(parents=True, exist_ok=True)
        identity = {name: value for name, value in settings.to_dict().items() if name in WHAT_ROWS_DEPEND_ON}
        rows = Rows(folder / "rows.jsonl", {"settings": identity, "data": corpus.digest()})

    trainer = Trainer(settings, corpus, accelerator.device)
    workers = Workers(accelerator, trainer, folder / "results")
    batch_tokens = settings.batch_size * settings.sequence_length

    def measure(method: str, kind: str, prepare: Callable[[], Any] = lambda: None, **arguments: Any) -> None:
        """Add what is missing of the rows of a method."""
        jobs = {}
        if main_process:
            common = {"method": method, "kind": kind, "arguments": arguments}
            jobs = {
                f"{method} {name}": {**common, "candidate": name, "genome": genome.to_list()}
                for name, genome in genomes.items()
                if name not in rows.values[method]
            }
        [count] = broadcast_object_list([len(jobs)])
        if not count or ranks.table_only:
            return
        prepare()
        if not main_process:
            workers.serve()
            return
        for number, row in enumerate(workers.map(jobs), start=1):
            rows.add(row)
            workers.forget(f"{method} {row['candidate']}")
            print(f"{method}: {number} of {count}, {row}", flush=True)
        workers.release()

    def prepare_supernet(scheme: str) -> None:
        changed = dataclasses.replace(settings, **SCHEMES[scheme])
        seed_torch(changed.seed, "supernet")
        supernet = SuperNetwork(changed, len(corpus.tokenizer), corpus.tokenizer.pad_token_id).to(accelerator.device)
        identity = json.dumps([changed.identity(), corpus.digest()], sort_keys=True)
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        checkpoint = Checkpoint(folder / f"supernet-{name}.safetensors", name, settings.checkpoint_seconds)
        checkpoint.writes = main_process

        def progress(done: int, loss: float) -> None:
            if main_process and done % 250 == 0:
                print(f"super-network, {scheme}: {done} of {changed.supernet_steps}, loss {loss:.3f}", flush=True)

        paths = PathSampler(space, changed, population)
        train_supernet(supernet, paths, corpus, changed, accelerator, checkpoint, progress)
        trainer.supernet = supernet

    measure("full 0", "full", seed=0)
    for steps in ranks.short_steps:
        if steps:
            measure(f"scratch, {steps} steps", "scratch", steps=steps)
    for scheme in ranks.schemes:
        for steps in ranks.short_steps:
            method = f"{scheme} × {settings.supernet_steps}, {steps} steps"
            measure(method, "inherited", prepare=lambda scheme=scheme: prepare_supernet(scheme), steps=steps)
    for seed in range(1, ranks.full_seeds):
        measure(f"full {seed}", "full", seed=seed)

    if main_process:
        sizes = make_sizes(settings, len(corpus.tokenizer))
        costs = {name: [sizes.parameters(genome), sizes.flops(genome)] for name, genome in genomes.items()}
        unigram = corpus.unigram_loss("report", settings.eval_sequences)
        summary = summarise(rows.values, costs, unigram, settings)
        print(table(summary))
        if ranks.results:
            provenance = {
                **reporting.provenance(commit, accelerator.device.type),
                "processes": accelerator.num_processes,
                "settings": settings.identity(),
                "supernet_tokens": settings.supernet_steps * settings.paths_per_step * batch_tokens,
            }
            reporting.write_json(Path(ranks.results), {**provenance, **summary})
    accelerator.end_training()


if __name__ == "__main__":
    main()
