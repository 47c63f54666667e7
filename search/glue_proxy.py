"""GLUE as the proxy task, as in the paper: a candidate's score is what it reaches after fine-tuning on a few tasks.

Only the training parts are used: nine tenths to fine-tune on, one tenth to score. The official validation parts are
for reports.
"""

import hashlib
import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroForSequenceClassification
from autobert_zero.search.data import Corpus
from autobert_zero.search.glue import TASKS, decide, glue_metrics, headline, load_task
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.settings import SearchSettings, stream
from autobert_zero.search.stopping import Stop
from autobert_zero.search.training import Schedule, seed_torch, train


SELECT_FRACTION = 0.1


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task as lists of tokens, the types of their tokens, and labels: (rows, 3) of each role."""

    search: list[tuple[list[int], list[int], float]]
    select: list[tuple[list[int], list[int], float]]


def read_tasks(settings: SearchSettings, corpus: Corpus) -> dict[str, TaskRows]:
    """The proxy tasks of the settings, tokenized. Raises: ValueError for a task that cannot be read, and for metrics that
    cannot be computed: before anything is trained."""
    if missing := [name for name in ("sklearn", "scipy") if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"proxy: expected {' and '.join(missing)} for glue (pip install scikit-learn scipy), got none"
        )
    found = {}
    for name in settings.proxy_tasks:
        rows = load_task(name, settings.glue_dir)["train"]
        texts = [rows[column][:] for column in TASKS[name].columns]
        encoded = corpus.tokenizer(
            *texts, truncation=True, max_length=settings.sequence_length, return_token_type_ids=True
        )
        all_rows = list(zip(encoded["input_ids"], encoded["token_type_ids"], rows["label"][:], strict=True))
        order = stream(settings.seed, "glue split", name).permutation(len(all_rows))
        count = round(SELECT_FRACTION * len(order))
        if not 0 < count < len(order):
            raise ValueError(f"glue_dir: expected at least 10 rows to train on in {name}, got {len(order)}")
        select, search = ([all_rows[i] for i in part] for part in (order[:count], order[count:]))
        found[name] = TaskRows(search, select)
    return found


class GlueProxy(MaskedLMProxy):
    """Scores candidates by GLUE after their short training; whatever else a proxy does is as without it.

    Args:
        tasks: from `read_tasks`.
    """

    def __init__(
        self,
        settings: SearchSettings,
        corpus: Corpus,
        device: torch.device,
        tasks: dict[str, TaskRows],
        stop: Stop | None = None,
    ):
        super().__init__(settings, corpus, device, stop)
        self.tasks = tasks

    def digest(self) -> str:
        """16 hexadecimal digits of all rows."""
        rows = {name: [task.search, task.select] for name, task in self.tasks.items()}
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def final_score(self, model: AutoBertZeroForMaskedLM, check: Callable[[], None]) -> float:
        """Mean over the tasks of their scores on the *select* rows, from about 0 to 1."""
        return statistics.fmean(self._fine_tune(name, model, check) / 100 for name in self.tasks)

    def _fine_tune(self, name: str, model: AutoBertZeroForMaskedLM, check: Callable[[], None]) -> float:
        settings, rows = self.settings, self.tasks[name]
        labels = TASKS[name].labels
        seed_torch(settings.seed, "glue head", name)
        values = {k: v for k, v in model.config.to_dict().items() if k not in ("id2label", "label2id")}
        values["problem_type"] = "single_label_classification" if labels else "regression"
        config = AutoBertZeroConfig.from_dict({**values, "num_labels": max(1, len(labels))})
        tuned = AutoBertZeroForSequenceClassification(config)
        tuned.autobert_zero.load_state_dict(model.autobert_zero.state_dict(), strict=False)  # all but the pooler
        tuned.to(self.device)
        size = settings.batch_size

        def backward(step: int) -> float:
            seed_torch(settings.seed, "glue dropout", name, step)
            epoch, position = divmod(step * size, len(rows.search))
            order = stream(settings.seed, "glue order", name, epoch).permutation(len(rows.search))
            loss = tuned(**self._batch([rows.search[i] for i in order[position : position + size]], labels)).loss
            loss.backward()
            return loss.item()

        schedule = Schedule(
            settings.glue_steps, settings.glue_learning_rate, settings.warmup_ratio, settings.weight_decay
        )
        train(tuned, backward, schedule, check=check)
        tuned.eval()
        logits = []
        with torch.no_grad():
            for start in range(0, len(rows.select), size):
                check()
                batch = self._batch(rows.select[start : start + size], labels)
                logits.append(tuned(**batch).logits.float().cpu().numpy())
        decided = decide(name, np.concatenate(logits))
        return headline(glue_metrics(name, decided, np.array([label for *_, label in rows.select])))

    def _batch(self, rows: list[tuple[list[int], list[int], float]], labels: tuple[str, ...]) -> dict:
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
