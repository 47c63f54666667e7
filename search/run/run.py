"""One search from start to end: text, super-network, search, final training, each resumed where it was interrupted."""

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.utils import broadcast_object_list, gather_object

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.search import custom_operations
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evaluation.training import tensors_digest
from autobert_zero.search.evolution.history import History
from autobert_zero.search.files import lock_output_dir, remove_lock, replace_folder, write_json, write_text
from autobert_zero.search.genomes import decode_genome
from autobert_zero.search.provenance import commit, num_cores, provenance
from autobert_zero.search.report.model_card import describe, missing_files
from autobert_zero.search.report.page import page
from autobert_zero.search.report.recorded_run import RecordedRun, Summary, read_summary
from autobert_zero.search.run.candidates import search_candidates
from autobert_zero.search.run.errors import UsageError, usage_errors
from autobert_zero.search.run.estimate import costs_table, disk_bytes, estimate, sizes, sizes_text, total_of
from autobert_zero.search.run.final import rank_finalists, train_final
from autobert_zero.search.run.jobs import JobRunner, make_checkpoint
from autobert_zero.search.run.launcher import check_shared_memory
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.progress import Console, LivePage
from autobert_zero.search.run.summary import closing_text, summarize
from autobert_zero.search.run.workers import Workers
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.stopping import Stop, Stopped


