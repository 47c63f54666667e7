"""Fine-tune on GLUE: one task or all, over a small grid and several seeds, in one table.

    python examples/run_glue.py --model_name_or_path runs/small --trust_remote_code --task_name mrpc --output_dir runs/mrpc
    python examples/run_glue.py --model_name_or_path runs/small --trust_remote_code --task_name all --data_dir glue \\
        --learning_rates 3e-4 1e-3 --seeds 3 --output_dir runs/small-glue

Tasks come from the Hub (`nyu-mll/glue`) or from a folder with `TASK/{train,validation,test}.jsonl.gz` (also `.jsonl`) in
its columns. Of several learning rates the best is chosen on a tenth of the train part; then the model is trained on all
of it, once for each seed, and evaluated on the official validation part. Every training is a line of `rows.jsonl`, and
the same command resumes. Predictions for test parts, and by MNLI's model for the diagnostic part (`ax/test.jsonl.gz`),
are written in the format of gluebenchmark.com. Training uses transformers' `Trainer` and accepts its arguments.
"""

import contextlib
import copy
import dataclasses
import functools
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import datasets
import evaluate
import numpy as np
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from training_scripts import (
    DEFAULT_LENGTH,
    FineTuningArguments,
    ModelArguments,
    check_rate,
    has_diverged,
    load_model,
    load_parts,
    make_trainer,
    model_identity,
    parse,
    shut_down_together,
    steps_identity,
    without_obsolete,
)
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.trainer import TRAINING_ARGS_NAME

from autobert_zero.search import custom_operations
from autobert_zero.search.evaluation.glue import (
    DIAGNOSTIC,
    METRIC_NAMES,
    TASKS,
    decide,
    headline,
    load_diagnostic,
    load_task,
    majority_metrics,
    unlike_official,
)
from autobert_zero.search.files import (
    JsonLines,
    check_shape,
    differing_keys,
    json_digest,
    lock_output_dir,
    write_json,
)
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.report.tables import mean, text_table


METRIC = str(Path(__file__).with_name("glue_metric.py"))


# Submissions of these tasks name the label; those of the others have its id.
NAMED_LABELS = ("mnli", "qnli", "rte")

# Options that select rows or locate files, but do not change a row.
IRRELEVANT = (
    "model_name_or_path",
    "model_revision",
    "attn_implementation",
    "trust_remote_code",
    "task_name",
    "data_dir",
    "learning_rates",
    "seeds",
    "save_models",
)


