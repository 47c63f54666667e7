"""Spreads jobs over the processes of a run: each job to the process that is free, results in the order of the jobs.

The main process keeps the state of the search and alone writes its history; the others take jobs until it lets them
go. Jobs and results are JSON and travel through a key-value store of torch.distributed; nobody waits for a slow
neighbour, and a process that dies is noticed by the launcher, which ends the run. A result lies in a file until it is
forgotten, so that one that waits for those before it is not lost with the run.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from autobert_zero.search.reporting import write_json
from autobert_zero.search.stopping import Stopped


# Seconds between two looks of somebody who waits: from the first, doubled up to the last.
_FIRST_GLANCE, _LAST_GLANCE = 0.005, 0.2
# Seconds that the others have to leave, once they are told to stop.
_PATIENCE = 20.0
_SKIPPED, _RELEASED = "skipped", "released"


def _main_process_is_gone() -> Stopped:
    return Stopped("the main process is gone", 1)


class Workers:
    """The processes of `accelerator` as one pool.

    Args:
        run: does one job: takes and returns JSON. Called in whichever process is free; it must not communicate.
        folder: where results lie until they are forgotten; all processes see it. Made if missing.
        check: called while waiting and before each job; what it raises ends both.
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
        self.ticket: int | None = None  # a job that is the main process's own, submitted or not yet
        self.expected_to_leave = 0
        self._last_look = 0.0
        if accelerator.is_main_process:
            self.folder.mkdir(exist_ok=True)
        if self.alone:
            return
        if accelerator.is_main_process:
            self.store = self._store(0, is_master=True)  # a port that is free
            broadcast_object_list([self.store.port])
        else:
            self.store = self._store(broadcast_object_list([None])[0], is_master=False)

    @staticmethod
    def _store(port: int, is_master: bool) -> torch.distributed.TCPStore:
        host = os.environ["MASTER_ADDR"]
        return torch.distributed.TCPStore(host, port, is_master=is_master, wait_for_workers=False)

    # The main process

    def submit(self, name: str, job: Any) -> Callable[[], Any]:
        """Hand out a job; what is returned waits for its result. Names are those of files; main process only.

        A result of this job that an earlier run left behind is taken for it.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            left = json.loads(self._file(name).read_text(encoding="utf-8"))
            if left["job"] == json.loads(json.dumps(job)):
                return lambda: left["result"]
        if self.alone:
            return lambda: self._run(name, job)
        number = self._put([name, job])
        return lambda: self._wait_for(number)

    def map(self, jobs: dict[str, Any]) -> Iterator[Any]:
        """Results of all jobs, by their names, in their order, each as soon as it and all before it are done."""
        for wait in [self.submit(name, job) for name, job in jobs.items()]:
            yield wait()

    def forget(self, name: str) -> None:
        """Remove the file of a result that is safe elsewhere."""
        self._file(name).unlink(missing_ok=True)

    def release(self) -> None:
        """Drop the jobs that nobody has taken, and let the others go on to what all processes do together."""
        if self.alone:
            return
        for number in range(self.store.add("taken", 0), self.submitted):
            self.store.set(f"job/{number}", json.dumps(_SKIPPED))
        own = self.ticket is not None and self.ticket >= self.submitted
        for _ in range(self.accelerator.num_processes - 1 + own):
            self._put(_RELEASED)
        self.ticket = None
        self._see_off(math.inf)

    def stop(self) -> None:
        """Tell the others to leave their jobs, and wait until they did, but not for long. Main process only."""
        if not self.alone:
            self.store.set("stopped", "")
            self._see_off(_PATIENCE)

    def _see_off(self, seconds: float) -> None:
        """The store is this process's: it must outlive the others' last look at it."""
        self.expected_to_leave += self.accelerator.num_processes - 1
        deadline = time.monotonic() + seconds
        while self.store.add("left", 0) < self.expected_to_leave and time.monotonic() < deadline:
            time.sleep(_FIRST_GLANCE)

    def _put(self, job: Any) -> int:
        number, self.submitted = self.submitted, self.submitted + 1
        self.store.set(f"job/{number}", json.dumps(job))
        return number

    def _wait_for(self, number: int) -> Any:
        """The result of a job; until it is there, do others."""
        while not self.store.check([f"result/{number}"]):
            if self.ticket is None and self.store.add("taken", 0) < self.submitted:
                self.ticket = self.store.add("taken", 1) - 1  # another may have been faster: then a job yet to come
            if self.ticket is not None and self.ticket < self.submitted:
                own, self.ticket = self.ticket, None
                self._do(own)
            else:
                self._await(f"result/{number}")
        result = json.loads(self.store.get(f"result/{number}"))
        self.store.delete_key(f"result/{number}")
        return result

    # The others

    def serve(self) -> None:
        """Take jobs until the main process lets go. All other processes.

        Raises: Stopped where the main process says so or is gone, and what `check` and jobs raise.
        """
        try:
            while self._do(self.store.add("taken", 1) - 1):
                pass
        except torch.distributed.DistNetworkError:
            raise _main_process_is_gone() from None
        finally:
            with contextlib.suppress(torch.distributed.DistError):
                self.store.add("left", 1)

    def told_to_stop(self) -> bool:
        """Whether the main process was stopped; asked as often as one likes. All other processes.

        Raises: Stopped where the main process is gone: that is no failure of the candidate that is trained here.
        """
        now = time.monotonic()
        if now - self._last_look < _LAST_GLANCE:
            return False
        self._last_look = now
        try:
            return self.store.check(["stopped"])
        except torch.distributed.DistError:
            raise _main_process_is_gone() from None

    def _do(self, number: int) -> bool:
        """Do a job as soon as it is there. Returns False for the message that there are no more."""
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
        write_json(self._file(name), {"job": job, "result": result})
        return result

    def _await(self, key: str) -> bytes:
        pause = _FIRST_GLANCE
        while not self.store.check([key]):
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, _LAST_GLANCE)
        return self.store.get(key)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"
