"""Text: from files or the Hub to documents, three disjoint parts of them, a tokenizer, and tokens.

Parts are split by document. The super-network and all candidates train on *search*, scores that steer the search come
from *select*, printed losses from *report*, which the search never sees.
"""

import array
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import datasets
import numpy as np
import tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from autobert_zero.search import reporting
from autobert_zero.search.settings import TextSettings, stream


ROLES = ("search", "select", "report")

# Characters from which on a line that is repeated in another document counts as repeated text.
LONG_LINE = 40

_COMPRESSED = (".gz", ".xz", ".bz2")
_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv"}


def _language_reference() -> Iterator[str]:
    """The default corpus: topics of the Python language reference, which every CPython carries."""
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
    """Turn what reading may raise into a `ValueError` that names the setting and the source."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}: expected UTF-8 in {source!r}, got {error}") from None
    except (datasets.exceptions.DatasetsError, lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{setting}: cannot read {source!r}: {error}") from error


def _rows(path: str, builder: str) -> Iterator[dict]:
    """Rows of a file; of plain text its lines."""
    options = {"sample_by": "line"} if builder == "text" else {}
    with _readable("train_file", path):
        # Escaped, because a name is a pattern to `datasets`.
        yield from datasets.load_dataset(
            builder, data_files=[glob.escape(path)], split="train", streaming=True, **options
        )


def _file(path: str, settings: TextSettings) -> Iterator[str]:
    if not os.path.isfile(path):
        raise ValueError(f"train_file: expected a file, got {path!r}")
    if not os.path.getsize(path):
        raise ValueError(f"train_file: expected text, got none in {path!r}")
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in _COMPRESSED]
    builder = _BUILDERS.get(suffixes[-1] if suffixes else "", "text")
    if builder == "text":
        return _paragraph_blocks(_column(_rows(path, builder), "text", path))
    return _column(_rows(path, builder), settings.text_column, path)


def _data_set(settings: TextSettings) -> Iterator[dict]:
    """Rows of a data set of the Hub or of a local folder."""
    name = str(settings.dataset_name)
    with _readable("dataset_name", name):
        yield from datasets.load_dataset(
            name, settings.dataset_config_name, split="train", streaming=settings.streaming
        )


def _without_repeated_lines(documents: Iterable[str]) -> Iterator[str]:
    """Documents without the long lines that stand in one before: parts that share them would not be disjoint."""
    known: set[str] = set()
    for document in documents:
        lines = [line.strip() for line in document.removeprefix("\ufeff").split("\n")]
        kept = "\n".join(line for line in lines if line not in known)
        known.update(line for line in lines if len(line) >= LONG_LINE)
        if kept.strip():
            yield kept


def stream_documents(settings: TextSettings) -> Iterator[str]:
    """The documents of the corpus that are not empty, as they come.

    Raises `ValueError` for what is missing, empty, not UTF-8 or without the text column.
    """
    if settings.train_file:
        source: Iterable[str] = itertools.chain.from_iterable(_file(path, settings) for path in settings.train_file)
    elif settings.dataset_name:
        source = _column(_data_set(settings), settings.text_column, settings.dataset_name)
    else:
        source = _language_reference()
    return itertools.islice((text for text in source if text.strip()), settings.max_documents)


def read_documents(settings: TextSettings) -> list[str]:
    """All documents of the corpus, without what is repeated from an earlier one. Raises as `stream_documents` does."""
    found = list(dict.fromkeys(_without_repeated_lines(stream_documents(settings))))
    if not found:
        raise ValueError("train_file: expected text, got none")
    return found


def split_documents(documents: list[str], settings: TextSettings, seed: int) -> dict[str, list[str]]:
    """Whole documents, in random order, to the three parts. Raises `ValueError` for less than three documents."""
    if len(documents) < len(ROLES):
        raise ValueError(
            f"train_file: expected at least {len(ROLES)} documents (a blank line ends one) for disjoint parts to "
            f"search, select and report, got {len(documents)}"
        )
    total = sum(map(len, documents))
    shares = {"report": settings.report_fraction, "select": settings.select_fraction}
    rest = [documents[i] for i in stream(seed, "split").permutation(len(documents))]
    parts: dict[str, list[str]] = {}
    for later, (role, share) in zip((2, 1), shares.items(), strict=True):
        taken: list[int] = []
        size = 0
        for i, document in enumerate(rest):
            # What fits into the share, and leaves a document for each of the parts that come later.
            if size + len(document) <= share * total and len(rest) - len(taken) > later:
                taken.append(i)
                size += len(document)
        if not taken:
            taken = [min(range(len(rest)), key=lambda i: len(rest[i]))]
        parts[role] = [rest[i] for i in taken]
        gone = set(taken)
        rest = [document for i, document in enumerate(rest) if i not in gone]
    parts["search"] = rest
    return parts


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer, like BERT's; the same text always gives the same vocabulary."""
    lines = [line for text in texts for line in text.split("\n")]
    blank = BertTokenizer()
    special_tokens = [token for token, _ in sorted(blank.get_vocab().items(), key=lambda item: item[1])]
    backend = blank.backend_tokenizer
    characters = set().union(*map(backend.normalizer.normalize_str, lines))

    def inside_words(character: str) -> bool:
        word = backend.normalizer.normalize_str(f"a{character}a")
        return len(backend.pre_tokenizer.pre_tokenize_str(word)) == 1

    pieces = [f"##{character}" for character in sorted(characters) if inside_words(character)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=blank.unk_token))
    tokenizer.normalizer, tokenizer.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        # The trainer numbers the pieces `##c` in the random order of a hash table, and breaks ties of frequency by
        # these numbers. Named up front they have fixed numbers. Only the vocabulary is kept, so nothing stays special.
        special_tokens=[*special_tokens, *pieces],
    )
    tokenizer.train_from_iterator(lines, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=model_max_length)


