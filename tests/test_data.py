import gzip
import itertools
import json
import lzma
from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from autobert_zero.search.data import (
    ROLES,
    Corpus,
    read_documents,
    split_documents,
    train_tokenizer,
)
from autobert_zero.search.masking import IGNORE_INDEX, Masking
from autobert_zero.search.settings import SearchSettings, TextSettings

from .conftest import TINY_RUN, write_corpus


TEXT = "One line, é.\nIts second.\n\n \n\nTwo.\n\nThree\n\nTwo.\n"
DOCUMENTS = ["One line, é.\nIts second.", "Two.", "Three"]


def settings_for(path, **kwargs):
    return SearchSettings(train_file=[str(path)], **{**TINY_RUN, **kwargs})


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.xz", ""])
def test_plain_text(tmp_path, suffix):
    path = tmp_path / f"text.{suffix}".rstrip(".")
    content = TEXT.encode()
    path.write_bytes(
        gzip.compress(content)
        if suffix.endswith("gz")
        else lzma.compress(content)
        if suffix.endswith("xz")
        else content
    )
    # White lines separate; the document that stands there twice is read once.
    assert read_documents(settings_for(path)) == DOCUMENTS


def test_columns(tmp_path):
    jsonl = tmp_path / "text.jsonl.gz"
    jsonl.write_bytes(gzip.compress("\n".join(json.dumps({"body": d, "n": 1}) for d in DOCUMENTS).encode()))
    csv = tmp_path / "text.csv"
    csv.write_text("n,body\n1,Four\n2,Five\n")
    settings = SearchSettings(train_file=[str(jsonl), str(csv)], text_column="body", **TINY_RUN)
    assert read_documents(settings) == [*DOCUMENTS, "Four", "Five"]
    with pytest.raises(ValueError, match=r"text_column: expected a column of .*, one of \['body', 'n'\], got 'text'"):
        read_documents(SearchSettings(train_file=[str(jsonl)], **TINY_RUN))


def test_cells_without_text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    assert read_documents(settings_for(path)) == ["one", "two"]
    path.write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match=r"text_column: expected text in 'text' of .*, got 3 in row 1"):
        read_documents(settings_for(path))


def test_a_name_is_no_pattern(tmp_path):
    (tmp_path / "a1.txt").write_text("wrong")
    (tmp_path / "a[1].txt").write_text("right")
    assert read_documents(settings_for(tmp_path / "a[1].txt")) == ["right"]


def test_what_stands_in_an_earlier_document_is_dropped(tmp_path):
    long, short = "a line that is long enough to be text of its own", "a short one"
    path = tmp_path / "text.txt"
    path.write_text(f"\ufefffirst\n{long}\n{short}\n{long}\n\nsecond\n{short}\n {long}\n\n{long}\n")
    assert read_documents(settings_for(path)) == [f"first\n{long}\n{short}\n{long}", f"second\n{short}"]


def test_parts_of_the_default_corpus_share_no_long_line():
    for seed in (42, 1):
        parts = split_documents(read_documents(TextSettings()), TextSettings(), seed)
        lines = {
            role: {line for text in part for line in text.split("\n") if len(line) >= 40}
            for role, part in parts.items()
        }
        assert all(len(part) > 50 for part in lines.values())
        for one, other in itertools.combinations(ROLES, 2):
            assert not lines[one] & lines[other]


def test_files_end_documents(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"end of {name}")
    settings = SearchSettings(train_file=[str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], **TINY_RUN)
    assert read_documents(settings) == ["end of a.txt", "end of b.txt"]


def test_local_data_set_and_streaming(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(9)))
    settings = SearchSettings(dataset_name=str(tmp_path), streaming=True, max_documents=4, **TINY_RUN)
    assert read_documents(settings) == [f"document {i}" for i in range(4)]


