"""Graceful shutdown, on a signal or after a time limit: long-running code polls a `Stop`."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType


# A launcher that forwards Ctrl-C delivers it twice; this many signals end the process at once.
_SIGNALS_TO_ABORT = 3


class Stopped(Exception):
    """Work was interrupted in a state that can be resumed. The message gives the reason, `code` the exit code."""

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class Stop:
    """Whether to stop: after `max_seconds`, on a signal, or if `requested_elsewhere` returns True.

    Args:
        max_seconds: from now; None for no limit.

    Attributes:
        requested_elsewhere: polled as well, for processes that another one controls.
    """

    def __init__(self, max_seconds: float | None = None):
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.requested_elsewhere: Callable[[], bool] = lambda: False
        self.signals = 0
        self.stopped: Stopped | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Treat SIGINT and SIGTERM as requests to stop."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals >= _SIGNALS_TO_ABORT:
            os._exit(128 + number)
        self.stopped = self.stopped or Stopped(f"received {signal.Signals(number).name}", 128 + number)

    def __call__(self) -> bool:
        if self.stopped is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.stopped = Stopped("max_seconds have passed", 0)
        if self.stopped is None and self.requested_elsewhere():
            self.stopped = Stopped("the main process was stopped", 0)
        return self.stopped is not None

    def check(self) -> None:
        """Raises: Stopped."""
        if self():
            assert self.stopped is not None
            raise self.stopped
