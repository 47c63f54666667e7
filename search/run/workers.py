"""A pool of processes: each job is done by a process that is free, and results are in the order of the jobs.

The main process holds the state of the search and alone writes its history; the others take jobs until it releases
them. Jobs and results are JSON and pass through a key-value store of torch.distributed. No process waits for a slow one,
and the launcher ends the run if a process dies. A result is kept in a file until it is forgotten, so that a result that
waits for earlier ones is not lost with the run.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from autobert_zero.search.files import json_digest, read_json, write_json
from autobert_zero.search.stopping import Stopped


# Poll interval in seconds: starts at the minimum, and doubles up to the maximum.
_MIN_POLL_INTERVAL, _MAX_POLL_INTERVAL = 0.005, 0.2
# Seconds that the other processes have to exit after they are asked to stop; after a signal, which a launcher sends to all
# of them, also because one of them is dead.
_EXIT_TIMEOUT, _EXIT_TIMEOUT_AFTER_SIGNAL = 20.0, 1.0
_SKIPPED, _RELEASED = "skipped", "released"


class _Stored(TypedDict):
    """A result in a file."""

    job: Any
    result: Any
    digest: str  # of both


def _main_process_is_gone() -> Stopped:
    return Stopped("the main process is gone", 1)


@dataclass(frozen=True)
class Future:
    """A submitted job."""

    wait: Callable[[], Any]

    def result(self) -> Any:
        """Wait for the result of the job."""
        return self.wait()


class Workers:
    """The processes of `accelerator` as a pool.

    Args:
        run: does one job: from JSON to JSON. Called in any process; it must not communicate.
        folder: of the results until they are forgotten; visible to all processes. Created if missing.
        check: called while waiting and before each job; an exception that it raises ends both.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: Callable[[Any], Any],
        folder: str | os.PathLike,
        check: Callable[[], None] = lambda: None,
    ):
        self.accelerator = accelerator
        self.run = run
        self.folder = Path(folder)
        self.check = check
        self.alone = accelerator.num_processes == 1
        self.submitted = 0
        self.ticket: int | None = None  # a job reserved by the main process, submitted or not yet
        self.expected_exits = 0
        self._last_poll = 0.0
        if accelerator.is_main_process:
            self.folder.mkdir(exist_ok=True)
        if self.alone:
            return
        if accelerator.is_main_process:
            self.store = self._store(0, is_master=True)  # on a free port
            broadcast_object_list([self.store.port])
        else:
            self.store = self._store(broadcast_object_list([None])[0], is_master=False)

    @staticmethod
    def _store(port: int, is_master: bool) -> torch.distributed.TCPStore:
        host = os.environ["MASTER_ADDR"]
        return torch.distributed.TCPStore(host, port, is_master=is_master, wait_for_workers=False)

    # The main process

    def submit(self, name: str, job: Any) -> Future:
        """Submit a job. The name is that of a file. Main process only.

        If an earlier run left a result of the same job, it is used, unless its file is damaged.
        """
        with contextlib.suppress(OSError, ValueError):
            left = read_json(self._file(name), _Stored)
            result = left["result"]
            if left["digest"] == json_digest([job, result]):
                return Future(lambda: result)
        if self.alone:
            return Future(lambda: self._run(name, job))
        number = self._put([name, job])
        return Future(lambda: self._wait_for(number))

    def map(self, jobs: dict[str, Any]) -> Iterator[Any]:
        """Results of all jobs, by their names, in order, each as soon as it and all before it are done."""
        for future in [self.submit(name, job) for name, job in jobs.items()]:
            yield future.result()

    def forget(self, name: str) -> None:
        """Remove the file of a result that is stored elsewhere."""
        self._file(name).unlink(missing_ok=True)

    def release(self) -> None:
        """Discard the jobs that no process has taken, and let the other processes return from `serve`."""
        if self.alone:
            return
        for number in range(self.store.add("taken", 0), self.submitted):
            self.store.set(f"job/{number}", json.dumps(_SKIPPED))
        reserved = self.ticket is not None and self.ticket >= self.submitted
        for _ in range(self.accelerator.num_processes - 1 + reserved):
            self._put(_RELEASED)
        self.ticket = None
        self._wait_for_exit(math.inf)

    def stop(self, after_signal: bool = False) -> None:
        """Tell the other processes to leave their jobs, and wait a limited time for them. Main process only."""
        if not self.alone:
            self.store.set("stopped", "")
            self._wait_for_exit(_EXIT_TIMEOUT_AFTER_SIGNAL if after_signal else _EXIT_TIMEOUT)

    def _wait_for_exit(self, seconds: float) -> None:
        """This process hosts the store, which must outlive the last poll of the others."""
        self.expected_exits += self.accelerator.num_processes - 1
        deadline = time.monotonic() + seconds
        while self.store.add("left", 0) < self.expected_exits and time.monotonic() < deadline:
            time.sleep(_MIN_POLL_INTERVAL)

    def _put(self, job: Any) -> int:
        number, self.submitted = self.submitted, self.submitted + 1
        self.store.set(f"job/{number}", json.dumps(job))
        return number

    def _wait_for(self, number: int) -> Any:
        """The result of a job; does other jobs while waiting."""
        while not self.store.check([f"result/{number}"]):
            if self.ticket is None and self.store.add("taken", 0) < self.submitted:
                self.ticket = self.store.add("taken", 1) - 1  # another process may be faster: then a future job
            if self.ticket is not None and self.ticket < self.submitted:
                taken, self.ticket = self.ticket, None
                self._do(taken)
            else:
                self._await(f"result/{number}")
        result = json.loads(self.store.get(f"result/{number}"))
        self.store.delete_key(f"result/{number}")
        return result

    # The other processes

    def serve(self) -> None:
        """Take jobs until the main process releases this one. All other processes.

        Raises: Stopped if the main process says so or is gone, and what `check` and jobs raise.
        """
        try:
            while self._do(self.store.add("taken", 1) - 1):
                pass
        except torch.distributed.DistNetworkError:
            raise _main_process_is_gone() from None
        finally:
            with contextlib.suppress(torch.distributed.DistError):
                self.store.add("left", 1)

    def stop_requested(self) -> bool:
        """Whether the main process was stopped; cheap enough to be polled at every step. All other processes.

        Raises: Stopped if the main process is gone, which is not a failure of the candidate in training.
        """
        now = time.monotonic()
        if now - self._last_poll < _MAX_POLL_INTERVAL:
            return False
        self._last_poll = now
        try:
            return self.store.check(["stopped"])
        except torch.distributed.DistError:
            raise _main_process_is_gone() from None

    def _do(self, number: int) -> bool:
        """Do a job as soon as it is submitted. Returns False if there are no more jobs."""
        job = json.loads(self._await(f"job/{number}"))
        self.store.delete_key(f"job/{number}")
        if job in (_SKIPPED, _RELEASED):
            return job == _SKIPPED
        name, job = job
        self.store.set(f"result/{number}", json.dumps(self._run(name, job)))
        return True

    def _run(self, name: str, job: Any) -> Any:
        self.check()
        result = self.run(job)
        write_json(self._file(name), {"job": job, "result": result, "digest": json_digest([job, result])})
        return result

    def _await(self, key: str) -> bytes:
        interval = _MIN_POLL_INTERVAL
        while not self.store.check([key]):
            self.check()
            time.sleep(interval)
            interval = min(2 * interval, _MAX_POLL_INTERVAL)
        return self.store.get(key)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"
