"""Ending a run in order: on a signal, or when its time is over. Whoever works for long asks now and then."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType


# Ctrl-C reaches a process twice where a launcher passes it on; this often, it is meant to end at once.
_IMPATIENT = 3


class Stopped(Exception):
    """Work was left in order, to be continued. The message says why, `code` is the exit code of the process."""

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class Stop:
    """Whether to stop, once `max_seconds` are over or a signal came.

    Args:
        max_seconds: from now on; None for no limit.

    Attributes:
        elsewhere: asked, too, where somebody else decides.
    """

    def __init__(self, max_seconds: float | None = None):
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.elsewhere: Callable[[], bool] = lambda: False
        self.signals = 0
        self.stopped: Stopped | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM for requests to stop."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals >= _IMPATIENT:
            os._exit(128 + number)
        self.stopped = self.stopped or Stopped(f"received {signal.Signals(number).name}", 128 + number)

    def __call__(self) -> bool:
        if self.stopped is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.stopped = Stopped("max_seconds are over", 0)
        if self.stopped is None and self.elsewhere():
            self.stopped = Stopped("the main process was stopped", 0)
        return self.stopped is not None

    def check(self) -> None:
        """Raises: Stopped."""
        if self():
            assert self.stopped is not None
            raise self.stopped
