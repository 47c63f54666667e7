"""The tasks of GLUE: columns and labels, rows from the Hub or a folder, and official metrics.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np


HUB_NAME = "nyu-mll/glue"
DIAGNOSTIC = "ax"
_MATCHED = {"matched": "m", "mismatched": "mm"}
SCORE_RANGE = (0.0, 5.0)  # of stsb
ACCURACY_AND_F1 = ("mrpc", "qqp")


@dataclass(frozen=True)
class Task:
    """A task of GLUE.

    Attributes:
        columns: of the text.
        labels: names in the order of their ids; none if the label is a score.
        submission: name of the file of a submission.
        rows: official number of rows of the train part and of each validation part.
        matched: whether there are validation and test parts from matched and from mismatched sources.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    submission: str
    rows: tuple[int, ...]
    matched: bool = False

    @property
    def validations(self) -> list[str]:
        """Names of the validation parts."""
        return [f"validation_{part}" for part in _MATCHED] if self.matched else ["validation"]

    @property
    def tests(self) -> dict[str, str]:
        """Names of the test parts, each with the name of its submission."""
        if self.matched:
            return {f"test_{part}": f"{self.submission}-{short}" for part, short in _MATCHED.items()}
        return {"test": self.submission}


_TWO_SENTENCES = ("sentence1", "sentence2")
TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), "CoLA", (8551, 1043)),
    "sst2": Task(("sentence",), ("negative", "positive"), "SST-2", (67349, 872)),
    "mrpc": Task(_TWO_SENTENCES, ("not_equivalent", "equivalent"), "MRPC", (3668, 408)),
    "stsb": Task(_TWO_SENTENCES, (), "STS-B", (5749, 1500)),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), "QQP", (363846, 40430)),
    "mnli": Task(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "MNLI",
        (392702, 9815, 9832),
        matched=True,
    ),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment"), "QNLI", (104743, 5463)),
    "rte": Task(_TWO_SENTENCES, ("entailment", "not_entailment"), "RTE", (2490, 277)),
    "wnli": Task(_TWO_SENTENCES, ("not_entailment", "entailment"), "WNLI", (635, 71)),
}


def _check(name: str, part: str, rows: datasets.Dataset) -> datasets.Dataset:
    """Check rows and convert their labels to the type that the model expects; test parts have none.

    Raises: ValueError for missing columns, missing rows, and labels that the task does not have.
    """
    task, where = TASKS[name], f"{name}, {part}"
    if missing := [column for column in (*task.columns, "idx") if column not in rows.column_names]:
        raise ValueError(f"{where}: expected columns {[*task.columns, 'label', 'idx']}, without {missing}")
    numbers = rows["idx"][:]
    if wrong := [number for number in numbers if type(number) is not int or number < 0]:
        raise ValueError(f"{where}: expected whole numbers in 'idx', got {wrong[0]!r}")
    if len(set(numbers)) < len(numbers):
        [(twice, _)] = Counter(numbers).most_common(1)
        raise ValueError(f"{where}: expected every idx once, got {twice} several times")
    # Other parts may be samples; `unlike_official` says so.
    if part in task.tests and (count := max(numbers) + 1 - len(numbers)):
        known = set(numbers)
        gone = list(itertools.islice((n for n in itertools.count() if n not in known), min(10, count)))
        raise ValueError(f"{where}: expected rows 0 to {max(numbers)}, without idx {gone}, {count} in all")
    for column in task.columns:
        for number, text in zip(numbers, rows[column][:], strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{where}: expected text in {column!r}, got {text!r} in idx {number}")
    has_labels = "label" in rows.column_names and not all(value in (None, -1) for value in rows["label"][:])
    if part in task.tests:
        return rows.remove_columns("label") if "label" in rows.column_names else rows
    if not has_labels:
        raise ValueError(f"{where}: expected a column of labels, got {rows.column_names}")
    feature = rows.features["label"]
    if isinstance(feature, datasets.ClassLabel) and tuple(feature.names) != task.labels:
        raise ValueError(f"{where}: expected labels in the order {list(task.labels)}, got {feature.names}")
    labels = rows["label"][:]
    if task.labels:
        numbered = {label: number for number, label in enumerate(task.labels)}
        labels = [numbered[label] if isinstance(label, str) and label in numbered else label for label in labels]
        wrong = [
            (i, v) for i, v in zip(numbers, labels, strict=True) if isinstance(v, bool) or v not in numbered.values()
        ]
        expected = f"one of {list(numbered.items())}"
    else:
        low, high = SCORE_RANGE
        wrong = [
            (i, v) for i, v in zip(numbers, labels, strict=True) if type(v) not in (int, float) or not low <= v <= high
        ]
        expected = f"a number from {low} to {high}"
    if wrong:
        raise ValueError(f"{where}: expected as label {expected}, got {wrong[0][1]!r} in idx {wrong[0][0]}")
    kind = datasets.Value("int64" if task.labels else "float32")
    return rows.remove_columns("label").add_column("label", labels, feature=kind)


def _read(folder: Path, part: str, setting: str) -> datasets.Dataset | None:
    """A part of a task in a folder; None if there is no file. Raises: ValueError for a file that cannot be read."""
    for path in (folder / f"{part}.jsonl.gz", folder / f"{part}.jsonl"):
        if path.is_file():
            try:
                return datasets.Dataset.from_json(str(path), keep_in_memory=True)
            except StopIteration:
                raise ValueError(f"{setting}: expected rows in {path}, got none") from None
            except Exception as error:  # the reader of `datasets` raises whatever its format raises
                raise ValueError(f"{setting}: cannot read {path}: {error.__cause__ or error}") from None
    return None


def load_diagnostic(data_dir: str | None) -> datasets.Dataset:
    """The diagnostic part, predicted by the model of MNLI. Raises: ValueError if there is none."""
    if data_dir is not None:
        rows = _read(Path(data_dir, DIAGNOSTIC), "test", "data_dir")
        if rows is None:
            raise ValueError(f"data_dir: expected {DIAGNOSTIC}/test.jsonl.gz in {data_dir}, got none")
    else:
        try:
            rows = datasets.load_dataset(HUB_NAME, DIAGNOSTIC)["test"]
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"cannot load {DIAGNOSTIC} of {HUB_NAME}: {error}") from None
    return _check("mnli", "test_matched", rows)