def test_default_corpus_is_the_language_reference():
    documents = read_documents(SearchSettings())
    assert len(documents) > 50 and sum(len(d.split()) for d in documents) > 50_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected text, got none"),
        (b" \n\n \n", "expected text, got none"),
        (b"caf\xe9\n\nb\n\nc\n", "expected UTF-8"),
    ],
)
def test_unreadable_text(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"train_file: .*{message}"):
        read_documents(settings_for(path))


def test_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"train_file: expected a file, got .*missing"):
        read_documents(settings_for(tmp_path / "missing.txt"))
    for name in ("text.txt.gz", "text.txt.xz", "text.json"):
        path = tmp_path / name
        path.write_bytes(b"{neither JSON nor compressed")
        with pytest.raises(ValueError, match="train_file: cannot read"):
            read_documents(settings_for(path))
    for name in ("empty.jsonl", "empty.csv"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"train_file: expected text, got none in .*empty"):
            read_documents(settings_for(tmp_path / name))


def test_data_sets_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="dataset_name: cannot read"):
        read_documents(SearchSettings(dataset_name=str(tmp_path / "nothing"), **TINY_RUN))
    (tmp_path / "data.jsonl").write_text("{no JSON")
    settings = SearchSettings(dataset_name=str(tmp_path), streaming=True, max_documents=4, **TINY_RUN)
    with pytest.raises(ValueError, match="dataset_name: cannot read"):
        read_documents(settings)


def test_split_is_by_document_and_disjoint(tmp_path):
    documents = [f"document {i} " * (1 + i % 3) for i in range(40)]
    settings = TextSettings(select_fraction=0.1, report_fraction=0.2)
    parts = split_documents(documents, settings, seed=0)
    assert sorted(itertools.chain.from_iterable(parts.values())) == sorted(documents)
    assert all(parts.values())
    share = {role: sum(map(len, part)) / sum(map(len, documents)) for role, part in parts.items()}
    assert 0.05 < share["select"] <= 0.1 and 0.15 < share["report"] <= 0.2
    assert split_documents(documents, settings, seed=1)["report"] != parts["report"]


def test_split_of_documents_of_very_different_length():
    documents = ["huge " * 1000, *(f"small {i} " * 20 for i in range(30))]
    for seed in range(20):
        parts = split_documents(documents, TextSettings(select_fraction=0.05, report_fraction=0.05), seed)
        assert documents[0] in parts["search"] and len(parts["report"]) > 1


def test_split_of_few_documents():
    parts = split_documents(["long " * 100, "b", "c"], TextSettings(), seed=0)
    assert sorted(map(len, parts.values())) == [1, 1, 1]
    with pytest.raises(ValueError, match=r"expected at least 3 documents .* got 2"):
        split_documents(["a", "b"], TextSettings(), seed=0)


