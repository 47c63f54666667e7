"""Small GLUE tasks in the layout of a local folder."""

import gzip
import json
from pathlib import Path

from autobert_zero.search.evaluation.glue import TASKS


GOOD, BAD = "the film is good and warm", "a dull and bad film"


def write_task(
    folder: Path, name: str, rows: int = 60, test: bool = False, texts: tuple[str, str] = (BAD, GOOD), **changed
) -> Path:
    """Write a task whose labels follow from the first text of each row. `changed`: columns with other values."""
    task = TASKS[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    for part in ("train", *task.validations, *(task.tests if test else ())):
        lines = []
        for number in range(rows):
            label = number % max(2, len(task.labels))
            row = dict.fromkeys(task.columns, texts[min(label, 1)])
            label = label if task.labels else 1.0 + 2.5 * label
            lines.append({**row, "label": -1 if part in task.tests else label, "idx": number, **changed})
        with gzip.open(folder / name / f"{part}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder
