"""BIWS: the bi-branch super-network that candidates inherit their initial weights from.

One store of weights: embeddings, head, and for each layer position an attention branch with the projections q, k, v
and p, which all expressions share, and a convolution branch with one depth-wise kernel of the maximum size, of which
smaller kernels are the centre. Each branch has its own layer norms and feed-forward part. Each custom layer kind is
another branch.

A path is a genome. It runs in the same model class as a candidate, on views of the store's weights: there is no second
implementation that could differ. Departures from the paper are listed in docs/explanation.md.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.func import functional_call

from autobert_zero.configuration_autobert_zero import (
    ALL_OPERATIONS,
    KERNEL_SIZES,
    PROJECTED_INPUTS,
    Attention,
    Convolution,
    CustomLayer,
    Expression,
    Gene,
    Genome,
)
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroLayer
from autobert_zero.search.evaluation.batches import Batch, Batches
from autobert_zero.search.evaluation.models import ModelBuilder, checkpoint_activations
from autobert_zero.search.evaluation.training import Checkpoint, Precision, Propagate, Schedule, seed_torch, train
from autobert_zero.search.evolution.limits import InfeasibleLimits
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.settings import SupernetSettings, TrainingSettings
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.text.corpus import Corpus
from autobert_zero.search.text.masking import micro_batches


# Uses every input once, so that all projections are created. Rotary, so that the store is a legal model in a space without
# position embeddings.
_ALL_INPUTS = "add(add(rotary(q), k), add(v, p))"
# Weights of operations with parameters, per layer and operation: the nodes of an expression use them in turn.
NUM_SLOTS = 3
_MAX_CONVOLUTION = max(KERNEL_SIZES, key=KERNEL_SIZES.__getitem__)
_LAYERS = "autobert_zero.encoder.layer."


class SuperNetwork(nn.Module):
    """The store of weights.

    Args:
        builder: makes the models of candidates.
        max_kernel_size: of the convolution branch.
        operations: built-in operations that expressions may use.
    """

    def __init__(self, builder: ModelBuilder, max_kernel_size: int, operations: Sequence[str] = ALL_OPERATIONS):
        super().__init__()
        self.builder = builder
        # More than one token, so that the store is a legal model in a space without position embeddings.
        self.max_kernel_size = max(3, max_kernel_size)
        layers = builder.settings.num_hidden_layers
        attention = builder.model(Genome([_store_attention(operations)] * layers))
        convolution = builder.model(Genome([Convolution(self.max_kernel_size)] * layers))
        self.layer_kinds = builder.custom_operations.layer_kinds
        custom = [builder.model(Genome([CustomLayer(kind)] * layers)) for kind in self.layer_kinds]
        # A meta-device model that provides code only; every path replaces its layers. In a list, so that it is not a
        # submodule.
        with torch.device("meta"):
            self._skeleton = [builder.model(Genome([Convolution(3)] * layers))]
        self._layer = functools.lru_cache(maxsize=1024)(self._make_layer)
        # The attention model also holds what all branches share; of the other models only the layers are kept.
        self.attention = attention
        self.convolution = convolution.autobert_zero.encoder.layer
        self.custom = nn.ModuleList(model.autobert_zero.encoder.layer for model in custom)

    def _make_layer(self, position: int, gene: Gene, provides_values: bool) -> AutoBertZeroLayer:
        """A layer without weights. One per position, because every module of a path has separate weights."""
        config = self._skeleton[0].config
        if _is_custom(gene):
            custom = self.builder.custom_operations
            config = copy.copy(config)
            config.custom_operations, config.custom_operations_digest = dict(custom.rules), custom.digest
        with torch.device("meta"):
            return AutoBertZeroLayer(config, gene, provides_values)

    @functools.cached_property
    def _store(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
        """Parameters by name: those of the attention branch and of what all share, and of each other kind of layer."""
        branches = zip((Convolution.kind, *self.layer_kinds), (self.convolution, *self.custom), strict=True)
        others: dict[str, dict[str, torch.Tensor]] = {
            kind: dict(branch.named_parameters()) for kind, branch in branches
        }
        attention: dict[str, torch.Tensor] = dict(self.attention.named_parameters(remove_duplicate=False))
        return attention, others

    def path_weights(self, genome: Genome, names: list[str]) -> dict[str, torch.Tensor]:
        """The store's weights under the names of the candidate's parameters: views, through which gradients flow."""
        attention, others = self._store
        weights = {}
        for name in names:
            layer = int(name.removeprefix(_LAYERS).split(".")[0]) if name.startswith(_LAYERS) else None
            if layer is not None and (gene := genome[layer]).kind in others:
                weight = others[gene.kind][name.removeprefix(_LAYERS)]
                if isinstance(gene, Convolution) and name.endswith("mixer.convolution.weight"):
                    margin = (self.max_kernel_size - gene.kernel_size) // 2
                    weight = weight[..., margin : self.max_kernel_size - margin]
            elif ".mixer.operations." in name:
                weight = _operation_weight(attention, name, genome[layer])  # type: ignore[index]
            else:
                weight = attention[name]
            weights[name] = weight
        return weights

    def forward(
        self,
        genome: Genome,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        then: Callable[[torch.Tensor], None] | None = None,
        gradient_checkpointing: bool = False,
    ) -> torch.Tensor:
        """Masked-language-model loss in nats of the path `genome`; inputs and labels (batch, tokens).

        Args:
            then: called with the loss while the path has its weights: gradient checkpointing needs them in the backward
                pass.
        """
        [path] = self._skeleton
        encoder = path.autobert_zero.encoder
        encoder.set_genome(genome)
        encoder.layer = nn.ModuleList(
            self._layer(position, gene, position == encoder.values_layer) for position, gene in enumerate(genome)
        )
        path.train(self.training)
        if gradient_checkpointing:
            checkpoint_activations(path)
        weights = self.path_weights(genome, [name for name, _ in path.named_parameters()])
        return functional_call(
            _Loss(path, then), {f"path.{name}": w for name, w in weights.items()}, (input_ids, labels)
        )

    def candidate(self, genome: Genome) -> AutoBertZeroForMaskedLM:
        """A separate model with a copy of the weights of its path."""
        model = self.builder.model(genome)
        weights = self.path_weights(genome, [name for name, _ in model.named_parameters()])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        return model


class _Loss(nn.Module):
    """The loss of a path, and what is done with it while the path has its weights."""

    def __init__(self, path: AutoBertZeroForMaskedLM, then: Callable[[torch.Tensor], None] | None):
        super().__init__()
        self.path = path
        self.then = then

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = self.path(input_ids, labels=labels).loss
        if self.then:
            self.then(loss)
        return loss


def _store_attention(operations: Sequence[str]) -> Attention:
    """An attention with all projections, and with `NUM_SLOTS` nodes of the largest convolution and of `mix`."""
    text = _ALL_INPUTS
    for slot in range(NUM_SLOTS):
        if set(KERNEL_SIZES) & set(operations):
            text = f"add({text}, {_MAX_CONVOLUTION}({PROJECTED_INPUTS[slot]}))"
        if "mix" in operations:
            text = f"add({text}, mix({PROJECTED_INPUTS[slot]}, {PROJECTED_INPUTS[slot + 1]}))"
    return Attention(Expression.parse(text))


def slots(expression: Expression) -> dict[str, int]:
    """For each name of parameters the slot of the store: convolutions use them in turn, and so do `mix` nodes."""
    found: dict[str, int] = {}
    for family in (tuple(KERNEL_SIZES), ("mix",)):
        names = [name for node, name in expression.parameters().items() if node.name in family]
        found |= {name: number % NUM_SLOTS for number, name in enumerate(names)}
    return found


def _operation_weight(attention: dict[str, torch.Tensor], name: str, gene: Gene) -> torch.Tensor:
    """The store's weight of an operation: of its slot, and of a convolution the centre of the largest kernel."""
    assert isinstance(gene, Attention)
    prefix, _, node = name.removesuffix(".weight").rpartition(".")
    operation, slot = node.rpartition("_")[0], slots(gene.expression)[node]
    if operation not in KERNEL_SIZES:
        return attention[f"{prefix}.{operation}_{slot}.weight"]
    weight = attention[f"{prefix}.{_MAX_CONVOLUTION}_{slot}.weight"]
    margin = (weight.shape[-1] - KERNEL_SIZES[operation]) // 2
    return weight[..., margin : weight.shape[-1] - margin]


