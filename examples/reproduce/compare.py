"""Backbones side by side: searched, pre-trained and fine-tuned by the same commands, on the same batches, at equal size.

    python examples/reproduce/compare.py --scale tiny --rows bert ours --output_dir runs/compare --data_dir glue

A row (`rows/*.yaml`) says what a backbone is, a scale (`scales/*.yaml`) how large everything is. For each row, in stages:

1. a search, if the row is of one;
2. pre-trainings at a share of the budget, one for each learning rate and warm-up of a grid; the best *select* loss chooses
   (`grid_of` takes the choice of another row);
3. pre-trainings by that choice, one for each seed (`budget` times as long as those of the others);
4. fine-tunings of each on GLUE, if `--data_dir` or `--hub_glue` says where it is.

The width of the feed-forward part is chosen so that all have BERT's number of parameters. Every command is printed, can be
run by hand, and goes on where it stopped; so does this one. What is there so far is printed as a table in the end, and by
`--table_only`.
"""

import argparse
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml


HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent
sys.path.insert(0, str(EXAMPLES))

from analyze import backbone_flops  # noqa: E402
from continuing import HelpFormatter  # noqa: E402
from run_pretraining import ModelArguments, make_config, make_model  # noqa: E402

from autobert_zero.configuration_autobert_zero import (  # noqa: E402
    SELF_ATTENTION,
    Convolution,
    Genome,
)
from autobert_zero.search import reporting  # noqa: E402
from autobert_zero.search.costs import Sizes  # noqa: E402
from autobert_zero.search.factory import load_genome, read_genome  # noqa: E402
from autobert_zero.search.settings import SearchSettings, flags  # noqa: E402
from autobert_zero.search.text import prepare  # noqa: E402


# Widths of the feed-forward part are multiples of it.
WIDTH_STEP = 8
DEFAULT_ROWS = ["bert", "hybrid", "convbert", "published", "ours"]


