"""The history on disk: replayed, cut anywhere, damaged, of another run, of an older version, on a full disk."""

import dataclasses
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from autobert_zero.search.evolution.archive import Outcome
from autobert_zero.search.evolution.history import SCHEMA, History, read_history
from autobert_zero.search.evolution.strategies import OpNas
from autobert_zero.search.files import json_digest
from autobert_zero.search.genomes import decode_genome
from tests.conftest import SPACE
from tests.evolution.conftest import search


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
HEADER = {"settings": {"seed": 3, "width": 8}, "data": {"digest": "abc"}, "versions": {"torch": "1"}}
IDENTITY = ("settings", "data")


def open_history(path, header=HEADER) -> History:
    return History(path, header, IDENTITY, decode_genome)


def evaluate(record) -> Outcome:
    if record.index % 5 == 4:
        return Outcome("failed", reason="FloatingPointError: loss é", seconds=0.25)
    return Outcome(score=-float(len(str(record.genome))), costs={"parameters": 7}, seconds=0.5)


def signed(record: dict) -> bytes:
    """A line with a record that was changed and given the digest of its new content."""
    del record["digest"]
    return json.dumps({**record, "digest": json_digest(record)}).encode() + b"\n"


def fill(path, count=20):
    with open_history(path) as history:
        search(OpNas(SPACE, 8, 2, 3), seed=3, count=count, history=history, evaluate=evaluate)
        return list(history)


def test_replay_gives_the_records(tmp_path):
    records = fill(tmp_path / "history.jsonl")
    with_other_versions = {**HEADER, "versions": {"torch": "2"}}
    with open_history(tmp_path / "history.jsonl", with_other_versions) as history:
        assert list(history) == records and len(records) == 20
        assert history.header["versions"] == {"torch": "1"}


def test_contents_of_header_and_records(tmp_path):
    fill(tmp_path / "history.jsonl", 5)
    header, *lines = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert header == {"schema": SCHEMA, **HEADER}
    assert {"key", "genome", "generation", "parents", "status", "score", "seconds"} <= set(lines[0])
    assert lines[4]["status"] == "failed" and lines[4]["reason"] == "FloatingPointError: loss é"


