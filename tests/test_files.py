"""Files: replaced as a whole, appended line by line, identified by digests, locked."""

import gc
import hashlib
import json
import os
import resource

import pytest

from autobert_zero.search.files import (
    MAX_LINE_BYTES,
    JsonLines,
    bytes_digest,
    collector_paused,
    differing_keys,
    file_digest,
    json_digest,
    lock_output_dir,
    write_json,
    write_text,
)


def append(path, *values) -> None:
    with JsonLines(path) as lines:
        for value in values:
            lines.append(value)


def test_write_text_replaces_a_file(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("old", "new é"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    write_json(path, {"é": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_write_text_leaves_the_old_file_if_it_fails(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.read_text() == "old"
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == "old"


def test_digests(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()[:16]
    assert file_digest(tmp_path / "file") == bytes_digest([b"con", b"tent"]) == expected
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1}) != json_digest({"a": 1, "b": [3]})


def test_differing_keys():
    old = {"same": [1, 2], "other": 1, "only old": 0}
    assert differing_keys(old, {"same": (1, 2), "other": 2, "only new": 0}) == ["only new", "only old", "other"]


def test_appended_lines_are_read(tmp_path):
    path = tmp_path / "folder" / "lines.jsonl"
    assert JsonLines(path).values == [] and not path.exists()
    append(path, {"a": 1}, "é")
    append(path, [None])
    assert JsonLines(path).values == [{"a": 1}, "é", [None]]
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n"é"\n[null]\n'
    with pytest.raises(ValueError, match="Out of range float"):
        append(path, float("nan"))
    assert JsonLines(path).values == [{"a": 1}, "é", [None]]


def test_every_line_is_on_disk_when_append_returns(tmp_path, monkeypatch):
    path, synced = tmp_path / "lines.jsonl", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_text()) or fsync(descriptor))
    append(path, 1, 2)
    assert synced == ["1\n", "1\n2\n"]


def test_a_torn_last_line_is_ignored_and_removed_by_the_first_append(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2')
    assert JsonLines(path).values == [{"a": 1}]
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2'
    with pytest.warns(UserWarning, match="dropped a torn last line"):
        append(path, {"c": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"c": 3}\n'
    path.write_bytes(b'{"a"')  # no complete line
    append(path, 1)
    assert path.read_bytes() == b"1\n"


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b'{"b": 2', "line 2: "),
        (b"", "line 2: "),
        (b"\xff", "line 2: "),
        (b"[" * 200_000, "line 2: "),
        (b"NaN", "line 2: expected a finite number, got NaN"),
        (b" " * MAX_LINE_BYTES + b"1", f"line 2: expected at most {MAX_LINE_BYTES} bytes, got"),
    ],
)
def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path, damaged, message):
    path = tmp_path / "lines.jsonl"
    content = b'{"a": 1}\n' + damaged + b'\n{"c": 3}\n'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        JsonLines(path)
    assert str(path) in str(error.value) and path.read_bytes() == content


def test_a_first_line_may_be_long(tmp_path):
    """That of a history names all files of a text."""
    names = [f"text-{number}.txt" for number in range(MAX_LINE_BYTES // 10)]
    with JsonLines(tmp_path / "lines.jsonl") as lines:
        lines.append(names)
    assert JsonLines(tmp_path / "lines.jsonl").values == [names]


def test_the_collector_is_paused_and_resumed():
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_output_dir_is_locked_once(tmp_path):
    folder = tmp_path / "new" / "run"
    with lock_output_dir(folder), pytest.raises(ValueError, match=r"output_dir: .*run is in use by another run"):
        lock_output_dir(folder)
    with lock_output_dir(folder):
        assert [file.name for file in folder.iterdir()] == [".lock"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output_dir: cannot write to .*file.run: "):
        lock_output_dir(tmp_path / "file" / "run")
