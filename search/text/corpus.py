"""Token arrays of the three parts of a text, and masked-language-model batches of them."""

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from autobert_zero.search.files import bytes_digest
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text.documents import PARTS
from autobert_zero.search.text.masking import IGNORE_INDEX, Masking
from autobert_zero.search.text.prepared import prepare


# Random streams are named after the former names of the parts: renaming them would change every batch.
_STREAM_NAMES = {"train": "search", "validation": "select", "test": "report"}


def cut(tokens: np.ndarray, cls_token_id: int, sequence_length: int) -> np.ndarray:
    """Sequences that start with `[CLS]`: (sequences, tokens) int32. An incomplete last one is dropped."""
    width = sequence_length - 1
    count = len(tokens) // width
    body = tokens[: count * width].reshape(count, width)
    return np.concatenate([np.full((count, 1), cls_token_id, dtype=np.int32), body], axis=1)


def unigram_loss(tokens: np.ndarray, labels: Iterable[torch.Tensor], tokenizer: PreTrainedTokenizerBase) -> float:
    """Loss in nats of predicting every label by the token frequencies of `tokens`, without any context."""
    counts = np.bincount(tokens.ravel(), minlength=len(tokenizer)).astype(np.float64)
    counts[tokenizer.all_special_ids] = 0
    counts += 1  # no token has probability 0
    log_probabilities = np.log(counts / counts.sum())
    found = np.concatenate([each.numpy().ravel() for each in labels])
    return float(-log_probabilities[found[found != IGNORE_INDEX]].mean())


class Corpus:
    """Token arrays of the three parts, and batches as pure functions of their names.

    Args:
        arrays: for each part (sequences, tokens) int32.
        tokenizer: of the tokens.
        seed: of the order of sequences and of the masks in training.
        split_seed: the same for the held-out parts.
        text_digest: of the documents before they are split.

    Raises: ValueError for a part without a single sequence.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        split_seed: int,
        text_digest: str | None = None,
    ):
        self.arrays = dict(arrays)
        self.text_digest = text_digest
        self.tokenizer = tokenizer
        self.seed = seed
        self.split_seed = split_seed
        self._mask = Masking(tokenizer)
        for part, rows in arrays.items():
            # Without sequences of special tokens only: every batch has a token to predict, and a loss.
            self.arrays[part] = rows[~np.isin(rows, self._mask.special).all(1)]
            if not len(self.arrays[part]):
                raise ValueError(
                    f"train_file: expected at least one sequence of {rows.shape[1]} tokens in the {part} part, "
                    "got none: the text is too short"
                )
        self._orders: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()  # batches are built in several threads

    @classmethod
    def build(cls, settings: TextSettings, seed: int, sequence_length: int) -> "Corpus":
        """The corpus of the text that the settings name. Raises as `prepare` does."""
        text = prepare(settings, sequence_length)
        arrays = {part: cut(text.parts[part], text.tokenizer.cls_token_id, sequence_length) for part in PARTS}
        return cls(arrays, text.tokenizer, seed, settings.split_seed, text.digest)

    def with_seed(self, seed: int) -> "Corpus":
        """The same parts of the text, to train on in another order and with other masks."""
        return Corpus(self.arrays, self.tokenizer, seed, self.split_seed, self.text_digest)

    def digest(self) -> str:
        """16 hexadecimal digits of all tokens in order."""
        arrays = {part: np.ascontiguousarray(self.arrays[part], dtype="<i4") for part in PARTS}
        shapes = repr({part: rows.shape for part, rows in arrays.items()}).encode()
        return bytes_digest([shapes, *(rows.tobytes() for rows in arrays.values())])

    def num_tokens(self) -> dict[str, int]:
        return {part: self.arrays[part].size for part in PARTS}

    def _order(self, part: str, epoch: int) -> np.ndarray:
        with self._lock:
            if (part, epoch) not in self._orders:
                # Only the latest orders are needed again.
                while len(self._orders) > 4:
                    del self._orders[next(iter(self._orders))]
                seed = self.seed if part == "train" else self.split_seed
                rng = random_stream(seed, "order", _STREAM_NAMES[part], epoch)
                self._orders[part, epoch] = rng.permutation(len(self.arrays[part]))
            return self._orders[part, epoch]

    def batch(self, name: str, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training batch `step` of the training `name`: inputs and labels, (batch, tokens) int64 each.

        Sequences are in a new random order every epoch; only the masks depend on the name.
        """
        size = len(self.arrays["train"])
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        rows = [self._order("train", int(p) // size)[int(p) % size] for p in positions]
        return self._mask(self.arrays["train"][rows], random_stream(self.seed, "mask", name, step))

    def evaluation_batches(
        self, part: str, sequences: int, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """At most `sequences` sequences of a part: the same ones with the same masks every time."""
        rows = self._order(part, 0)[:sequences]
        rng = random_stream(self.split_seed, "mask", _STREAM_NAMES[part])
        inputs, labels = self._mask(self.arrays[part][rows], rng)
        yield from zip(inputs.split(batch_size), labels.split(batch_size), strict=True)

    def unigram_loss(self, part: str, sequences: int) -> float:
        """The unigram loss, in nats, of evaluation sequences of a part by the token frequencies of the train part."""
        batches = self.evaluation_batches(part, sequences, sequences)
        return unigram_loss(self.arrays["train"], (labels for _, labels in batches), self.tokenizer)
