"""Packed sequences for pre-training, each a function of the seed and its number.

A *block*, one item of the data set, is one sequence of the maximum length, or several short ones with as many tokens.
So all batches have the same number of tokens, and a curriculum may start with short sequences.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from autobert_zero.search.seeding import random_stream
from autobert_zero.search.text.masking import MASK_PROBABILITY, Masking


OBJECTIVES = ("mlm", "nsp", "sop")
SENTENCE_ENDS = (".", "!", "?")


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, length: int, epoch: int, count: int, width: int) -> tuple[np.ndarray, int]:
    """Order of the sequences of an epoch, and an offset, so that every epoch cuts the text at other places."""
    rng = random_stream(seed, "order", length, epoch)
    return rng.permutation(count), int(rng.integers(width))


class Packer:
    """Sequences without padding from an array of tokens in which a separator ends every document.

    Args:
        tokens: (tokens,) integers.
        objective: `mlm`: `[CLS] …`. `nsp`, next sentence: `[CLS] A [SEP] B [SEP]`, where B follows A (label 0) or begins
            in another document than A (1). `sop`, sentence order: B follows A (0) or A follows B (1).
        seed: of the order, of pairs and of masks.

    Sequences continue across the ends of documents. Segments of pairs start and end at sentence boundaries (full
    stops), except at the ends of the sequence.

    Raises: ValueError for an unknown objective, and for next sentences of a single document.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        objective: str = "mlm",
        whole_word_masking: bool = False,
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {list(OBJECTIVES)}, got {objective!r}")
        self.tokens = tokens
        self.seed = seed
        self.objective = objective
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.mask = Masking(tokenizer, whole_word_masking)
        ends: Any = tokenizer.convert_tokens_to_ids(list(SENTENCE_ENDS))
        self.sentence_ends = [i for i in ends if i not in (None, tokenizer.unk_token_id)]
        self.document_ends = np.flatnonzero(tokens == self.sep) if objective == "nsp" else np.zeros(0)
        if objective == "nsp" and len(self.document_ends) < 2:
            raise ValueError("objective: expected at least 2 documents for next sentences, got 1")

    def _width(self, length: int) -> int:
        """Tokens of text per sequence."""
        return length - (1 if self.objective == "mlm" else 3)

    def count(self, length: int) -> int:
        """Sequences per epoch, at any offset."""
        width = self._width(length)
        return max(0, (len(self.tokens) - width + 1) // width)

    def _text(self, length: int, number: int) -> tuple[np.ndarray, int]:
        count, width = self.count(length), self._width(length)
        order, shift = _epoch_order(self.seed, length, number // count, count, width)
        start = shift + width * int(order[number % count])
        return self.tokens[start : start + width].astype(np.int64), start

    def _cut(self, text: np.ndarray, rng: np.random.Generator) -> int:
        """A position between two sentences; the middle if there is none."""
        places = 1 + np.flatnonzero(np.isin(text[:-1], self.sentence_ends) & (text[1:] != self.sep))
        return int(rng.choice(places)) if len(places) else len(text) // 2

    def sequence(self, length: int, number: int) -> dict[str, np.ndarray]:
        """`input_ids` (length,), and for pairs `token_type_ids` (length,) and `next_sentence_label` ()."""
        text, start = self._text(length, number)
        if self.objective == "mlm":
            return {"input_ids": np.concatenate([[self.cls], text])}
        rng = random_stream(self.seed, "pair", length, number)
        cut = self._cut(text, rng)
        a, b = text[:cut], text[cut:]
        label = int(rng.integers(2))
        if label and self.objective == "sop":
            a, b = b, a
        elif label:
            b = self._from_another_document(length, start, len(b), rng)
        ids = np.concatenate([[self.cls], a, [self.sep], b, [self.sep]])
        types = np.repeat([0, 1], [len(a) + 2, len(b) + 1])
        return {"input_ids": ids, "token_type_ids": types, "next_sentence_label": np.array(label)}

    def _from_another_document(self, length: int, start: int, size: int, rng: np.random.Generator) -> np.ndarray:
        document = int(np.searchsorted(self.document_ends, start))
        other = (document + int(rng.integers(1, len(self.document_ends)))) % len(self.document_ends)
        first = int(self.document_ends[other - 1]) + 1 if other else 0
        begin = int(rng.integers(first, self.document_ends[other] + 1))
        text = self.tokens[begin : begin + self._width(length)].astype(np.int64)
        # Before the end of the document. Near the end of the text there may be too little left.
        last = max(first, int(self.document_ends[other]) - 1)
        begin = min(begin + self._cut(text, rng), last, len(self.tokens) - size)
        return self.tokens[begin : begin + size].astype(np.int64)

    def block(
        self, length: int, numbers: Iterable[int], mask_name: int, probability: float = MASK_PROBABILITY
    ) -> dict[str, torch.Tensor]:
        """Masked sequences and their labels: (sequences, length) int64, and `next_sentence_label` (sequences,)."""
        rows = [self.sequence(length, number) for number in numbers]
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        ids, labels = self.mask(columns.pop("input_ids"), random_stream(self.seed, "mask", mask_name), probability)
        return {"input_ids": ids, "labels": labels, **{name: torch.from_numpy(c) for name, c in columns.items()}}


@dataclass(frozen=True)
class Curriculum:
    """The first `short_blocks` blocks hold sequences of `short` tokens, the others one sequence of `long` tokens.

    Args:
        mlm_probability: fraction of the tokens that become labels, in the first block and in block `blocks`, and linear in
            between.
        blocks: their number, for a fraction that changes.
        progress: instead of `blocks`, how far the training is, from 0 to 1, whenever a block is made.

    Raises: ValueError unless the long length is a multiple of the short one.
    """

    long: int
    short: int
    short_blocks: int
    mlm_probability: tuple[float, float] = (MASK_PROBABILITY, MASK_PROBABILITY)
    blocks: int = 1
    progress: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        if self.short < 8 or self.long % self.short:
            raise ValueError(
                f"short_seq_length: expected at least 8, and a divisor of max_seq_length={self.long}, got {self.short}"
            )

    def sequences(self, number: int) -> tuple[int, range]:
        """Length and numbers of the sequences of a block."""
        if number < self.short_blocks:
            each = self.long // self.short
            return self.short, range(number * each, (number + 1) * each)
        return self.long, range(number - self.short_blocks, number - self.short_blocks + 1)

    def probability(self, number: int) -> float:
        """Fraction of the tokens of a block that become labels."""
        first, last = self.mlm_probability
        progress = min(1.0, number / self.blocks) if self.progress is None else self.progress()
        return first + (last - first) * progress


class Blocks(Dataset):
    """`total` blocks of one text, in training order: use a sequential sampler.

    Raises: ValueError for a text without a single sequence.
    """

    def __init__(self, packer: Packer, curriculum: Curriculum, total: int):
        self.packer = packer
        self.curriculum = curriculum
        self.total = total
        if not packer.count(curriculum.long):
            raise ValueError(
                f"train_file: expected about {2 * curriculum.long} tokens or more for sequences of {curriculum.long}, "
                f"got {len(packer.tokens)}"
            )

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        length, numbers = self.curriculum.sequences(number)
        return self.packer.block(length, numbers, number, self.curriculum.probability(number))


class StreamedBlocks(IterableDataset):
    """An endless stream of blocks of a text that is read repeatedly, a buffer of documents at a time.

    Args:
        read: returns the documents.
        pack: makes the packer of a buffer of documents, given its number.
        documents: maximum number of documents in a buffer, within which the order is random.

    Documents at the end that are too short for a block are skipped.

    Raises: ValueError for a text without a block, and in a worker of a `DataLoader`, which must have none.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[str]],
        pack: Callable[[list[str], int], Packer],
        curriculum: Curriculum,
        documents: int,
    ):
        self.read, self.pack, self.curriculum, self.documents = read, pack, curriculum, documents

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if get_worker_info() is not None:
            raise ValueError("dataloader_num_workers: expected 0 with streaming, to keep the order of blocks")
        block, buffer = 0, 0
        while True:
            documents, before = iter(self.read()), block
            while held := list(itertools.islice(documents, self.documents)):
                packer = self.pack(held, buffer)
                buffer += 1
                for here in range(packer.count(self.curriculum.long)):
                    length, numbers = self.curriculum.sequences(block)
                    first = here * len(numbers)
                    yield packer.block(
                        length, range(first, first + len(numbers)), block, self.curriculum.probability(block)
                    )
                    block += 1
            if block == before:
                raise ValueError(f"dataset_name: expected text for a sequence of {self.curriculum.long} tokens")


def join_blocks(blocks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch: the sequences of all blocks, which must have the same length."""
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