def test_a_history_cut_anywhere_and_resumed_is_the_same_file(tmp_path):
    path = tmp_path / "history.jsonl"
    records = fill(path)
    whole = path.read_bytes()
    starts = [0, 1, len(whole.splitlines(keepends=True)[0]) - 1]
    for cut in [*starts, *range(len(whole) // 3, len(whole), len(whole) // 17)]:
        path.write_bytes(whole[:cut])
        torn = cut > 0 and whole[:cut].count(b"\n") > 0 and not whole[:cut].endswith(b"\n")
        if torn:
            with pytest.warns(UserWarning, match="dropped a torn last line"):
                open_history(path).close()
        assert fill(path) == records
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[: len(line) // 2] + b"\n", "line 4"),
        (lambda line: b"\xff" + line, "line 4"),
        (lambda line: b"", "line 4: index: expected 2, got 3"),
        (lambda line: line + line, "line 5: index: expected 3, got 2"),
        (
            lambda line: line.replace(b'"score"', b'"skore"'),
            r"line 4: expected other fields: missing \['score'\], .*\['skore'\]",
        ),
        (lambda line: line.replace(b'"status": "ok"', b'"status": "proposed"'), "line 4: status"),
        (
            lambda line: line.replace(b'"score": -', b'"score": NaN, "x": -'),
            "line 4: expected a finite number, got NaN",
        ),
        (lambda line: line.replace(b'"convolution"', b'"pooling"'), "line 4: genome, layer .: kind"),
        (lambda line: line.replace(b'"generation": ', b'"generation": "0", "x": '), "line 4"),
        (lambda line: b"[" * 200_000 + b"\n", "line 4"),
        (lambda line: b" " * (1 << 20) + line, "line 4: expected at most"),
        (lambda line: b"null\n", "line 4: expected an object, got None"),
        (lambda line: line.replace(b'"costs": {', b'"costs": {"flops": "many", '), "line 4: costs: expected numbers"),
        (lambda line: line.replace(b'"parents": [', b'"parents": [2'), "line 4: parents: expected indices below 2"),
        (
            lambda line: signed({**json.loads(line), "generation": 9}),
            "line 5: generation: expected at least 9",
        ),
        (
            lambda line: line.replace(b'"generation": 0', b'"generation": 9'),
            "line 4: digest: expected .* it was changed",
        ),
        (lambda line: line.replace(b'"score": -', b'"score": -1'), "line 4: digest"),
        (lambda line: line.replace(b'"kernel_size": ', b'"kernel_size": 1'), "line 4: digest"),
        (lambda line: line.replace(b'"digest": "', b'"digest": "0'), "line 4: digest"),
    ],
)
def test_damage_in_the_middle_is_an_error_and_changes_nothing(tmp_path, damage, message):
    path = tmp_path / "history.jsonl"
    fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = damage(lines[3])
    assert damaged != lines[3], "the damage must change the line"
    path.write_bytes(b"".join([*lines[:3], damaged, *lines[4:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        open_history(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({**HEADER, "settings": {"seed": 4, "width": 8}}, r"another run: expected seed=3 \(got 4\)"),
        ({**HEADER, "data": {"digest": "abd"}}, r"expected digest='abc' \(got 'abd'\)"),
    ],
)
def test_history_of_another_run(tmp_path, header, message):
    path = tmp_path / "history.jsonl"
    fill(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        open_history(path, header)
    assert path.read_bytes() == before


def test_a_history_of_schema_2_is_read_with_the_names_of_today():
    path = FIXTURES / "run-0.1" / "history.jsonl"
    before = path.read_bytes()
    header, records = read_history(path, decode_genome)
    assert path.read_bytes() == before
    expected = json.loads((path.parent / "expected.json").read_text(encoding="utf-8"))
    assert header["schema"] == expected["schema"] == 2
    names = {"ok": "ok", "failed": "failed", "dropped": "pruned"}
    assert [[r.result.status, r.score, str(r.genome)] for r in records] == [
        [names[status], score, genome] for status, score, genome in expected["records"]
    ]
    old_header, *lines = map(json.loads, before.splitlines())
    assert [record.result.intermediate_score for record in records] == [line["hurdle"] for line in lines]
    assert "pruned" in {record.result.status for record in records}
    old_tokens = old_header["data"]["tokens"]
    assert header["data"]["tokens"] == {
        new: old_tokens[old] for old, new in {"search": "train", "select": "validation", "report": "test"}.items()
    }


def test_a_history_of_schema_2_is_not_resumed(tmp_path):
    path = tmp_path / "history.jsonl"
    content = (FIXTURES / "run-0.1" / "history.jsonl").read_bytes()
    path.write_bytes(content)
    header, _ = read_history(path, decode_genome)
    with pytest.raises(ValueError, match=r"another run: expected schema=2 \(got 3\)\. "):
        open_history(path, {name: value for name, value in header.items() if name != "schema"})
    assert path.read_bytes() == content


def test_not_a_history(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match=f"line 1: expected a header with schema {SCHEMA}, got"):
        open_history(path)


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "history.jsonl"
    records = fill(path)
    before = path.read_bytes()
    with open_history(path) as history:
        for outcome in (Outcome(), Outcome(score="3"), Outcome(score=float("nan")), Outcome("gone", score=None)):
            with pytest.raises(ValueError, match=r"status: expected|score: expected|JSON compliant"):
                history.append(dataclasses.replace(records[-1], index=20, outcome=outcome))
        assert path.read_bytes() == before and len(history) == 20


def test_every_record_is_synced(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size) or fsync(fd))
    fill(tmp_path / "history.jsonl", 5)
    ends = np.cumsum([len(line) for line in (tmp_path / "history.jsonl").read_bytes().splitlines(keepends=True)])
    assert synced == ends.tolist()


def test_a_full_disk_is_an_error_and_the_history_stays_readable(tmp_path):
    path = tmp_path / "history.jsonl"
    expected = fill(tmp_path / "whole.jsonl")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond: the write fails in the middle
    try:
        with pytest.raises(OSError, match="File too large"):
            fill(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.stat().st_size == 2000
    with pytest.warns(UserWarning, match="dropped a torn last line"):
        assert fill(path) == expected
