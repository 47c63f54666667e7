"""The proxy task: masked language modelling. Short training from inherited weights gives a score; training from
scratch gives the loss that is reported."""

import logging
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.data import Corpus
from autobert_zero.search.masking import IGNORE_INDEX
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.supernet import SuperNetwork, model_config
from autobert_zero.search.training import Checkpoint, Schedule, seed_torch, train


_LATENCY_WARMUP, _LATENCY_ROUNDS = 3, 11

_LOG = logging.getLogger(__name__)


class LatencyExceeded(Exception):
    """A candidate is slower than the settings allow."""


class Dropped(Exception):
    """A candidate is clearly behind at its hurdle."""


class MaskedLMProxy:
    """Scores and trains candidates on a device, without communication.

    Args:
        stop: asked after every step of a training.
    """

    def __init__(self, settings: SearchSettings, corpus: Corpus, device: torch.device, stop: Stop | None = None):
        self.settings = settings
        self.corpus = corpus
        self.device = device
        self.stop = stop or Stop()

    @torch.no_grad()
    def loss(self, model: AutoBertZeroForMaskedLM, role: str, sequences: int | None = None) -> float:
        """Mean loss in nats over the labels of the evaluation sequences of a part, all that the settings say or less.

        Raises: FloatingPointError for a loss that is not finite, Stopped.
        """
        model.eval()
        total, count = 0.0, 0
        batches = self.corpus.evaluation_batches(
            role, sequences or self.settings.eval_sequences, self.settings.batch_size
        )
        for input_ids, labels in batches:
            self.stop.check()
            labelled = int((labels != IGNORE_INDEX).sum())
            if labelled:
                total += model(input_ids.to(self.device), labels=labels.to(self.device)).loss.item() * labelled
                count += labelled
        if not math.isfinite(total):
            raise FloatingPointError(f"{role} loss: expected a finite number, got {total / count}")
        return total / count

    def train(
        self,
        model: AutoBertZeroForMaskedLM,
        schedule: Schedule,
        name: str,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, float], None] | None = None,
        check: Callable[[], None] | None = None,
        steps: int | None = None,
    ) -> None:
        """Train `model` on the search part. All trainings of one `name` see the same batches: compared in pairs."""
        settings = self.settings

        def backward(step: int) -> float:
            seed_torch(settings.seed, "dropout", name, step)
            input_ids, labels = self.corpus.batch(name, step, settings.batch_size)
            loss = model(input_ids.to(self.device), labels=labels.to(self.device)).loss
            loss.backward()
            return loss.item()

        train(model, backward, schedule, checkpoint, progress, check or self.stop.check, steps)

    def score(self, genome: Genome, supernet: SuperNetwork, hurdle: float | None = None) -> dict[str, Any]:
        """Minus the *select* loss after a short training from the weights of the genome's path.

        Args:
            hurdle: the score below which a candidate is dropped at the hurdle of the settings.

        Returns: what `Record.evaluated` takes. Whatever goes wrong is an outcome with its reason.

        Raises: Stopped.
        """
        start = time.perf_counter()
        outcome: dict[str, Any] = {"score": None, "reason": None, "hurdle": None, "costs": {}}
        try:
            self._score(genome, supernet, hurdle, outcome, start)
        except Stopped:
            raise
        except Dropped as error:
            outcome |= {"status": "dropped", "reason": str(error)}
        except (FloatingPointError, MemoryError, TimeoutError, torch.OutOfMemoryError, LatencyExceeded) as error:
            outcome["reason"] = f"{type(error).__name__}: {error}"
        except Exception as error:
            _LOG.warning("a candidate failed: %s", genome, exc_info=True)
            outcome["reason"] = f"{type(error).__name__}: {error}"
        return {**outcome, "seconds": round(time.perf_counter() - start, 3)}

    def _score(
        self,
        genome: Genome,
        supernet: SuperNetwork,
        hurdle: float | None,
        outcome: dict[str, Any],
        start: float,
    ) -> None:
        settings = self.settings
        model = supernet.candidate(genome).to(self.device)
        if settings.max_latency is not None or "latency" in settings.objectives:
            outcome["costs"]["latency"] = latency = self.latency(model)
            if settings.max_latency is not None and latency > settings.max_latency:
                raise LatencyExceeded(f"expected at most {settings.max_latency} ms, got {latency}")
        steps = settings.candidate_steps
        hurdle_step = None if settings.hurdle is None else round(settings.hurdle * steps)

        def progress(done: int, _: float = math.nan) -> None:
            if done != hurdle_step:
                return
            outcome["hurdle"] = -self.loss(model, "select", max(1, settings.eval_sequences // 4))
            model.train()
            if hurdle is not None and outcome["hurdle"] < hurdle:
                raise Dropped(f"{outcome['hurdle']:.4f} at the hurdle, expected at least {hurdle:.4f}")

        def check() -> None:
            self.stop.check()
            if settings.candidate_seconds is not None and time.perf_counter() - start > settings.candidate_seconds:
                raise TimeoutError(f"candidate_seconds: expected at most {settings.candidate_seconds}")

        progress(0)
        schedule = Schedule(steps, settings.candidate_learning_rate, settings.warmup_ratio, settings.weight_decay)
        self.train(model, schedule, "candidate", progress=progress, check=check)
        outcome["score"] = self.final_score(model, check)

    def final_score(self, model: AutoBertZeroForMaskedLM, check: Callable[[], None]) -> float:
        """The score of a trained candidate; higher is better. `check` raises where it must end."""
        return -self.loss(model, "select")

    @torch.no_grad()
    def latency(self, model: AutoBertZeroForMaskedLM) -> float:
        """Median milliseconds of a forward pass of the backbone."""
        model.eval()
        shape = (self.settings.latency_batch_size, self.settings.sequence_length)
        inputs = torch.full(shape, self.corpus.tokenizer.mask_token_id, device=self.device)
        seconds = []
        for _ in range(_LATENCY_WARMUP + _LATENCY_ROUNDS):
            start = time.perf_counter()
            model.base_model(inputs)
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
        return round(1000 * statistics.median(seconds[_LATENCY_WARMUP:]), 3)

    def train_from_scratch(
        self,
        genome: Genome,
        checkpoint: Checkpoint,
        progress: Callable[[int, float], None] | None = None,
        steps: int | None = None,
    ) -> AutoBertZeroForMaskedLM:
        """The final training, or its first `steps`; its weights begin from the seed of the run."""
        settings = self.settings
        seed_torch(settings.seed, "final")
        config = model_config(genome, settings, len(self.corpus.tokenizer), self.corpus.tokenizer.pad_token_id)
        model = AutoBertZeroForMaskedLM(config).to(self.device)
        schedule = Schedule(settings.final_steps, settings.learning_rate, settings.warmup_ratio, settings.weight_decay)
        self.train(model, schedule, "final", checkpoint, progress, steps=steps)
        return model
