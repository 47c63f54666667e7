"""Extractive question answering on SQuAD 1.1 or 2.0, from its official JSON files.

    python examples/run_squad.py --model_name_or_path runs/small --trust_remote_code --train_file train-v1.1.json \\
        --validation_file dev-v1.1.json --output_dir runs/small-squad

Questions without an answer (2.0) are marked by `is_impossible`; then the model may also give no answer. Long contexts are
split into overlapping windows. Training uses transformers' `Trainer` and accepts its arguments. An interrupted run
resumes from its last checkpoint; a finished one is evaluated again. Writes `predictions.json`, in the format of the
official evaluation, and `results.json`.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from training_scripts import (
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
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    Trainer,
)

from autobert_zero.search.files import write_json
from autobert_zero.search.provenance import commit as current_commit


MAX_QUESTION_LENGTH = 64  # tokens, as in BERT's own script
METRIC = str(Path(__file__).with_name("squad_metric.py"))


@dataclass
class SquadArguments(FileArguments):
    max_seq_length: int = field(
        default=384, metadata={"help": "Tokens per window: the question and a part of the context."}
    )
    doc_stride: int = field(default=128, metadata={"help": "Overlap of two windows of a context in tokens."})
    max_answer_length: int = field(default=30, metadata={"help": "Maximum number of tokens of an answer."})
    n_best: int = field(default=20, metadata={"help": "Number of best starts and ends of a window that are combined."})


@dataclass
class SquadTrainingArguments(FineTuningArguments):
    """Those of fine-tuning, with defaults for windows."""

    num_train_epochs: float = field(default=2.0, metadata={"help": "Training epochs."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Training batch size per device, in windows."}
    )


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def read_squad(path: str) -> list[Question]:
    """All questions of an official file. Raises: ValueError if it is not one, or an answer is not in its context."""
    try:
        articles = json.loads(Path(path).read_text(encoding="utf-8"))["data"]
        found = [
            Question(
                qa["id"],
                qa["question"].strip(),
                paragraph["context"],
                () if qa.get("is_impossible") else tuple(answer["text"] for answer in qa["answers"]),
                () if qa.get("is_impossible") else tuple(answer["answer_start"] for answer in qa["answers"]),
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected a JSON file of SQuAD, got {path!r}: {type(error).__name__}: {error}") from None
    if not found:
        raise ValueError(f"expected questions in {path!r}, got none")
    [(twice, count)] = Counter(question.id for question in found).most_common(1)
    if count > 1:
        raise ValueError(f"{path!r}: expected every id once, got {twice!r} several times")
    for question in found:
        if not isinstance(question.context, str):
            raise ValueError(f"{path!r}, question {question.id!r}: expected text as context, got {question.context!r}")
        for answer, start in zip(question.answers, question.starts, strict=True):
            if not isinstance(answer, str):
                raise ValueError(f"{path!r}, question {question.id!r}: expected text as answer, got {answer!r}")
            if type(start) is not int or start < 0:
                raise ValueError(
                    f"{path!r}, question {question.id!r}: expected a whole number as answer_start, got {start!r}"
                )
            if question.context[start : start + len(answer)] != answer:
                raise ValueError(
                    f"{path!r}, question {question.id!r}: expected {answer!r} at character {start} of the context, "
                    f"got {question.context[start : start + len(answer)]!r}"
                )
    return found


def make_windows(questions: list[Question], tokenizer: Any, options: SquadArguments) -> dict[str, list]:
    """Tokens of each window, the number of its question, and the position of each token in the context (or None)."""
    # Tokens of a question, so that its windows have room for the context.
    room = min(MAX_QUESTION_LENGTH, options.max_seq_length - options.doc_stride - 4)
    places = tokenizer([q.text for q in questions], add_special_tokens=False, return_offsets_mapping=True)
    ends = [places[room - 1][1] if len(places) > room else None for places in places["offset_mapping"]]
    encoded = tokenizer(
        [question.text[:end] for question, end in zip(questions, ends, strict=True)],
        [question.context for question in questions],
        truncation="only_second",
        max_length=options.max_seq_length,
        stride=options.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    number = encoded.pop("overflow_to_sample_mapping")
    offsets = [
        [place if part == 1 else None for place, part in zip(places, encoded.sequence_ids(i), strict=True)]
        for i, places in enumerate(encoded.pop("offset_mapping"))
    ]
    return {**encoded, "question": number, "offsets": offsets}


def answer_span(question: Question, offsets: list) -> tuple[int, int]:
    """First and last token of the first answer; 0, the position of `[CLS]`, if the window does not contain all of it."""
    if not question.answers:
        return 0, 0
    answer = question.answers[0]
    low = question.starts[0] + len(answer) - len(answer.lstrip())  # tokens do not include white space
    high = question.starts[0] + len(answer.rstrip())
    inside = [i for i, place in enumerate(offsets) if place and place[0] < high and place[1] > low]
    if not inside or offsets[inside[0]][0] > low or offsets[inside[-1]][1] < high:
        return 0, 0
    return inside[0], inside[-1]


def best_answers(
    questions: list[Question], windows: dict[str, list], starts: np.ndarray, ends: np.ndarray, options: SquadArguments
) -> dict[str, str]:
    """For each question the text of the best span in all its windows.

    If there are questions without an answer, the answer is empty if `[CLS]` scores higher than every span.

    Args:
        starts, ends: (windows, tokens) logits.
    """
    may_be_empty = not all(question.answers for question in questions)
    best = dict.fromkeys(range(len(questions)), (-np.inf, ""))
    empty = dict.fromkeys(best, np.inf)
    for window, (number, offsets) in enumerate(zip(windows["question"], windows["offsets"], strict=True)):
        start, end = starts[window, : len(offsets)], ends[window, : len(offsets)]
        empty[number] = min(empty[number], float(start[0] + end[0]))
        inside = np.array([place is not None for place in offsets])
        for first in np.argsort(-np.where(inside, start, -np.inf))[: options.n_best]:
            for last in np.argsort(-np.where(inside, end, -np.inf))[: options.n_best]:
                if not (inside[first] and inside[last] and first <= last < first + options.max_answer_length):
                    continue
                score = float(start[first] + end[last])
                if score > best[number][0]:
                    context = questions[number].context
                    best[number] = (score, context[offsets[first][0] : offsets[last][1]])
    return {
        questions[number].id: "" if may_be_empty and empty[number] > score else text
        for number, (score, text) in best.items()
    }


def set_up(
    options: SquadArguments, args: SquadTrainingArguments
) -> tuple[Trainer, datasets.Dataset, list[Question], dict]:
    """Raises: ValueError for bad input, before anything is trained."""
    _, tokenizer, _ = parts = load_parts(options, pairs=True)
    if not tokenizer.is_fast:
        raise ValueError(
            f"model: expected a fast tokenizer, which knows the places of its tokens, got {type(tokenizer).__name__}"
        )
    if args.label_smoothing_factor:
        raise ValueError(f"label_smoothing_factor: expected 0, without labels, got {args.label_smoothing_factor}")
    maximum = options.max_seq_length // 2 - 4
    if not 0 <= options.doc_stride <= maximum:
        raise ValueError(
            f"doc_stride: expected from 0 to {maximum}, which leaves room for the question, got {options.doc_stride}"
        )
    train, validation = read_squad(options.train_file), read_squad(options.validation_file)
    windows = make_windows(train, tokenizer, options)
    spans = [answer_span(train[n], o) for n, o in zip(windows["question"], windows["offsets"], strict=True)]
    columns = {name: windows[name] for name in tokenizer.model_input_names if name in windows}
    rows = datasets.Dataset.from_dict(
        {**columns, "start_positions": [a for a, _ in spans], "end_positions": [b for _, b in spans]}
    )
    trainer = make_trainer(AutoModelForQuestionAnswering, options, args, parts, rows, DataCollatorWithPadding)
    windows = make_windows(validation, tokenizer, options)
    evaluated = datasets.Dataset.from_dict(
        {name: windows[name] for name in tokenizer.model_input_names if name in windows}
    )
    claim_folder_for_file(options, args, irrelevant=("n_best", "max_answer_length"))
    return trainer, evaluated, validation, windows


def main() -> None:
    parser, (options, args) = parse(__doc__, SquadArguments, SquadTrainingArguments)
    commit, folder = current_commit(), Path(args.output_dir)
    try:
        trainer, evaluated, validation, windows = set_up(options, args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    starts, ends = train_and_predict(trainer, evaluated)
    if trainer.is_world_process_zero():
        predictions = best_answers(validation, windows, starts, ends, options)
        write_json(folder / "predictions.json", predictions)
        counts = {
            "questions": len(validation),
            "windows": len(evaluated),
            "training_windows": len(trainer.train_dataset),
        }
        scores = evaluate.load(METRIC).compute(
            predictions=[predictions[question.id] for question in validation],
            references=[list(question.answers) for question in validation],
        )
        write_results(args, commit, counts, scores)
    shut_down_together()


if __name__ == "__main__":
    main()
