"""Compare backbones: searched, pre-trained and fine-tuned by the same commands, on the same batches, at equal size.

    python examples/reproduce/compare.py --scale tiny --rows bert bert_rotary searched --output_dir runs/compare --data_dir glue

A row (`rows/*.yaml`) describes a backbone, a scale (`scales/*.yaml`) all sizes and budgets. For each row, in stages:

1. a search, if the row has one;
2. pre-trainings for a fraction of the budget, one for each learning rate and warm-up of a grid; the best validation loss
   decides (`grid_of` uses the choice of another row);
3. pre-trainings with this choice, one for each seed (`budget` multiplies their length);
4. accuracy of each on BLiMP, without fine-tuning, if `--blimp_dir` or `--hub_blimp` is given;
5. fine-tunings of each on GLUE, if `--data_dir` or `--hub_glue` is given.

The width of the feed-forward part is chosen so that all rows have as many parameters as BERT. Every command is printed, can
be run by hand, and resumes if it was interrupted; so does this one. The results so far are printed as a table at the end,
and by `--table_only`.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError


HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent
sys.path.insert(0, str(EXAMPLES))

from analyze import COLORS  # noqa: E402
from run_pretraining import ModelArguments, has_finite_losses, make_config, make_model  # noqa: E402
from training_scripts import model_identity  # noqa: E402

from autobert_zero.configuration_autobert_zero import Genome  # noqa: E402
from autobert_zero.search.cli.arguments import ScriptHelpFormatter  # noqa: E402
from autobert_zero.search.evaluation.measure import count_backbone_flops  # noqa: E402
from autobert_zero.search.files import differing_keys, one_line, write_json  # noqa: E402
from autobert_zero.search.genomes import read_genome  # noqa: E402
from autobert_zero.search.provenance import num_cores  # noqa: E402
from autobert_zero.search.report.tables import markdown_table, mean, mean_and_error, with_error  # noqa: E402
from autobert_zero.search.settings import SearchSettings, flags  # noqa: E402
from autobert_zero.search.space.costs import CostModel  # noqa: E402
from autobert_zero.search.text.prepared import prepare  # noqa: E402


# Widths of the feed-forward part are multiples of this.
WIDTH_STEP = 8
# Tasks of GLUE that the mean is without: over 500 published encoders, RTE agrees with the mean of the other tasks by a tau of
# 0.18 (MNLI and QQP: 0.77), and WNLI's training data mislead.
NOT_IN_THE_MEAN = {"rte", "wnli"}
# Sizes of the model that are settings of a search, too.
SIZES_OF_SEARCH = ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "initializer_range"]
DEFAULT_ROWS = ["bert", "bert_rotary", "hybrid_rotary", "convbert", "published", "searched"]


@dataclass
class Comparison:
    """The commands of a comparison, and the folders of their results."""

    scale: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    folder: Path
    train_file: list[str]
    validation_file: list[str]
    data_dir: str | None
    launch: list[str]
    blimp_dir: str | None = None
    _intermediate_sizes: dict[str, int] = field(default_factory=dict, init=False)  # by row: each costs two models

    @property
    def tasks(self) -> list[str]:
        """Of GLUE."""
        return self.scale.get("glue", {}).get("tasks", [])

    # Folders

    def search_folder(self, row: str) -> Path:
        return self.folder / row / "search"

    def grid_folder(self, row: str, choice: dict[str, float]) -> Path:
        return self.folder / row / "grid" / name_of(choice)

    def seed_folder(self, row: str, seed: int) -> Path:
        return self.folder / row / f"seed-{seed}"

    # What a row is

    def genome(self, row: str) -> Genome | None:
        """None for another architecture. Raises: FileNotFoundError if the search of the row is not finished."""
        layers = self.scale["model"]["num_hidden_layers"]
        given = self.rows[row]
        if "model_type" in given:
            return None
        if "search" in given:
            summary = self.search_folder(row) / "summary.json"
            if not summary.exists():
                raise FileNotFoundError(summary)
            return read_genome(str(summary))
        if "layers" in given:
            genes = [
                {"kind": "convolution", "kernel_size": gene}
                if isinstance(gene, int)
                else {"kind": "attention", "expression": gene}
                for gene in given["layers"]
            ]
            return Genome.from_list([genes[layer % len(genes)] for layer in range(layers)])
        return read_genome(given["genome"], layers)

    def _config(self, row: str, intermediate_size: int) -> Any:
        model = ModelArguments(**self._model_arguments(row, intermediate_size))
        return make_config(model, self.scale["vocab_size"], 0, self.scale["pretraining"]["max_seq_length"])

    def _count(self, row: str, intermediate_size: int) -> int:
        with torch.device("meta"):
            model = make_model(self._config(row, intermediate_size), "mlm")
        return model.num_parameters()

    def intermediate_size(self, row: str) -> int:
        """Width of the feed-forward part at which the row has as many parameters as BERT."""
        if row not in self._intermediate_sizes:
            self._intermediate_sizes[row] = self._find_intermediate_size(row)
        return self._intermediate_sizes[row]

    def _find_intermediate_size(self, row: str) -> int:
        width = self.scale["model"]["intermediate_size"]
        costs = CostModel(
            *(self.scale["model"][name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")),
            self.scale["vocab_size"],
            self.scale["pretraining"]["max_seq_length"],
            tokens=1,
        )
        target = costs.parameters(read_genome("bert", self.scale["model"]["num_hidden_layers"]))
        count = self._count(row, width)
        each = (self._count(row, 2 * width) - count) / width
        return max(WIDTH_STEP, WIDTH_STEP * round((width + (target - count) / each) / WIDTH_STEP))

    def flops(self, row: str) -> int:
        """FLOPs of a forward pass of the backbone over one sequence."""
        model = make_model(self._config(row, self.intermediate_size(row)), "mlm")
        return count_backbone_flops(model.base_model, self.scale["pretraining"]["max_seq_length"])

    def check(self) -> None:
        """Check the input of all stages before anything runs, and write the genomes that are known. Raises: ValueError or
        OSError."""
        for row, given in self.rows.items():
            if not {"genome", "layers", "model_type", "search"} & set(given):
                raise ValueError(f"rows: expected genome, layers, model_type or search in {row}, got {sorted(given)}")
            if "name" not in given:
                raise ValueError(f"rows: expected a name in {row}, got {sorted(given)}")
            if "search" not in given:
                self.write_genome(row)
                try:
                    self.intermediate_size(row)  # of a model that can be made
                except (ValueError, StrictDataclassError) as error:
                    raise ValueError(f"rows: {row}: {one_line(error)}") from None
        if (steps := self.scale["pretraining"]["max_steps"]) % 4:
            raise ValueError(f"scale: expected a multiple of 4 as max_steps, for losses at each quarter, got {steps}")
        for path in self.validation_file:
            if not Path(path).is_file():
                raise ValueError(f"validation_file: expected a file, got {path!r}")
        if self.blimp_dir is not None and not any(Path(self.blimp_dir).glob("*.jsonl*")):
            raise ValueError(f"blimp_dir: expected files UID.jsonl.gz in {self.blimp_dir!r}, got none")
        for task in self.tasks if self.data_dir is not None and self.tasks != ["all"] else []:
            if not any(Path(self.data_dir, task).glob("train.jsonl*")):
                raise ValueError(f"data_dir: expected {task}/train.jsonl.gz in {self.data_dir!r}, got none")

    # Commands

    def _model_arguments(self, row: str, intermediate_size: int) -> dict[str, Any]:
        given = self.rows[row]
        positions = self.scale["pretraining"]["max_seq_length"]
        sizes = {**self.scale["model"], "intermediate_size": intermediate_size, "max_position_embeddings": positions}
        overrides = self._resolved(sizes | given.get("config", {}))
        if "search" in given:
            positions_of_search = SearchSettings.from_dict(self._search_settings(row)).model.position_embedding_type
            overrides["position_embedding_type"] = positions_of_search
        if "model_type" in given:
            what = {"model_type": given["model_type"]}
        else:
            what = {"genome": str(self.folder / row / "genome.json")}
            del overrides["num_hidden_layers"]  # the length of the genome
        return {**what, "config_overrides": ",".join(f"{k}={v}" for k, v in overrides.items())}

    def _resolved(self, values: dict[str, Any]) -> dict[str, Any]:
        """Replace values that name a size of the model by that size."""
        model = self.scale["model"]
        return {k: model.get(v, v) if isinstance(v, str) else v for k, v in values.items()}

    def _text(self) -> dict[str, Any]:
        return {
            "train_file": self.train_file,
            "vocab_size": self.scale["vocab_size"],
            **self.scale.get("text", {}),
            "prepared_dir": str(self.folder / "text"),
        }

    def prepare_text(self) -> None:
        """Tokenize the text once, for all commands. Raises: ValueError for bad text."""
        settings = SearchSettings.from_dict(self._text())
        prepare(settings.text, self.scale["pretraining"]["max_seq_length"])

    def _pretraining(
        self,
        row: str,
        choice: dict[str, float],
        seed: int,
        fraction: float,
        folder: Path,
        validation_file: list[str],
    ) -> list[str]:
        given = {k: v for k, v in self.scale["pretraining"].items() if k not in ("grid", "grid_fraction", "seeds")}
        values = {
            **self._model_arguments(row, self.intermediate_size(row)),
            **self._text(),
            **given,
            **choice,
            "seed": seed,
            "max_steps": max(1, round(given["max_steps"] * fraction)),
            "validation_file": validation_file,
            "output_dir": str(folder),
            "disable_tqdm": "true",
        }
        return [*self.launch, str(EXAMPLES / "run_pretraining.py"), *flags(values)]

    def _search_settings(self, row: str) -> dict[str, Any]:
        sizes = {name: self.scale["model"][name] for name in SIZES_OF_SEARCH}
        return self._resolved(sizes | self.scale["search"] | self.rows[row]["search"])

    def searches(self, num_threads: int = 0) -> Iterable[list[str]]:
        """Args: num_threads: of each; 0 for one for each core."""
        for row, given in self.rows.items():
            if "search" in given:
                values = {**self._text(), **self._search_settings(row), "output_dir": str(self.search_folder(row))}
                if num_threads:
                    values["num_threads"] = num_threads
                yield [*self.launch, "-m", "autobert_zero.search", *flags(values)]

    def write_genome(self, row: str) -> None:
        """Raises: FileNotFoundError if the search of the row is not finished."""
        if genome := self.genome(row):
            (self.folder / row).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / row / "genome.json", genome.to_list())

    def grids(self) -> Iterable[list[str]]:
        plan = self.scale["pretraining"]
        for row, given in self.rows.items():
            for choice in plan["grid"] if len(plan["grid"]) > 1 and "grid_of" not in given else []:
                folder = self.grid_folder(row, choice)
                # the validation part of the text decides, so no other file is evaluated
                yield self._pretraining(row, choice, plan["seeds"][0], plan["grid_fraction"], folder, [])

    def grid(self, row: str) -> list[float | None]:
        """Validation losses at the end of the short pre-trainings; None if one is not finished, or not finite."""
        row = self.rows[row].get("grid_of", row)
        results = (
            _read(self.grid_folder(row, choice) / "results.json") for choice in self.scale["pretraining"]["grid"]
        )
        return [result and result["losses"]["validation"]["1"] for result in results]

    def is_chosen(self, row: str) -> bool:
        """Whether nothing is left to train before the choice of a row is known."""
        choices = self.scale["pretraining"]["grid"]
        return len(choices) == 1 or all((self.grid_folder(row, c) / "results.json").exists() for c in choices)

    def choice(self, row: str) -> dict[str, float]:
        known = [
            (loss, choice)
            for loss, choice in zip(self.grid(row), self.scale["pretraining"]["grid"], strict=True)
            if loss is not None
        ]
        return min(known, key=lambda pair: pair[0])[1] if known else self.scale["pretraining"]["grid"][0]

    def pretrainings(self) -> Iterable[list[str]]:
        # All rows have a first seed before any has a second.
        for seed in self.scale["pretraining"]["seeds"]:
            for row, given in self.rows.items():
                folder, budget = self.seed_folder(row, seed), given.get("budget", 1)
                yield self._pretraining(row, self.choice(row), seed, budget, folder, self.validation_file)

    def blimp_result(self, row: str, seed: int) -> dict[str, Any] | None:
        """None if these weights were not measured with these options."""
        folder = self.seed_folder(row, seed)
        if (found := _read(folder / "blimp" / "results.json")) is None:
            return None
        options = {"fraction": 1.0, "within_word": False} | self.scale.get("blimp", {})
        expected = {name: options[name] for name in ("fraction", "within_word")}
        if "weights" in found:  # which older results lack
            expected["weights"] = model_identity(argparse.Namespace(model_name_or_path=folder))
        return None if differing_keys(found, found | expected) else found

    def blimp(self) -> Iterable[list[str]]:
        for seed in self.scale["pretraining"]["seeds"]:
            for row in self.rows:
                folder = self.seed_folder(row, seed)
                if is_divergence(folder) or self.blimp_result(row, seed):
                    continue
                values = {
                    **self.scale.get("blimp", {}),
                    "model_name_or_path": str(folder),
                    "data_dir": self.blimp_dir,
                    "output_dir": str(folder / "blimp"),
                }
                yield [sys.executable, str(EXAMPLES / "run_blimp.py"), "--trust_remote_code", *flags(values)]

    def fine_tunings(self) -> Iterable[list[str]]:
        given = {name: value for name, value in self.scale["glue"].items() if name != "tasks"}
        for seed in self.scale["pretraining"]["seeds"]:
            for task in self.tasks:
                for row in self.rows:
                    folder = self.seed_folder(row, seed)
                    if is_divergence(folder):
                        continue
                    values = {
                        "model_name_or_path": str(folder),
                        "task_name": task,
                        "data_dir": self.data_dir,
                        **given,
                        "output_dir": str(folder / "glue" / task),
                        "disable_tqdm": "true",
                        "report_to": "none",
                    }
                    yield [*self.launch, str(EXAMPLES / "run_glue.py"), "--trust_remote_code", *flags(values)]

    # Results

    def results(self) -> dict[str, dict[str, Any]]:
        """The results so far, by row: means over seeds, with standard errors if there are several."""
        found = {}
        for row, given in self.rows.items():
            seeds = self.scale["pretraining"]["seeds"]
            trained = {s: r for s in seeds if (r := _read(self.seed_folder(row, s) / "results.json"))}
            if not trained:
                continue
            losses: dict[str, dict[str, list[float | None]]] = {}
            for result in trained.values():
                for name, by_fraction in result["losses"].items():
                    for fraction, loss in by_fraction.items():
                        losses.setdefault(name, {}).setdefault(fraction, []).append(loss)
            glue = self._glue(row, list(trained))
            grammar = {s: r for s in trained if (r := self.blimp_result(row, s))}
            blimp = list(grammar.values())
            first = next(iter(trained.values()))
            genome = self.genome(row)
            found[row] = {
                "name": given["name"],
                "genome": genome and genome.to_list(),
                "parameters": first["parameters"],
                "flops": self.flops(row),
                "grid": dict(zip(map(name_of, self.scale["pretraining"]["grid"]), self.grid(row), strict=True)),
                "chosen": name_of(self.choice(row)),
                "tokens": first["tokens"],
                "losses": {
                    name: {fraction: mean_and_error(values) for fraction, values in by_fraction.items()}
                    for name, by_fraction in losses.items()
                },
                "unigram_losses": first["unigram_losses"],
                "curve": [[step / first["steps"], loss] for step, loss in first.get("training_losses", [])],
                "tokens_per_second": [r["tokens_per_second"] for r in trained.values()],
                "seconds_of_last_session": [r["seconds_of_last_session"] for r in trained.values()],
                "bits_per_byte": {
                    name: mean_and_error([r["bits_per_byte"][name] for r in trained.values()])
                    for name in first.get("bits_per_byte", {})
                    if all(name in r.get("bits_per_byte", {}) for r in trained.values())
                },
                "blimp": {
                    "accuracy": mean_and_error([r["accuracy"] for r in blimp]) if blimp else None,
                    "fields": {
                        name: mean_and_error([r["fields"][name]["accuracy"] for r in blimp])
                        for name in (blimp[0]["fields"] if blimp else {})
                    },
                },
                "glue": glue,
                "runs": {
                    str(seed): {
                        "losses": result["losses"],
                        "blimp": grammar[seed]["accuracy"] if seed in grammar else None,
                        "layer_importance": result.get("layer_importance"),
                        "commit": result["commit"],
                        "command": result["command"],
                    }
                    for seed, result in trained.items()
                },
                "machines": sorted({r["machine"] for r in trained.values()}),
                "commits": sorted({str(r["commit"]) for r in trained.values()}),
                "versions": first["versions"],
                "text": first["identity"]["text"],
            }
        return found

    def _glue(self, row: str, seeds: list[int]) -> dict[str, Any]:
        """Scores of all fine-tunings, by task and for their mean: one list for each pre-training seed."""
        tasks: dict[str, list[list[float | None]]] = {}
        means = []
        for seed in seeds:
            done = {}
            for path in sorted((self.seed_folder(row, seed) / "glue").glob("*/results.json")):
                done |= {name: task["scores"] for name, task in json.loads(path.read_text())["tasks"].items()}
            for name, values in done.items():
                tasks.setdefault(name, []).append(values)
            expected = set(self.tasks)
            averaged = [values for name, values in done.items() if name not in NOT_IN_THE_MEAN]
            if averaged and (expected == {"all"} or set(done) == expected):
                means.append([mean(each) for each in zip(*averaged, strict=True)])
        return {
            "tasks": {name: of_seeds(values) for name, values in tasks.items()},
            "mean": of_seeds(means) if means else None,
            "scores": {**tasks, "mean": [[each and round(each, 3) for each in of_seed] for of_seed in means]},
        }


def name_of(choice: dict[str, float]) -> str:
    """`{"learning_rate": 0.001, "warmup_steps": 0.1}` as `rate-0.001-warmup-0.1`, also the name of a folder."""
    return f"rate-{choice['learning_rate']:g}-warmup-{choice['warmup_steps']:g}"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def of_seeds(scores: list[list[float | None]]) -> tuple[float | None, float | None]:
    """Mean and standard error of fine-tuning scores, given by pre-training seed. Fine-tunings of one pre-training are not
    independent: with several pre-trainings, the error is that of their means."""
    return mean_and_error(list(map(mean, scores)) if len(scores) > 1 else list(scores[0]))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: sizes, speed, losses after fractions of the budget, and at its end also in bits a byte; BLiMP, the tasks of
    GLUE and the mean of them, and last the tasks that the mean is without."""
    evaluated = list(dict.fromkeys(name for r in results.values() for name in r["losses"] if name != "validation"))
    tasks = list(dict.fromkeys(name for r in results.values() for name in r["glue"]["tasks"]))
    averaged, apart = ([t for t in tasks if (t in NOT_IN_THE_MEAN) == flag] for flag in (False, True))
    has_blimp = any(r["blimp"]["accuracy"] for r in results.values())
    head = ["", "parameters", "MFLOP", "tokens", "tokens/s", "minutes", "chosen of the grid"]
    last = ["unigram", *[""] * (len(head) - 1)]
    unigram = {name: loss for r in results.values() for name, loss in r["unigram_losses"].items()}
    for name in evaluated:
        head += [f"{name}, 0.25", f"{name}, 0.5", f"{name}, 1", f"{name}, bits/byte"]
        last += ["", "", f"{unigram[name]:.3f}", ""]
    head += [*(["BLiMP"] if has_blimp else []), *averaged, *(["GLUE"] if averaged else []), *apart]
    lines = []
    for result in results.values():
        speed, glue = median(result["tokens_per_second"]), result["glue"]
        cells = [result["name"], f"{result['parameters']:,}", f"{result['flops'] / 1e6:,.0f}"]
        cells += [f"{result['tokens'] / 1e6:,.1f} M", f"{speed:,.0f}"]
        cells += [f"{result['tokens'] / speed / 60:,.0f}" if speed else "", result["chosen"]]
        for name in evaluated:
            cells += [with_error(result["losses"].get(name, {}).get(f), 3) for f in ("0.25", "0.5", "1")]
            cells.append(with_error(result["bits_per_byte"].get(name), 3))
        cells += [with_error(result["blimp"]["accuracy"], 1)] if has_blimp else []
        cells += [with_error(glue["tasks"].get(name), 1) for name in averaged]
        cells += [with_error(glue["mean"], 2)] if averaged else []
        lines.append(cells + [with_error(glue["tasks"].get(name), 1) for name in apart])
    lines.append(last + [""] * (len(head) - len(last)))
    return markdown_table(head, lines)


