"""Grammatical knowledge of a masked language model, without fine-tuning: accuracy on the minimal pairs of BLiMP.

    python examples/run_blimp.py --model_name_or_path runs/small --trust_remote_code --output_dir runs/small-blimp

A sentence is scored by its pseudo-log-likelihood (Salazar et al. 2020): each token is masked once, and the
log-probabilities of the tokens are added. A pair is correct if the acceptable sentence has the higher score. Works with any
`AutoModelForMaskedLM`. Writes `results.json`, with accuracies of the whole, of fields and of sets.
"""

import argparse
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
import transformers
from training_scripts import load_config_and_tokenizer, model_identity
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from autobert_zero.search.cli.arguments import ScriptHelpFormatter, path
from autobert_zero.search.evaluation.measure import default_device
from autobert_zero.search.files import one_line, write_json
from autobert_zero.search.provenance import commit as current_commit
from autobert_zero.search.provenance import provenance
from autobert_zero.search.text.tokens import max_tokens


HUB_NAME = "nyu-mll/blimp"
METRIC = str(Path(__file__).with_name("blimp_metric.py"))
COLUMNS = ("sentence_good", "sentence_bad", "field", "UID")


# Pairs


def load_pairs(data_dir: Path | None, fraction: float) -> datasets.Dataset:
    """The pairs of all sets, with the columns `COLUMNS`.

    Args:
        data_dir: with a file `UID.jsonl` or `UID.jsonl.gz` for each set; None: the Hub.
        fraction: of each set, evenly spaced.

    Raises: ValueError for missing or damaged data.
    """
    if data_dir is None:
        try:
            names = datasets.get_dataset_config_names(HUB_NAME)
            sets = [datasets.load_dataset(HUB_NAME, name, split="train") for name in names]
        except Exception as error:  # `datasets` raises many kinds
            raise ValueError(f"cannot load {HUB_NAME} from the Hub: {one_line(error)}") from None
    else:
        files = sorted([*data_dir.glob("*.jsonl"), *data_dir.glob("*.jsonl.gz")])
        if not files:
            raise ValueError(f"data_dir: expected files UID.jsonl.gz in {str(data_dir)!r}, got none")
        names = [file.name.removesuffix(".gz") for file in files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"data_dir: expected one file of each set, got two of {', '.join(twice)}")
        sets = [_read(file) for file in files]
    return datasets.concatenate_datasets([_part(rows, fraction) for rows in sets])


def _read(file: Path) -> datasets.Dataset:
    try:
        rows = datasets.Dataset.from_json(str(file), keep_in_memory=True)
    except Exception as error:  # `datasets` raises whatever the format raises
        raise ValueError(f"data_dir: cannot read {file}: {one_line(error.__cause__ or error)}") from None
    if missing := set(COLUMNS) - set(rows.column_names):
        raise ValueError(f"data_dir: expected columns {list(COLUMNS)} in {file}, without {sorted(missing)}")
    for column in COLUMNS:
        if wrong := [row for row, text in enumerate(rows[column][:]) if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"data_dir: expected text in {column!r} of {file}, got none in row {wrong[0]}")
    return rows