@dataclass
class GlueArguments(ModelArguments):
    task_name: str = field(
        kw_only=True, metadata={"help": f"One of {', '.join(TASKS)}, or `all`: every task with training data."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the tasks. Without it: the Hub."})
    learning_rates: list[float] = field(default_factory=list, metadata={"help": "Grid; default: --learning_rate."})
    seeds: int = field(default=3, metadata={"help": "Trainings per task; the first seed is --seed."})
    max_seq_length: int | None = field(
        default=None,
        metadata={"help": f"Longer texts are truncated; default: {DEFAULT_LENGTH}, or the model's limit."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Maximum number of training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Maximum number of validation rows."})
    save_models: bool = field(default=False, metadata={"help": "Keep the fine-tuned models, by task, rate and seed."})


class FineTuning:
    """Trainings of one model on one task."""

    def __init__(self, name: str, options: GlueArguments, args: FineTuningArguments):
        self.name, self.options, self.args = name, options, args
        self.task = TASKS[name]
        if args.label_smoothing_factor and not self.task.labels:
            raise ValueError(f"label_smoothing_factor: expected 0 for {name}, whose labels are numbers")
        self.config, self.tokenizer, self.remote = load_parts(options, pairs=len(self.task.columns) == 2)
        self.config.num_labels = max(1, len(self.task.labels))
        if self.task.labels:
            self.config.id2label = dict(enumerate(self.task.labels))
            self.config.label2id = {label: number for number, label in enumerate(self.task.labels)}
        self.config.problem_type = "single_label_classification" if self.task.labels else "regression"
        parts = load_task(name, options.data_dir)
        self.notes = unlike_official(name, parts)
        self.data = json_digest({part: rows[:] for part, rows in parts.items()})
        self.parts = {part: self._encode(rows) for part, rows in parts.items()}
        self.submissions = dict(self.task.tests)
        if name == "mnli":
            try:
                self.parts[DIAGNOSTIC] = self._encode(load_diagnostic(options.data_dir))
                self.submissions[DIAGNOSTIC] = "AX"
            except ValueError as error:
                self.notes.append(f"AX.tsv is not written: {error}")
        self.metric = evaluate.load(METRIC, name)

    def _encode(self, rows: datasets.Dataset) -> datasets.Dataset:
        def encode(batch):
            texts = [batch[column] for column in self.task.columns]
            return self.tokenizer(*texts, truncation=True, max_length=self.options.max_seq_length)

        return rows.map(encode, batched=True, remove_columns=self.task.columns, keep_in_memory=True)

    def _training_part(self) -> datasets.Dataset:
        rows = self.parts["train"]
        if self.options.max_train_samples is not None:
            count = min(self.options.max_train_samples, len(rows))
            rows = rows.shuffle(seed=0, keep_in_memory=True).select(range(count))
        return rows

    def _metrics(self, trainer: Trainer, parts: dict[str, datasets.Dataset]) -> dict[str, float]:
        found = {}
        for part, rows in parts.items():
            output = trainer.predict(rows)
            scores = self.metric.compute(
                predictions=decide(self.name, output.predictions), references=output.label_ids
            )
            found |= {k if len(parts) == 1 else f"{part} {k}": round(v, 6) for k, v in scores.items()}
        return found

    def majority(self) -> dict[str, Any]:
        """Metrics and score of the most frequent label, on the validation parts as they are evaluated."""
        labels = np.array(self._training_part()["label"][:])
        found = {}
        for part, rows in self._validation_parts().items():
            metrics = majority_metrics(self.name, labels, np.array(rows["label"][:]))
            found |= {f"{part} {metric}": round(value, 6) for metric, value in metrics.items()}
        return {"metrics": found, "score": round(headline(found), 4)}

    def _validation_parts(self) -> dict[str, datasets.Dataset]:
        limit = self.options.max_eval_samples
        parts = {part: self.parts[part] for part in self.task.validations if part in self.parts}
        return {part: p if limit is None else p.select(range(min(limit, len(p)))) for part, p in parts.items()}

    def folder(self, learning_rate: float, seed: int) -> Path:
        return Path(self.args.output_dir, self.name, f"rate-{learning_rate:g}-seed-{seed}")

    def is_saved(self, learning_rate: float, seed: int) -> bool:
        """Whether the files of a finished training are there: its predictions, and its model if it is requested."""
        files = [f"{submission}.tsv" for part, submission in self.submissions.items() if part in self.parts]
        if self.options.save_models:
            files.append(TRAINING_ARGS_NAME)  # which is written after the weights
        return all((self.folder(learning_rate, seed) / file).exists() for file in files)

    def train(self, rows: datasets.Dataset, learning_rate: float, seed: int) -> Trainer:
        args = copy.copy(self.args)
        args.learning_rate, args.seed = learning_rate, seed
        args.output_dir = str(self.folder(learning_rate, seed))
        args.save_strategy = args.eval_strategy = "no"
        trainer = make_trainer(
            AutoModelForSequenceClassification, self.options, args, self._model_parts, rows, DataCollatorWithPadding
        )
        trainer.train()
        return trainer

    @property
    def _model_parts(self) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, dict[str, Any]]:
        return self.config, self.tokenizer, self.remote

    def load_model(self) -> PreTrainedModel:
        """The model that is fine-tuned. Raises: ValueError if it cannot be loaded."""
        return load_model(AutoModelForSequenceClassification, self.options, self._model_parts)

    def try_rate(self, learning_rate: float, seed: int) -> dict[str, Any]:
        """Train on nine tenths of the train part and evaluate on the rest; the score is None if it diverged."""
        parts = self._training_part().train_test_split(0.1, seed=0, keep_in_memory=True)
        trainer = self.train(parts["train"], learning_rate, seed)
        if has_diverged(trainer):
            return {"metrics": {}, "score": None}
        metrics = self._metrics(trainer, {"held out": parts["test"]})
        return {"metrics": metrics, "score": round(headline(metrics), 4)}

    def report(self, learning_rate: float, seed: int) -> dict[str, Any]:
        """Train on all of the train part, evaluate on the official validation part, and predict the test part; the score is
        None if it diverged."""
        rows = self._training_part()
        trainer = self.train(rows, learning_rate, seed)
        parts = self._validation_parts()
        counts = {"train": len(rows), **{part: len(p) for part, p in parts.items()}}
        if has_diverged(trainer):
            return {"metrics": {}, "score": None, "rows": counts}
        folder = self.folder(learning_rate, seed)
        if self.options.save_models:  # before predictions, for which weights may be rounded
            trainer.save_model()
            if trainer.is_world_process_zero():
                custom_operations.save_with_model(folder)
        metrics = self._metrics(trainer, parts)
        for part, submission in self.submissions.items():
            if part in self.parts:
                self._submit(trainer, self.parts[part], folder / f"{submission}.tsv")
        return {"metrics": metrics, "score": round(headline(metrics), 4), "rows": counts}

    def submit(self, learning_rate: float, seed: int) -> None:
        """Copy the predictions for the test parts, if the training did not diverge, to those of all tasks."""
        target = Path(self.args.output_dir, f"submission-seed-{seed}")
        for submission in self.submissions.values():
            source, file = (folder / f"{submission}.tsv" for folder in (self.folder(learning_rate, seed), target))
            file.unlink(missing_ok=True)  # of another rate
            if source.exists():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, file)

    def _submit(self, trainer: Trainer, rows: datasets.Dataset, path: Path) -> None:
        decided = decide(self.name, trainer.predict(rows).predictions)
        if not trainer.is_world_process_zero():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write("index\tprediction\n")
            for number, value in zip(rows["idx"][:], decided.tolist(), strict=True):
                shown = f"{value:.3f}" if not self.task.labels else value
                file.write(f"{number}\t{self.task.labels[value] if self.name in NAMED_LABELS else shown}\n")


class Row(TypedDict):
    """A finished training."""

    key: str
    task: str
    data: str  # digest of the rows of the task
    metrics: dict[str, float]
    score: float | None  # None if it diverged
    rows: NotRequired[dict[str, int]]  # numbers of rows by part; of a training that is reported
    seconds: float


class Rows:
    """Finished trainings by key, in a file of JSON lines that starts with what they depend on.

    Raises: ValueError if the file is of another run, or another process writes it.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.writes = PartialState().is_main_process
        self.held = contextlib.ExitStack()
        found: list[Any] = [None]
        if self.writes:
            try:
                self.held.enter_context(lock_output_dir(path.parent))
                self.lines = JsonLines(path)
                found[0] = self._read(identity)
            except ValueError as error:
                found[0] = str(error)
        # All processes continue from what the main process has read.
        [self.finished] = broadcast_object_list(found)
        if isinstance(self.finished, str):
            raise ValueError(self.finished)

    def _read(self, identity: dict[str, Any]) -> dict[str, Any] | str:
        """The rows, or why they cannot be used."""
        if not self.lines.values:
            self.lines.append(identity)
            return {}
        header, *rows = self.lines.values
        try:
            check_shape(header, dict[str, Any], "line 1")
            for number, row in enumerate(rows, start=2):
                check_shape(row, Row, f"line {number}")
        except ValueError as error:
            return f"output_dir: {self.lines.path}, {error}"
        if different := differing_keys(without_obsolete(header), identity):
            return f"output_dir: {self.lines.path} is of a run that differs in {', '.join(different)}"
        return {row["key"]: row for row in rows}

    def close(self) -> None:
        if self.writes:
            self.lines.close()
        self.held.close()

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.finished[key] = {"key": key, **row}
        if self.writes:
            self.lines.append(self.finished[key])
            print(f"{key}: {shown([row['score']])}, {row['seconds']:.1f} s", flush=True)


def run_task(tuning: FineTuning, rates: list[float], rows: Rows) -> dict[str, Any]:
    """Choose the best learning rate on the held-out tenth, and evaluate it with every seed."""
    first = tuning.args.seed

    def row(key: str, make: Callable[[], dict[str, Any]], is_complete: bool = True) -> dict[str, Any]:
        known = rows.finished.get(key)
        if known is None or (known["score"] is not None and not is_complete):
            start = time.perf_counter()
            task = {"task": tuning.name, "data": tuning.data}
            rows.add(key, {**task, **make(), "seconds": round(time.perf_counter() - start, 1)})
        return rows.finished[key]

    grid = {}
    if len(rates) > 1:
        for rate in rates:
            grid[rate] = row(f"{tuning.name}, rate {rate}", functools.partial(tuning.try_rate, rate, first))["score"]
    best = max(grid, key=lambda rate: (grid[rate] is not None, grid[rate] or 0)) if grid else rates[0]
    seeds = [
        row(
            f"{tuning.name}, rate {best}, seed {seed}",
            functools.partial(tuning.report, best, seed),
            # A finished training is repeated if its files are missing.
            is_complete=tuning.is_saved(best, seed),
        )
        for seed in range(first, first + tuning.options.seeds)
    ]
    if tuning.args.process_index == 0:
        for seed in range(first, first + tuning.options.seeds):
            tuning.submit(best, seed)
    return {
        "learning_rate": best,
        "grid": {str(rate): score for rate, score in grid.items()},
        "scores": [each["score"] for each in seeds],
        "metrics": [each["metrics"] for each in seeds],
        "majority": tuning.majority(),
        "rows": seeds[0]["rows"],
        "seconds": [each["seconds"] for each in seeds],
    }


def shown(scores: list[float | None]) -> str:
    return " ".join("diverged" if score is None else f"{score:.2f}" for score in scores)


def mean_and_spread(scores: list[float | None]) -> tuple[str, str]:
    """Mean and standard deviation over seeds."""
    if None in scores:
        return "diverged", ""
    return f"{statistics.fmean(scores):.2f}", f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Scores in points, with their means and standard deviations over seeds."""
    lines = [("task", "metric", "mean", "s.d.", "majority", "rate", "seeds")]
    for name, result in results.items():
        metrics = dict.fromkeys(METRIC_NAMES[key.split()[-1]] for key in result["majority"]["metrics"])
        scores, rate = result["scores"], f"{result['learning_rate']:g}"
        majority = f"{result['majority']['score']:.2f}"
        lines.append((name, ", ".join(metrics), *mean_and_spread(scores), majority, rate, shown(scores)))
    if len(results) > 1:
        means = list(map(mean, zip(*(r["scores"] for r in results.values()), strict=True)))
        majority = f"{statistics.fmean(r['majority']['score'] for r in results.values()):.2f}"
        lines.append(("mean", "", *mean_and_spread(means), majority, "", shown(means)))
    return text_table(lines)


def check_options(options: GlueArguments, args: FineTuningArguments) -> None:
    """Raise a ValueError for numbers that a training would fail with, and for arguments of Trainer without effect."""
    for name, allowed in {
        "eval_strategy": ["no"],
        "save_strategy": ["steps", "no"],
        "load_best_model_at_end": [False],
    }.items():
        if (value := getattr(args, name)) not in allowed:
            shown = getattr(value, "value", value)
            raise ValueError(
                f"{name}: expected {allowed[0]}, because the model after the last step counts, got {shown}"
            )
    first_seed = args.seed
    if first_seed + options.seeds > 1 << 32:
        raise ValueError(f"seed, seeds: expected a last seed below {1 << 32}, got {first_seed + options.seeds - 1}")
    minimum = {"seeds": 1, "max_train_samples": 2 if len(options.learning_rates) > 1 else 1, "max_eval_samples": 1}
    for name, least in minimum.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    for rate in options.learning_rates:
        check_rate(rate, "learning_rates")
    if len(set(options.learning_rates)) < len(options.learning_rates):
        raise ValueError(f"learning_rates: expected different ones, got {options.learning_rates}")


def names_of(task_name: str, data_dir: str | None) -> list[str]:
    """Tasks to run; for `all`, those with training data. Raises: ValueError for an unknown task."""
    if task_name != "all":
        if task_name not in TASKS:
            raise ValueError(f"task_name: expected all or one of {sorted(TASKS)}, got {task_name!r}")
        return [task_name]
    if data_dir is None:
        return list(TASKS)
    found = [name for name in TASKS if any(Path(data_dir, name).glob("train.jsonl*"))]
    if not found:
        raise ValueError(f"data_dir: expected TASK/train.jsonl.gz in {data_dir!r}, got none")
    return found


def main() -> None:
    parser, (options, args) = parse(__doc__, GlueArguments, FineTuningArguments)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # every training would warn that its head is new
    transformers.utils.logging.disable_progress_bar()
    commit, rates = current_commit(), options.learning_rates or [args.learning_rate]
    folder = Path(args.output_dir)
    try:
        check_options(options, args)
        identity = {
            **{k: v for k, v in dataclasses.asdict(options).items() if k not in IRRELEVANT},
            **{k: v for k, v in steps_identity(args).items() if k != "learning_rate"},
            "model": model_identity(options),
        }
        tunings = {name: FineTuning(name, options, args) for name in names_of(options.task_name, options.data_dir)}
        next(iter(tunings.values())).load_model()  # otherwise damaged weights would end the first training
        rows = Rows(folder / "rows.jsonl", identity)
        for key, row in rows.finished.items():
            if row["task"] in tunings and row["data"] != tunings[row["task"]].data:
                raise ValueError(f"data_dir: {row['task']} has changed since {key!r} was trained in {folder}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    notes = [note for tuning in tunings.values() for note in tuning.notes]
    if args.process_index == 0:
        print("\n".join(notes), file=sys.stderr)
    with contextlib.closing(rows):
        results = {name: run_task(tuning, rates, rows) for name, tuning in tunings.items()}
    if args.process_index == 0:
        facts = provenance(commit, args.device.type)
        write_json(folder / "results.json", {**facts, "identity": identity, "notes": notes, "tasks": results})
        print(table(results))
    shut_down_together()


if __name__ == "__main__":
    main()
