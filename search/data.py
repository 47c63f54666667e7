"""Text: from files or the Hub to token arrays in three disjoint parts, and masked-language-model batches of them.

Parts are split by document. The super-network and all candidates train on *search*, scores that steer the search come
from *select*, printed losses from *report*, which the search never sees.
"""

import array
import contextlib
import glob
import hashlib
import itertools
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import tokenizers
import torch
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from autobert_zero.search.masking import IGNORE_INDEX, Masking
from autobert_zero.search.settings import SearchSettings, TextSettings, stream


ROLES = ("search", "select", "report")

# Characters from which on a line that is repeated in another document counts as repeated text.
LONG_LINE = 40

_COMPRESSED = (".gz", ".xz", ".bz2")
_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv"}


def _language_reference() -> Iterator[str]:
    """The default corpus: topics of the Python language reference, which every CPython carries."""
    from pydoc_data.topics import topics

    return (topics[name] for name in sorted(topics))


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


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Raises `ValueError` for one that cannot be loaded or lacks the tokens of masked language modelling."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
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


def cut(tokens: np.ndarray, cls_token_id: int, sequence_length: int) -> np.ndarray:
    """Sequences that begin with `[CLS]`: (sequences, tokens) int32. What is left over at the end is dropped."""
    width = sequence_length - 1
    count = len(tokens) // width
    body = tokens[: count * width].reshape(count, width)
    return np.concatenate([np.full((count, 1), cls_token_id, dtype=np.int32), body], axis=1)


def unigram_loss(tokens: np.ndarray, labels: Iterable[torch.Tensor], tokenizer: PreTrainedTokenizerBase) -> float:
    """Loss in nats of predicting every label by the frequencies of `tokens`: what knows no context."""
    counts = np.bincount(tokens.ravel(), minlength=len(tokenizer)).astype(np.float64)
    counts[tokenizer.all_special_ids] = 0
    counts += 1  # so that no token is impossible
    log_probabilities = np.log(counts / counts.sum())
    found = np.concatenate([each.numpy().ravel() for each in labels])
    return float(-log_probabilities[found[found != IGNORE_INDEX]].mean())


class Corpus:
    """Token arrays of the three parts, and batches as pure functions of their names.

    Args:
        arrays: for each role (sequences, tokens) int32.
        tokenizer: whose tokens they are.
        seed: of the order of sequences and of the masks.

    Raises: ValueError for a part without a single sequence.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        text_digest: str | None = None,
    ):
        self.arrays = dict(arrays)
        self.text_digest = text_digest  # of the documents before they are split, so of no seed
        self.tokenizer = tokenizer
        self.seed = seed
        self._mask = Masking(tokenizer)
        self._special = self._mask.special
        for role, rows in arrays.items():
            # Then every sequence of it has a token to predict, and every batch a loss.
            self.arrays[role] = rows[~np.isin(rows, self._special).all(1)]
            if not len(self.arrays[role]):
                raise ValueError(
                    f"train_file: expected at least one sequence of {rows.shape[1]} tokens in the part to {role}, "
                    "got none: the text is too short"
                )
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    @classmethod
    def build(cls, settings: SearchSettings) -> "Corpus":
        """Read, split and tokenize; a tokenizer is trained on the search part unless the settings name one."""
        documents = read_documents(settings)
        digest = hashlib.sha256()
        for document in documents:
            digest.update(document.encode())
        parts = split_documents(documents, settings, settings.seed)
        if settings.tokenizer:
            tokenizer = load_tokenizer(settings.tokenizer)
        else:
            tokenizer = train_tokenizer(parts["search"], settings.vocab_size, settings.sequence_length)
        arrays = {
            role: cut(tokenize(parts[role], tokenizer), tokenizer.cls_token_id, settings.sequence_length)
            for role in ROLES
        }
        return cls(arrays, tokenizer, settings.seed, digest.hexdigest()[:16])

    def digest(self) -> str:
        """16 hexadecimal digits of all tokens in their order."""
        digest = hashlib.sha256()
        for role in ROLES:
            digest.update(repr((role, self.arrays[role].shape)).encode())
            digest.update(np.ascontiguousarray(self.arrays[role], dtype="<i4").tobytes())
        return digest.hexdigest()[:16]

    def num_tokens(self) -> dict[str, int]:
        return {role: self.arrays[role].size for role in ROLES}

    def _order(self, role: str, epoch: int) -> np.ndarray:
        if (role, epoch) not in self._orders:
            # Only the last orders are needed again.
            while len(self._orders) > 4:
                del self._orders[next(iter(self._orders))]
            self._orders[role, epoch] = stream(self.seed, "order", role, epoch).permutation(len(self.arrays[role]))
        return self._orders[role, epoch]

    def batch(self, name: str, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training batch number `step` of the stream `name`: inputs and labels, (batch, tokens) int64 each.

        Sequences come in a new random order every epoch; only the masks depend on the name.
        """
        size = len(self.arrays["search"])
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        rows = [self._order("search", int(p) // size)[int(p) % size] for p in positions]
        return self._mask(self.arrays["search"][rows], stream(self.seed, "mask", name, step))

    def evaluation_batches(
        self, role: str, sequences: int, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """At most so many sequences of a part, the same ones with the same masks every time."""
        rows = self._order(role, 0)[:sequences]
        inputs, labels = self._mask(self.arrays[role][rows], stream(self.seed, "mask", role))
        yield from zip(inputs.split(batch_size), labels.split(batch_size), strict=True)

    def unigram_loss(self, role: str, sequences: int) -> float:
        """The unigram loss, in nats, of evaluation sequences of a part by the frequencies of the search part."""
        batches = self.evaluation_batches(role, sequences, sequences)
        return unigram_loss(self.arrays["search"], (labels for _, labels in batches), self.tokenizer)
