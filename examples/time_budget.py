"""Pre-training for a given time: everything that depends on the length of the training follows the time that has passed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from autobert_zero.search.files import read_json, write_json


# More steps than any training takes: the time ends it.
ENDLESS = 10_000_000
PARTS = 4
# Steps of the schedule that is sampled.
RESOLUTION = 1_000_000


def _relative_rate(args: TrainingArguments) -> Callable[[int], float]:
    """The learning rate, relative to its peak, after a number of steps of `RESOLUTION`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warmup = round(args.warmup_steps * RESOLUTION)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup, RESOLUTION, args.lr_scheduler_kwargs or {})
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        name = args.lr_scheduler_type.value
        raise ValueError(f"lr_scheduler_type: expected a function of the step with max_seconds, got {name}")
    return schedule.lr_lambdas[0]


class TimeBudget(TrainerCallback):
    """Ends a training after some seconds, those of earlier sessions included, and evaluates it after each quarter of them.
    Evaluations and what precedes the first step do not count.

    Args:
        max_seconds: of the training.
        args: of Trainer, with the schedule, which becomes one over the time.

    Raises: ValueError for a schedule that is not a function of the step.

    Attributes:
        fraction: of the time that has passed, the same in all processes.
        fractions: those after which the model was evaluated, by step.
    """

    FILE = "seconds.json"

    def __init__(self, max_seconds: float, args: TrainingArguments):
        self.max_seconds = max_seconds
        self._rate = _relative_rate(args)
        self.seconds = 0.0  # until `_since`
        self.fraction = 0.0
        self.fractions: dict[int, float] = {}
        self._since: float | None = None

    def resume(self, checkpoint: str | None) -> None:
        """Continue from a checkpoint, if there is one. Raises: ValueError if its file is damaged."""
        if checkpoint is not None:
            found = read_json(Path(checkpoint, self.FILE), dict[str, Any])
            self.seconds = found["seconds"]
            self.fractions = {int(step): fraction for step, fraction in found["fractions"].items()}
            self._update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in which the clock stands still."""
        self._count()
        self._since = None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now

    def _update(self) -> None:
        # The clock of the main process: all take the same step as the last one.
        [self.fraction] = broadcast_object_list([min(1.0, self.seconds / self.max_seconds)])

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(round(self.fraction * RESOLUTION)))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count()
        self._update()
        part = math.floor(self.fraction * PARTS) / PARTS
        # The last step also if the time had passed before: a training that was stopped before its evaluation takes one more.
        if part > max(self.fractions.values(), default=0) or part == 1:
            self.fractions[state.global_step] = part
            control.should_evaluate = True
        if self.fraction >= 1:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if PartialState().is_main_process:
            folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            write_json(folder / self.FILE, {"seconds": round(self.seconds, 3), "fractions": self.fractions})
