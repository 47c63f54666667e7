"""What is measured of a model: FLOPs, latency, where its attentions look, and what it is without a mixer."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.settings import ModelSettings


WARMUP_ROUNDS = 3


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU without one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def count_flops(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiplications and additions in the matrix products and convolutions of a call, such as a forward pass."""
    # By plain products: the counter does not know the FLOPs of fused attention on a CPU. With gradients enabled, or
    # torch's own transformer modules would be fused, too.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


def count_backbone_flops(backbone: nn.Module, tokens: int) -> int:
    """FLOPs of a forward pass of an encoder over one sequence."""
    device = next(backbone.parameters()).device
    return count_flops(backbone, torch.ones((1, tokens), dtype=torch.long, device=device))


@torch.no_grad()
def median_latencies(calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int) -> list[float]:
    """Median milliseconds of each call after `WARMUP_ROUNDS` rounds. The calls take turns, so that other load on the
    machine affects all of them alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(WARMUP_ROUNDS + rounds):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            synchronize()
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times[WARMUP_ROUNDS:]) for times in seconds]


@contextmanager
def without_mixer(backbone: Any, layer: int) -> Iterator[None]:
    """Within it the mixer of a layer, counted from 0, gives zeros: only its residual connection and feed-forward part remain.

    Args:
        backbone: of AutoBERT-Zero.
    """
    removed = backbone.encoder.layer[layer].mixer.register_forward_hook(
        lambda module, inputs, output: (torch.zeros_like(output[0]), *output[1:])
    )
    try:
        # Compiled layers do not see hooks that are registered after they were compiled.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        removed.remove()


# Tokens to the left and to the right of a token, at which its attention is measured.
REACH = 8


@torch.no_grad()
def attention_by_distance(model: nn.Module, batches: Iterable[torch.Tensor], reach: int = REACH) -> list[np.ndarray]:
    """Where the attentions of an encoder look: for each layer that has token-by-token weights, and each head, the mean fraction
    of a token's weights that is at each distance, (heads, 2 reach + 1), from `reach` tokens to the left to as many to the right.

    Weights count by their absolute values, so that those of attentions without a softmax can be compared.

    Args:
        batches: ids (batch, tokens) without padding, of more tokens than `reach`.
    """
    model.eval()
    sums: list[torch.Tensor] = []
    count = 0
    for ids in batches:
        found = []
        for weights in model(ids, output_attentions=True).attentions or ():
            fractions = weights.double().abs()
            fractions = fractions / fractions.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
            # The diagonal `distance` to the right of the main one; near the ends of a sequence it is shorter.
            diagonals = [fractions.diagonal(distance, -2, -1) for distance in range(-reach, reach + 1)]
            found.append(torch.stack([diagonal.mean(-1).sum(0) for diagonal in diagonals], -1))
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        count += len(ids)
    return [(total / count).cpu().numpy() for total in sums]


def custom_layer_costs(
    custom: CustomOperations, settings: ModelSettings, vocab_size: int
) -> dict[str, tuple[int, int]]:
    """Parameters and FLOPs of a layer of each custom kind, for one sequence.

    Raises: ValueError that names the kind if it makes no layer of these sizes.
    """
    config = AutoBertZeroConfig(
        hidden_size=settings.hidden_size,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        vocab_size=vocab_size,
        max_position_embeddings=settings.sequence_length,
    )
    x = torch.zeros(1, settings.sequence_length, settings.hidden_size)
    found = {}
    for kind in custom.layer_kinds:
        try:
            with torch.random.fork_rng(devices=[]):
                module = custom.functions[kind](config).eval()
            flops = count_flops(module, x, torch.ones(x.shape[:2], dtype=torch.bool))
        except Exception as error:
            sizes = f"hidden_size={settings.hidden_size}, num_attention_heads={settings.num_attention_heads}"
            raise ValueError(
                f"custom_operations: {kind!r} makes no layer of {sizes}: {type(error).__name__}: {error}"
            ) from None
        found[kind] = (sum(parameter.numel() for parameter in module.parameters()), flops)
    return found