def curve(result: dict[str, Any]) -> tuple[list[float], list[float] | None, list[float]]:
    """Losses of new batches in the first pre-training of a row: million tokens, minutes at its mean speed (None if its last
    session had no step left to time), and losses. Without the first one, which is of random weights, of any model."""
    points = result["curve"][1:]
    parts, losses = [part for part, _ in points], [loss for _, loss in points]
    speed = result["tokens_per_second"][0]
    minutes = [part * result["tokens"] / speed / 60 for part in parts] if speed else None
    return [part * result["tokens"] / 1e6 for part in parts], minutes, losses


def draw_curves(results: dict[str, dict[str, Any]], file: Path) -> None:
    """A picture of the losses of new batches in the first pre-training of each row, by tokens and by time."""
    import matplotlib

    matplotlib.use("Agg")  # writes files, needs no display
    import matplotlib.pyplot as plt

    figure, (by_tokens, by_time) = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for result, color in zip(results.values(), itertools.cycle(COLORS)):
        tokens, minutes, losses = curve(result)
        if losses:  # otherwise without a training
            by_tokens.plot(tokens, losses, color=color, label=result["name"])
        if losses and minutes:
            by_time.plot(minutes, losses, color=color)
    by_tokens.set(xlabel="million tokens", ylabel="loss of new batches in nats")
    by_time.set(xlabel="minutes, at the mean speed of each")
    by_tokens.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def grid_table(comparison: Comparison) -> str:
    """Markdown: the validation losses of the short pre-trainings, which decide on learning rate and warm-up; empty
    before there is one."""
    choices = comparison.scale["pretraining"]["grid"]
    lines = []
    for row, given in comparison.rows.items():
        if "grid_of" in given:
            continue
        results = [_read(comparison.grid_folder(row, choice) / "results.json") for choice in choices]
        if any(results):
            losses = [result and [result["losses"]["validation"]["1"], None] for result in results]
            lines.append([given["name"], *(with_error(loss, 3) for loss in losses)])
    return markdown_table(["", *map(name_of, choices)], lines) if lines else ""


