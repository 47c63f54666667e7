"""Tokenizers: trained or loaded, and documents as tokens."""

import array
import math
from collections.abc import Iterable

import numpy as np
import tokenizers
from transformers import AutoTokenizer, BertTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from autobert_zero.search.files import one_line


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer like BERT's. The same text always gives the same vocabulary.

    Raises: ValueError for a vocabulary smaller than the characters of the text.
    """
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
        # these numbers. Listed here, they have fixed numbers. Only the vocabulary is kept, so they are not special.
        special_tokens=[*special_tokens, *pieces],
    )
    tokenizer.train_from_iterator(lines, trainer)
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise ValueError(f"vocab_size: expected at least {size}, for all characters of the text, got {vocab_size}")
    return BertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=model_max_length)


def expect_vocabulary(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Raises ValueError for a tokenizer with special tokens only, which transformers creates if files are missing."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"expected a tokenizer with a vocabulary in {name_or_path!r}, got {len(tokenizer)} special tokens"
        )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Raises: ValueError if it cannot be loaded or lacks the tokens of masked language modelling."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        expect_vocabulary(tokenizer, name_or_path)
    except Exception as error:  # transformers and tokenizers raise many kinds for damaged files
        raise ValueError(f"tokenizer_name: cannot load {name_or_path!r}: {one_line(error)}") from None
    for name in ("cls_token", "sep_token", "mask_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer_name: expected one with a {name}, got {name_or_path!r} without")
    if (largest := max(tokenizer.get_vocab().values())) >= len(tokenizer):
        raise ValueError(
            f"tokenizer_name: expected ids below {len(tokenizer)}, the number of tokens, got {largest} in {name_or_path!r}"
        )
    return tokenizer


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Documents one after the other, each followed by `[SEP]`: (tokens,) int32."""
    pieces = array.array("i")
    for document in documents:
        # Line by line, because the tokenizer parallelizes over a batch.
        lines = document.split("\n")
        encoded = tokenizer(lines, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for line in encoded["input_ids"]:
            pieces.extend(line)
        pieces.append(tokenizer.sep_token_id)
    return np.array(pieces, dtype=np.int32)


# Types of models whose first position is after the id of the padding token.
POSITIONS_AFTER_PADDING = {
    *("roberta", "roberta-prelayernorm", "camembert", "data2vec-text", "longformer", "ibert", "luke", "esm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def first_position(config: PretrainedConfig) -> int:
    """The row of the model's table of positions that belongs to the first token."""
    if config.model_type == "mpnet":
        return 2
    return (config.pad_token_id or 0) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


def max_tokens(config: PretrainedConfig) -> float:
    """Tokens of the longest sequence, by the rows of the model's table of positions; infinite without a table."""
    rows = getattr(config, "max_position_embeddings", -1)
    has_table = rows > 0 and getattr(config, "position_embedding_type", "absolute") != "none"
    return rows - first_position(config) if has_table else math.inf


def check_fit(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, length: int, setting: str, pairs: bool = False
) -> None:
    """Check that a tokenizer and a sequence length fit a model.

    Args:
        length: tokens per sequence.
        setting: name of the setting that holds the length, for the message.
        pairs: whether a sequence has two texts.

    Raises: ValueError if the tokenizer has more tokens than the model's vocabulary, or the length leaves no token of a
        text beside the special tokens, or it exceeds the model's table of positions, if it has one.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model: expected a tokenizer of at most {config.vocab_size} tokens, the vocabulary of the model, "
            f"got one of {len(tokenizer)}"
        )
    minimum = tokenizer.num_special_tokens_to_add(pairs) + (2 if pairs else 1)
    if length < minimum:
        raise ValueError(f"{setting}: expected at least {minimum}, with special tokens, got {length}")
    if length > (maximum := max_tokens(config)):
        raise ValueError(f"{setting}: expected at most {maximum}, the positions of the model, got {length}")