class Run:
    """A search, in one process of an Accelerate job; `execute` does all of it.

    Args:
        settings: of the run.
        accelerator: of the job.
        stop: polled throughout.
        verbosity: 1 to print the outcome of each candidate, -1 to print nothing.

    Raises: UsageError for bad input, before anything is trained; Stopped; SearchFailed.
    """

    def __init__(self, settings: SearchSettings, accelerator: accelerate.Accelerator, stop: Stop, verbosity: int = 0):
        self.settings = settings
        self.accelerator = accelerator
        self.stop = stop
        self.main = accelerator.is_main_process
        self.console = Console(verbosity if self.main else -1)
        self.folder = Path(settings.run.output_dir)
        self.seconds: dict[str, float] = {}
        self.commit = commit() if self.main else None  # of the running code, even if files change later

    def estimate(self) -> None:
        """Print what the run costs, and leave nothing behind but the tokens in its `prepared_dir`."""
        self._set_threads()
        problem = self._prepare()
        self.console.say(f"{costs_table(estimate(problem, self.accelerator))}\n{sizes_text(*sizes(problem))}")

    def execute(self) -> None:
        existed = self.folder.exists()
        with contextlib.ExitStack() as held:
            if self.main:
                with usage_errors():
                    held.enter_context(lock_output_dir(self.folder))
            self._set_threads()
            try:
                with self._phase("text"):
                    self.problem = self._prepare()
            except UsageError:
                if self.main and not existed:
                    remove_lock(self.folder)
                raise
            history = self._open_history(held) if self.main else None
            summary = self._finished(history) if history is not None else None
            if broadcast_object_list([summary is not None])[0]:
                if self.main:
                    self._finish()  # it may have been killed before
                self.console.say(f"{self.folder} contains this run, finished.")
            else:
                if self.main:
                    memory, disk = sizes(self.problem)
                    check_shared_memory(self.settings, self.accelerator.device, memory)
                    total = total_of(estimate(self.problem))
                    self.console.say(
                        f"Cost: {total.flops:.1e} FLOPs, {total.tokens:,} tokens to train on (--estimate times some steps). "
                        f"{sizes_text(memory, disk)}"
                    )
                summary = self._search(history)
            if summary:
                self.console.say(closing_text(summary, self.folder))

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def _require_equal(self, value: Any, message: str) -> None:
        """Raise UsageError in all processes unless `value` is the same in all of them."""
        if len(set(gather_object([value]))) > 1:
            raise UsageError(message)

    def _set_threads(self) -> None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = self.settings.run.num_threads or max(1, num_cores() // local)
        torch.set_num_threads(threads)
        count = self.accelerator.num_processes
        self.console.say(
            f"Search in {self.folder}: {count} process{'es'[: 2 * (count > 1)]} on {self.accelerator.device.type}, "
            f"{threads} thread{'s'[: threads > 1]} each, seed {self.settings.run.seed}."
        )

    def _prepare(self) -> Problem:
        with usage_errors():
            problem = Problem.prepare(self.settings, self.accelerator.device, self.stop, self.accelerator)
        corpus = problem.corpus
        tokens = ", ".join(f"{count:,} {part}" for part, count in corpus.num_tokens().items())
        self.console.say(f"Text: {problem.source}; tokens: {tokens}; vocabulary {len(corpus.tokenizer):,}.")
        if tasks := getattr(problem.proxy, "tasks", None):
            rows = ", ".join(f"{name} {len(each.train):,} + {len(each.validation):,}" for name, each in tasks.items())
            self.console.say(f"GLUE, train + validation rows: {rows}.")
        self._require_equal(
            problem.identity, "processes differ in settings or text: give all of them the same command and files"
        )
        return problem

    def _open_history(self, held: contextlib.ExitStack) -> History:
        problem, settings = self.problem, self.settings
        header = {
            "settings": settings.identity(),
            "data": problem.data,
            "seed_genomes": problem.seed_genomes,
            "custom_operations": dict(problem.custom_operations.rules),
            "seed": settings.run.seed,
            "threads": torch.get_num_threads(),
            "text": problem.source,
            "text_digest": problem.corpus.text_digest,
            "unigram_score": problem.unigram_score(),
            **self._provenance(),
        }
        path, identity = self.folder / "history.jsonl", ("settings", "data", "seed_genomes")
        with usage_errors():
            history = held.enter_context(History(path, header, identity, decode_genome))
        if len(history) > settings.strategy.max_evaluations:
            raise UsageError(
                f"max_evaluations: expected at least {len(history)}, the candidates of this folder, "
                f"got {settings.strategy.max_evaluations}"
            )
        for name in ("versions", "threads"):
            if history.header.get(name) != header[name]:
                self.console.say(
                    f"The {name} differ from those at the start of this run, {history.header.get(name)}: "
                    "scores may differ, too."
                )
        write_json(self.folder / "settings.json", settings.to_dict())
        return history

    def _finished(self, history: History) -> Summary | None:
        """The summary of this run, if it is finished, and nothing of it was lost."""
        path = self.folder / "summary.json"
        if not path.exists():
            return None
        with usage_errors():
            summary = read_summary(path)
        is_complete = summary["counts"]["evaluated"] == len(history) and not missing_files(
            self.folder / "model", summary
        )
        return summary if is_complete and summary["identity"] == self.problem.full_identity else None

    def _search(self, history: History | None) -> dict[str, Any] | None:
        """All that follows the preparation. Returns the summary in the main process."""
        if self.main and self.settings.run.log_with:
            values = self.settings.to_dict().items()
            flat = {k: v if isinstance(v, int | float | str) else str(v) for k, v in values}
            self.accelerator.init_trackers("autobert_zero_search", flat)
        live_page = LivePage(self.folder)
        if history is not None:
            live_page.write(history)
        with self._phase("super-network"):
            supernet = self._train_supernet()
        runner = JobRunner(self.problem, supernet, self.folder, self.console)
        workers = Workers(self.accelerator, runner, self.folder / "results", self.stop.check)
        if history is None:
            self.stop.requested_elsewhere = workers.stop_requested
            workers.serve()
            return None
        try:
            with self._phase("search"):
                status = search_candidates(self.problem, history, workers, live_page, self.console, self._log)
            with self._phase("finalists"):
                finalists = rank_finalists(self.problem, history, workers)
            with self._phase("final training"):
                results, winner = train_final(self.problem, finalists, workers, self.console.say)
        except Stopped as stopped:
            workers.stop(after_signal=stopped.code != 0)
            raise
        workers.release()
        summary = summarize(self.problem, history, status, results, finalists, winner)
        summary |= {"seconds_of_last_session": self.seconds, **self._provenance()}
        self._save(summary, runner)
        return summary

    def _train_supernet(self) -> SuperNetwork:
        settings = self.settings
        supernet = self.problem.new_supernet()
        present = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        required = disk_bytes(self.problem, supernet) - present
        if self.main and (free := shutil.disk_usage(self.folder).free) < required:
            raise UsageError(
                f"output_dir: expected {required >> 20} MiB free in {self.folder}, got {free >> 20} MiB: "
                "not enough for the checkpoints of this run"
            )
        checkpoint = make_checkpoint(self.problem, self.folder, "supernet", self.problem.identity, writes=self.main)
        completed = checkpoint.step()
        self._require_equal(completed, "output_dir: expected one folder that all processes share, got several")
        bar = self.console.bar("super-network", settings.supernet.supernet_steps, completed)

        def progress(done: int, loss: float) -> None:
            bar(done, loss)
            self._log({"supernet/loss": loss}, done)

        self.problem.train_supernet(supernet, self.accelerator, checkpoint, progress)
        bar.close()
        # Otherwise the score of a candidate would depend on the process.
        self._require_equal(
            tensors_digest(supernet.named_parameters()), "processes hold different super-networks: start them again"
        )
        return supernet

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self.main and self.settings.run.log_with:
            self.accelerator.log(values, step=step)

    def _provenance(self) -> dict[str, Any]:
        facts = provenance(self.commit, self.accelerator.device.type)
        name = Path(sys.argv[0]).name
        program = [name] if name == "autobert-zero" else ["python", "-m", "autobert_zero.search"]
        return {
            **facts,
            "command": shlex.join([*program, *sys.argv[1:]]),
            "machine": {
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "device": facts["machine"],
                "cores": os.cpu_count(),
            },
        }

    def _save(self, summary: dict[str, Any], runner: JobRunner) -> None:
        """`model/` as a whole (weights, configuration, tokenizer, code, card), then the summary and the page."""
        best = summary["best"]
        genome = Genome.from_list(best["genome"], self.problem.custom_operations.rules)
        model = runner.train(str(best["index"]), genome)  # only loads: the training is complete
        model.config.sparse_prediction = False
        folder, temporary = self.folder / "model", self.folder / "model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        self.problem.corpus.tokenizer.save_pretrained(temporary)
        custom_operations.save_with_model(temporary)
        summary["model_files"] = sorted(path.name for path in temporary.iterdir())
        describe(temporary, summary, self.folder.resolve().name)
        replace_folder(temporary, folder)
        write_json(self.folder / "summary.json", summary)
        self._finish()

    def _finish(self) -> None:
        """What follows the summary: the page of the finished run, and without the files that only a resumed one needs."""
        write_text(self.folder / "report.html", page([RecordedRun.read(self.folder)]))
        for path in (
            *self.folder.glob("final-*.safetensors"),
            *self.folder.glob("final-*.jsonl"),
            *self.folder.glob("*.safetensors.damaged"),
        ):
            path.unlink()
        shutil.rmtree(self.folder / "results", ignore_errors=True)
