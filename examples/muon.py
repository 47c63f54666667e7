"""Muon for the weights of linear layers, AdamW for all other parameters, as one optimizer."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from transformers import PreTrainedModel


class MuonWithAdamW(torch.optim.Optimizer):
    """Both at one learning rate: Muon's updates are scaled to the size of AdamW's (Liu et al., 2025, arXiv:2502.16982), and a
    schedule changes the rates of all groups alike.

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
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
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
