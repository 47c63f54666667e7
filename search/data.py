"""Token arrays of the three parts of a text, and masked-language-model batches of them."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from autobert_zero.search.masking import IGNORE_INDEX, Masking
from autobert_zero.search.settings import SearchSettings, stream
from autobert_zero.search.text import ROLES, prepare


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
        """Of the text that the settings name. Raises as `prepare` does."""
        text = prepare(settings, settings.seed, settings.sequence_length)
        cls_token_id = text.tokenizer.cls_token_id
        arrays = {role: cut(text.parts[role], cls_token_id, settings.sequence_length) for role in ROLES}
        return cls(arrays, text.tokenizer, settings.seed, text.digest)

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
