"""Reading GLUE tasks: rows, labels and files that are accepted or refused."""

import gzip

import pytest

from autobert_zero.search.evaluation.glue import TASKS, load_task, unlike_official
from tests.evaluation.glue_files import write_task


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("cola", {"label": 2}, r"cola, train: expected as label one of .*'acceptable', 1.*, got 2 in idx 0"),
        ("cola", {"label": None}, "cola, train: expected a column of labels"),
        ("cola", {"label": "acceptabel"}, "cola, train: expected as label .* got 'acceptabel' in idx 0"),
        ("stsb", {"label": 5.5}, r"stsb, train: expected as label a number from 0.0 to 5.0, got 5.5 in idx 0"),
        ("stsb", {"idx": 3}, "stsb, train: expected every idx once, got 3 several times"),
        ("mrpc", {"sentence2": None}, "mrpc, train: expected text in 'sentence2', got None in idx 0"),
        ("cola", {"label": True}, "cola, train: expected as label .* got True in idx 0"),
        ("cola", {"label": [1]}, r"cola, train: expected as label .* got \[1\] in idx 0"),
        ("stsb", {"label": "3"}, "stsb, train: expected as label a number .* got '3' in idx 0"),
        ("cola", {"idx": "3"}, "cola, train: expected whole numbers in 'idx', got '3'"),
        ("cola", {"idx": None}, "cola, train: expected whole numbers in 'idx', got None"),
        ("mrpc", {"idx": -3}, "mrpc, train: expected whole numbers in 'idx', got -3"),
    ],
)
def test_bad_rows(tmp_path, name, changed, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, str(write_task(tmp_path, name, **changed)))


def test_samples_of_a_task(tmp_path):
    """Train and validation parts may be samples. A test part may not: a submission needs every row."""
    write_task(tmp_path, "rte", test=True)
    for part, rows in (("train", 58), ("validation", 58), ("test", None)):
        path = tmp_path / "rte" / f"{part}.jsonl.gz"
        lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        path.write_bytes(gzip.compress("".join(lines[:5] + lines[7:]).encode()))
        if rows:
            found = load_task("rte", str(tmp_path))
            assert len(found[part]) == rows
            assert any(line.startswith(f"rte, {part}: 58 rows") for line in unlike_official("rte", found))
    with pytest.raises(ValueError, match=r"rte, test: expected rows 0 to 59, without idx \[5, 6\], 2 in all"):
        load_task("rte", str(tmp_path))


def test_bad_files(tmp_path):
    write_task(tmp_path, "rte")
    path = tmp_path / "rte" / "train.jsonl.gz"
    (tmp_path / "rte" / "validation.jsonl.gz").write_bytes(gzip.compress(b'{"sentence": "a", "label": 1, "idx": 0}\n'))
    with pytest.raises(ValueError, match=r"rte, validation: expected columns .*without \['sentence1', 'sentence2'\]"):
        load_task("rte", str(tmp_path))
    (tmp_path / "rte" / "validation.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"expected rte/validation.jsonl.gz in .*, got \['train'\]"):
        load_task("rte", str(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_dir: (cannot read|expected rows in) .*train.jsonl.gz"):
        load_task("rte", str(tmp_path))
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="data_dir: cannot read"):
        load_task("rte", str(tmp_path))


def test_label_names_are_numbered_in_the_order_of_the_task(tmp_path):
    write_task(tmp_path, "qnli")
    for part in ("train", "validation"):
        path = tmp_path / "qnli" / f"{part}.jsonl.gz"
        text = gzip.decompress(path.read_bytes()).decode()
        for number, label in enumerate(TASKS["qnli"].labels):
            text = text.replace(f'"label": {number}', f'"label": "{label}"')
        path.write_bytes(gzip.compress(text.encode()))
    assert load_task("qnli", str(tmp_path))["train"]["label"][:4] == [0, 1, 0, 1]
