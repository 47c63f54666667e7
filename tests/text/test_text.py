"""From files and data sets to documents, parts and tokens, and the folder that stores them."""

import bz2
import dataclasses
import gzip
import itertools
import json
import lzma
import shutil
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from autobert_zero.search.settings import TextSettings
from autobert_zero.search.text import prepared as prepared_text
from autobert_zero.search.text.documents import PARTS, read_documents, split_documents
from autobert_zero.search.text.prepared import prepare
from autobert_zero.search.text.tokens import load_tokenizer, train_tokenizer
from tests.conftest import write_corpus


TEXT = "One line, é.\nIts second.\n\n \n\nTwo.\n\nThree\n\nTwo.\n"
DOCUMENTS = ["One line, é.\nIts second.", "Two.", "Three"]


def settings_for(path, **kwargs) -> TextSettings:
    return TextSettings(train_file=[str(path)], **{"vocab_size": 150, **kwargs})


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
    # Blank lines separate; the repeated document is read once.
    assert read_documents(settings_for(path)) == DOCUMENTS


def test_columns(tmp_path):
    jsonl = tmp_path / "text.jsonl.gz"
    jsonl.write_bytes(gzip.compress("\n".join(json.dumps({"body": d, "n": 1}) for d in DOCUMENTS).encode()))
    csv = tmp_path / "text.csv"
    csv.write_text("n,body\n1,Four\n2,Five\n")
    settings = TextSettings(train_file=[str(jsonl), str(csv)], text_column="body")
    assert read_documents(settings) == [*DOCUMENTS, "Four", "Five"]
    with pytest.raises(ValueError, match=r"text_column: expected a column of .*, one of \['body', 'n'\], got 'text'"):
        read_documents(TextSettings(train_file=[str(jsonl)]))


def test_formats(tmp_path):
    """Rows of text that other readers take for missing or for numbers are text."""
    rows = ["NA", "null", "a text, with a comma", "nan"]
    (tmp_path / "a.csv").write_text('text,n\nNA,1\nnull,2\n"a text, with a comma",3\nnan,4\n')
    (tmp_path / "a.tsv").write_text("text\tn\n" + "".join(f"{row}\t{i}\n" for i, row in enumerate(rows)))
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (tmp_path / "a.ndjson").write_text(lines)
    (tmp_path / "a.jsonlines.bz2").write_bytes(bz2.compress(lines.encode()))
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps([{"text": row} for row in rows]))
    table = datasets.Dataset.from_dict({"text": rows})
    table.to_parquet(tmp_path / "a.parquet")
    with datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "a.arrow"), features=table.features) as writer:
        for row in rows:
            writer.write({"text": row})
        writer.finalize()
    for path in tmp_path.iterdir():
        assert read_documents(settings_for(path)) == rows, path.name


def test_cells_without_text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    assert read_documents(settings_for(path)) == ["one", "two"]
    path.write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match=r"text_column: expected text in 'text' of .*, got 3 in row 1"):
        read_documents(settings_for(path))


def test_a_name_is_not_a_pattern(tmp_path):
    (tmp_path / "a1.txt").write_text("wrong")
    (tmp_path / "a[1].txt").write_text("right")
    assert read_documents(settings_for(tmp_path / "a[1].txt")) == ["right"]
    for name, content in {"a::b.txt": "right", "zip::b.jsonl": '{"text": "right"}\n'}.items():
        (tmp_path / name).write_text(content)
        assert read_documents(settings_for(tmp_path / name)) == ["right"]


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.pdf", b"%PDF-1.7 ...", "text", "train_file: expected text, got a PDF"),
        ("a.json", b"null", "text", "train_file: expected JSON objects with the column 'text'"),
        ("a.json", b'["a", "b"]', "text", "train_file: expected JSON objects with the column 'text'"),
        ("a.txt", b'{"body": "a"}', "body", "text_column: expected a file that ends in .json, "),
        ("a.data", b"a", "body", "text_column: expected a file that ends in .json, "),
        # More values than columns, which readers shift or drop.
        ("a.csv", b"text,n\nfirst,1,\nsecond,2,\n", "text", "train_file: cannot read .*a.csv': Length of header"),
        ("a.csv", b"text,n\nfirst,1,2\n", "text", "train_file: cannot read .*a.csv': Length of header"),
        ("a.tsv", b"text\tn\nfirst\t1\t\n", "text", "train_file: cannot read .*a.tsv': Length of header"),
        ("a.json", b'[{"text": "a", "n": ' + b"[" * 9000 + b"]" * 9000 + b"}]", "text", "train_file: cannot read"),
    ],
)
def test_content_that_is_not_text(tmp_path, name, content, column, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents(settings_for(tmp_path / name, text_column=column))


@pytest.mark.parametrize("name", ["a.csv.zip", "a.jsonl.zip", "a.txt.zip", "a.txt", "a.json"])
def test_archives_are_not_text(tmp_path, name):
    """Readers would unpack them, whatever their content."""
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        file.writestr(name.removesuffix(".zip"), "text\na\n")
    with pytest.raises(ValueError, match="train_file: expected text, got a ZIP archive in "):
        read_documents(settings_for(tmp_path / name))


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.txt.tar.gz"])
def test_archives_of_files(tmp_path, name):
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as file:
        file.add(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"train_file: cannot read .*TAR archives"):
        read_documents(settings_for(tmp_path / name))


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match="train_file: expected a file, got the folder"):
        read_documents(settings_for(tmp_path))