@dataclass
class Comparison:
    """What there is to run, and where its results lie."""

    scale: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    folder: Path
    train_file: list[str]
    eval_file: list[str]
    data_dir: str | None
    launch: list[str]

    # Folders

    def search_folder(self, row: str) -> Path:
        return self.folder / row / "search"

    def grid_folder(self, row: str, choice: dict[str, float]) -> Path:
        return self.folder / row / "grid" / name_of(choice)

    def seed_folder(self, row: str, seed: int) -> Path:
        return self.folder / row / f"seed-{seed}"

    # What a row is

    def genome(self, row: str) -> Genome | None:
        """None for another architecture. Raises: FileNotFoundError before the search of the row is done."""
        layers = self.scale["model"]["num_hidden_layers"]
        given = self.rows[row]
        if "model_type" in given:
            return None
        if "search" in given:
            summary = self.search_folder(row) / "summary.json"
            if not summary.exists():
                raise FileNotFoundError(summary)
            return load_genome(summary)
        if given["genome"] == "hybrid":
            return Genome(Convolution(7) if layer % 2 == 0 else SELF_ATTENTION for layer in range(layers))
        return read_genome(given["genome"], layers)

    def _config(self, row: str, intermediate_size: int) -> Any:
        model = ModelArguments(**self._model_arguments(row, intermediate_size))
        return make_config(model, self.scale["vocab_size"], 0, self.scale["pretraining"]["max_seq_length"])

    def _count(self, row: str, intermediate_size: int) -> int:
        with torch.device("meta"):
            model = make_model(self._config(row, intermediate_size), "mlm")
        return sum(p.numel() for p in model.parameters())

    def intermediate_size(self, row: str) -> int:
        """Width of the feed-forward part with which the row has as many parameters as self-attention throughout."""
        width = self.scale["model"]["intermediate_size"]
        sizes = Sizes(
            *(self.scale["model"][name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")),
            self.scale["vocab_size"],
            self.scale["pretraining"]["max_seq_length"],
            tokens=1,
        )
        target = sizes.parameters(read_genome("bert", self.scale["model"]["num_hidden_layers"]))
        count = self._count(row, width)
        each = (self._count(row, 2 * width) - count) / width
        return max(WIDTH_STEP, WIDTH_STEP * round((width + (target - count) / each) / WIDTH_STEP))

    def flops(self, row: str) -> int:
        """Of a forward pass of the backbone over one sequence."""
        model = make_model(self._config(row, self.intermediate_size(row)), "mlm")
        return backbone_flops(model.base_model, self.scale["pretraining"]["max_seq_length"])

    def check(self) -> None:
        """Raises: ValueError or OSError for what would otherwise end a later stage."""
        for row, given in self.rows.items():
            if not {"genome", "model_type", "search"} & set(given):
                raise ValueError(f"rows: expected genome, model_type or search in {row}, got {sorted(given)}")
            if "search" not in given:
                self.genome(row)
        if (steps := self.scale["pretraining"]["max_steps"]) % 4:
            raise ValueError(f"scale: expected a multiple of 4 as max_steps, for losses at each quarter, got {steps}")
        for path in self.eval_file:
            if not Path(path).is_file():
                raise ValueError(f"eval_file: expected a file, got {path!r}")
        tasks = self.scale["glue"]["tasks"]
        for task in tasks if self.data_dir is not None and tasks != ["all"] else []:
            if not any(Path(self.data_dir, task).glob("train.jsonl*")):
                raise ValueError(f"data_dir: expected {task}/train.jsonl.gz in {self.data_dir!r}, got none")

    # Commands

    def _model_arguments(self, row: str, intermediate_size: int) -> dict[str, Any]:
        given = self.rows[row]
        positions = self.scale["pretraining"]["max_seq_length"]
        sizes = {**self.scale["model"], "intermediate_size": intermediate_size, "max_position_embeddings": positions}
        overrides = self._resolved(sizes | given.get("config", {}))
        if "model_type" in given:
            what = {"model_type": given["model_type"]}
        else:
            what = {"genome": str(self.folder / row / "genome.json")}
            del overrides["num_hidden_layers"]  # the genome says it
        return {**what, "config_overrides": ",".join(f"{k}={v}" for k, v in overrides.items())}

    def _resolved(self, values: dict[str, Any]) -> dict[str, Any]:
        """A value may be the name of one of the model."""
        model = self.scale["model"]
        return {k: model.get(v, v) if isinstance(v, str) else v for k, v in values.items()}

    def _text(self) -> dict[str, Any]:
        return {
            "train_file": self.train_file,
            "vocab_size": self.scale["vocab_size"],
            "prepared_dir": str(self.folder / "text"),
        }

    def prepare_text(self) -> None:
        """Before anything runs, for all of it. Raises: ValueError for bad text."""
        settings = SearchSettings(**self._text())
        prepare(settings, settings.seed, self.scale["pretraining"]["max_seq_length"])

    def _pretraining(self, row: str, choice: dict[str, float], seed: int, share: float, folder: Path) -> list[str]:
        given = {k: v for k, v in self.scale["pretraining"].items() if k not in ("grid", "grid_share", "seeds")}
        values = {
            **self._model_arguments(row, self.intermediate_size(row)),
            **self._text(),
            **given,
            **choice,
            "seed": seed,
            "max_steps": round(given["max_steps"] * share),
            "eval_file": self.eval_file,
            "output_dir": str(folder),
            "disable_tqdm": "true",
        }
        return [*self.launch, str(EXAMPLES / "run_pretraining.py"), *flags(values)]

    def searches(self) -> Iterable[list[str]]:
        model = self.scale["model"]
        for row, given in self.rows.items():
            if "search" in given:
                names = (
                    "num_hidden_layers",
                    "hidden_size",
                    "num_attention_heads",
                    "intermediate_size",
                    "initializer_range",
                )
                settings = self._resolved({n: model[n] for n in names} | self.scale["search"] | given["search"])
                values = {**self._text(), **settings, "output_dir": str(self.search_folder(row))}
                yield [*self.launch, "-m", "autobert_zero.search", *flags(values)]

    def write_genomes(self) -> None:
        for row in self.rows:
            if genome := self.genome(row):
                (self.folder / row).mkdir(parents=True, exist_ok=True)
                reporting.write_json(self.folder / row / "genome.json", genome.to_list())

    def grids(self) -> Iterable[list[str]]:
        plan = self.scale["pretraining"]
        for row, given in self.rows.items():
            for choice in plan["grid"] if len(plan["grid"]) > 1 and "grid_of" not in given else []:
                folder = self.grid_folder(row, choice)
                yield self._pretraining(row, choice, plan["seeds"][0], plan["grid_share"], folder)

    def grid(self, row: str) -> list[float | None]:
        """*Select* losses at the end of the short pre-trainings; None where one is not done, or was not finite."""
        row = self.rows[row].get("grid_of", row)
        results = (
            _read(self.grid_folder(row, choice) / "results.json") for choice in self.scale["pretraining"]["grid"]
        )
        return [result and result["losses"]["select"]["1"] for result in results]

    def choice(self, row: str) -> dict[str, float]:
        known = [
            (loss, choice)
            for loss, choice in zip(self.grid(row), self.scale["pretraining"]["grid"], strict=True)
            if loss is not None
        ]
        return min(known, key=lambda pair: pair[0])[1] if known else self.scale["pretraining"]["grid"][0]

    def pretrainings(self) -> Iterable[list[str]]:
        for seed in self.scale["pretraining"]["seeds"]:  # outside, so that all rows have one before any has a second
            for row, given in self.rows.items():
                yield self._pretraining(
                    row, self.choice(row), seed, given.get("budget", 1), self.seed_folder(row, seed)
                )

    def fine_tunings(self) -> Iterable[list[str]]:
        given = dict(self.scale["glue"])
        tasks = given.pop("tasks")
        for seed in self.scale["pretraining"]["seeds"]:
            for row in self.rows:
                for task in tasks:
                    folder = self.seed_folder(row, seed)
                    values = {
                        "model": str(folder),
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
        """By row, what there is so far. Means over seeds, with standard errors where there are several."""
        found = {}
        for row, given in self.rows.items():
            seeds = self.scale["pretraining"]["seeds"]
            trained = {s: r for s in seeds if (r := _read(self.seed_folder(row, s) / "results.json"))}
            if not trained:
                continue
            losses: dict[str, dict[str, list[float | None]]] = {}
            for result in trained.values():
                for name, by_share in result["losses"].items():
                    for share, loss in by_share.items():
                        losses.setdefault(name, {}).setdefault(share, []).append(loss)
            glue = self._glue(row, list(trained))
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
                    name: {share: mean_and_error(values) for share, values in by_share.items()}
                    for name, by_share in losses.items()
                },
                "unigram_losses": first["unigram_losses"],
                "tokens_per_second": [r["tokens_per_second"] for r in trained.values()],
                "seconds_of_last_session": [r["seconds_of_last_session"] for r in trained.values()],
                "glue": glue,
                "machines": sorted({r["machine"] for r in trained.values()}),
                "commits": sorted({str(r["commit"]) for r in trained.values()}),
                "versions": first["versions"],
                "command": first["command"],
                "text": first["identity"]["text"],
            }
        return found

    def _glue(self, row: str, seeds: list[int]) -> dict[str, Any]:
        """Of each task, and of their mean, the scores of all fine-tunings: a list for each pre-training seed."""
        tasks: dict[str, list[list[float | None]]] = {}
        means = []
        for seed in seeds:
            done = {}
            for path in sorted((self.seed_folder(row, seed) / "glue").glob("*/results.json")):
                done |= {name: task["scores"] for name, task in json.loads(path.read_text())["tasks"].items()}
            for name, values in done.items():
                tasks.setdefault(name, []).append(values)
            expected = set(self.scale["glue"]["tasks"])
            if done and (expected == {"all"} or set(done) == expected):
                means.append([reporting.mean(each) for each in zip(*done.values(), strict=True)])
        return {
            "tasks": {name: of_seeds(values) for name, values in tasks.items()},
            "mean": of_seeds(means) if means else None,
            "scores": {**tasks, "mean": [[each and round(each, 3) for each in of_seed] for of_seed in means]},
        }


def name_of(choice: dict[str, float]) -> str:
    """`{"learning_rate": 0.001, "warmup_steps": 0.1}` as `rate 0.001, warm-up 0.1`."""
    return f"rate {choice['learning_rate']:g}, warm-up {choice['warmup_steps']:g}"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def mean_and_error(values: list[float | None]) -> list[float | None]:
    """None for both where one was not finite, and for the error of a single one."""
    average = reporting.mean(values)
    if average is None:
        return [None, None]
    error = reporting.standard_error(values)
    return [round(average, 4), None if error is None else round(error, 4)]


def of_seeds(scores: list[list[float | None]]) -> list[float | None]:
    """Mean and standard error of fine-tunings by pre-training. Those of one pre-training are no independent values: where
    there are several, the error is that of their means."""
    return mean_and_error(list(map(reporting.mean, scores)) if len(scores) > 1 else list(scores[0]))


def shown(value: list[float | None] | None, digits: int) -> str:
    if value is None:
        return ""
    mean, error = value
    if mean is None:
        return "diverged"
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: sizes, losses after shares of the budget, and GLUE."""
    evaluated = list(dict.fromkeys(name for r in results.values() for name in r["losses"] if name != "select"))
    tasks = list(dict.fromkeys(name for r in results.values() for name in r["glue"]["tasks"]))
    shares = ("0.25", "0.5", "1")
    head = [
        "",
        "parameters",
        "MFLOP",
        "tokens",
        "chosen of the grid",
        *(f"{name}, {share}" for name in evaluated for share in shares),
    ]
    head += [*tasks, *(["GLUE"] if tasks else [])]
    lines = []
    for result in results.values():
        cells = [result["name"], f"{result['parameters']:,}", f"{result['flops'] / 1e6:,.0f}"]
        cells += [f"{result['tokens'] / 1e6:,.1f} M", result["chosen"]]
        cells += [shown(result["losses"].get(name, {}).get(share), 3) for name in evaluated for share in shares]
        cells += [shown(result["glue"]["tasks"].get(name), 1) for name in tasks]
        lines.append(cells + ([shown(result["glue"]["mean"], 2)] if tasks else []))
    unigram = {name: loss for r in results.values() for name, loss in r["unigram_losses"].items()}
    last = ["unigram", "", "", "", ""] + [f"{unigram[n]:.3f}" if s == "1" else "" for n in evaluated for s in shares]
    lines.append(last + [""] * (len(head) - len(last)))
    return markdown(head, lines)


def grid_table(comparison: Comparison) -> str:
    """Markdown: the *select* losses of the short pre-trainings, by which learning rate and warm-up are chosen; empty
    before there is one."""
    choices = comparison.scale["pretraining"]["grid"]
    lines = []
    for row, given in comparison.rows.items():
        if "grid_of" in given:
            continue
        results = [_read(comparison.grid_folder(row, choice) / "results.json") for choice in choices]
        if any(results):
            losses = [result and [result["losses"]["select"]["1"], None] for result in results]
            lines.append([given["name"], *(shown(loss, 3) for loss in losses)])
    return markdown(["", *map(name_of, choices)], lines) if lines else ""


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table whose first column stands to the left."""
    divider = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, divider, *lines))


