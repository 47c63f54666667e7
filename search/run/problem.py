"""What a search searches: the text, the space, the strategy, and the proxy that scores candidates."""

import contextlib
import dataclasses
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.custom_operations import load as load_custom_operations
from autobert_zero.search.evaluation.glue_proxy import GlueProxy, read_tasks
from autobert_zero.search.evaluation.measure import custom_layer_costs
from autobert_zero.search.evaluation.models import ModelBuilder
from autobert_zero.search.evaluation.proxy import MaskedLMProxy
from autobert_zero.search.evaluation.supernet import PathSampler, SuperNetwork, train_supernet
from autobert_zero.search.evaluation.training import Checkpoint, seed_torch
from autobert_zero.search.evolution.archive import Record
from autobert_zero.search.evolution.loop import first_generation
from autobert_zero.search.evolution.strategies import Strategy
from autobert_zero.search.files import json_digest
from autobert_zero.search.run.factory import make_cost_model, make_space, make_strategy, within_limits
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import GlueSettings, SearchSettings, TextSettings
from autobert_zero.search.space.costs import CostModel
from autobert_zero.search.stopping import Stop
from autobert_zero.search.text.corpus import Corpus


def text_source(settings: TextSettings) -> str:
    """The text in words."""
    if settings.train_file:
        return ", ".join(os.path.basename(path) for path in settings.train_file)
    return settings.dataset_name or f"the language reference of Python {platform.python_version()}"


@dataclass
class Problem:
    """Everything that the settings of a run determine before anything is trained.

    Attributes:
        settings: of the run.
        corpus: the text.
        custom_operations: of the user.
        costs: parameters and FLOPs of genomes.
        space: a `BackboneSpace`, possibly within limits.
        strategy: how candidates are proposed.
        proxy: scores and trains candidates.
        data: digests of text, custom operations and tasks, and numbers of tokens.
        first: the first generation, not evaluated.
    """

    settings: SearchSettings
    corpus: Corpus
    custom_operations: CustomOperations
    costs: CostModel
    space: Any
    strategy: Strategy
    proxy: MaskedLMProxy
    data: dict[str, Any]
    first: list[Record]

    @classmethod
    def prepare(
        cls,
        settings: SearchSettings,
        device: torch.device,
        stop: Stop | None = None,
        accelerator: Accelerator | None = None,
        corpus: Corpus | None = None,
    ) -> "Problem":
        """Read the text and check everything.

        Args:
            settings: of the run.
            device: to train on.
            stop: polled during trainings.
            accelerator: of the job, if several processes prepare the same problem.
            corpus: the text, if it was read before.

        Raises: ValueError for bad input.
        """
        custom = _load_custom_operations(settings)
        if corpus is None:
            corpus = _read_corpus(settings, accelerator)
        vocab_size = len(corpus.tokenizer)
        builder = ModelBuilder(settings.model, vocab_size, corpus.tokenizer.pad_token_id, custom)
        data: dict[str, Any] = {"digest": corpus.digest(), "tokens": corpus.num_tokens()}
        arguments: tuple[Any, ...] = (builder, corpus, device, settings.training, settings.candidates, settings.limits)
        if settings.candidates.proxy == "glue":
            tasks = read_tasks(settings.glue, corpus.tokenizer, settings.model.sequence_length, corpus.seed)
            proxy: MaskedLMProxy = GlueProxy(
                tasks, settings.glue, *arguments, objectives=settings.strategy.objectives, stop=stop
            )
            data["glue"] = proxy.digest()  # type: ignore[attr-defined]
        else:
            for name, value in dataclasses.asdict(settings.glue).items():
                default = getattr(GlueSettings(), name)
                settings.glue.expect(name, value == default, "its default without --proxy glue, which does not use it")
            proxy = MaskedLMProxy(*arguments, objectives=settings.strategy.objectives, stop=stop)
        if custom.digest:
            data["custom_operations"] = custom.digest
        costs = make_cost_model(settings.model, vocab_size, custom_layer_costs(custom, settings.model, vocab_size))
        space = make_space(settings.space, settings.strategy, settings.model, custom)
        space = within_limits(space, settings.limits, costs.costs)
        strategy = make_strategy(settings.strategy, space)
        first = first_generation(space, strategy, settings.run.seed)
        if not first:
            space.random(random_stream(settings.run.seed))  # raises with the reason
        return cls(settings, corpus, custom, costs, space, strategy, proxy, data, first)

    def replace(self, **settings: Any) -> "Problem":
        """The problem with other settings, on the same text, in the order of its seed.

        Raises: ValueError as `prepare` does, and for settings that the tokens depend on.
        """
        changed = self.settings.replace(**settings)
        for name, old, new in (
            ("text", self.settings.text, changed.text),
            ("sequence_length", self.settings.model.sequence_length, changed.model.sequence_length),
        ):
            if new != old:
                raise ValueError(f"{name}: expected {old} as before, got {new}")
        seed = changed.run.seed
        corpus = self.corpus if seed == self.corpus.seed else self.corpus.with_seed(seed)
        return Problem.prepare(changed, self.proxy.device, self.proxy.stop, corpus=corpus)

    @property
    def source(self) -> str:
        return text_source(self.settings.text)

    @property
    def seed_genomes(self) -> list[str]:
        return [str(genome) for genome in self.strategy.seeds]  # type: ignore[attr-defined]

    @property
    def identity(self) -> str:
        """What a history depends on, as a digest."""
        return json_digest([self.settings.identity(), self.seed_genomes, self.data])

    @property
    def full_identity(self) -> str:
        """The identity, and what follows the history."""
        return json_digest([self.identity, self.settings.budget()])

    def unigram_score(self) -> float | None:
        """The score of token frequencies without context; None for a proxy that is not about tokens."""
        if self.settings.candidates.proxy != "mlm":
            return None
        return -self.corpus.unigram_loss("validation", self.settings.training.eval_sequences)

    def new_supernet(self) -> SuperNetwork:
        """The super-network with its initial weights, on the device of the run."""
        seed_torch(self.settings.run.seed, "supernet")
        return self.make_supernet().to(self.proxy.device)

    def make_supernet(self) -> SuperNetwork:
        """The super-network on torch's current device."""
        space = self.settings.space
        return SuperNetwork(self.proxy.builder, max(space.kernel_sizes), space.named_operations())

    def train_supernet(
        self,
        supernet: SuperNetwork,
        accelerator: Accelerator | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> None:
        """`evaluation.supernet.train_supernet` by the settings."""
        settings = self.settings
        train_supernet(
            *(supernet, self.paths(), self.corpus, settings.supernet, settings.training),
            *(accelerator, checkpoint, progress, self.proxy.stop),
        )

    def paths(self) -> PathSampler:
        """The paths that the super-network is trained on."""
        population = [record.genome for record in self.first]
        return PathSampler(self.space, self.settings.run.seed, self.settings.supernet, population)


def _load_custom_operations(settings: SearchSettings) -> CustomOperations:
    path = settings.space.custom_operations
    if path is None:
        return CustomOperations()
    try:
        return load_custom_operations(path)
    except ValueError as error:
        raise ValueError(f"custom_operations: {path}: {error}") from None


def _read_corpus(settings: SearchSettings, accelerator: Accelerator | None) -> Corpus:
    # With a folder for the tokens, one process prepares them for all.
    shared = accelerator is not None and settings.text.prepared_dir is not None
    turns = accelerator.main_process_first() if accelerator and shared else contextlib.nullcontext()
    with turns:
        return Corpus.build(settings.text, settings.run.seed, settings.model.sequence_length)
