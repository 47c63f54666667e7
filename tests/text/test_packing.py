"""Packed sequences for pre-training: without padding, every token once per epoch, each a function of its number."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BertTokenizer

from autobert_zero.search.text.masking import IGNORE_INDEX
from autobert_zero.search.text.packing import Blocks, Curriculum, Packer, StreamedBlocks, join_blocks


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
WORDS = [f"w{number}" for number in range(60)]
TOKENIZER = BertTokenizer(vocab={piece: number for number, piece in enumerate([*SPECIAL, *WORDS])})
CLS, SEP, STOP = 2, 3, 5


def document(first: int, sentences: int) -> list[int]:
    """Sentences of five words and a full stop; the words are ten that no other document has."""
    words = len(SPECIAL) + first * 10
    return [t for s in range(sentences) for t in (*(words + (s + i) % 10 for i in range(5)), STOP)] + [SEP]


TOKENS = np.array([*document(0, 12), *document(1, 7), *document(2, 20), *document(3, 1)], dtype=np.uint16)


def owner(token: int) -> int:
    return (token - len(SPECIAL)) // 10


def restored(block: dict[str, torch.Tensor]) -> np.ndarray:
    """The tokens before masking."""
    return torch.where(block["labels"] == IGNORE_INDEX, block["input_ids"], block["labels"]).numpy()


def test_an_epoch_has_every_token_once_and_cuts_at_other_places():
    packer = Packer(TOKENS, TOKENIZER, seed=1)
    count = packer.count(16)
    cuts = set()
    for epoch in range(4):
        rows = [packer.sequence(16, epoch * count + i)["input_ids"] for i in range(count)]
        assert all(len(row) == 16 and row[0] == CLS for row in rows)
        texts = sorted(tuple(row[1:]) for row in rows)
        [shift] = [
            s for s in range(15) if texts == sorted(tuple(TOKENS[s + 15 * i : s + 15 * i + 15]) for i in range(count))
        ]
        cuts.add(shift)
    assert len(cuts) > 1
    assert count == (len(TOKENS) - 14) // 15


def test_blocks_are_functions_of_seed_and_number():
    def blocks(seed: int) -> Blocks:
        return Blocks(Packer(TOKENS, TOKENIZER, seed, "sop"), Curriculum(32, 16, 3), 9)

    one, other, different = blocks(1), blocks(1), blocks(2)
    forward = [one[i] for i in range(9)]
    for i in reversed(range(9)):
        assert forward[i].keys() == {"input_ids", "labels", "token_type_ids", "next_sentence_label"}
        assert all((forward[i][name] == other[i][name]).all() for name in forward[i])
    assert any((forward[i]["input_ids"] != different[i]["input_ids"]).any() for i in range(9))
    assert [tuple(block["input_ids"].shape) for block in forward] == [(2, 16)] * 3 + [(1, 32)] * 6
    assert join_blocks(forward[:3])["input_ids"].shape == (6, 16)
    assert join_blocks(forward[:3])["next_sentence_label"].shape == (6,)


def segments(block: dict[str, torch.Tensor]):
    for row, types in zip(restored(block), block["token_type_ids"].numpy(), strict=True):
        second = int(np.argmax(types))
        assert row[0] == CLS and row[second - 1] == SEP and row[-1] == SEP
        assert (types == np.repeat([0, 1], [second, len(row) - second])).all()
        yield row[1 : second - 1].tolist(), row[second:-1].tolist()


def test_sentence_order():
    text = TOKENS.tolist()
    found = {tuple(text[i : i + 29]) for i in range(len(text) - 28)}
    packer = Packer(TOKENS, TOKENIZER, seed=0, objective="sop")
    labels = []
    for number in range(100):
        block = packer.block(32, [number], number)
        [(a, b)] = segments(block)
        labels.append(int(block["next_sentence_label"]))
        first, second = (b, a) if labels[-1] else (a, b)
        assert tuple(first + second) in found
        assert first[-1] == STOP and second[0] != SEP
    assert 30 < sum(labels) < 70


def test_next_sentences_are_from_the_same_document_or_from_another():
    packer = Packer(TOKENS, TOKENIZER, seed=0, objective="nsp")
    text = TOKENS.tolist()
    found = {tuple(text[i : i + 15]) for i in range(len(text) - 14)}
    labels, differ = [], 0
    for number in range(300):
        block = packer.block(18, [number], number)
        [(a, b)] = segments(block)
        labels.append(int(block["next_sentence_label"]))
        if labels[-1]:
            words_a, words_b = ({owner(t) for t in part if t > STOP} for part in (a[:1], b))
            differ += not words_a & words_b
        else:
            assert tuple(a + b) in found
    assert 110 < sum(labels) < 190
    # B may run into the next document.
    assert differ > 0.8 * sum(labels)
    with pytest.raises(ValueError, match="objective: expected at least 2 documents"):
        Packer(np.array(document(0, 30)), TOKENIZER, 0, "nsp")


def test_a_text_without_full_stops_is_cut_in_the_middle():
    tokens = np.where(TOKENS == STOP, 7, TOKENS)
    for number in range(20):
        block = Packer(tokens, TOKENIZER, 0, "sop").block(19, [number], number)
        [(a, b)] = segments(block)
        assert {len(a), len(b)} == {8}


def test_a_text_of_unknown_words_has_a_label_to_learn_from():
    blocks = Blocks(Packer(np.ones(100, dtype=np.uint16), TOKENIZER, 0), Curriculum(16, 16, 0), 20)
    assert all((blocks[i]["labels"] != IGNORE_INDEX).sum() == 1 for i in range(20))


def test_masking_differs_from_epoch_to_epoch():
    blocks = Blocks(Packer(TOKENS, TOKENIZER, 0), Curriculum(120, 120, 0), 3)
    masks = [(blocks[i]["labels"] != IGNORE_INDEX).numpy() for i in range(3)]
    assert blocks.packer.count(120) == 1
    assert (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()


def test_streamed_blocks_are_endless_and_reproducible():
    sizes = [12, 7, 20, 1]
    texts = [" ".join(TOKENIZER.convert_ids_to_tokens(document(n, sizes[n])[:-1])) for n in range(4)]

    def pack(documents: list[str], number: int) -> Packer:
        ids = [[*TOKENIZER(text, add_special_tokens=False)["input_ids"], SEP] for text in documents]
        return Packer(np.concatenate(ids), TOKENIZER, seed=number)

    def stream(documents: int) -> StreamedBlocks:
        return StreamedBlocks(lambda: texts, pack, Curriculum(32, 16, 4), documents)

    def take(blocks: StreamedBlocks, count: int) -> list[np.ndarray]:
        return [restored(block) for block, _ in zip(blocks, range(count), strict=False)]

    one, other = take(stream(3), 40), take(stream(3), 40)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert [row.shape for row in one[:5]] == [(2, 16)] * 4 + [(1, 32)]
    words = {int(t) for rows in one for t in rows.ravel()}
    assert {owner(t) for t in words if t > STOP} == {0, 1, 2}  # the last buffer holds one document, which is too short
    with pytest.raises(ValueError, match="dataset_name: expected text for a sequence of 32"):
        next(iter(StreamedBlocks(list, pack, Curriculum(32, 16, 4), 3)))
    with pytest.raises(ValueError, match="dataloader_num_workers: expected 0"):
        next(iter(DataLoader(stream(3), num_workers=1, batch_size=None)))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: Packer(TOKENS, TOKENIZER, 0, "mlmm"),
            r"objective: expected one of \['mlm', 'nsp', 'sop'\], got 'mlmm'",
        ),
        (
            lambda: Curriculum(32, 12, 3),
            "short_seq_length: expected at least 8, and a divisor of max_seq_length=32, got 12",
        ),
        (lambda: Curriculum(32, 4, 3), "short_seq_length: .* got 4"),
        (
            lambda: Blocks(Packer(TOKENS[:40], TOKENIZER, 0), Curriculum(64, 64, 0), 3),
            "train_file: expected about 128 tokens or more for sequences of 64, got 40",
        ),
    ],
)
def test_bad_arguments(make, expected):
    with pytest.raises(ValueError, match=expected):
        make()


def test_the_masking_rate_changes_linearly():
    packer = Packer(TOKENS, TOKENIZER, 0)
    curriculum = Curriculum(64, 64, 0, (0.6, 0.2), 400)
    assert [curriculum.probability(number) for number in (0, 200, 400, 500)] == pytest.approx([0.6, 0.4, 0.2, 0.2])
    assert Curriculum(64, 64, 0).probability(7) == 0.15
    blocks = Blocks(packer, curriculum, 400)

    def rate(numbers: range) -> float:
        labels = torch.stack([blocks[number]["labels"] for number in numbers])
        return float((labels != -100).float().mean())

    special = np.isin(TOKENS, TOKENIZER.all_special_ids).mean() + 1 / 64
    for numbers, expected in ((range(40), 0.58), (range(180, 220), 0.4), (range(360, 400), 0.22)):
        assert rate(numbers) == pytest.approx(expected * (1 - special), abs=0.04)


def test_blocks_can_be_sent_to_workers_that_are_not_forked():
    blocks = Blocks(Packer(TOKENS, TOKENIZER, 0), Curriculum(16, 8, 2), 5)
    first = blocks[4]
    sent = pickle.loads(pickle.dumps(blocks))
    assert all(torch.equal(sent[4][name], first[name]) for name in first)
