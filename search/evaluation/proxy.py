"""The proxy task: masked language modelling. A short training from inherited weights gives the score of a candidate;
training from scratch gives the loss that is reported."""

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroAttention, AutoBertZeroForMaskedLM
from autobert_zero.search.evaluation.batches import Batch, Batches
from autobert_zero.search.evaluation.measure import REACH, attention_by_distance, median_latencies, without_mixer
from autobert_zero.search.evaluation.models import ModelBuilder, checkpoint_activations
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import Checkpoint, Precision, Propagate, Schedule, seed_torch, train
from autobert_zero.search.evolution.archive import Outcome
from autobert_zero.search.settings import CandidateSettings, LimitSettings, TrainingSettings
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.text.corpus import Corpus
from autobert_zero.search.text.masking import IGNORE_INDEX, micro_batches


LATENCY_ROUNDS = 11
# Tokens on which attentions are looked at.
ATTENTION_TOKENS = 16384
# Tokens of a batch of them, and of a sequence at most: the weights of all layers are in memory at once, and grow with the
# square of the length.
_ATTENTION_BATCH = 1024

_LOG = logging.getLogger(__name__)


class LatencyExceeded(Exception):
    """A candidate is slower than the settings allow."""


class Pruned(Exception):
    """A candidate is among the worst part of the way."""


def _is_out_of_memory(error: Exception) -> bool:
    # The function knows the messages of the allocators of CPUs and other devices.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)