def load_task(name: str, folder: str | None, setting: str = "data_dir") -> dict[str, datasets.Dataset]:
    """All existing parts of a task.

    Args:
        folder: of the tasks; None for the Hub.
        setting: that names the folder, for messages.

    Raises: ValueError if it cannot be read, and as `_check` does.
    """
    task = TASKS[name]
    if folder is None:
        try:
            parts = dict(datasets.load_dataset(HUB_NAME, name))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"task_name: cannot load {name} of {HUB_NAME}: {error}") from None
    else:
        parts = {}
        for part in ("train", *task.validations, *task.tests):
            if (rows := _read(Path(folder, name), part, setting)) is not None:
                parts[part] = rows
    for part in ("train", task.validations[0]):  # MNLI's mismatched part may be missing, as in a sample of the task
        if part not in parts:
            raise ValueError(f"{setting}: expected {name}/{part}.jsonl.gz in {folder}, got {sorted(parts)}")
    return {part: _check(name, part, rows) for part, rows in parts.items()}


def unlike_official(name: str, parts: dict[str, datasets.Dataset]) -> list[str]:
    """One line for each part whose number of rows is not the official one; 0 for one that is missing."""
    official = dict(zip(("train", *TASKS[name].validations), TASKS[name].rows, strict=True))
    found = {part: len(parts.get(part, ())) for part in official}
    return [
        f"{name}, {part}: {found[part]:,} rows, officially {count:,}"
        for part, count in official.items()
        if found[part] != count
    ]


def _correlation(function: Callable, predictions: np.ndarray, references: np.ndarray) -> float:
    """A correlation; 0 where it is undefined: with a constant, or of a model that diverged."""
    if not np.isfinite(predictions).all() or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(function(predictions, references).statistic)


def glue_metrics(name: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The official metrics of a task: Matthews correlation (cola), Pearson and Spearman correlation (stsb), accuracy and
    F1 (mrpc, qqp), accuracy (others). Needs scikit-learn and scipy.

    Args:
        predictions, references: (rows,) each.
    """
    from scipy import stats
    from sklearn import metrics

    if name == "cola":
        return {"matthews_correlation": float(metrics.matthews_corrcoef(references, predictions))}
    if name == "stsb":
        return {
            "pearson": _correlation(stats.pearsonr, predictions, references),
            "spearmanr": _correlation(stats.spearmanr, predictions, references),
        }
    accuracy = {"accuracy": float(np.mean(predictions == references))}
    if name in ACCURACY_AND_F1:
        return {**accuracy, "f1": float(metrics.f1_score(references, predictions, zero_division=0.0))}
    return accuracy


# Names of the metrics in tables.
METRIC_NAMES = {
    "matthews_correlation": "Matthews corr.",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
    "accuracy": "accuracy",
    "f1": "F1",
}


def majority_metrics(name: str, labels: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Metrics of a model that always predicts the most frequent label (stsb: the mean) of the train part.

    Args:
        labels: of the train part, (rows,).
        references: (rows,) of another part.
    """
    constant = np.bincount(labels).argmax() if TASKS[name].labels else labels.mean()
    return glue_metrics(name, np.full(len(references), constant), references)


def decide(name: str, logits: np.ndarray) -> np.ndarray:
    """Labels, or scores clipped to their range, from (rows, labels) logits."""
    return logits.argmax(-1) if TASKS[name].labels else np.clip(logits[..., 0], *SCORE_RANGE)


def headline(metrics: dict[str, float]) -> float:
    """The score of a task as GLUE defines it, in points: the mean of its metrics (for MNLI over both parts)."""
    return 100 * statistics.fmean(metrics.values())