def _part(rows: datasets.Dataset, fraction: float) -> datasets.Dataset:
    count = max(1, round(fraction * len(rows)))
    return rows.select_columns(list(COLUMNS)).select(np.arange(count) * len(rows) // count)


# Pseudo-log-likelihood


@dataclass(frozen=True)
class Masked:
    """Copies of sentences of one length, in each of which one token, and maybe more, is masked.

    Attributes:
        sentences: index of the sentence (copies,).
        ids: with masks (copies, tokens).
        positions: of the token to predict (copies,).
        targets: the token to predict (copies,).
    """

    sentences: np.ndarray
    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def mask_each_token(
    sentences: list[str], tokenizer: PreTrainedTokenizerBase, max_length: float, within_word: bool
) -> list[Masked]:
    """All copies of all sentences, by length: nothing has to be padded.

    Args:
        within_word: whether the later tokens of the same word are masked, too. Otherwise a rare word of several tokens has
            too high a score, as each of its tokens is given away by the others (Kauf and Ivanova 2023).

    Raises: ValueError for a sentence that is too long, or without tokens.
    """
    encoded = tokenizer(sentences, return_special_tokens_mask=True, return_attention_mask=False)
    by_length: dict[int, list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
    for number, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        positions = np.flatnonzero(~np.array(special, dtype=bool))
        if len(ids) > max_length:
            raise ValueError(f"expected at most {max_length} tokens, got {len(ids)}: {sentences[number]!r}")
        if not len(positions):
            raise ValueError(f"expected tokens, got none: {sentences[number]!r}")
        copies, tokens = np.tile(ids, (len(positions), 1)), np.arange(len(ids))
        is_masked = tokens == positions[:, None]
        if within_word:
            words = encoded.word_ids(number)
            same_word = [
                [words[other] is not None and words[other] == words[at] for other in tokens] for at in positions
            ]
            is_masked |= np.array(same_word) & (tokens > positions[:, None])
        copies[is_masked] = tokenizer.mask_token_id
        by_length[len(ids)].append((number, copies, positions, np.array(ids)[positions]))
    return [
        Masked(
            np.concatenate([np.full(len(positions), number) for number, _, positions, _ in group]),
            np.concatenate([copies for _, copies, _, _ in group]),
            np.concatenate([positions for _, _, positions, _ in group]),
            np.concatenate([targets for _, _, _, targets in group]),
        )
        for _, group in sorted(by_length.items())
    ]


@contextlib.contextmanager
def predicting(model: PreTrainedModel, positions: list[torch.Tensor]) -> Iterator[None]:
    """Let a model predict one token of each sequence, at the positions in the list's only entry (sequences,): the logits of all
    tokens take most of the time of a small model."""

    def choose(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, *others = inputs
        return (states[torch.arange(len(states)), positions[0]], *others) if states.dim() == 3 else inputs

    output = model.get_output_embeddings()
    handle = output.register_forward_pre_hook(choose) if output is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@torch.inference_mode()
def pseudo_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[str],
    within_word: bool = False,
    batch_tokens: int = 8192,
) -> np.ndarray:
    """The sum of the log-probabilities of the tokens of each sentence in nats (sentences,).

    Args:
        within_word: see `mask_each_token`.
        batch_tokens: maximum number of tokens in a batch, of at least one sequence.

    Raises: ValueError for a sentence that is too long for the model, or without tokens.
    """
    model.eval()
    scores = np.zeros(len(sentences))
    positions: list[torch.Tensor] = [torch.empty(0)]
    with predicting(model, positions):
        for masked in mask_each_token(sentences, tokenizer, max_tokens(model.config), within_word):
            size = max(1, batch_tokens // masked.ids.shape[1])
            for start in range(0, len(masked.ids), size):
                part = slice(start, start + size)
                ids, positions[0], targets = (
                    torch.from_numpy(array[part]).to(model.device)
                    for array in (masked.ids, masked.positions, masked.targets)
                )
                logits = model(input_ids=ids).logits
                if logits.dim() == 3:  # of all tokens
                    logits = logits[torch.arange(len(ids)), positions[0]]
                logits = logits.float()
                values = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
                np.add.at(scores, masked.sentences[part], values.double().cpu().numpy())
    return scores


# Command line


def load_model(given: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises: ValueError for a model that cannot be loaded or does not predict masked tokens."""
    name = given.model_name_or_path
    _, tokenizer, remote = load_config_and_tokenizer(given)
    try:
        model, loaded = AutoModelForMaskedLM.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **remote
        )
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(f"model: cannot load {name!r}: {one_line(error)}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"model: expected all weights in {name!r}, got none for {', '.join(missing):.200}")
    if tokenizer.mask_token_id is None:
        raise ValueError(f"model: expected a tokenizer with a mask token, got none in {name!r}")
    if given.within_word and not tokenizer.is_fast:
        raise ValueError(f"within_word: expected a fast tokenizer, got {type(tokenizer).__name__}")
    return model.to(default_device()), tokenizer


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--model_name_or_path", required=True, help="Folder or Hub name of a model with its tokenizer."
    )
    parser.add_argument("--output_dir", required=True, type=path, help="Folder for `results.json`.")
    parser.add_argument("--data_dir", type=path, help="Folder with UID.jsonl.gz for each set. Without it: the Hub.")
    parser.add_argument("--fraction", type=float, default=1.0, help="Fraction of each set, for a quick look.")
    parser.add_argument(
        "--within_word", action="store_true", help="Mask the later tokens of the word of a masked token, too."
    )
    parser.add_argument("--batch_tokens", type=int, default=8192, help="Tokens in a batch.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the code saved with the model.")
    parser.add_argument("--model_revision", default="main", help="Revision of a model of the Hub.")
    return parser


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    commit, parser = current_commit(), make_parser()
    given = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        if not 0 < given.fraction <= 1:
            raise ValueError(f"fraction: expected a number above 0 up to 1, got {given.fraction}")
        if given.batch_tokens < 1:
            raise ValueError(f"batch_tokens: expected at least 1, got {given.batch_tokens}")
        model, tokenizer = load_model(given)
        pairs = load_pairs(given.data_dir, given.fraction)
        given.output_dir.mkdir(parents=True, exist_ok=True)
        metric = evaluate.load(METRIC)
        start = time.perf_counter()
        sentences = [*pairs["sentence_good"][:], *pairs["sentence_bad"][:]]
        scores = pseudo_log_likelihoods(model, tokenizer, sentences, given.within_word, given.batch_tokens)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    seconds = time.perf_counter() - start
    if not np.isfinite(scores).all():
        sys.exit("error: the model predicts probabilities that are not finite")
    good, bad = np.split(scores, 2)
    result = metric.compute(
        predictions=[{"good": float(g), "bad": float(b)} for g, b in zip(good, bad, strict=True)],
        references=[{"UID": uid, "field": field} for uid, field in zip(pairs["UID"], pairs["field"], strict=True)],
    )
    facts = {
        "model": given.model_name_or_path,
        "weights": model_identity(given),
        "fraction": given.fraction,
        "within_word": given.within_word,
        "seconds": round(seconds, 1),
        **provenance(commit, model.device.type),
        "threads": torch.get_num_threads(),
    }
    write_json(given.output_dir / "results.json", {**facts, **result})
    print(table(result))
    return result


def table(result: dict[str, Any]) -> str:
    lines = [f"{'BLiMP':55}{'pairs':>7}  accuracy, 95 % interval"]
    for name, group in [*result["sets"].items(), *result["fields"].items(), ("all", result)]:
        interval = f"{group['accuracy']:5.1f} [{group['low']:.1f}, {group['high']:.1f}]"
        lines.append(f"{name:55}{group['pairs']:>7}  {interval}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