class MaskedLMProxy:
    """Scores and trains candidates on one device, without communication.

    Args:
        builder: makes the models.
        corpus: the text.
        device: to train on.
        training, candidates, limits: settings.
        objectives: of the search; latency is measured if it is one of them.
        stop: polled after every step of a training.
    """

    def __init__(
        self,
        builder: ModelBuilder,
        corpus: Corpus,
        device: torch.device,
        training: TrainingSettings,
        candidates: CandidateSettings,
        limits: LimitSettings,
        objectives: Sequence[str] = ("score",),
        stop: Stop | None = None,
    ):
        self.builder = builder
        self.corpus = corpus
        self.device = device
        self.training = training
        self.candidates = candidates
        self.limits = limits
        self.measures_latency = limits.max_latency is not None or "latency" in objectives
        self.stop = stop or Stop()
        self.precision = Precision(training.mixed_precision, device.type)

    @torch.no_grad()
    def loss(
        self,
        model: AutoBertZeroForMaskedLM,
        part: str,
        sequences: int | None = None,
        check: Callable[[], None] | None = None,
    ) -> float:
        """Mean loss in nats over the labels of evaluation sequences of a part of the text.

        Args:
            sequences: their number; None for that of the settings.
            check: called before each batch, and may raise; by default it polls `stop`.

        Raises: FloatingPointError for a loss that is not finite, Stopped.
        """
        model.eval()
        total, count = 0.0, 0
        batches = self.corpus.evaluation_batches(
            part, sequences or self.training.eval_sequences, self.training.batch_size
        )
        for input_ids, labels in batches:
            (check or self.stop.check)()
            labelled = int((labels != IGNORE_INDEX).sum())
            if not labelled:
                continue
            count += labelled
            for ids, some, weight in micro_batches(input_ids, labels, self.training.micro_batch_size):
                with self.precision.autocast():
                    loss = model(ids.to(self.device), labels=some).loss
                total += loss.item() * weight * labelled
        if not math.isfinite(total):
            raise FloatingPointError(f"{part} loss: expected a finite number, got {total / count}")
        return total / count

    def loss_without_mixer(self, model: AutoBertZeroForMaskedLM, layer: int) -> float:
        """Test loss in nats without the mixer of a layer (`measure.without_mixer`)."""
        with without_mixer(model.base_model, layer):
            return self.loss(model, "test")

    def attention_by_distance(self, model: AutoBertZeroForMaskedLM) -> dict[str, list[list[float]]]:
        """`measure.attention_by_distance` on validation text, by the number of the layer, from 1."""
        encoder = model.base_model.encoder
        layers = [
            number
            for number, layer in enumerate(encoder.layer, start=1)
            if isinstance(layer.mixer, AutoBertZeroAttention) and layer.mixer.reference.weights_slot is not None
        ]
        length = min(self.builder.settings.sequence_length, _ATTENTION_BATCH)
        sequences = min(self.training.eval_sequences, -(-ATTENTION_TOKENS // length))
        batches = self.corpus.evaluation_batches("validation", sequences, _ATTENTION_BATCH // length)
        reach = min(REACH, length - 1)
        found = attention_by_distance(model.base_model, (ids[:, :length].to(self.device) for ids, _ in batches), reach)
        return {str(layer): each.round(4).tolist() for layer, each in zip(layers, found, strict=True)}

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
        """Train `model` on the train part. All trainings of one `name` use the same batches, so they can be compared in
        pairs. Arguments as `training.train`."""

        if self.training.gradient_checkpointing:
            checkpoint_activations(model)

        def backward(step: int, propagate: Propagate) -> float:
            seed_torch(self.corpus.seed, "dropout", name, step)
            parts = (
                (weight, {"input_ids": input_ids.to(self.device, non_blocking=True), "labels": labels})
                for input_ids, labels, weight in micro_batches(*batches(step), self.training.micro_batch_size)
            )
            return self.accumulate(model, parts, propagate)

        def build(step: int) -> Batch:
            return self.corpus.batch(name, step, self.training.batch_size)

        with Batches(build, self.device, schedule.steps if steps is None else steps) as batches:
            train(model, backward, schedule, checkpoint, progress, check or self.stop.check, steps, self.precision)

    def accumulate(
        self, model: PreTrainedModel, parts: Iterable[tuple[float, dict[str, torch.Tensor]]], propagate: Propagate
    ) -> float:
        """Add the gradients of a batch that is computed in parts. Returns its loss.

        Args:
            parts: for each its weight in the loss of the batch, and its inputs.
        """
        total = torch.zeros((), device=self.device)
        for weight, inputs in parts:
            with self.precision.autocast():
                loss = weight * model(**inputs).loss
            propagate(loss)
            total += loss.detach()
        return total.item()

    def schedule(self, steps: int, learning_rate: float) -> Schedule:
        """The schedule of a training, with the warm-up and weight decay of the settings."""
        return Schedule(steps, learning_rate, self.training.warmup_ratio, self.training.weight_decay)

    def score(self, genome: Genome, supernet: SuperNetwork, threshold: float | None = None) -> Outcome:
        """Score a candidate: minus the validation loss after a short training from the weights of its path. If memory does
        not suffice, it is trained again in smaller micro-batches.

        Args:
            threshold: the intermediate score below which it is pruned.

        Returns: the outcome. Every failure is an outcome with its reason.

        Raises: Stopped.
        """
        start, proxy = time.perf_counter(), self
        while True:
            found: dict[str, Any] = {"status": "failed", "costs": {}}
            memory_suffices = True
            try:
                proxy._score(genome, supernet, threshold, found, start)
            except Stopped:
                raise
            except Pruned as error:
                found |= {"status": "pruned", "reason": str(error)}
            except (FloatingPointError, TimeoutError, LatencyExceeded) as error:
                found["reason"] = f"{type(error).__name__}: {error}"
            except Exception as error:
                found["reason"] = f"{type(error).__name__}: {error}"
                if _is_out_of_memory(error):
                    memory_suffices = False
                else:
                    _LOG.warning("a candidate failed: %s", genome, exc_info=True)
            smaller = None if memory_suffices else proxy._in_smaller_batches(genome)
            if smaller is None:
                return Outcome(**found, seconds=round(time.perf_counter() - start, 3))
            proxy = smaller

    def _in_smaller_batches(self, genome: Genome) -> "MaskedLMProxy | None":
        """The same in micro-batches of half the size; None if they are of one sequence. To be called when the exception is
        handled: its traceback holds the model."""
        size = min(self.training.micro_batch_size or self.training.batch_size, self.training.batch_size)
        if size == 1:
            return None
        clear_device_cache(garbage_collection=True)
        _LOG.warning("memory does not suffice; micro_batch_size %d: %s", size // 2, genome)
        proxy = copy.copy(self)
        proxy.training = dataclasses.replace(self.training, micro_batch_size=size // 2)
        return proxy

    def _score(
        self,
        genome: Genome,
        supernet: SuperNetwork,
        threshold: float | None,
        found: dict[str, Any],
        start: float,
    ) -> None:
        """Fill in the fields of the outcome as they become known."""
        settings = self.candidates
        model = supernet.candidate(genome).to(self.device)
        if self.measures_latency:
            found["costs"]["latency"] = latency = self.latency(model)
            if self.limits.max_latency is not None and latency > self.limits.max_latency:
                raise LatencyExceeded(f"expected at most {self.limits.max_latency} ms, got {latency}")
        steps = settings.candidate_steps
        pruning_step = None if settings.prune_after is None else round(settings.prune_after * steps)

        def progress(done: int, _: float = math.nan) -> None:
            if done != pruning_step:
                return
            score = -self.loss(model, "validation", max(1, self.training.eval_sequences // 4), check)
            found["intermediate_score"] = score
            model.train()
            if threshold is not None and score < threshold:
                raise Pruned(f"{score:.4f} after {done} steps, expected at least {threshold:.4f}")

        def check() -> None:
            self.stop.check()
            if settings.candidate_seconds is not None and time.perf_counter() - start > settings.candidate_seconds:
                raise TimeoutError(f"candidate_seconds: expected at most {settings.candidate_seconds}")

        progress(0)
        schedule = self.schedule(steps, settings.candidate_learning_rate)
        self.train(model, schedule, "candidate", progress=progress, check=check)
        found |= {"score": self.final_score(model, check), "status": "ok"}

    def final_score(self, model: AutoBertZeroForMaskedLM, check: Callable[[], None]) -> float:
        """The score of a trained candidate; higher is better. `check` is called repeatedly and may raise."""
        return -self.loss(model, "validation", check=check)

    def latency(self, model: AutoBertZeroForMaskedLM) -> float:
        """Median milliseconds of a forward pass of the backbone."""
        model.eval()
        shape = (self.limits.latency_batch_size, self.builder.settings.sequence_length)
        inputs = torch.full(shape, self.corpus.tokenizer.mask_token_id, device=self.device)
        with self.precision.autocast():
            [latency] = median_latencies([lambda: model.base_model(inputs)], self.device, LATENCY_ROUNDS)
        return round(latency, 3)

    def train_from_scratch(
        self,
        genome: Genome,
        schedule: Schedule,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, float], None] | None = None,
        steps: int | None = None,
        builder: ModelBuilder | None = None,
    ) -> AutoBertZeroForMaskedLM:
        """Train a model from scratch, or the first `steps` of the schedule. If memory does not suffice, it goes on from the
        checkpoint in smaller micro-batches.

        Args:
            builder: for a model of another size; that of the run by default.
        """
        proxy = self
        while True:
            seed_torch(self.corpus.seed, "final")
            model = (builder or self.builder).model(genome).to(self.device)
            if self.training.compile:
                for layer in model.base_model.encoder.layer:
                    layer.compile()
            try:
                proxy.train(model, schedule, "final", checkpoint, progress, steps=steps)
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                failure = f"{type(error).__name__}: {error}"
            else:
                return model
            del model
            if (smaller := proxy._in_smaller_batches(genome)) is None:
                raise MemoryError(failure)
            proxy = smaller
