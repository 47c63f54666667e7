"""The training loop of the super-network, candidates, and models from scratch.

Every step is a function of its number, so a training resumed from a checkpoint equals an uninterrupted one.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from autobert_zero.search.files import bytes_digest
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.stopping import Stopped


MAX_GRADIENT_NORM = 1.0
_SCALER = "scaler"  # tensors of a checkpoint that are the state of a GradScaler

_LOG = logging.getLogger(__name__)


def seed_torch(seed: int, *names: str | int) -> None:
    """Seed torch's global generator, which initialization and dropout use, from a named random stream."""
    # For each kind of accelerator that is missing, torch.manual_seed formats a stack trace: milliseconds in a training step.
    manual_seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    manual_seed(int(random_stream(seed, *names).integers(2**62)))


# Computes the gradients of a loss.
Propagate = Callable[[torch.Tensor], None]


def has_bfloat16(device_type: str) -> bool:
    """False if matrix products in bfloat16 take tens of times as long as in float32: on a processor without instructions
    for them."""
    if device_type != "cpu" or not torch.backends.mkldnn.is_available():
        return True  # without this library, nothing is known
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Precision:
    """How forward and backward passes compute: in float32, or in 16 bits where torch's autocast considers it safe.

    Args:
        name: "no", "bf16" or "fp16".
        device_type: of the device.
    """

    name: str = "no"
    device_type: str = "cpu"

    def autocast(self) -> torch.autocast:
        """A context for forward passes."""
        dtype = torch.float16 if self.name == "fp16" else torch.bfloat16
        return torch.autocast(self.device_type, dtype, enabled=self.name != "no")

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses, so that small gradients are not 0 in float16; otherwise it does nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")

    def warn_if_emulated(self) -> None:
        """Log a warning if this is bfloat16 on a processor without instructions for it."""
        if self.name == "bf16" and not has_bfloat16(self.device_type):
            _LOG.warning("bf16: this processor has no instructions for bfloat16: float32 is much faster")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up and linear decay of the learning rate of AdamW."""

    steps: int
    learning_rate: float
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, …, steps - 1; the first and last are not 0."""
        warmup = max(1, round(self.warmup_ratio * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (self.steps - step) / (self.steps - warmup + 1)


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]], *names: str) -> str:
    """Digest of tensors, with their names, types and shapes, and of further names."""

    def parts() -> Iterator[bytes]:
        yield json.dumps(names).encode()
        for name, tensor in tensors:
            yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    return bytes_digest(parts())


class Checkpoint:
    """Weights, optimizer state and step of a training, in one safetensors file that is replaced as a whole.

    The file carries a digest of its content. A damaged one is renamed to `….damaged` with a warning, and its training
    starts again.

    Args:
        path: of the file.
        identity: of the training; a file with another one is ignored.
        seconds: between two writes.
        writes: False in all but one of the processes that train the same module.
    """

    def __init__(self, path: str | os.PathLike, identity: str, seconds: float, writes: bool = True):
        self.path = Path(path)
        self.identity = identity
        self.seconds = seconds
        self.writes = writes
        self._last = time.monotonic()

    def due(self) -> bool:
        return self.writes and time.monotonic() - self._last >= self.seconds

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        tensors = {}
        for name, parameter in module.named_parameters():
            tensors[f"weight:{name}"] = parameter.detach()
            for field, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{field}:{name}"] = value
        if scaler is not None:
            for name, value in scaler.state_dict().items():
                tensors[f"{_SCALER}:{name}"] = torch.tensor(value, dtype=torch.float64)
        digest = tensors_digest(sorted(tensors.items()), str(step), self.identity)
        temporary = self.path.with_suffix(".tmp")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"step": str(step), "identity": self.identity, "digest": digest},
        )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._last = time.monotonic()

    def step(self) -> int:
        """Completed steps in the file; 0 if there is nothing to resume."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                step, identity = metadata.get("step", ""), metadata.get("identity", "")
                tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
                if "digest" not in metadata and identity != self.identity:
                    return 0  # of an earlier version, and of another training
                if metadata.get("digest") == tensors_digest(tensors, step, identity):
                    return int(step) if identity == self.identity else 0
                reason = "its content does not match its digest" if "digest" in metadata else "it has no digest"
        except FileNotFoundError:
            return 0
        except (SafetensorError, ValueError) as error:
            reason = str(error)
        self._set_aside(reason)
        return 0

    def _set_aside(self, reason: str) -> None:
        if self.writes:
            damaged = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, damaged)
            _LOG.warning(
                "%s is damaged (%s): renamed to %s; its training is repeated", self.path, reason, damaged.name
            )

    def load(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> int:
        """Restore all and return the number of completed steps; 0, changing nothing, if there is nothing to resume."""
        step = self.step()
        if step == 0:
            return 0
        parameters = dict(module.named_parameters())
        shapes = {f"weight:{name}": list(parameter.shape) for name, parameter in parameters.items()}
        with safe_open(self.path, framework="pt") as file, torch.no_grad():
            weights = [key for key in file.keys() if key.startswith("weight:")]  # noqa: SIM118 (not a dict)
            if {key: file.get_slice(key).get_shape() for key in weights} != shapes:
                self._set_aside("its weights are not those of the model")
                return 0
            scale: dict[str, float] = {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                field, _, name = key.partition(":")
                if field == _SCALER:
                    scale[name] = file.get_tensor(key).item()
                elif field == "weight":
                    parameters[name].copy_(file.get_tensor(key))
                else:
                    optimizer.state[parameters[name]][field] = file.get_tensor(key).to(parameters[name].device)
        if scaler is not None and scale:
            kinds = {name: type(value) for name, value in scaler.state_dict().items()}
            scaler.load_state_dict({name: kinds[name](value) for name, value in scale.items()})
        return step


def train(
    module: nn.Module,
    backward: Callable[[int, Propagate], float],
    schedule: Schedule,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float], None] | None = None,
    check: Callable[[], None] = lambda: None,
    steps: int | None = None,
    precision: Precision = Precision(),
) -> None:
    """Train the parameters of `module` in place.

    Args:
        backward: given the number of a step and the function that computes gradients of a loss, adds gradients to the
            parameters and returns the loss in nats. All its randomness must be a function of that number.
        checkpoint: resumed from, and written periodically and at the end.
        progress: called with the number of completed steps and the last loss.
        check: called after each step; if it raises `Stopped`, a checkpoint is written first.
        steps: number of steps of the schedule to train; None for all.
        precision: of the forward passes in `backward`. With fp16 a step whose gradients overflow is skipped.

    Raises: FloatingPointError for a loss that is not finite, and what `check` and `progress` raise.
    """
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        fused=True,
    )
    scaler = precision.scaler()
    start = checkpoint.load(module, optimizer, scaler) if checkpoint else 0

    def propagate(loss: torch.Tensor) -> None:
        scaler.scale(loss).backward()

    module.train()
    end = schedule.steps if steps is None else steps
    for step in range(start, end):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = backward(step, propagate)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss: expected a finite number, got {loss} at step {step}")
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()  # to None: parameters that are not part of a step are not updated
        if progress:
            progress(step + 1, loss)
        try:
            check()
        except Stopped:
            if checkpoint and checkpoint.writes:
                checkpoint.save(module, optimizer, step + 1, scaler)
            raise
        if checkpoint and (checkpoint.due() or (checkpoint.writes and step + 1 == end)):
            checkpoint.save(module, optimizer, step + 1, scaler)
