"""Muon for the weights of linear layers, AdamW for all other parameters, as one optimizer."""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from autobert_zero.search.evaluation.training import has_bfloat16


# Of the method (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Root mean square of an update of AdamW, to which those of Muon are scaled (Liu et al., 2025, arXiv:2502.16982).
RMS_OF_ADAMW = 0.2


def orthogonalized(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices with the singular vectors of the given ones, and singular values near 1, by Newton-Schulz iterations.

    Args:
        matrices: (number, rows, columns).
        dtype: of the iterations and of what is returned.
    """
    if matrices.size(1) > matrices.size(2):
        return orthogonalized(matrices.mT, dtype).mT
    a, b, c = COEFFICIENTS
    x = torch.nn.functional.normalize(matrices.to(dtype).flatten(1), eps=1e-7).view(matrices.shape)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Steps of momentum, orthogonalized, at the learning rates of AdamW.

    That of torch always iterates in bfloat16, which takes ten times as long as a training step on a CPU without instructions
    for it. This one then iterates in float32, and on all matrices of a shape at once.

    Args:
        parameters: of two dimensions.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                rate = group["lr"] * RMS_OF_ADAMW * math.sqrt(max(shape))
                momenta = torch.stack([self._momentum(parameter) for parameter in parameters])
                dtype = torch.bfloat16 if has_bfloat16(momenta.device.type) else torch.float32
                for parameter, update in zip(parameters, orthogonalized(momenta, dtype), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _momentum(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Nesterov's, with the gradient of this step."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM)


class MuonWithAdamW(torch.optim.Optimizer):
    """Both at one learning rate; a schedule changes the rates of all groups alike.

    Args:
        matrices: parameters of two dimensions.
        others: groups of parameters, with their weight decay.
        weight_decay: of the matrices.
        adamw: more arguments of AdamW.
    """

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        others: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        **adamw: Any,
    ):
        self._parts = (
            Muon(matrices, lr, weight_decay),
            torch.optim.AdamW(others, lr=lr, **adamw),
        )
        super().__init__(self._groups(), {"lr": lr})  # some schedules start from the default

    @classmethod
    def of_model(
        cls, model: PreTrainedModel, decayed: Collection[str], weight_decay: float, **more: Any
    ) -> "MuonWithAdamW":
        """Muon for the weights of linear layers but the one that predicts tokens; AdamW for that, embeddings and the rest.

        Args:
            decayed: names of the parameters with weight decay.
            more: arguments of AdamW.
        """
        output = model.get_output_embeddings()
        linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not output]
        matrices = [layer.weight for layer in linear if layer.weight.requires_grad]
        chosen = set(map(id, matrices))
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in chosen:
                groups[name in decayed].append(parameter)
        others = [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]
        return cls(matrices, others, weight_decay=weight_decay, **more)

    def _groups(self) -> list[dict[str, Any]]:
        """The groups themselves, no copies: a schedule that changes a rate here changes it there."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()
