"""Named entity recognition, from files in CoNLL columns: one word and its tag per line, an empty line after each sentence.

    python examples/run_ner.py --model_name_or_path runs/small --trust_remote_code --train_file train.txt \\
        --validation_file valid.txt --output_dir runs/small-ner

The first column is the word, the last one (or `--label_column`) its tag in IOB or IOBES: O, B-TYPE, I-TYPE, E-TYPE, S-TYPE. The
first token of a word predicts its tag. Long sentences are split into pieces, so that every word has a tag. Training uses
transformers' `Trainer` and accepts its arguments. An interrupted run resumes from its last checkpoint; a finished one is
evaluated again. Writes `predictions.txt` (word, tag, predicted tag: the format of the official evaluation) and `results.json`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from training_scripts import (
    DEFAULT_LENGTH,
    FileArguments,
    FineTuningArguments,
    claim_folder_for_file,
    load_parts,
    make_trainer,
    parse,
    shut_down_together,
    train_and_predict,
    write_results,
)
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
)

from autobert_zero.search.provenance import commit as current_commit


METRIC = str(Path(__file__).with_name("ner_metric.py"))
OUTSIDE = "O"
IGNORED = -100  # ignored by the loss
_TAG = re.compile(r"O|[BIES]-\S+")


@dataclass
class NerArguments(FileArguments):
    label_column: int = field(default=-1, metadata={"help": "Column of the tag, counted from 0; -1 for the last one."})
    max_seq_length: int | None = field(
        default=None,
        metadata={"help": f"Tokens of a piece of a sentence; default: {DEFAULT_LENGTH}, or the model's limit."},
    )


@dataclass(frozen=True)
class Sentence:
    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_columns(path: str, label_column: int = -1) -> list[Sentence]:
    """All sentences of a file. Raises: ValueError for a line without a tag of the scheme, by its number; OSError."""
    found: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 in {path!r}, got {error.reason} at byte {error.start}") from None
    for number, line in enumerate([*lines, ""], start=1):
        # Other white space may be a word.
        columns = [column for column in re.split(r"[ \t\r]+", line) if column]
        if not columns or columns[0] == "-DOCSTART-":
            if words:
                found.append(Sentence(tuple(words), tuple(tags)))
            words, tags = [], []
            continue
        tag = columns[label_column] if -len(columns) <= label_column < len(columns) else ""
        if len(columns) < 2 or not _TAG.fullmatch(tag):
            raise ValueError(
                f"{path!r}, line {number}: expected a word and, in column {label_column}, a tag "
                f"(O, B-TYPE, I-TYPE, E-TYPE or S-TYPE), got {line.strip()!r}"
            )
        words.append(columns[0])
        tags.append(tag)
    if not found:
        raise ValueError(f"expected sentences in {path!r}, got none")
    return found


def make_pieces(sentences: list[Sentence], tokenizer: Any, max_seq_length: int) -> dict[str, list]:
    """Tokens of each piece, the number of its sentence, and for each token the word that starts with it (or None)."""
    encoded = tokenizer(
        [list(sentence.words) for sentence in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=max_seq_length,
        return_overflowing_tokens=True,
    )
    numbers = encoded.pop("overflow_to_sample_mapping")
    started: set[tuple[int, int]] = set()
    firsts: list[list[int | None]] = []
    for piece, number in enumerate(numbers):
        first: list[int | None] = []
        for word in encoded.word_ids(piece):
            is_first = word is not None and (number, word) not in started
            first.append(word if is_first else None)
            if is_first:
                started.add((number, word))
        firsts.append(first)
    return {**encoded, "sentence": numbers, "words": firsts}


def tags_of_words(
    sentences: list[Sentence], pieces: dict[str, list], predicted: np.ndarray, labels: list[str]
) -> list[list[str]]:
    """The predicted tag of every word; `O` for a word without a token.

    Args:
        predicted: (pieces, tokens) label ids.
    """
    found = [[OUTSIDE] * len(sentence.words) for sentence in sentences]
    for row, (number, firsts) in enumerate(zip(pieces["sentence"], pieces["words"], strict=True)):
        for token, word in enumerate(firsts):
            if word is not None:
                found[number][word] = labels[predicted[row, token]]
    return found


def set_up(
    options: NerArguments, args: FineTuningArguments
) -> tuple[Trainer, datasets.Dataset, list[Sentence], dict[str, list], list[str]]:
    """Raises: ValueError for bad input, before anything is trained."""
    config, tokenizer, remote = load_parts(options)
    if not tokenizer.is_fast:
        raise ValueError(
            f"model: expected a fast tokenizer, which knows the words of its tokens, got {type(tokenizer).__name__}"
        )
    train = read_columns(options.train_file, options.label_column)
    validation = read_columns(options.validation_file, options.label_column)
    labels = [OUTSIDE, *sorted({tag for sentence in train for tag in sentence.tags} - {OUTSIDE})]
    if len(labels) == 1:
        raise ValueError(f"expected entities in {options.train_file!r}, got only words outside entities")
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}

    def columns(pieces: dict[str, list]) -> dict[str, list]:
        return {name: pieces[name] for name in tokenizer.model_input_names if name in pieces}

    pieces = make_pieces(train, tokenizer, options.max_seq_length)
    targets = [
        [IGNORED if word is None else config.label2id[train[number].tags[word]] for word in firsts]
        for number, firsts in zip(pieces["sentence"], pieces["words"], strict=True)
    ]
    rows = datasets.Dataset.from_dict({**columns(pieces), "labels": targets})
    # A batch without a label, such as the rest of a word of many tokens, would have no loss.
    labelled = [row for row, each in enumerate(targets) if set(each) != {IGNORED}]
    trainer = make_trainer(
        AutoModelForTokenClassification,
        options,
        args,
        (config, tokenizer, remote),
        rows.select(labelled),
        DataCollatorForTokenClassification,
        # Keeps only the best label of each token in memory.
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )
    pieces = make_pieces(validation, tokenizer, options.max_seq_length)
    evaluated = datasets.Dataset.from_dict(columns(pieces))
    claim_folder_for_file(options, args, irrelevant=())
    return trainer, evaluated, validation, pieces, labels


def main() -> None:
    parser, (options, args) = parse(__doc__, NerArguments, FineTuningArguments)
    commit, folder = current_commit(), Path(args.output_dir)
    try:
        trainer, evaluated, validation, pieces, labels = set_up(options, args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    predicted = train_and_predict(trainer, evaluated)
    if trainer.is_world_process_zero():
        predictions = tags_of_words(validation, pieces, predicted, labels)
        with open(folder / "predictions.txt", "w", encoding="utf-8") as file:
            for sentence, tags in zip(validation, predictions, strict=True):
                file.writelines(f"{' '.join(row)}\n" for row in zip(sentence.words, sentence.tags, tags, strict=True))
                file.write("\n")
        counts = {
            "sentences": len(validation),
            "words": sum(len(sentence.words) for sentence in validation),
            "training_pieces": len(trainer.train_dataset),
        }
        scores = evaluate.load(METRIC).compute(predictions=predictions, references=[s.tags for s in validation])
        write_results(args, commit, counts, scores)
    shut_down_together()


if __name__ == "__main__":
    main()
