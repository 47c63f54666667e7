"""The history of a run: an append-only file of JSON lines, and all there is of the state of a search.

The first line is a header; every further line is one record. Each line is flushed and synced before `append` returns.
A last line that a crash tore off is dropped with a warning; damage anywhere else is an error.
"""

import dataclasses
import gc
import json
import os
import warnings
from pathlib import Path
from typing import Any

from autobert_zero.configuration_autobert_zero import Genome, add_operations
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


def read_history(path: str | os.PathLike) -> tuple[dict[str, Any], list[Record]]:
    """Header and records of a history, which is left as it is; also while its run writes it.

    Raises: ValueError that names the line, for a file that is damaged elsewhere than in a torn last line.
    """
    header, records, _ = _read(Path(path))
    if header is None:
        raise ValueError(f"{path}: expected a history, got a file without a complete line")
    return header, records


def _read(path: Path) -> tuple[dict[str, Any] | None, list[Record], int]:
    """Header (None without a complete line), records, and how many bytes the complete lines take."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    header = None
    records: list[Record] = []
    collecting = gc.isenabled()
    gc.disable()  # all that is made here stays; the collector would go through it again and again
    try:
        for number, line in enumerate(lines, start=1):
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"expected at most {MAX_LINE_BYTES} bytes, got {len(line)}")
                value = json.loads(line, parse_constant=_refuse)
                if number == 1:
                    header = _check_header(value)
                else:
                    records.append(_check_order(_decode(value), records))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    finally:
        if collecting:
            gc.enable()
    return header, records, sum(map(len, lines))


def _check_header(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"expected a header with schema {SCHEMA}, got {value!r:.200}")
    add_operations(value.get("own_operations"))  # to read the genomes, it is enough to know their types
    return value


def _check_order(record: Record, earlier: list[Record]) -> Record:
    least = earlier[-1].generation if earlier else 0
    if record.index != len(earlier):
        raise ValueError(f"index: expected {len(earlier)}, got {record.index}")
    if record.generation < least:
        raise ValueError(f"generation: expected at least {least}, got {record.generation}")
    return record


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
        self.path = Path(path)
        header = json.loads(json.dumps({"schema": SCHEMA, **header}))
        found, records, length = _read(self.path)
        super().__init__(records)
        if found is not None:
            self._compare(found, header, identity)
        self.header = found or header
        self._file = open(self.path, "ab")  # noqa: SIM115 (open as long as the history)
        try:
            if found is None:
                self._file.truncate(0)
                self._write(header)
            elif length < self.path.stat().st_size:
                warnings.warn(f"{self.path}: dropped a torn last line", stacklevel=2)
                self._file.truncate(length)
        except BaseException:
            self._file.close()
            raise

    def _compare(self, found: dict[str, Any], header: dict[str, Any], identity: tuple[str, ...]) -> None:
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