def cores_of_each(jobs: int) -> int:
    """Cores of each of the commands that run at the same time."""
    return max(1, num_cores() // jobs)


def run_all(commands: list[list[str]], jobs: int, folder: Path) -> None:
    """Run commands, `jobs` at a time, each with its part of the cores; their output goes to files in `logs`.

    Raises: RuntimeError after all have ended, if some failed, with the end of their output.
    """
    environment = {
        "OMP_NUM_THREADS": str(cores_of_each(jobs)),
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
    }
    (folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(command: list[str]) -> str | None:
        output = Path(command[command.index("--output_dir") + 1]).relative_to(folder)
        log = folder / "logs" / ("-".join(output.parts) + ".log")
        print(f"$ {shlex.join(['python', *command[1:]] if command[0] == sys.executable else command)}", flush=True)
        with open(log, "w", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        if code and not is_divergence(folder / output):
            return f"exit code {code} ({log}):\n" + "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
        return None

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        if failures := [message for message in pool.map(run, commands) if message]:
            raise RuntimeError("\n\n".join(failures))


def is_divergence(folder: Path) -> bool:
    """Whether a folder holds a pre-training that ended because its rate was too high: no failure of a comparison."""
    return (folder / "results.json").exists() and not has_finite_losses(folder)


def known(kind: str) -> list[str]:
    """Names of the row or scale files."""
    return sorted(path.stem for path in (HERE / kind).glob("*.yaml"))


def load_yaml(kind: str, name: str) -> dict[str, Any]:
    """A row or scale file by its name, or any file by its path. Raises: ValueError if there is none."""
    path = HERE / kind / f"{name}.yaml"
    path = path if path.exists() else Path(name)
    if not path.is_file():
        raise ValueError(f"{kind}: expected one of {known(kind)} or a file, got {name!r}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{kind}: cannot read {path}: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument("--scale", required=True, help=f"One of {', '.join(known('scales'))}, or a path.")
    parser.add_argument(
        "--rows", nargs="+", default=DEFAULT_ROWS, help=f"Any of {', '.join(known('rows'))}, or paths."
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder of all results.")
    parser.add_argument("--train_file", nargs="*", default=[], help="Text; default: Python's language reference.")
    parser.add_argument(
        "--validation_file", "--eval_file", nargs="*", default=[], help="More text to evaluate the losses on."
    )
    parser.add_argument("--data_dir", help="Folder of the GLUE tasks.")
    parser.add_argument("--blimp_dir", help="Folder of the sets of BLiMP.")
    parser.add_argument("--hub_blimp", action="store_true", help="Load the sets of BLiMP from the Hub.")
    parser.add_argument("--hub_glue", action="store_true", help="Load the GLUE tasks from the Hub.")
    parser.add_argument(
        "--launch", help="Launcher of each command, such as 'accelerate launch'; default: this Python."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Commands run at the same time.")
    parser.add_argument("--table_only", action="store_true", help="Only print the table.")
    parser.add_argument("--results", type=Path, help="JSON file for the table.")
    parser.add_argument("--picture", type=Path, help="Picture of the losses during pre-training, in .png or .svg.")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"jobs: expected at least 1, got {given.jobs}")
    try:
        rows = {Path(name).stem: load_yaml("rows", name) for name in given.rows}
        if len(rows) < len(given.rows):
            raise ValueError(f"rows: expected each name once, as it is that of a folder, got {given.rows}")
        scale = load_yaml("scales", given.scale)
    except ValueError as error:
        parser.error(str(error))
    comparison = Comparison(
        scale,
        rows,
        given.output_dir,
        given.train_file,
        given.validation_file,
        given.data_dir,
        shlex.split(given.launch) if given.launch else [sys.executable],
        given.blimp_dir,
    )
    for row, what in rows.items():
        if (other := what.get("grid_of")) and other not in rows and not comparison.is_chosen(other):
            parser.error(f"rows: expected {other} with {row}, which uses its learning rate")
    if (given.data_dir is not None or given.hub_glue) and not comparison.tasks:
        parser.error("scale: expected glue with its tasks, got none")
    if not given.table_only:
        try:
            comparison.check()
            comparison.prepare_text()
        except (OSError, ValueError) as error:
            parser.error(str(error))
        try:
            threads = cores_of_each(given.jobs) if given.jobs > 1 else 0
            run_all(list(comparison.searches(threads)), given.jobs, given.output_dir)
            for row, what in rows.items():
                if "search" in what:  # the others are written
                    comparison.write_genome(row)
            run_all(list(comparison.grids()), given.jobs, given.output_dir)
            run_all(list(comparison.pretrainings()), given.jobs, given.output_dir)
            if given.blimp_dir is not None or given.hub_blimp:
                run_all(list(comparison.blimp()), given.jobs, given.output_dir)
            if given.data_dir is not None or given.hub_glue:
                run_all(list(comparison.fine_tunings()), given.jobs, given.output_dir)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
    results = comparison.results()
    if grids := grid_table(comparison):
        print(f"{grids}\n")
    print(table(results) if results else "No row is pre-trained yet.")
    if given.results:
        processes = {"jobs": given.jobs, "launch": given.launch or "python"}
        write_json(given.results, {"scale": scale, "rows": results, **processes})
    if given.picture and results:
        draw_curves(results, given.picture)


if __name__ == "__main__":
    main()
