"""Token arrays, masked batches and the unigram baseline."""

from collections import Counter

import numpy as np
import pytest
from transformers import BertTokenizer

from autobert_zero.search.settings import SearchSettings, TextSettings
from autobert_zero.search.text.corpus import Corpus
from autobert_zero.search.text.documents import PARTS, read_documents, split_documents
from autobert_zero.search.text.masking import IGNORE_INDEX, Masking
from autobert_zero.search.text.tokens import train_tokenizer


def build(settings: SearchSettings) -> Corpus:
    return Corpus.build(settings.text, settings.run.seed, settings.model.sequence_length)


def test_text_too_short_for_a_sequence(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b\n\nc d\n\ne f\n")
    with pytest.raises(ValueError, match=r"expected at least one sequence of 16 tokens in the train part.*too short"):
        Corpus.build(TextSettings(train_file=[str(path)], vocab_size=150), 0, 16)


@pytest.fixture
def corpus(tiny_settings) -> Corpus:
    return build(tiny_settings)


def test_a_given_tokenizer_is_used(corpus, tiny_settings, tmp_path):
    corpus.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = build(tiny_settings.replace(tokenizer_name=str(tmp_path / "tokenizer")))
    assert again.digest() == corpus.digest()


def test_sequences(corpus):
    for part in PARTS:
        array = corpus.arrays[part]
        assert array.shape[1] == 16 and array.dtype == np.int32
        assert (array[:, 0] == corpus.tokenizer.cls_token_id).all()
    text = corpus.tokenizer.decode(corpus.arrays["train"][0], skip_special_tokens=True)
    assert "near house" in text


def test_batches_are_functions_of_their_names(corpus):
    one = corpus.batch("a", 3, 4)
    for _ in range(2):
        corpus.batch("b", 0, 4)
    for x, y in zip(one, corpus.batch("a", 3, 4), strict=True):
        assert (x == y).all()
    # Another name: the same sequences with other masks.
    inputs, labels = corpus.batch("b", 3, 4)
    restore = [np.where(y == IGNORE_INDEX, x, y) for x, y in (one, (inputs, labels))]
    assert (restore[0] == restore[1]).all() and not (one[1] == labels).all()


def test_an_epoch_has_every_sequence_once(corpus):
    rows = len(corpus.arrays["train"])
    seen = []
    for step in range(rows):
        inputs, labels = corpus.batch("a", step, 1)
        seen.append(tuple(np.where(labels == IGNORE_INDEX, inputs, labels)[0].tolist()))
    assert sorted(seen) == sorted(map(tuple, corpus.arrays["train"].tolist()))


def test_masking_is_that_of_bert(corpus):
    counts = np.zeros(4)
    special = set(corpus.tokenizer.all_special_ids)
    for step in range(300):
        inputs, labels = (x.numpy() for x in corpus.batch("a", step, 8))
        labelled = labels != IGNORE_INDEX
        assert not np.isin(labels[labelled], list(special)).any()
        masked = inputs == corpus.tokenizer.mask_token_id
        counts += labelled.sum(), (labelled & masked).sum(), (labelled & (inputs == labels)).sum(), labels.size
    assert counts[0] / counts[3] == pytest.approx(0.15 * 14 / 16, abs=0.015)  # of 16 tokens about two are special
    assert counts[1] / counts[0] == pytest.approx(0.8, abs=0.02)
    assert counts[2] / counts[0] == pytest.approx(0.1, abs=0.02)


def test_whole_words_are_masked_together():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "house"]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    row = np.array([2, 5, 6, 7, 8, 5, 3, 6, 8, 8])
    rng = np.random.default_rng(0)
    share = 0
    for _ in range(500):
        labels = Masking(tokenizer, whole_words=True)(np.stack([row] * 4), rng)[1].numpy() != IGNORE_INDEX
        assert (labels[:, 1:4].all(1) | ~labels[:, 1:4].any(1)).all()
        assert not labels[:, [0, 6]].any()
        share += labels[:, [4, 5, 8, 9]].mean() / 500
    assert share == pytest.approx(0.15, abs=0.02)
    whole = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces[:6])})
    with pytest.raises(ValueError, match="whole_word_masking: expected a WordPiece tokenizer"):
        Masking(whole, whole_words=True)


def test_every_batch_has_a_label(corpus):
    for step in range(200):
        assert (corpus.batch("a", step, 1)[1] != IGNORE_INDEX).any()
    arrays = {part: array[:1].copy() for part, array in corpus.arrays.items()}
    arrays["validation"][:] = corpus.tokenizer.cls_token_id
    with pytest.raises(ValueError, match="in the validation part"):
        Corpus(arrays, corpus.tokenizer, 0, 0)


def test_the_test_part_affects_neither_vocabulary_nor_training(corpus, tiny_settings):
    """Only the train part determines the tokenizer, the batches and the unigram frequencies."""
    parts = split_documents(read_documents(tiny_settings.text), tiny_settings.text)
    tokenizer = train_tokenizer(parts["train"], tiny_settings.text.vocab_size, tiny_settings.model.sequence_length)
    assert tokenizer.get_vocab() == corpus.tokenizer.get_vocab()
    arrays = {**corpus.arrays, "test": corpus.arrays["validation"], "validation": corpus.arrays["test"]}
    swapped = Corpus(arrays, corpus.tokenizer, corpus.seed, corpus.split_seed)
    assert (swapped.batch("a", 1, 4)[0] == corpus.batch("a", 1, 4)[0]).all()
    frequent = Counter(corpus.arrays["train"].ravel().tolist())
    counts = [frequent[i] if i not in corpus.tokenizer.all_special_ids else 0 for i in range(len(corpus.tokenizer))]
    labels = next(y[y != IGNORE_INDEX] for _, y in corpus.evaluation_batches("test", 4, 4)).tolist()
    expected = -np.mean([np.log((counts[y] + 1) / (sum(counts) + len(counts))) for y in labels])
    assert corpus.unigram_loss("test", 4) == pytest.approx(expected)


def test_runs_with_other_seeds_are_evaluated_on_the_same_text(corpus, tiny_settings):
    other = build(tiny_settings.replace(seed=tiny_settings.run.seed + 1))
    assert other.digest() == corpus.digest()
    assert (other.batch("a", 0, 4)[0] != corpus.batch("a", 0, 4)[0]).any()
    for part in ("validation", "test"):
        [(inputs, labels)], [expected] = (list(each.evaluation_batches(part, 4, 4)) for each in (other, corpus))
        assert (inputs == expected[0]).all() and (labels == expected[1]).all()
    split = build(tiny_settings.replace(split_seed=tiny_settings.text.split_seed + 1))
    assert split.digest() != corpus.digest()


def test_evaluation_is_the_same_every_time(corpus):
    one, other = (list(corpus.evaluation_batches("validation", 5, 2)) for _ in range(2))
    assert len(one) == 3 and all((a[0] == b[0]).all() for a, b in zip(one, other, strict=True))
    assert corpus.unigram_loss("test", 8) == corpus.unigram_loss("test", 8) > 1


def test_the_digest_depends_on_every_token(corpus):
    digest = corpus.digest()
    corpus.arrays["test"][0, 3] += 1
    assert corpus.digest() != digest