def run_all(commands: list[list[str]], jobs: int, folder: Path) -> None:
    """Commands, so many at a time, each with its share of the cores; what they say goes to files in `logs`.

    Raises: RuntimeError after all are done, if some failed, with the end of what each said.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    (folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(command: list[str]) -> str | None:
        output = Path(command[command.index("--output_dir") + 1]).relative_to(folder)
        log = folder / "logs" / ("-".join(output.parts) + ".log")
        print(f"$ {shlex.join(['python', *command[1:]] if command[0] == sys.executable else command)}", flush=True)
        with open(log, "w", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            return f"exit code {code} ({log}):\n" + "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
        return None

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        if failures := [message for message in pool.map(run, commands) if message]:
            raise RuntimeError("\n\n".join(failures))


def known(kind: str) -> list[str]:
    """Names of the files beside this one."""
    return sorted(path.stem for path in (HERE / kind).glob("*.yaml"))


def load_yaml(kind: str, name: str) -> dict[str, Any]:
    """A file beside this one by its name, or any other by its path. Raises: ValueError where there is none."""
    path = HERE / kind / f"{name}.yaml"
    path = path if path.exists() else Path(name)
    if not path.is_file():
        raise ValueError(f"{kind}: expected one of {known(kind)} or a file, got {name!r}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{kind}: cannot read {path}: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--scale", required=True, help=f"One of {', '.join(known('scales'))}, or a path.")
    parser.add_argument(
        "--rows", nargs="+", default=DEFAULT_ROWS, help=f"Any of {', '.join(known('rows'))}, or paths."
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder of all that is run.")
    parser.add_argument("--train_file", nargs="*", default=[], help="Text; default: Python's language reference.")
    parser.add_argument("--eval_file", nargs="*", default=[], help="More text to take losses on.")
    parser.add_argument("--data_dir", help="Folder of the GLUE tasks.")
    parser.add_argument("--hub_glue", action="store_true", help="Take the GLUE tasks from the Hub.")
    parser.add_argument("--launch", help="What starts each command instead of this Python: 'accelerate launch'.")
    parser.add_argument("--jobs", type=int, default=1, help="Commands at a time.")
    parser.add_argument("--table_only", action="store_true", help="Run nothing.")
    parser.add_argument("--results", type=Path, help="JSON file for the table.")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"jobs: expected at least 1, got {given.jobs}")
    try:
        rows = {Path(name).stem: load_yaml("rows", name) for name in given.rows}
        scale = load_yaml("scales", given.scale)
    except ValueError as error:
        parser.error(str(error))
    comparison = Comparison(
        scale,
        rows,
        given.output_dir,
        given.train_file,
        given.eval_file,
        given.data_dir,
        shlex.split(given.launch) if given.launch else [sys.executable],
    )
    for row, what in rows.items():
        if (other := what.get("grid_of")) and other not in rows and None in comparison.grid(row):
            parser.error(f"rows: expected {other} with {row}, whose learning rate it takes")
    if not given.table_only:
        try:
            comparison.check()
            comparison.prepare_text()
        except (OSError, ValueError) as error:
            parser.error(str(error))
        try:
            run_all(list(comparison.searches()), given.jobs, given.output_dir)
            comparison.write_genomes()
            run_all(list(comparison.grids()), given.jobs, given.output_dir)
            run_all(list(comparison.pretrainings()), given.jobs, given.output_dir)
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
        reporting.write_json(given.results, {"scale": scale, "rows": results, **processes})


if __name__ == "__main__":
    main()
