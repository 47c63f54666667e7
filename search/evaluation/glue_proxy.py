"""GLUE as the proxy task, as in the paper: the score of a candidate is its result after fine-tuning on several tasks.

Only the official training parts are used: nine tenths to fine-tune on, one tenth to score. The official validation
parts are for reports.
"""

import functools
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroForSequenceClassification
from autobert_zero.search.evaluation.glue import TASKS, decide, glue_metrics, headline, load_task
from autobert_zero.search.evaluation.models import checkpoint_activations
from autobert_zero.search.evaluation.proxy import MaskedLMProxy
from autobert_zero.search.evaluation.training import Propagate, seed_torch, train
from autobert_zero.search.files import json_digest
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import GlueSettings


VALIDATION_FRACTION = 0.1

# Token ids, token types and label of an example.
Row = tuple[list[int], list[int], float]


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task: to train on, and to score."""

    train: list[Row]
    validation: list[Row]


def read_tasks(
    settings: GlueSettings, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int
) -> dict[str, TaskRows]:
    """The proxy tasks of the settings, tokenized.

    Raises: ValueError for a task that cannot be read, and if the packages of the metrics are missing.
    """
    if missing := [name for name in ("sklearn", "scipy") if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"proxy: expected {' and '.join(missing)} for glue (pip install scikit-learn scipy), got none"
        )
    found = {}
    for name in settings.proxy_tasks:
        rows = load_task(name, settings.glue_dir, "glue_dir")["train"]
        texts = [rows[column][:] for column in TASKS[name].columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=True)
        all_rows = list(zip(encoded["input_ids"], encoded["token_type_ids"], rows["label"][:], strict=True))
        order = random_stream(seed, "glue split", name).permutation(len(all_rows))
        count = round(VALIDATION_FRACTION * len(order))
        if not 0 < count < len(order):
            raise ValueError(f"glue_dir: expected at least 10 rows to train on in {name}, got {len(order)}")
        validation, train_rows = ([all_rows[i] for i in part] for part in (order[:count], order[count:]))
        found[name] = TaskRows(train_rows, validation)
    return found


class GlueProxy(MaskedLMProxy):
    """Scores candidates by GLUE after their short training; otherwise a `MaskedLMProxy`.

    Args:
        tasks: from `read_tasks`.
        glue: settings.
        arguments: those of `MaskedLMProxy`.
    """

    def __init__(self, tasks: dict[str, TaskRows], glue: GlueSettings, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self.tasks = tasks
        self.glue = glue

    def digest(self) -> str:
        """16 hexadecimal digits of all rows."""
        return json_digest({name: [task.train, task.validation] for name, task in self.tasks.items()})

    def final_score(self, model: AutoBertZeroForMaskedLM, check: Callable[[], None]) -> float:
        """Mean score over the tasks on their validation rows, from about 0 to 1."""
        return statistics.fmean(self._fine_tune(name, model, check) / 100 for name in self.tasks)

    def _fine_tune(self, name: str, model: AutoBertZeroForMaskedLM, check: Callable[[], None]) -> float:
        seed, rows = self.corpus.seed, self.tasks[name]
        labels = TASKS[name].labels
        seed_torch(seed, "glue head", name)
        values = {k: v for k, v in model.config.to_dict().items() if k not in ("id2label", "label2id")}
        values["problem_type"] = "single_label_classification" if labels else "regression"
        config = AutoBertZeroConfig.from_dict({**values, "num_labels": max(1, len(labels))})
        tuned = AutoBertZeroForSequenceClassification(config)
        tuned.autobert_zero.load_state_dict(model.autobert_zero.state_dict(), strict=False)  # all but the pooler
        tuned.to(self.device)
        size = self.training.batch_size

        count = len(rows.train)

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return random_stream(seed, "glue order", name, epoch).permutation(count)

        if self.training.gradient_checkpointing:
            checkpoint_activations(tuned)

        def backward(step: int, propagate: Propagate) -> float:
            seed_torch(seed, "glue dropout", name, step)
            batch = [rows.train[order(n // count)[n % count]] for n in range(step * size, (step + 1) * size)]
            part = self.training.micro_batch_size or size
            chunks = (batch[start : start + part] for start in range(0, len(batch), part))
            parts = ((len(chunk) / len(batch), self._batch(chunk, labels)) for chunk in chunks)
            return self.accumulate(tuned, parts, propagate)

        schedule = self.schedule(self.glue.glue_steps, self.glue.glue_learning_rate)
        train(tuned, backward, schedule, check=check, precision=self.precision)
        tuned.eval()
        logits = []
        with torch.no_grad():
            for start in range(0, len(rows.validation), size):
                check()
                batch = self._batch(rows.validation[start : start + size], labels)
                with self.precision.autocast():
                    logits.append(tuned(**batch).logits.float().cpu().numpy())
        found = np.concatenate(logits)
        if not np.isfinite(found).all():
            raise FloatingPointError(f"logits of {name}: expected finite numbers, got others")
        decided = decide(name, found)
        return headline(glue_metrics(name, decided, np.array([label for *_, label in rows.validation])))

    def _batch(self, rows: list[Row], labels: tuple[str, ...]) -> dict:
        longest = max(len(ids) for ids, _, _ in rows)
        shape, pad = (len(rows), longest), self.corpus.tokenizer.pad_token_id
        ids, types, mask = (
            torch.full(shape, pad),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
        )
        for i, (row, row_types, _) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            types[i, : len(row)] = torch.tensor(row_types)
            mask[i, : len(row)] = 1
        numbers = torch.tensor([label for *_, label in rows], dtype=torch.long if labels else torch.float)
        batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask, "labels": numbers}
        return {name: tensor.to(self.device) for name, tensor in batch.items()}