def test_text_too_short_for_a_sequence(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b\n\nc d\n\ne f\n")
    with pytest.raises(ValueError, match=r"expected at least one sequence of 16 tokens in the part to .*too short"):
        Corpus.build(settings_for(path))


def test_tokenizer_training_repeats_itself_and_is_saved(tmp_path):
    texts = read_documents(SearchSettings())[:20]
    one, other = (train_tokenizer(texts, vocab_size=1000, model_max_length=64) for _ in range(2))
    assert one.get_vocab() == other.get_vocab() and len(one) == 1000
    ids = one("The value of [MASK], 12 expressions.")["input_ids"]
    tokens = one.convert_ids_to_tokens(ids)
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and "[MASK]" in tokens and "[UNK]" not in tokens
    assert set(one.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    one.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("The value of [MASK], 12 expressions.")["input_ids"] == ids
    assert loaded.model_max_length == 64


@pytest.mark.parametrize("name", ["no/such/tokenizer", "tests"])
def test_tokenizer_that_cannot_be_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="tokenizer: cannot load"):
        Corpus.build(settings_for(write_corpus(tmp_path / "c.txt"), tokenizer=name))


@pytest.fixture
def corpus(tiny_settings) -> Corpus:
    return Corpus.build(tiny_settings)


def test_a_given_tokenizer_is_used(corpus, tiny_settings, tmp_path):
    corpus.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = Corpus.build(SearchSettings(**{**tiny_settings.to_dict(), "tokenizer": str(tmp_path / "tokenizer")}))
    assert again.digest() == corpus.digest()


def test_sequences(corpus):
    for role in ROLES:
        array = corpus.arrays[role]
        assert array.shape[1] == 16 and array.dtype == np.int32
        assert (array[:, 0] == corpus.tokenizer.cls_token_id).all()
    text = corpus.tokenizer.decode(corpus.arrays["search"][0], skip_special_tokens=True)
    assert "near house" in text


def test_batches_are_functions_of_their_names(corpus):
    one = corpus.batch("a", 3, 4)
    for _ in range(2):
        corpus.batch("b", 0, 4)
    for x, y in zip(one, corpus.batch("a", 3, 4), strict=True):
        assert (x == y).all()
    # Another name: the same sequences under other masks.
    inputs, labels = corpus.batch("b", 3, 4)
    restore = [np.where(y == IGNORE_INDEX, x, y) for x, y in (one, (inputs, labels))]
    assert (restore[0] == restore[1]).all() and not (one[1] == labels).all()


def test_an_epoch_sees_every_sequence_once(corpus):
    rows = len(corpus.arrays["search"])
    seen = []
    for step in range(rows):
        inputs, labels = corpus.batch("a", step, 1)
        seen.append(tuple(np.where(labels == IGNORE_INDEX, inputs, labels)[0].tolist()))
    assert sorted(seen) == sorted(map(tuple, corpus.arrays["search"].tolist()))


def test_masking_is_bert_s(corpus):
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
    arrays = {role: array[:1].copy() for role, array in corpus.arrays.items()}
    arrays["select"][:] = corpus.tokenizer.cls_token_id
    with pytest.raises(ValueError, match="in the part to select"):
        Corpus(arrays, corpus.tokenizer, 0)


def test_report_text_touches_neither_vocabulary_nor_training(corpus, tiny_settings):
    """Of the three parts, only *search* makes the tokenizer, the batches and the unigram frequencies."""
    parts = split_documents(read_documents(tiny_settings), tiny_settings, tiny_settings.seed)
    tokenizer = train_tokenizer(parts["search"], tiny_settings.vocab_size, tiny_settings.sequence_length)
    assert tokenizer.get_vocab() == corpus.tokenizer.get_vocab()
    arrays = {**corpus.arrays, "report": corpus.arrays["select"], "select": corpus.arrays["report"]}
    swapped = Corpus(arrays, corpus.tokenizer, corpus.seed)
    assert (swapped.batch("a", 1, 4)[0] == corpus.batch("a", 1, 4)[0]).all()
    frequent = Counter(corpus.arrays["search"].ravel().tolist())
    counts = [frequent[i] if i not in corpus.tokenizer.all_special_ids else 0 for i in range(len(corpus.tokenizer))]
    labels = next(y[y != IGNORE_INDEX] for _, y in corpus.evaluation_batches("report", 4, 4)).tolist()
    expected = -np.mean([np.log((counts[y] + 1) / (sum(counts) + len(counts))) for y in labels])
    assert corpus.unigram_loss("report", 4) == pytest.approx(expected)


def test_evaluation_is_the_same_every_time(corpus):
    one, other = list(corpus.evaluation_batches("select", 5, 2)), list(corpus.evaluation_batches("select", 5, 2))
    assert len(one) == 3 and all((a[0] == b[0]).all() for a, b in zip(one, other, strict=True))
    assert corpus.unigram_loss("report", 8) == corpus.unigram_loss("report", 8) > 1


def test_digest_sees_every_token(corpus):
    digest = corpus.digest()
    corpus.arrays["report"][0, 3] += 1
    assert corpus.digest() != digest
