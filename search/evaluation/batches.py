"""Batches on their way to the device."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch


# Batches that are built before they are needed.
AHEAD = 2

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Inputs and labels by number, built ahead in a thread while the device computes. A context manager.

    Args:
        build: a pure function from the number of a batch to its inputs and labels.
        device: on a GPU, batches are in pinned memory, from which they are copied without waiting.
        stop: no batch is built ahead from this number on.
        following: the number of the batch that is needed after that of a number.
    """

    def __init__(
        self,
        build: Callable[[int], Batch],
        device: torch.device,
        stop: int,
        following: Callable[[int], int] = lambda number: number + 1,
    ):
        self.build = build
        self.pins = device.type == "cuda"
        self.stop = stop
        self.following = following
        self._pool = ThreadPoolExecutor(1, "batches")
        self._pending: dict[int, Future[Batch]] = {}

    def __call__(self, number: int) -> Batch:
        """The batch of a number; those that follow are built meanwhile."""
        later = number
        for _ in range(AHEAD + 1):
            if later not in self._pending and (later == number or later < self.stop):
                self._pending[later] = self._pool.submit(self._build, later)
            later = self.following(later)
        for earlier in [each for each in self._pending if each < number]:
            del self._pending[earlier]
        return self._pending.pop(number).result()

    def _build(self, number: int) -> Batch:
        inputs, labels = self.build(number)
        return (inputs.pin_memory(), labels.pin_memory()) if self.pins else (inputs, labels)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._pool.shutdown(cancel_futures=True)
