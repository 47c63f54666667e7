"""A text as tokens in three parts, kept in a folder if one is given."""

import dataclasses
import itertools
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data import topics
from typing import Any, NotRequired, TypedDict

import numpy as np
from transformers import PreTrainedTokenizerBase

from autobert_zero.search.files import bytes_digest, file_digest, read_json, write_json
from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text.documents import PARTS, count_bytes, read_documents, split_documents
from autobert_zero.search.text.tokens import load_tokenizer, tokenize, train_tokenizer


@dataclass(frozen=True)
class Text:
    """A tokenized text.

    Attributes:
        tokenizer: of the tokens.
        parts: tokens by part, (tokens,) integers each; a separator ends every document.
        digest: 16 hexadecimal digits of the documents before they are split; None for a stream.
        num_bytes: UTF-8 bytes of the documents by part; none in folders that older versions prepared.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: dict[str, np.ndarray]
    digest: str | None = None
    num_bytes: dict[str, int] = field(default_factory=dict)


# What tokens depend on: settings, and digests of files.
_Origin = TypedDict("_Origin", {"content of train_file": list[str | None]})


class _Contents(TypedDict):
    """text.json of a folder of tokens."""

    digest: str | None
    origin: _Origin
    files: dict[str, str]  # digests
    num_bytes: NotRequired[dict[str, int]]


def prepare(settings: TextSettings, max_length: int) -> Text:
    """Read, split and tokenize a text, or load the tokens that an earlier run left in `prepared_dir`.

    A tokenizer is trained on the train part unless the settings name one. The folder may have been prepared on another
    machine: files and data sets that are missing here are assumed to be unchanged.

    Args:
        max_length: tokens in the longest sequence of the model, for the tokenizer.

    Raises: ValueError for bad text, and for a folder with the tokens of another text or of other settings.
    """
    folder = Path(settings.prepared_dir) if settings.prepared_dir else None
    if folder and (folder / "text.json").exists():
        text = _load(folder, settings)
    else:
        text = _read(settings, max_length)
        if folder:
            _save(folder, text, _origin(settings, []))
    if not settings.tokenizer_name:
        text.tokenizer.model_max_length = max_length
    return text


def _read(settings: TextSettings, max_length: int) -> Text:
    documents = read_documents(settings)
    digest = bytes_digest(document.encode() for document in documents)
    parts = split_documents(documents, settings)
    if settings.tokenizer_name:
        tokenizer = load_tokenizer(settings.tokenizer_name)
    else:
        tokenizer = train_tokenizer(parts["train"], settings.vocab_size, max_length)
    tokens = {part: tokenize(parts[part], tokenizer) for part in PARTS}
    return Text(tokenizer, tokens, digest, {part: count_bytes(parts[part]) for part in PARTS})


def _origin(settings: TextSettings, known_digests: list[str]) -> dict[str, Any]:
    """What the tokens depend on. `known_digests` are used for files that are missing here."""
    paths = list(map(Path, settings.train_file))
    if not paths and not settings.dataset_name:
        paths = [Path(topics.__file__)]
    known = itertools.chain(known_digests, itertools.repeat(None))
    origin = {each.name: getattr(settings, each.name) for each in dataclasses.fields(TextSettings)}
    del origin["prepared_dir"], origin["split_seed"]
    return {
        **origin,
        "train_file": [path.name for path in paths],
        "content of train_file": [
            file_digest(p) if p.is_file() else old for p, old in zip(paths, known, strict=False)
        ],
        "seed of the split": settings.split_seed,
    }


def _save(folder: Path, text: Text, origin: dict[str, Any]) -> None:
    """Every file is written as a whole, because processes on several machines may write the same ones."""
    # Two bytes per token if they suffice.
    dtype = np.uint16 if len(text.tokenizer) <= 1 << 16 else np.int32
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            text.tokenizer.save_pretrained(place)
            for part, tokens in text.parts.items():
                np.save(Path(place) / f"{part}.npy", tokens.astype(dtype))
            files = {name: file_digest(Path(place) / name) for name in sorted(os.listdir(place))}
            contents = {"digest": text.digest, "origin": origin, "files": files, "num_bytes": text.num_bytes}
            write_json(Path(place) / "text.json", contents)
            for name in [*files, "text.json"]:  # last: it holds the digests of the others
                os.replace(Path(place) / name, folder / name)
    except OSError as error:
        raise ValueError(f"prepared_dir: cannot write to {folder}: {error.strerror}") from None


def _load(folder: Path, settings: TextSettings) -> Text:
    try:
        contents = read_json(folder / "text.json", _Contents)
        old, digest = contents["origin"], contents["digest"]
        if damaged := [name for name, content in contents["files"].items() if file_digest(folder / name) != content]:
            raise ValueError(f"{', '.join(damaged)}: not what was written")
        tokenizer = load_tokenizer(str(folder))
        parts = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS}
    except (OSError, ValueError) as error:
        raise ValueError(f"prepared_dir: cannot read {folder}: {error}") from None
    origin = _origin(settings, old["content of train_file"])
    different = [name for name in origin if origin[name] != old.get(name)]
    given = settings.tokenizer_name if os.path.isdir(settings.tokenizer_name or "") else None
    if given and load_tokenizer(given).get_vocab() != tokenizer.get_vocab():
        different.append("content of tokenizer_name")
    if different:
        raise ValueError(f"prepared_dir: {folder} holds the tokens of a text that differs in {', '.join(different)}")
    return Text(tokenizer, parts, digest, contents.get("num_bytes", {}))
