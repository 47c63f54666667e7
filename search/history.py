"""The history of a run: an append-only file of JSON lines, and all there is of the state of a search.

The first line is a header; every further line is one record. Each line is flushed and synced before `append` returns.
A last line that a crash tore off is dropped with a warning; damage anywhere else is an error.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search.records import Record


SCHEMA = 2
MAX_LINE_BYTES = 1 << 20

_FIELDS = {field.name for field in dataclasses.fields(Record)}


def _encode(record: Record) -> dict[str, Any]:
    return {**dataclasses.asdict(record), "genome": record.genome.to_list()}


def _decode(value: Any) -> Record:
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise ValueError(f"expected an object with the fields {sorted(_FIELDS)}, got {value!r:.200}")
    for name, types in {
        "index": (int,),
        "key": (str,),
        "generation": (int,),
        "parents": (list,),
        "duplicates": (int,),
        "score": (int, float, type(None)),
        "reason": (str, type(None)),
        "hurdle": (int, float, type(None)),
        "costs": (dict,),
        "seconds": (int, float),
    }.items():
        if not isinstance(value[name], types) or isinstance(value[name], bool):
            raise ValueError(f"{name}: expected {' or '.join(t.__name__ for t in types)}, got {value[name]!r:.200}")
    if not all(isinstance(cost, (int, float)) for cost in value["costs"].values()):
        raise ValueError(f"costs: expected numbers, got {value['costs']!r:.200}")
    if not all(isinstance(parent, int) and 0 <= parent < value["index"] for parent in value["parents"]):
        raise ValueError(f"parents: expected indices below {value['index']!r:.20}, got {value['parents']!r:.200}")
    statuses = ("ok", "failed", "dropped")
    if value["status"] not in statuses or (value["status"] == "ok") != (value["score"] is not None):
        raise ValueError(f"status: expected 'ok' with a score, 'failed' or 'dropped', got {value['status']!r:.200}")
    return Record(**{**value, "genome": Genome.from_list(value["genome"]), "parents": tuple(value["parents"])})


def _refuse(constant: str) -> Any:
    raise ValueError(f"expected a finite number, got {constant}")


class History(list[Record]):
    """A list of records that also lives on disk: `append` returns when the record is safe.

    Args:
        path: the file, made if it is missing.
        header: what the records depend on. If the file exists, its header must agree on `identity`.
        identity: names of the header entries that must agree; the others may differ (versions, say).

    Raises: ValueError, which leaves the file as it is, for a history of another run or a damaged one. OSError where
        the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike, header: dict[str, Any], identity: tuple[str, ...]):
        super().__init__()
        self.path = Path(path)
        header = json.loads(json.dumps({"schema": SCHEMA, **header}))
        lines, length = self._read_lines()
        self._file = open(self.path, "ab")  # noqa: SIM115 (open as long as the history)
        try:
            if lines:
                self.header = self._check_header(lines[0], header, identity)
                self._replay(lines[1:])
                if length < self.path.stat().st_size:
                    warnings.warn(f"{self.path}: dropped a torn last line", stacklevel=2)
                    self._file.truncate(length)
            else:
                self.header = header
                self._file.truncate(0)
                self._write(header)
        except BaseException:
            self._file.close()
            raise

    def _read_lines(self) -> tuple[list[bytes], int]:
        """The complete lines of the file, and how many bytes they take."""
        if not self.path.exists():
            return [], 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        return lines, sum(map(len, lines))

    def _parse(self, number: int, line: bytes, read: Callable[[Any], Any]) -> Any:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"expected at most {MAX_LINE_BYTES} bytes, got {len(line)}")
            return read(json.loads(line, parse_constant=_refuse))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from None

    def _check_header(self, line: bytes, header: dict[str, Any], identity: tuple[str, ...]) -> dict[str, Any]:
        found = self._parse(1, line, lambda value: value)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"{self.path}, line 1: expected a header with schema {SCHEMA}, got {found!r:.200}")
        differences = []
        for name in identity:
            old, new = found.get(name), header.get(name)
            if isinstance(old, dict) and isinstance(new, dict):
                names = [key for key in {**old, **new} if old.get(key) != new.get(key)]
                differences += [f"{key}={old.get(key)!r} (got {new.get(key)!r})" for key in names]
            elif old != new:
                differences.append(f"{name}={old!r} (got {new!r})")
        if differences:
            raise ValueError(
                f"{self.path} is the history of another run: expected {', '.join(differences)}. "
                "Choose another output_dir, or the settings and data that this folder began with."
            )
        return found

    def _replay(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, start=2):
            record = self._parse(number, line, _decode)
            if record.index != len(self):
                raise ValueError(f"{self.path}, line {number}: index: expected {len(self)}, got {record.index}")
            least = self[-1].generation if self else 0
            if record.generation < least:
                raise ValueError(
                    f"{self.path}, line {number}: generation: expected at least {least}, got {record.generation}"
                )
            super().append(record)

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def append(self, record: Record) -> None:
        self._write(_encode(record))
        super().append(record)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
