"""The progress of a run: text, bars, and a page that is updated during the search."""

import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from autobert_zero.search.evolution.history import History
from autobert_zero.search.files import write_text
from autobert_zero.search.report.page import page
from autobert_zero.search.report.recorded_run import RecordedRun


# Seconds between two versions of the page, and the maximum fraction of the time spent on writing it.
PAGE_SECONDS, PAGE_FRACTION = 30, 1 / 50


class _Lines:
    """Output of a bar that is not on a terminal: each state is one line."""

    def __init__(self) -> None:
        self.last = ""

    def write(self, text: str) -> None:
        text = text.strip()
        if text and text != self.last:
            sys.stderr.write(f"{text}\n")
            self.last = text

    def flush(self) -> None:
        sys.stderr.flush()


class ProgressBar:
    """A bar: moving on a terminal, an occasional line elsewhere."""

    def __init__(self, description: str, total: int, initial: int = 0, unit: str = "step", enabled: bool = True):
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            mininterval=0.2 if on_terminal else 10.0,
            maxinterval=10.0,
            dynamic_ncols=on_terminal,
            bar_format=None if on_terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            file=None if on_terminal else _Lines(),
            disable=not enabled,
        )

    def __call__(self, done: int, loss: float | None = None, **values: float | None) -> None:
        values = {"loss": loss, **values}
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in values.items() if v is not None}, refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class Console:
    """What a process prints.

    Args:
        verbosity: 1 for everything, -1 for nothing.
    """

    def __init__(self, verbosity: int):
        self.verbosity = verbosity

    def say(self, text: str = "") -> None:
        if self.verbosity >= 0:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def say_verbosely(self, text: str) -> None:
        if self.verbosity > 0:
            self.say(text)

    def bar(self, description: str, total: int, initial: int = 0, unit: str = "step") -> ProgressBar:
        return ProgressBar(description, total, initial, unit, self.verbosity >= 0)


class LivePage:
    """`report.html` during a search: rewritten periodically, in a small fraction of the time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.due = time.monotonic()

    def write(self, history: History) -> None:
        start = time.monotonic()
        if start >= self.due:
            self._write(history, PAGE_SECONDS)
            self.due = time.monotonic() + max(PAGE_SECONDS, (time.monotonic() - start) / PAGE_FRACTION)

    def end(self, history: History) -> None:
        """The last version, which browsers do not reload."""
        self._write(history, None)

    def _write(self, history: History, refresh_seconds: int | None) -> None:
        run = RecordedRun(self.folder.resolve().name, history.header, list(history))
        write_text(self.folder / "report.html", page([run], refresh_seconds))
