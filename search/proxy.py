"""The proxy task: masked language modelling. Short training from inherited weights gives a score; training from
scratch gives the loss that is reported."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.data import IGNORE_INDEX, Corpus
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.supernet import SuperNetwork, model_config
from autobert_zero.search.training import Checkpoint, Schedule, seed_torch, train


class MaskedLMProxy:
    """Scores and trains candidates on a device, without communication."""

    def __init__(self, settings: SearchSettings, corpus: Corpus, device: torch.device):
        self.settings = settings
        self.corpus = corpus
        self.device = device

    @torch.no_grad()
    def loss(self, model: AutoBertZeroForMaskedLM, role: str) -> float:
        """Mean loss in nats over the labels of the evaluation sequences of a part."""
        model.eval()
        total, count = 0.0, 0
        batches = self.corpus.evaluation_batches(role, self.settings.eval_sequences, self.settings.batch_size)
        for input_ids, labels in batches:
            labelled = int((labels != IGNORE_INDEX).sum())
            if labelled:
                total += model(input_ids.to(self.device), labels=labels.to(self.device)).loss.item() * labelled
                count += labelled
        return total / count

    def train(
        self,
        model: AutoBertZeroForMaskedLM,
        schedule: Schedule,
        name: str,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> None:
        """Train `model` on the search part. All trainings of one `name` see the same batches: compared in pairs."""
        settings = self.settings

        def backward(step: int) -> float:
            seed_torch(settings.seed, "dropout", name, step)
            input_ids, labels = self.corpus.batch(name, step, settings.batch_size)
            loss = model(input_ids.to(self.device), labels=labels.to(self.device)).loss
            loss.backward()
            return loss.item()

        train(model, backward, schedule, checkpoint, progress)

    def score(self, genome: Genome, supernet: SuperNetwork) -> dict[str, Any]:
        """Minus the *select* loss after a short training from the weights of the genome's path.

        Returns `score`, or None and the `reason`, and the `seconds` it took. A loss that is not finite, or memory that
        runs out, is an outcome; anything else is a defect and raised.
        """
        start = time.perf_counter()
        settings = self.settings
        schedule = Schedule(
            settings.candidate_steps, settings.candidate_learning_rate, settings.warmup_ratio, settings.weight_decay
        )
        score, reason = None, None
        try:
            model = supernet.candidate(genome).to(self.device)
            self.train(model, schedule, "candidate")
            loss = self.loss(model, "select")
            if not math.isfinite(loss):
                raise FloatingPointError(f"select loss: expected a finite number, got {loss}")
            score = -loss
        except (FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        return {"score": score, "reason": reason, "seconds": round(time.perf_counter() - start, 3)}

    def train_from_scratch(
        self, genome: Genome, checkpoint: Checkpoint, progress: Callable[[int, float], None] | None = None
    ) -> AutoBertZeroForMaskedLM:
        """The final training; its weights begin from the seed of the run."""
        settings = self.settings
        seed_torch(settings.seed, "final")
        config = model_config(genome, settings, len(self.corpus.tokenizer), self.corpus.tokenizer.pad_token_id)
        model = AutoBertZeroForMaskedLM(config).to(self.device)
        schedule = Schedule(settings.final_steps, settings.learning_rate, settings.warmup_ratio, settings.weight_decay)
        self.train(model, schedule, "final", checkpoint, progress)
        return model
