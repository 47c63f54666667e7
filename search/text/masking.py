"""BERT's masking: which tokens are to be predicted, and what replaces them."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


IGNORE_INDEX = -100
MASK_PROBABILITY = 0.15
_CONTINUATION = "##"


def micro_batches(
    input_ids: torch.Tensor, labels: torch.Tensor, size: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Parts of a batch, each with its fraction of the labels: the loss of the batch is the weighted sum of theirs.

    Args:
        input_ids, labels: (batch, tokens).
        size: maximum number of sequences of a part; None for the whole batch.

    Yields: input ids, labels and weight of each part that has labels.
    """
    if size is None or size >= len(labels):
        yield input_ids, labels, 1.0
        return
    counts = (labels != IGNORE_INDEX).sum(1).split(size)
    total = sum(int(count.sum()) for count in counts)
    for ids, part, count in zip(input_ids.split(size), labels.split(size), counts, strict=True):
        if weight := int(count.sum()) / total:
            yield ids, part, weight


class Masking:
    """A fraction of the tokens that are not special become labels; of these 80 % are replaced by `[MASK]`, 10 % by a random
    token, and 10 % are unchanged.

    Args:
        whole_words: label all pieces of a word together.

    Raises: ValueError for whole words if the tokenizer does not mark pieces inside words as WordPiece does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, whole_words: bool = False):
        self.special = np.array(sorted(tokenizer.all_special_ids))
        self.mask_token_id = tokenizer.mask_token_id
        self.vocab_size = len(tokenizer)
        self.inside_words = None
        if whole_words:
            pieces = tokenizer.convert_ids_to_tokens(list(range(self.vocab_size)))
            self.inside_words = np.array([str(piece).startswith(_CONTINUATION) for piece in pieces])
            if not self.inside_words.any():
                raise ValueError(
                    f"whole_word_masking: expected a WordPiece tokenizer, whose pieces inside words begin with "
                    f"{_CONTINUATION}, got a {type(tokenizer).__name__} without such pieces"
                )

    def __call__(
        self, tokens: np.ndarray, rng: np.random.Generator, probability: float = MASK_PROBABILITY
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels, int64 of the shape of `tokens` (…, tokens); at least one label in total."""
        maskable = ~np.isin(tokens, self.special)
        draws = rng.random(tokens.shape)
        if self.inside_words is not None:
            # All pieces of a word share the random number of its first piece.
            positions = np.where(self.inside_words[tokens], 0, np.arange(tokens.shape[-1]))
            draws = np.take_along_axis(draws, np.maximum.accumulate(positions, axis=-1), axis=-1)
        labelled = (draws < probability) & maskable
        if not labelled.any():  # the loss needs at least one label
            if not maskable.any():  # special tokens only, such as unknown words
                maskable = np.ones_like(maskable)
            labelled = (draws == draws.flat[rng.choice(np.flatnonzero(maskable))]) & maskable
        labels = np.where(labelled, tokens, IGNORE_INDEX)
        how = rng.random(tokens.shape)
        inputs = np.where(labelled & (how < 0.8), self.mask_token_id, tokens)
        random_tokens = rng.integers(self.vocab_size, size=tokens.shape)
        inputs = np.where(labelled & (how >= 0.9), random_tokens, inputs)
        return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))
