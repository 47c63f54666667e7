"""Spreads jobs over the processes of a run: each job to the process that is free, results in the order of the jobs.

The main process keeps the state of the search and alone writes; the others take jobs until it lets them go. Jobs and results
are JSON and travel through a key-value store of torch.distributed; nobody waits for a slow neighbour, and a process
that dies is noticed by the launcher, which ends the run.
"""

import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


# A worker may wait this long for the main process; the launcher ends it earlier if that one dies.
_PATIENCE = datetime.timedelta(days=30)
_RELEASED = "released"


class Workers:
    """The processes of `accelerator` as one pool.

    Args:
        run: does one job: takes and returns JSON. Called in whichever process is free; it must not communicate.
    """

    def __init__(self, accelerator: Accelerator, run: Callable[[Any], Any]):
        self.accelerator = accelerator
        self.run = run
        self.rounds = 0
        if accelerator.num_processes > 1:
            if accelerator.is_main_process:
                self.store = self._store(0, is_master=True)  # a port that is free
                broadcast_object_list([self.store.port])
            else:
                self.store = self._store(broadcast_object_list([None])[0], is_master=False)

    @staticmethod
    def _store(port: int, is_master: bool) -> torch.distributed.TCPStore:
        host = os.environ["MASTER_ADDR"]
        return torch.distributed.TCPStore(host, port, is_master=is_master, timeout=_PATIENCE, wait_for_workers=False)

    def map(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Results of all jobs, in their order, each as soon as it and all before it are done. Main process only."""
        if self.accelerator.num_processes == 1:
            yield from map(self.run, jobs)
            return
        name, self.rounds = f"round/{self.rounds}", self.rounds + 1
        self.store.set(name, json.dumps(list(jobs)))
        delivered = 0
        for index in self._take(name, len(jobs)):
            self._finish(name, index, jobs[index])
            while delivered < len(jobs) and self.store.check([f"{name}/{delivered}"]):
                yield self._result(name, delivered)
                delivered += 1
        for index in range(delivered, len(jobs)):
            yield self._result(name, index)

    def serve(self) -> None:
        """Take jobs until the main process lets go. All other processes."""
        while True:
            name, self.rounds = f"round/{self.rounds}", self.rounds + 1
            jobs = json.loads(self.store.get(name))
            if jobs == _RELEASED:
                self.accelerator.wait_for_everyone()
                return
            for index in self._take(name, len(jobs)):
                self._finish(name, index, jobs[index])

    def release(self) -> None:
        """Let the others go on to what all processes do together. Main process only."""
        if self.accelerator.num_processes > 1:
            self.store.set(f"round/{self.rounds}", json.dumps(_RELEASED))
            self.rounds += 1
            # The store is this process's: it must outlive the others' last look at it.
            self.accelerator.wait_for_everyone()

    def _take(self, name: str, count: int) -> Iterator[int]:
        """Numbers of jobs that nobody else has taken, until there are none."""
        while (index := self.store.add(f"{name}/taken", 1) - 1) < count:
            yield index

    def _finish(self, name: str, index: int, job: Any) -> None:
        self.store.set(f"{name}/{index}", json.dumps(self.run(job)))

    def _result(self, name: str, index: int) -> Any:
        result = json.loads(self.store.get(f"{name}/{index}"))  # waits for it
        self.store.delete_key(f"{name}/{index}")
        return result
