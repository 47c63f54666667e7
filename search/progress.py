"""How far a run is: bars, and a page that is written while it goes on."""

import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from autobert_zero.search import report, reporting
from autobert_zero.search.history import History
from autobert_zero.search.report import RunHistory


# The page is at most so old, unless writing it took more than one part in so many of the time.
PAGE_SECONDS, PAGE_SHARE = 30, 50


class _Lines:
    """Where a bar is not seen to move: each state of it is a line, without returns and blanks."""

    def __init__(self) -> None:
        self.last = ""

    def write(self, text: str) -> None:
        text = text.strip()
        if text and text != self.last:
            sys.stderr.write(f"{text}\n")
            self.last = text

    def flush(self) -> None:
        sys.stderr.flush()


class Progress:
    """A bar on the main process: on a terminal it moves; in a pipe it is a line now and then."""

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


class LivePage:
    """`report.html` of a run that goes on: written now and then, and never for more than a small share of the time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.due = time.monotonic()

    def write(self, history: History) -> None:
        start = time.monotonic()
        if start >= self.due:
            self._write(history, PAGE_SECONDS)
            self.due = time.monotonic() + max(PAGE_SECONDS, PAGE_SHARE * (time.monotonic() - start))

    def end(self, history: History) -> None:
        """The last one, which no browser is told to read again."""
        self._write(history, None)

    def _write(self, history: History, refresh_seconds: int | None) -> None:
        run = RunHistory(self.folder.resolve().name, history.header, list(history))
        reporting.write_text(self.folder / "report.html", report.page([run], refresh_seconds))