def expect_vocabulary(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Raises `ValueError` for one of special tokens alone: what transformers makes where a tokenizer's files are missing."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"expected a tokenizer with a vocabulary in {name_or_path!r}, got {len(tokenizer)} special tokens"
        )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Raises `ValueError` for one that cannot be loaded or lacks the tokens of masked language modelling."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        expect_vocabulary(tokenizer, name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer: cannot load {name_or_path!r}: {error}") from None
    for name in ("cls_token", "sep_token", "mask_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer: expected one with a {name}, got {name_or_path!r} without")
    return tokenizer


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Documents in a row, `[SEP]` after each: (tokens,) int32."""
    pieces = array.array("i")
    for document in documents:
        # Line by line, because a batch is what the tokenizer works on in parallel.
        lines = document.split("\n")
        encoded = tokenizer(lines, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for line in encoded["input_ids"]:
            pieces.extend(line)
        pieces.append(tokenizer.sep_token_id)
    return np.array(pieces, dtype=np.int32)


@dataclass(frozen=True)
class Text:
    """A tokenizer; tokens by role, (tokens,) integers each, in which a separator ends every document; and 16 hexadecimal
    digits of the documents before they are split, so of no seed (None where they come as a stream)."""

    tokenizer: PreTrainedTokenizerBase
    parts: dict[str, np.ndarray]
    digest: str | None = None


def file_digest(path: str | os.PathLike) -> str:
    """16 hexadecimal digits of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def prepare(settings: TextSettings, seed: int, max_length: int) -> Text:
    """Read, split and tokenize, or take all that from `prepared_dir`, where an earlier run has kept it.

    A tokenizer is trained on the search part unless the settings name one. The folder may have been prepared elsewhere:
    what is not there, a file or a data set, is taken to be what it was.

    Args:
        seed: of the split.
        max_length: tokens in the longest sequence of the model, for the tokenizer to know.

    Raises: ValueError for bad text, and for a folder with the tokens of another text or of other settings.
    """
    folder = Path(settings.prepared_dir) if settings.prepared_dir else None
    if folder and (folder / "text.json").exists():
        text = _kept(folder, settings, seed)
    else:
        text = _read(settings, seed, max_length)
        if folder:
            _keep(folder, text, _origin(settings, seed, []))
    if not settings.tokenizer:
        text.tokenizer.model_max_length = max_length
    return text


def _read(settings: TextSettings, seed: int, max_length: int) -> Text:
    documents = read_documents(settings)
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode())
    parts = split_documents(documents, settings, seed)
    if settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer)
    else:
        tokenizer = train_tokenizer(parts["search"], settings.vocab_size, max_length)
    tokens = {role: tokenize(parts[role], tokenizer) for role in ROLES}
    return Text(tokenizer, tokens, digest.hexdigest()[:16])


def _origin(settings: TextSettings, seed: int, kept: list[str]) -> dict[str, Any]:
    """What tokens depend on; of a file that is not there, the digest that was kept."""
    paths = list(map(Path, settings.train_file))
    if not paths and not settings.dataset_name:
        paths = [Path(topics.__file__)]
    known = itertools.chain(kept, itertools.repeat(None))
    origin = {each.name: getattr(settings, each.name) for each in dataclasses.fields(TextSettings)}
    del origin["prepared_dir"]
    return {
        **origin,
        "train_file": [path.name for path in paths],
        "content of train_file": [
            file_digest(p) if p.is_file() else old for p, old in zip(paths, known, strict=False)
        ],
        "seed of the split": seed,
    }


def _keep(folder: Path, text: Text, origin: dict[str, Any]) -> None:
    """In files that are whole or not there, because processes of several machines may write the same ones."""
    # Two bytes a token where they suffice.
    dtype = np.uint16 if len(text.tokenizer) <= 1 << 16 else np.int32
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            text.tokenizer.save_pretrained(place)
            for role, tokens in text.parts.items():
                np.save(Path(place) / f"{role}.npy", tokens.astype(dtype))
            files = {name: file_digest(Path(place) / name) for name in sorted(os.listdir(place))}
            kept = {"digest": text.digest, "origin": origin, "files": files}
            reporting.write_json(Path(place) / "text.json", kept)
            for name in [*files, "text.json"]:  # which vouches for the others
                os.replace(Path(place) / name, folder / name)
    except OSError as error:
        raise ValueError(f"prepared_dir: cannot write to {folder}: {error.strerror}") from None


def _kept(folder: Path, settings: TextSettings, seed: int) -> Text:
    try:
        kept = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        old, digest = kept["origin"], kept["digest"]
        if damaged := [name for name, content in kept["files"].items() if file_digest(folder / name) != content]:
            raise ValueError(f"{', '.join(damaged)}: not what was written")
        tokenizer = load_tokenizer(str(folder))
        parts = {role: np.load(folder / f"{role}.npy", mmap_mode="r") for role in ROLES}
        origin = _origin(settings, seed, old["content of train_file"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"prepared_dir: cannot read what {folder} holds: {error!r}") from None
    different = [name for name in origin if origin[name] != old.get(name)]
    given = settings.tokenizer if settings.tokenizer and os.path.isdir(settings.tokenizer) else None
    if given and load_tokenizer(given).get_vocab() != tokenizer.get_vocab():
        different.append("content of tokenizer")
    if different:
        raise ValueError(f"prepared_dir: {folder} holds the tokens of a text that differs in {', '.join(different)}")
    return Text(tokenizer, parts, digest)
