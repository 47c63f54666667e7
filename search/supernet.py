"""BIWS: the bi-branch super-network that candidates take their first weights from.

One store of weights: embeddings, head, and for each layer position an attention branch with the projections q, k, v
and p, which all expressions share, and a convolution branch with one depth-wise kernel of the largest size, of which
smaller kernels are the centre. Each branch has layer norms and a feed-forward part of its own. A layer kind of one's own is
a branch as well.

Departure from the paper, as it is generally described: a share of the paths has no attention (see `PathSampler`).

A path is a genome. It runs in the very model that a candidate will be, on views of the store's weights: there is no
second implementation that could differ.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.func import functional_call

from autobert_zero.configuration_autobert_zero import (
    Attention,
    AutoBertZeroConfig,
    Convolution,
    Expression,
    Gene,
    Genome,
    OwnLayer,
)
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM, AutoBertZeroLayer
from autobert_zero.search.costs import NoGenome
from autobert_zero.search.data import Corpus
from autobert_zero.search.settings import SearchSettings, stream
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.training import Checkpoint, Schedule, seed_torch, train


# Its only purpose is to use every input once, so that every projection exists.
_ALL_INPUTS = Attention(Expression.parse("add(add(q, k), add(v, p))"))
_LAYERS = "autobert_zero.encoder.layer."


def model_config(genome: Genome, settings: SearchSettings, vocab_size: int, pad_token_id: int) -> AutoBertZeroConfig:
    """Configuration of a candidate: the genome at the sizes of the run."""
    return AutoBertZeroConfig(
        genome=genome.to_list(),
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        initializer_range=settings.initializer_range,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        max_position_embeddings=settings.sequence_length,
        pad_token_id=pad_token_id,
        sparse_prediction=True,
    )


class SuperNetwork(nn.Module):
    """The store of weights; `config(genome)` makes the configuration of a candidate. `own_kinds` are the layer kinds of
    one's own."""

    def __init__(self, settings: SearchSettings, vocab_size: int, pad_token_id: int, own_kinds: Sequence[str] = ()):
        super().__init__()
        self.config = functools.partial(
            model_config, settings=settings, vocab_size=vocab_size, pad_token_id=pad_token_id
        )
        layers = settings.num_hidden_layers
        self.largest_kernel = max(settings.kernel_sizes)
        attention = AutoBertZeroForMaskedLM(self.config(Genome([_ALL_INPUTS] * layers)))
        convolution = AutoBertZeroForMaskedLM(self.config(Genome([Convolution(self.largest_kernel)] * layers)))
        self.own_kinds = tuple(own_kinds)
        own = [AutoBertZeroForMaskedLM(self.config(Genome([OwnLayer(kind)] * layers))) for kind in self.own_kinds]
        # A model without weights, of which a path takes the code only; it gets its layers anew for every path. In a
        # list, because it is no part of the store.
        with torch.device("meta"):
            self._skeleton = [AutoBertZeroForMaskedLM(self.config(Genome([Convolution(1)] * layers)))]
        self._layer = functools.lru_cache(maxsize=1024)(self._make_layer)
        # The attention model also holds what all branches share; of the other models only the layers are kept.
        self.attention = attention
        self.convolution = convolution.autobert_zero.encoder.layer
        self.own = nn.ModuleList(model.autobert_zero.encoder.layer for model in own)

    def _make_layer(self, position: int, gene: Gene) -> AutoBertZeroLayer:
        """A layer without weights. One for each position, for in a path every module has weights of its own."""
        with torch.device("meta"):
            return AutoBertZeroLayer(self._skeleton[0].config, gene)

    def path_weights(self, genome: Genome, names: list[str]) -> dict[str, torch.Tensor]:
        """The store's weights under the names of the candidate's parameters; kernels are views, gradients flow back."""
        attention = dict(self.attention.named_parameters(remove_duplicate=False))
        branches = zip((Convolution.kind, *self.own_kinds), (self.convolution, *self.own), strict=True)
        others = {kind: dict(branch.named_parameters()) for kind, branch in branches}
        weights = {}
        for name in names:
            layer = int(name.removeprefix(_LAYERS).split(".")[0]) if name.startswith(_LAYERS) else None
            if layer is not None and (gene := genome[layer]).kind in others:
                weight = others[gene.kind][name.removeprefix(_LAYERS)]
                if isinstance(gene, Convolution) and name.endswith("mixer.convolution.weight"):
                    margin = (self.largest_kernel - gene.kernel_size) // 2
                    weight = weight[..., margin : self.largest_kernel - margin]
            else:
                weight = attention[name]
            weights[name] = weight
        return weights

    def forward(self, genome: Genome, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Masked-language-model loss in nats of the path `genome`; inputs and labels (batch, tokens)."""
        [path] = self._skeleton
        path.autobert_zero.encoder.layer = nn.ModuleList(
            self._layer(position, gene) for position, gene in enumerate(genome)
        )
        path.train(self.training)
        weights = self.path_weights(genome, [name for name, _ in path.named_parameters()])
        return functional_call(path, weights, (), {"input_ids": input_ids, "labels": labels}).loss

    def candidate(self, genome: Genome) -> AutoBertZeroForMaskedLM:
        """A model of its own with a copy of the weights of its path."""
        model = AutoBertZeroForMaskedLM(self.config(genome))
        weights = self.path_weights(genome, [name for name, _ in model.named_parameters()])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        return model


@dataclass(frozen=True)
class PathSampler:
    """The genome that path `number` of a step trains: of convolutions alone, or as `other_paths` of the settings says.

    Random attentions are mostly useless. Where they stand in every path, embeddings and convolutions hardly leave the
    plateau of the unigram loss within the budget of a small search; paths without them learn first.

    Args:
        population: genomes of the first generation of the search, for `other_paths="population"`, and for where
            limits leave hardly any other.
    """

    space: BackboneSpace
    settings: SearchSettings
    population: Sequence[Genome] = ()

    def __call__(self, step: int, number: int) -> Genome:
        rng, space = stream(self.settings.seed, "path", step, number), self.space
        if rng.random() < self.settings.convolution_paths:
            return Genome(space.random_other(rng) for _ in range(space.num_layers))
        match self.settings.other_paths:
            case "attentions":
                return Genome(space.random_attention(rng) for _ in range(space.num_layers))
            case "population":
                return self.population[int(rng.integers(len(self.population)))]
            case _:
                try:
                    return space.random(rng)
                except NoGenome:  # the limits are tight
                    return self.population[int(rng.integers(len(self.population)))]


def train_supernet(
    supernet: SuperNetwork,
    draw_path: Callable[[int, int], Genome],
    corpus: Corpus,
    settings: SearchSettings,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float], None] | None = None,
    stop: Stop | None = None,
) -> None:
    """Train the store, data parallel over the processes of `accelerator`.

    In every step `paths_per_step` genomes, each on a batch of its own, give one update. Genomes and batches are
    functions of (seed, step, path); the processes share them out and add up their gradients, so the number of
    processes changes nothing beyond the order of float summation. A path whose loss is not finite takes no part, and an update whose
    gradients are not finite (of a finite loss, where a product overflowed inside a norm) is left out.

    Raises: Stopped, in all processes after the same step, once `stop` of any of them says so.
    """
    parameters = list(supernet.parameters())
    stop = stop or Stop()
    stops = 0.0

    def backward(step: int) -> float:
        nonlocal stops
        # Sum of the losses, number of them, processes that want to stop.
        total = torch.tensor([0.0, 0.0, stop()], device=accelerator.device)
        for number in range(accelerator.process_index, settings.paths_per_step, accelerator.num_processes):
            seed_torch(settings.seed, "path dropout", step, number)
            batch = corpus.batch("supernet", step * settings.paths_per_step + number, settings.batch_size)
            path = draw_path(step, number)
            loss = supernet(path, *(tensor.to(accelerator.device) for tensor in batch))
            if math.isfinite(loss.item()):
                loss.backward()
                total += torch.stack([loss.detach(), torch.ones_like(loss), torch.zeros_like(loss)])
        if accelerator.num_processes > 1:
            total = _add_up(parameters, total, accelerator)
        loss_sum, count, stops = total.tolist()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients and not torch.nn.utils.get_total_norm(gradients).isfinite():
            for parameter in parameters:
                parameter.grad = None
        for gradient in gradients:
            gradient /= count
        return loss_sum / count if count else math.nan

    def check() -> None:
        if stops:
            stop.check()
            raise Stopped("another process was stopped", 0)

    schedule = Schedule(settings.supernet_steps, settings.learning_rate, settings.warmup_ratio, settings.weight_decay)
    train(supernet, backward, schedule, checkpoint, progress, check)
    # Not a bit may differ between processes, or the same candidate would score differently in two of them.
    if accelerator.num_processes > 1:
        for parameter in parameters:
            broadcast(parameter.data)


def _add_up(parameters: list[nn.Parameter], total: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Sum gradients and `total` over the processes. A parameter without a gradient anywhere is left without."""
    took_part = torch.tensor([float(p.grad is not None) for p in parameters], device=total.device)
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    vector = accelerator.reduce(torch.cat([*gradients, took_part, total]), "sum")
    *gradients, took_part, total = vector.split([*(p.numel() for p in parameters), len(parameters), len(total)])
    for parameter, gradient, took in zip(parameters, gradients, took_part.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).clone() if took else None
    return total
