"""The history of a run: an append-only file of JSON lines, of which all state of a search is a replay.

The first line is a header; every further line is one record, on disk before `append` returns. A record carries a digest of
itself, so that a changed one is not mistaken for a result.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autobert_zero.search.evolution.archive import Outcome, Record
from autobert_zero.search.files import JsonLines, collector_paused, json_digest


SCHEMA = 3

_PROPOSAL_FIELDS = tuple(field.name for field in dataclasses.fields(Record) if field.name != "outcome")
_OUTCOME_FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))
_TYPES: dict[str, tuple[type, ...]] = {
    "index": (int,),
    "key": (str,),
    "generation": (int,),
    "parents": (list,),
    "duplicates": (int,),
    "score": (int, float, type(None)),
    "reason": (str, type(None)),
    "intermediate_score": (int, float, type(None)),
    "costs": (dict,),
    "seconds": (int, float),
}
# Names of the parts of the text in schema 2.
OLD_PARTS = {"search": "train", "select": "validation", "report": "test"}

# Makes a genome of its JSON form, given the header.
ReadGenome = Callable[[Any, dict[str, Any]], Any]


def _encode(record: Record) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in _PROPOSAL_FIELDS}
    values |= {"genome": record.genome.to_list(), **dataclasses.asdict(record.result)}
    return {**values, "digest": json_digest(values)}


def _upgrade_record(value: Any) -> Any:
    """A record of schema 2 with the names of today."""
    if isinstance(value, dict) and "hurdle" in value:
        value = dict(value)
        value["intermediate_score"] = value.pop("hurdle")
        if value.get("status") == "dropped":
            value["status"] = "pruned"
        value["digest"] = json_digest(value)  # records had none
    return value


def _decode(value: Any, header: dict[str, Any], read_genome: ReadGenome) -> Record:
    expected = {*_PROPOSAL_FIELDS, *_OUTCOME_FIELDS, "digest"}
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r:.200}")
    if set(value) != expected:
        missing, others = sorted(expected - set(value)), sorted(set(value) - expected)
        raise ValueError(f"expected other fields: missing {missing}, not expected {others!r:.200}")
    for name, types in _TYPES.items():
        if not isinstance(value[name], types) or isinstance(value[name], bool):
            raise ValueError(f"{name}: expected {' or '.join(t.__name__ for t in types)}, got {value[name]!r:.200}")
    if not all(isinstance(cost, (int, float)) for cost in value["costs"].values()):
        raise ValueError(f"costs: expected numbers, got {value['costs']!r:.200}")
    if not all(isinstance(parent, int) and 0 <= parent < value["index"] for parent in value["parents"]):
        raise ValueError(f"parents: expected indices below {value['index']!r:.20}, got {value['parents']!r:.200}")
    statuses = ("ok", "failed", "pruned")
    if value["status"] not in statuses or (value["status"] == "ok") != (value["score"] is not None):
        raise ValueError(f"status: expected 'ok' with a score, 'failed' or 'pruned', got {value['status']!r:.200}")
    proposal = {name: value[name] for name in _PROPOSAL_FIELDS}
    proposal |= {"genome": read_genome(value["genome"], header), "parents": tuple(value["parents"])}
    if (digest := json_digest({n: v for n, v in value.items() if n != "digest"})) != value["digest"]:
        raise ValueError(f"digest: expected {digest} for this record, got {value['digest']!r:.40}: it was changed")
    return Record(**proposal, outcome=Outcome(**{name: value[name] for name in _OUTCOME_FIELDS}))


def _check_header(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("schema") not in (2, SCHEMA):
        raise ValueError(f"expected a header with schema {SCHEMA}, got {value!r:.200}")
    if value["schema"] == SCHEMA:
        return value
    header = {"custom_operations" if name == "own_operations" else name: entry for name, entry in value.items()}
    data = header.get("data")
    if isinstance(data, dict) and isinstance(data.get("tokens"), dict):
        header["data"] = {**data, "tokens": {OLD_PARTS.get(k, k): count for k, count in data["tokens"].items()}}
    return header


def _check_order(record: Record, earlier: list[Record]) -> Record:
    minimum = earlier[-1].generation if earlier else 0
    if record.index != len(earlier):
        raise ValueError(f"index: expected {len(earlier)}, got {record.index}")
    if record.generation < minimum:
        raise ValueError(f"generation: expected at least {minimum}, got {record.generation}")
    return record


def _read(lines: JsonLines, read_genome: ReadGenome) -> tuple[dict[str, Any] | None, list[Record]]:
    """Header (None if there is no complete line) and records."""
    header = None
    records: list[Record] = []
    with collector_paused():
        for number, value in enumerate(lines.values, start=1):
            try:
                if header is None:
                    header = _check_header(value)
                else:
                    record = _decode(_upgrade_record(value), header, read_genome)
                    records.append(_check_order(record, records))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{lines.path}, line {number}: {error}") from None
    return header, records


def read_history(path: str | os.PathLike, read_genome: ReadGenome) -> tuple[dict[str, Any], list[Record]]:
    """Header and records of a history, which is not changed; also while its run writes it.

    Args:
        path: of the file.
        read_genome: makes a genome of its JSON form, given the header.

    Raises: ValueError that names the line if the file is damaged elsewhere than in a torn last line.
    """
    header, records = _read(JsonLines(path), read_genome)
    if header is None:
        raise ValueError(f"{path}: expected a history, got a file without a complete line")
    return header, records


class History(list[Record]):
    """A list of records that is also on disk: `append` returns when the record is safe.

    Args:
        path: of the file; created if it is missing.
        header: what the records depend on. If the file exists, its header must agree on `identity`.
        identity: names of the header entries that must agree; others, such as versions, may differ.
        read_genome: makes a genome of its JSON form, given the header.

    Raises: ValueError, leaving the file unchanged, if it is damaged or the history of another run. OSError if the
        folder cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike, header: dict[str, Any], identity: tuple[str, ...], read_genome: ReadGenome
    ):
        self.path = Path(path)
        self._lines = JsonLines(path)
        header = json.loads(json.dumps({"schema": SCHEMA, **header}))
        found, records = _read(self._lines, read_genome)
        super().__init__(records)
        if found is not None:
            self._compare(found, header, identity)
        self.header = found or header
        self._read_genome = read_genome
        try:
            self._lines.open()
            self._lines.values.clear()  # the records hold them
            if found is None:
                self._lines.append(header)
        except BaseException:
            self.close()
            raise

    def _compare(self, found: dict[str, Any], header: dict[str, Any], identity: tuple[str, ...]) -> None:
        differences = []
        for name in ("schema", *identity):
            old, new = found.get(name), header.get(name)
            if isinstance(old, dict) and isinstance(new, dict):
                names = [key for key in {**old, **new} if old.get(key) != new.get(key)]
                differences += [f"{key}={old.get(key)!r} (got {new.get(key)!r})" for key in names]
            elif old != new:
                differences.append(f"{name}={old!r} (got {new!r})")
        if differences:
            raise ValueError(
                f"{self.path} is the history of another run: expected {', '.join(differences)}. "
                "Choose another output_dir, or the settings and data that this folder was started with."
            )

    def append(self, record: Record) -> None:
        """Raises: ValueError, writing nothing, for a record that could not be read again."""
        value = _encode(record)
        _decode(json.loads(json.dumps(value, allow_nan=False)), self.header, self._read_genome)
        self._lines.append(value)
        super().append(record)

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
