"""From files or the Hub to documents, and their split into three disjoint parts.

The super-network and all candidates train on *train*, scores that steer the search are computed on *validation*, and
reported losses on *test*, which the search never sees. The split is by document.
"""

import bz2
import contextlib
import glob
import gzip
import itertools
import lzma
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import datasets
from pandas.errors import ParserWarning

from autobert_zero.search.files import first_line
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import TextSettings


PARTS = ("train", "validation", "test")

# Minimum number of characters of a line that counts as repeated text if another document has it, too.
LONG_LINE = 40

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# Readers of `datasets` for files with columns, by suffix, and their options.
_JSON: tuple[str, dict[str, Any]] = ("json", {})
# Rows of text such as NA and null are text, and the first of more values than columns is no index.
_CSV = {"keep_default_na": False, "index_col": False}
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".jsonlines"), _JSON),
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
# The first bytes of what readers would take for text, or would unpack whatever its format.
_NOT_TEXT = {b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive"}


def _language_reference() -> Iterator[str]:
    """The default corpus: topics of the Python language reference, which is part of CPython."""
    return (topics.topics[name] for name in sorted(topics.topics))


def _paragraph_blocks(lines: Iterable[str]) -> Iterator[str]:
    for blank, block in itertools.groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield "\n".join(block)


def _column(rows: Iterable[dict], column: str, source: str) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise ValueError(f"text_column: expected a column of {source}, one of {sorted(row)}, got {column!r}")
        text = row[column]
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise ValueError(f"text_column: expected text in {column!r} of {source}, got {text!r:.50} in row {number}")


@contextlib.contextmanager
def _readable(setting: str, source: str) -> Iterator[None]:
    """Turn errors of reading into a ValueError that names the setting and the source."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}: expected UTF-8 in {source!r}, got {error}") from None
    except Exception as error:  # the readers of `datasets` raise whatever their formats raise
        raise ValueError(f"{setting}: cannot read {source!r}: {first_line(error.__cause__ or error)}") from error


@contextlib.contextmanager
def _plain_name(path: str) -> Iterator[str]:
    """The path, or a link to it if `datasets` would take its name for a chain of URLs."""
    if "::" not in path:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "text" + "".join(Path(path).suffixes))
        link.symlink_to(Path(path).resolve())
        yield str(link)


def _rows(path: str, reader: str, options: dict[str, Any]) -> Iterator[dict]:
    with _readable("train_file", path), _plain_name(path) as name:
        # Escaped, because `datasets` treats names as patterns.
        rows = iter(
            datasets.load_dataset(reader, data_files=[glob.escape(name)], split="train", streaming=True, **options)
        )
        while True:
            with warnings.catch_warnings():
                if reader == "csv":
                    warnings.simplefilter("error", ParserWarning)  # about values that belong to no column
                row = next(rows, None)
            if row is None:
                return
            yield row


def _start(path: str) -> bytes:
    """The first bytes of a file, decompressed."""
    opener = _OPENERS.get(Path(path).suffix.lower(), open)
    with _readable("train_file", path), opener(path, "rb") as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")


def _file(path: str, settings: TextSettings) -> Iterator[str]:
    if os.path.isdir(path):
        raise ValueError(f"train_file: expected a file, got the folder {path!r}")
    if not os.path.isfile(path):
        raise ValueError(f"train_file: expected a file, got {path!r}")
    if not os.path.getsize(path):
        raise ValueError(f"train_file: expected text, got none in {path!r}")
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in _OPENERS]
    suffix = suffixes[-1] if suffixes else ""
    start = _start(path)
    for first, kind in _NOT_TEXT.items():
        if start.startswith(first):
            raise ValueError(f"train_file: expected text, got {kind} in {path!r}")
    if suffix not in _READERS:
        has_column = suffix not in ("", ".txt") or start.startswith(b"{")
        if has_column and settings.text_column != TextSettings.text_column:
            raise ValueError(f"text_column: expected a file that ends in {', '.join(_READERS)}, got {path!r}")
        return _paragraph_blocks(_column(_rows(path, "text", {"sample_by": "line"}), "text", path))
    # The reader of JSON crashes on a bare value, and invents a column for a list of strings.
    if _READERS[suffix] is _JSON and not (
        start.startswith(b"{") or (start[:1] == b"[" and start[1:].lstrip()[:1] == b"{")
    ):
        raise ValueError(f"train_file: expected JSON objects with the column {settings.text_column!r} in {path!r}")
    return _column(_rows(path, *_READERS[suffix]), settings.text_column, path)


def _data_set(settings: TextSettings) -> Iterator[dict]:
    """Rows of a data set of the Hub or of a local folder."""
    name = str(settings.dataset_name)
    with _readable("dataset_name", name):
        yield from datasets.load_dataset(
            name, settings.dataset_config_name, split="train", streaming=settings.streaming
        )


def _without_repeated_lines(documents: Iterable[str]) -> Iterator[str]:
    """Documents without long lines that an earlier one has, too: parts that share them would not be disjoint."""
    known: set[str] = set()
    for document in documents:
        lines = [line.strip() for line in document.removeprefix("\ufeff").split("\n")]
        kept = "\n".join(line for line in lines if line not in known)
        known.update(line for line in lines if len(line) >= LONG_LINE)
        if kept.strip():
            yield kept


def stream_documents(settings: TextSettings) -> Iterator[str]:
    """The non-empty documents of the corpus, in order.

    Raises: ValueError if a source is missing, empty, not UTF-8 or without the text column.
    """
    if settings.train_file:
        source: Iterable[str] = itertools.chain.from_iterable(_file(path, settings) for path in settings.train_file)
    elif settings.dataset_name:
        source = _column(_data_set(settings), settings.text_column, settings.dataset_name)
    else:
        source = _language_reference()
    return itertools.islice((text for text in source if text.strip()), settings.max_documents)


def count_bytes(documents: Iterable[str]) -> int:
    """UTF-8 bytes of all documents."""
    return sum(len(document.encode()) for document in documents)


def read_documents(settings: TextSettings) -> list[str]:
    """All documents of the corpus, without text repeated from an earlier one. Raises as `stream_documents` does."""
    found = list(dict.fromkeys(_without_repeated_lines(stream_documents(settings))))
    if not found:
        raise ValueError("train_file: expected text, got none")
    return found


def split_documents(documents: list[str], settings: TextSettings) -> dict[str, list[str]]:
    """Assign whole documents, in random order, to the three parts. Raises: ValueError for fewer than three documents."""
    if len(documents) < len(PARTS):
        raise ValueError(
            f"train_file: expected at least {len(PARTS)} documents (a blank line ends one) for disjoint train, "
            f"validation and test parts, got {len(documents)}"
        )
    total = sum(map(len, documents))
    fractions = {"test": settings.test_fraction, "validation": settings.validation_fraction}
    rest = [documents[i] for i in random_stream(settings.split_seed, "split").permutation(len(documents))]
    parts: dict[str, list[str]] = {}
    for later, (part, fraction) in zip((2, 1), fractions.items(), strict=True):
        taken: list[int] = []
        size = 0
        for i, document in enumerate(rest):
            # If it fits into the fraction and leaves a document for each of the later parts.
            if size + len(document) <= fraction * total and len(rest) - len(taken) > later:
                taken.append(i)
                size += len(document)
        if not taken:
            taken = [min(range(len(rest)), key=lambda i: len(rest[i]))]
        parts[part] = [rest[i] for i in taken]
        gone = set(taken)
        rest = [document for i, document in enumerate(rest) if i not in gone]
    parts["train"] = rest
    return parts
