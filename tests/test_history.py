import json
import os
import resource

import numpy as np
import pytest

from autobert_zero.search.evolution import evolve
from autobert_zero.search.history import SCHEMA, History
from autobert_zero.search.strategies import OpNas

from .conftest import SPACE


HEADER = {"settings": {"seed": 3, "width": 8}, "data": {"digest": "abc"}, "versions": {"torch": "1"}}
IDENTITY = ("settings", "data")


def submit(record, archive):
    if record.index % 5 == 4:
        return lambda: record.evaluated(score=None, reason="FloatingPointError: loss é", seconds=0.25)
    return lambda: record.evaluated(score=-float(len(str(record.genome))), costs={"parameters": 7}, seconds=0.5)


def fill(path, count=20):
    with History(path, HEADER, IDENTITY) as history:
        evolve(SPACE, OpNas(SPACE, 8, 2, 3), submit, history, seed=3, max_evaluations=count)
        return list(history)


def test_replay_gives_the_records(tmp_path):
    records = fill(tmp_path / "history.jsonl")
    with_other_versions = {**HEADER, "versions": {"torch": "2"}}
    with History(tmp_path / "history.jsonl", with_other_versions, IDENTITY) as history:
        assert list(history) == records and len(records) == 20
        assert history.header["versions"] == {"torch": "1"}


def test_records_carry_what_is_promised(tmp_path):
    fill(tmp_path / "history.jsonl", 5)
    header, *lines = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert header == {"schema": SCHEMA, **HEADER}
    assert {"key", "genome", "generation", "parents", "status", "score", "seconds"} <= set(lines[0])
    assert lines[4]["status"] == "failed" and lines[4]["reason"] == "FloatingPointError: loss é"


def test_cut_anywhere_and_continued_it_is_the_same_file(tmp_path):
    path = tmp_path / "history.jsonl"
    records = fill(path)
    whole = path.read_bytes()
    starts = [0, 1, len(whole.splitlines(keepends=True)[0]) - 1]
    for cut in [*starts, *range(len(whole) // 3, len(whole), len(whole) // 17)]:
        path.write_bytes(whole[:cut])
        torn = cut > 0 and whole[:cut].count(b"\n") > 0 and not whole[:cut].endswith(b"\n")
        if torn:
            with pytest.warns(UserWarning, match="dropped a torn last line"):
                History(path, HEADER, IDENTITY).close()
        assert fill(path) == records
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[: len(line) // 2] + b"\n", "line 4"),
        (lambda line: b"\xff" + line, "line 4"),
        (lambda line: b"", "line 4: index: expected 2, got 3"),
        (lambda line: line + line, "line 5: index: expected 3, got 2"),
        (lambda line: line.replace(b'"score"', b'"skore"'), "line 4: expected an object with the fields"),
        (lambda line: line.replace(b'"status": "ok"', b'"status": "proposed"'), "line 4: status"),
        (
            lambda line: line.replace(b'"score": -', b'"score": NaN, "x": -'),
            "line 4: expected a finite number, got NaN",
        ),
        (lambda line: line.replace(b'"convolution"', b'"pooling"'), "line 4: genome, layer .: kind"),
        (lambda line: line.replace(b'"generation": ', b'"generation": "0", "x": '), "line 4"),
        (lambda line: b"[" * 200_000 + b"\n", "line 4"),
        (lambda line: b" " * (1 << 20) + line, "line 4: expected at most"),
        (lambda line: b"null\n", "line 4"),
        (lambda line: line.replace(b'"costs": {', b'"costs": {"flops": "many", '), "line 4: costs: expected numbers"),
        (lambda line: line.replace(b'"parents": [', b'"parents": [2'), "line 4: parents: expected indices below 2"),
        (lambda line: line.replace(b'"generation": 0', b'"generation": 9'), "line 5: generation: expected at least 9"),
    ],
)
def test_damage_in_the_middle_is_an_error_and_nothing_is_touched(tmp_path, damage, message):
    path = tmp_path / "history.jsonl"
    fill(path)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = damage(lines[3])
    assert damaged != lines[3], "the damage must do something"
    path.write_bytes(b"".join([*lines[:3], damaged, *lines[4:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        History(path, HEADER, IDENTITY)
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
        History(path, header, IDENTITY)
    assert path.read_bytes() == before


def test_not_a_history(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match=f"line 1: expected a header with schema {SCHEMA}, got"):
        History(path, HEADER, IDENTITY)


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
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond: the write fails half-way
    try:
        with pytest.raises(OSError, match="File too large"):
            fill(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.stat().st_size == 2000
    with pytest.warns(UserWarning, match="dropped a torn last line"):
        assert fill(path) == expected