def test_a_vocabulary_smaller_than_the_alphabet():
    with pytest.raises(ValueError, match=r"vocab_size: expected at least \d+, for all characters of the text, got 64"):
        train_tokenizer([" ".join(map(chr, range(0x4E00, 0x4E60)))], 64, 16)


def test_text_repeated_from_an_earlier_document_is_removed(tmp_path):
    long, short = "a line that is long enough to count as repeated", "a short one"
    path = tmp_path / "text.txt"
    path.write_text(f"\ufefffirst\n{long}\n{short}\n{long}\n\nsecond\n{short}\n {long}\n\n{long}\n")
    assert read_documents(settings_for(path)) == [f"first\n{long}\n{short}\n{long}", f"second\n{short}"]


def test_parts_of_the_default_corpus_share_no_long_line():
    for seed in (42, 1):
        parts = split_documents(read_documents(TextSettings()), TextSettings(split_seed=seed))
        lines = {
            name: {line for text in part for line in text.split("\n") if len(line) >= 40}
            for name, part in parts.items()
        }
        assert all(len(part) > 50 for part in lines.values())
        for one, other in itertools.combinations(PARTS, 2):
            assert not lines[one] & lines[other]


def test_files_end_documents(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"end of {name}")
    settings = TextSettings(train_file=[str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert read_documents(settings) == ["end of a.txt", "end of b.txt"]


def test_local_data_set_and_streaming(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(9)))
    settings = TextSettings(dataset_name=str(tmp_path), streaming=True, max_documents=4)
    assert read_documents(settings) == [f"document {i}" for i in range(4)]


def test_default_corpus_is_the_language_reference():
    documents = read_documents(TextSettings())
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
        read_documents(TextSettings(dataset_name=str(tmp_path / "nothing")))
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("import datasets\n")
    with pytest.raises(ValueError, match=r"dataset_name: cannot read .*scripts are no longer supported"):
        read_documents(TextSettings(dataset_name=str(tmp_path / "script")))
    shutil.rmtree(tmp_path / "script")
    (tmp_path / "data.jsonl").write_text("{no JSON")
    settings = TextSettings(dataset_name=str(tmp_path), streaming=True, max_documents=4)
    with pytest.raises(ValueError, match="dataset_name: cannot read"):
        read_documents(settings)


def test_split_is_by_document_and_disjoint(tmp_path):
    documents = [f"document {i} " * (1 + i % 3) for i in range(40)]
    settings = TextSettings(validation_fraction=0.1, test_fraction=0.2)
    parts = split_documents(documents, settings)
    assert sorted(itertools.chain.from_iterable(parts.values())) == sorted(documents)
    assert all(parts.values())
    share = {name: sum(map(len, part)) / sum(map(len, documents)) for name, part in parts.items()}
    assert 0.05 < share["validation"] <= 0.1 and 0.15 < share["test"] <= 0.2
    assert split_documents(documents, dataclasses.replace(settings, split_seed=1))["test"] != parts["test"]


def test_split_of_documents_of_very_different_length():
    documents = ["huge " * 1000, *(f"small {i} " * 20 for i in range(30))]
    for seed in range(20):
        settings = TextSettings(validation_fraction=0.05, test_fraction=0.05, split_seed=seed)
        parts = split_documents(documents, settings)
        assert documents[0] in parts["train"] and len(parts["test"]) > 1


def test_split_of_few_documents():
    parts = split_documents(["long " * 100, "b", "c"], TextSettings())
    assert sorted(map(len, parts.values())) == [1, 1, 1]
    with pytest.raises(ValueError, match=r"expected at least 3 documents .* got 2"):
        split_documents(["a", "b"], TextSettings())


def test_tokenizer_training_is_reproducible_and_saved(tmp_path):
    texts = read_documents(TextSettings())[:20]
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
    with pytest.raises(ValueError, match="tokenizer_name: cannot load"):
        prepare(settings_for(write_corpus(tmp_path / "c.txt"), tokenizer_name=name), 16)


@pytest.mark.parametrize("content", ["{}", "[", '{"model": {"type": "WordPiece", "vocab": 3}}'])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    train_tokenizer(["some words"] * 3, 64, 16).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(content)
    settings = settings_for(write_corpus(tmp_path / "c.txt"), tokenizer_name=str(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match=r"tokenizer_name: cannot load .*tokenizer"):
        prepare(settings, 16)


def test_a_tokenizer_with_gaps_between_its_ids(tmp_path):
    """Its largest ids would be beyond the embeddings of a model."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    BertTokenizer(vocab={**dict(zip(special, range(5), strict=True)), "a": 9}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_name: expected ids below 6, the number of tokens, got 9"):
        load_tokenizer(str(tmp_path))


@pytest.fixture
def prepared(tmp_path) -> TextSettings:
    """Settings of a text whose tokens are in a folder."""
    settings = TextSettings(
        train_file=[str(write_corpus(tmp_path / "c.txt"))], vocab_size=150, prepared_dir=str(tmp_path / "prepared")
    )
    prepare(settings, 16)
    return settings


def test_tokens_are_prepared_once(prepared, tmp_path, monkeypatch):
    fresh = prepare(dataclasses.replace(prepared, prepared_dir=None), 32)
    monkeypatch.setattr(prepared_text, "read_documents", lambda settings: pytest.fail("read again"))
    for elsewhere in (False, True):  # also without the text
        if elsewhere:
            (tmp_path / "c.txt").unlink()
        kept = prepare(prepared, 32)
        assert kept.digest == fresh.digest and kept.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
        assert kept.tokenizer.model_max_length == 32
        for part in PARTS:
            assert len(fresh.parts[part]) and np.array_equal(kept.parts[part], fresh.parts[part])


def test_tokens_of_another_text_are_refused(prepared, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    prepare(dataclasses.replace(prepared, prepared_dir=None), 16).tokenizer.save_pretrained(tokenizer)
    given = dataclasses.replace(prepared, tokenizer_name=str(tokenizer), prepared_dir=str(tmp_path / "given"))
    prepare(given, 16)
    train_tokenizer(["other words"] * 3, 64, 16).save_pretrained(tokenizer)
    (tmp_path / "other").mkdir()
    same_name = write_corpus(tmp_path / "other" / "c.txt", documents=20)
    for settings, different in (
        (dataclasses.replace(prepared, split_seed=1), "seed of the split"),
        (dataclasses.replace(prepared, vocab_size=140, test_fraction=0.1), "vocab_size, test_fraction"),
        (dataclasses.replace(prepared, train_file=[str(same_name)]), "content of train_file"),
        (dataclasses.replace(prepared, train_file=[]), "train_file, content of train_file"),
        (given, "content of tokenizer_name"),
    ):
        with pytest.raises(ValueError, match=f"prepared_dir: .* holds .* that differs in {different}$"):
            prepare(settings, 16)


def test_files_with_the_same_name_are_distinguished(tmp_path):
    files = [tmp_path / folder / "c.txt" for folder in "ab"]
    for number, file in enumerate(files):
        file.parent.mkdir()
        write_corpus(file, documents=20 + number)
    settings = TextSettings(train_file=list(map(str, files)), vocab_size=150, prepared_dir=str(tmp_path / "prepared"))
    prepare(settings, 16)
    write_corpus(files[0], documents=30)
    with pytest.raises(ValueError, match=r"differs in content of train_file$"):
        prepare(settings, 16)


@pytest.mark.parametrize(
    "damage", ["no tokens", "half of the tokens", "others", "half of text.json", "{}", "[]", "types"]
)
def test_a_damaged_folder_is_named(prepared, tmp_path, damage):
    folder = tmp_path / "prepared"
    if damage == "no tokens":
        (folder / "validation.npy").unlink()
    elif damage == "half of the tokens":
        (folder / "validation.npy").write_bytes((folder / "validation.npy").read_bytes()[:200])
    elif damage == "types":
        contents = json.loads((folder / "text.json").read_text())
        (folder / "text.json").write_text(json.dumps({**contents, "origin": {"content of train_file": 3}}))
    elif damage == "others":
        (folder / "validation.npy").write_bytes((folder / "test.npy").read_bytes())
    else:
        whole = (folder / "text.json").read_text()
        (folder / "text.json").write_text(damage if len(damage) == 2 else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"prepared_dir: cannot read .*prepared: "):
        prepare(prepared, 16)


def test_a_folder_that_cannot_be_written(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"prepared_dir: cannot write to .*c\.txt: "):
        prepare(dataclasses.replace(prepared, prepared_dir=str(tmp_path / "c.txt")), 16)