def _is_custom(gene: Gene) -> bool:
    return bool(Genome([gene]).custom_operations())


@dataclass(frozen=True)
class PathSampler:
    """The genome that path `number` of a step trains.

    Random attentions are mostly useless. On random genomes, embeddings and convolutions hardly leave the plateau of the
    unigram loss within the budget of a small search, and the projections do not learn to attend. So paths have
    self-attention and convolutions, and some of them a random attention in one layer.

    Args:
        space: a `BackboneSpace`, possibly within limits, which the paths of self-attention do not have to keep.
        seed: of the run.
        settings: of the super-network.
        population: genomes of the first generation of the search, if limits exclude nearly all others.
    """

    space: Any
    seed: int
    settings: SupernetSettings
    population: Sequence[Genome] = ()

    def __call__(self, step: int, number: int) -> Genome:
        rng, bounds = random_stream(self.seed, "path", step, number), self.space.bounds
        if self.settings.paths == "self_attention" and bounds.self_attention is not None:
            return bounds.random_self_attentions(rng, rng.random() < self.settings.random_attention_paths)
        try:
            return self.space.random(rng)
        except InfeasibleLimits:  # the limits are tight
            return self.population[int(rng.integers(len(self.population)))]


def train_supernet(
    supernet: SuperNetwork,
    sample_path: Callable[[int, int], Genome],
    corpus: Corpus,
    settings: SupernetSettings,
    training: TrainingSettings,
    accelerator: Accelerator | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float], None] | None = None,
    stop: Stop | None = None,
) -> None:
    """Train the store, data parallel over the processes of `accelerator`, or in this process alone without one.

    In every step `paths_per_step` genomes, each with its own batch, give one update. Genomes and batches are functions
    of (seed, step, path); the processes divide them and sum their gradients, so the number of processes changes only
    the order of float summation. A path whose loss is not finite is skipped, and so is an update whose gradients are
    not finite (which a finite loss may have, if a product overflows inside a norm).

    Raises: Stopped, in all processes after the same step, once `stop` of any of them returns True.
    """
    parameters = list(supernet.parameters())
    device = parameters[0].device
    precision = Precision(training.mixed_precision, device.type)
    index, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    stop = stop or Stop()
    stops = 0.0

    def run_paths(step: int, propagate: Propagate, skips: bool) -> torch.Tensor:
        """Add the gradients of the paths of a step. Returns the sum of the losses, and their number.

        Args:
            skips: whether to skip losses that are not finite. To know them, it waits for the device after each.
        """
        total = torch.zeros(2, device=device)

        def then(loss: torch.Tensor, weight: float) -> None:
            nonlocal total
            if not skips or math.isfinite(loss.item()):
                propagate(weight * loss)
                total += weight * torch.stack([loss.detach(), torch.ones_like(loss)])

        for number in range(index, settings.paths_per_step, processes):
            seed_torch(corpus.seed, "path dropout", step, number)
            batch = batches(step * settings.paths_per_step + number)
            path = sample_path(step, number)
            for input_ids, labels, weight in micro_batches(*batch, training.micro_batch_size):
                with precision.autocast():
                    supernet(
                        path,
                        input_ids.to(device, non_blocking=True),
                        labels,
                        functools.partial(then, weight=weight),
                        training.gradient_checkpointing,
                    )
        return total

    def backward(step: int, propagate: Propagate) -> float:
        nonlocal stops
        wants_stop = float(stop())
        for skips in (False, True):
            total = run_paths(step, propagate, skips)
            loss_sum, count, stops, norm = _reduce(parameters, total, wants_stop, accelerator)
            if math.isfinite(loss_sum):
                break
            for parameter in parameters:
                parameter.grad = None
        if not math.isfinite(norm) and precision.name != "fp16":  # with fp16 the scaler skips the update
            for parameter in parameters:
                parameter.grad = None
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        return loss_sum / count if count else math.nan

    def check() -> None:
        if stops:
            stop.check()
            raise Stopped("another process was stopped", 0)

    schedule = Schedule(settings.supernet_steps, training.learning_rate, training.warmup_ratio, training.weight_decay)

    def build(number: int) -> Batch:
        return corpus.batch("supernet", number, training.batch_size)

    def following(number: int) -> int:
        step, path = divmod(number, settings.paths_per_step)
        if path + processes < settings.paths_per_step:
            return number + processes
        return (step + 1) * settings.paths_per_step + index

    with Batches(build, device, settings.supernet_steps * settings.paths_per_step, following) as batches:
        train(supernet, backward, schedule, checkpoint, progress, check, precision=precision)
    # No bit may differ between processes, or the score of a candidate would depend on the process.
    if processes > 1:
        for parameter in parameters:
            broadcast(parameter.data)


def _reduce(
    parameters: list[nn.Parameter], total: torch.Tensor, wants_stop: float, accelerator: Accelerator | None
) -> list[float]:
    """Sum gradients, `total` and `wants_stop` over the processes. A parameter without a gradient in any of them remains
    without. The device is waited for once.

    Returns: the sums of `total` and `wants_stop`, and the norm of the gradients.
    """
    numbers = torch.cat([total, total.new_tensor([wants_stop])])
    if accelerator is None or accelerator.num_processes == 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).to(numbers) if gradients else numbers.new_zeros(())
        return torch.cat([numbers, norm[None]]).tolist()
    has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=total.device)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    sums = accelerator.reduce(torch.cat([flat, has_gradient, numbers]), "sum")
    flat, has_gradient, numbers = sums.split([len(flat), len(has_gradient), len(numbers)])
    norm = torch.linalg.vector_norm(flat)
    values = torch.cat([has_gradient, numbers, norm[None]]).tolist()
    gradients = flat.split([parameter.numel() for parameter in parameters])
    for parameter, gradient, has in zip(parameters, gradients, values, strict=False):
        parameter.grad = gradient.view_as(parameter).clone() if has else None
    return values[len(parameters) :]
