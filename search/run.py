"""A run: text, super-network, search, final training, each continued where it stopped. Says on standard output how far.

The pure side (space, strategy, history) and the torch side (super-network, proxy) meet here: evaluation is handed to
the loop.
"""

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import filelock
import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from autobert_zero.configuration_autobert_zero import LAYER_RULE, SELF_ATTENTION, Genome
from autobert_zero.search import grammar, own_operations, report, reporting
from autobert_zero.search.costs import OWN_LAYERS
from autobert_zero.search.data import Corpus
from autobert_zero.search.evolution import HistoryMismatch, evolve, first_generation
from autobert_zero.search.factory import make_sizes, make_space, make_strategy
from autobert_zero.search.glue_proxy import GlueProxy, read_tasks
from autobert_zero.search.history import History
from autobert_zero.search.progress import LivePage, Progress
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.publishing import describe
from autobert_zero.search.records import Archive, Record, pareto_front
from autobert_zero.search.report import RunHistory
from autobert_zero.search.settings import BUDGET, SearchSettings, stream
from autobert_zero.search.stopping import Stop, Stopped
from autobert_zero.search.supernet import PathSampler, SuperNetwork, train_supernet
from autobert_zero.search.training import Checkpoint, seed_torch
from autobert_zero.search.workers import Workers


# So many failures one after the other have one cause, and it is not in the candidates.
MAX_FAILURES_IN_A_ROW = 20


# Reasons that are the candidate's own.
_LIMITS = ("LatencyExceeded", "TimeoutError")


class UsageError(Exception):
    """Bad input: its message is for the user, and the exit code 2."""


class SearchFailed(Exception):
    """No candidate can be evaluated, or none of the best can be trained."""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _weights_digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hold_folder(settings: SearchSettings) -> contextlib.AbstractContextManager:
    """Make the folder, see that it can be written, and hold it against a second run until the context ends."""
    folder = Path(settings.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(folder / ".lock", timeout=0).acquire()
        probe = folder / ".probe"
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except filelock.Timeout:
        raise UsageError(f"output_dir: {folder} is in use by another run") from None
    except OSError as error:
        raise UsageError(f"output_dir: cannot write to {folder}: {error.strerror}") from None
    return held


class Run:
    """A search, in one process of an Accelerate job. `execute` is the whole of it.

    Args:
        settings: of the run.
        accelerator: of the job.
        stop: whether to stop.
        verbosity: 1 to say what came of each candidate, -1 to say nothing.

    Raises: UsageError for bad input, before anything is trained; Stopped in order; SearchFailed.
    """

    def __init__(self, settings: SearchSettings, accelerator: accelerate.Accelerator, stop: Stop, verbosity: int = 0):
        self.settings = settings
        self.accelerator = accelerator
        self.stop = stop
        self.main = accelerator.is_main_process
        self.verbosity = verbosity
        self.folder = Path(settings.output_dir)
        self.seconds: dict[str, float] = {}
        self.commit = reporting.commit() if self.main else None  # of the code that runs, whatever comes after it

    def execute(self) -> None:
        with contextlib.ExitStack() as held:
            if self.main:
                held.enter_context(hold_folder(self.settings))
            self._describe_machine()
            self._load_operations()
            with self._phase("text"):
                self._read_corpus()
            self._make_space()
            history = self._open_history(held) if self.main else None
            summary = self._finished() if self.main else None
            if broadcast_object_list([summary is not None])[0]:
                self.say(f"{self.folder} holds this run, finished.")
            else:
                if self.main and self.settings.log_with:
                    flat = {
                        k: v if isinstance(v, int | float | str) else str(v)
                        for k, v in self.settings.to_dict().items()
                    }
                    self.accelerator.init_trackers("autobert_zero_search", flat)
                self.page = LivePage(self.folder)
                if history is not None:
                    self.page.write(history)
                with self._phase("super-network"):
                    self.supernet = self._train_supernet()
                workers = Workers(self.accelerator, self._run_job, self.folder / "results", self.stop.check)
                if history is None:
                    self.stop.elsewhere = workers.told_to_stop
                    workers.serve()
                    return
                try:
                    with self._phase("search"):
                        status = self._search(history, workers)
                    with self._phase("finalists"):
                        finalists = self._rank_finalists(history, workers)
                    with self._phase("final training"):
                        results, winner = self._train_final(finalists, workers)
                except Stopped:
                    workers.stop()
                    raise
                workers.release()
                summary = self._summarize(history, status, results, finalists, winner)
                self._save(summary)
            if summary:
                self._show(summary)

    def say(self, text: str = "") -> None:
        if self.main and self.verbosity >= 0:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def _progress(self, description: str, total: int, initial: int = 0, unit: str = "step") -> Progress:
        return Progress(description, total, initial, unit, enabled=self.main and self.verbosity >= 0)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def _agree(self, value: Any, otherwise: str) -> None:
        """Raise UsageError in all processes unless `value` is the same in all."""
        if len(set(gather_object([value]))) > 1:
            raise UsageError(otherwise)

    def _checkpoint(self, name: str, identity: str) -> Checkpoint:
        path = self.folder / f"{name}.safetensors"
        return Checkpoint(path, f"{name} {identity}", self.settings.checkpoint_seconds)

    # The phases

    def _describe_machine(self) -> None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self.settings.num_threads or max(1, cores // local)
        torch.set_num_threads(threads)
        count = self.accelerator.num_processes
        self.say(
            f"Search in {self.folder}: {count} process{'es'[: 2 * (count > 1)]} on {self.accelerator.device.type}, "
            f"{threads} thread{'s'[: threads > 1]} each, seed {self.settings.seed}."
        )

    def _load_operations(self) -> None:
        self.own_operations: dict[str, str] = {}
        grammar.draw_from()  # not what another run of this process has loaded
        if self.settings.own_operations:
            try:
                self.own_operations = own_operations.load(self.settings.own_operations)
            except ValueError as error:
                raise UsageError(f"own_operations: {self.settings.own_operations}: {error}") from None
        self.own_kinds = sorted(name for name, rule in self.own_operations.items() if rule == LAYER_RULE)

    def _read_corpus(self) -> None:
        # With a folder to keep the tokens in, one process makes them for all.
        turns = self.accelerator.main_process_first() if self.settings.prepared_dir else contextlib.nullcontext()
        try:
            with turns:
                self.corpus = corpus = Corpus.build(self.settings)
        except ValueError as error:
            raise UsageError(str(error)) from None
        tokens = ", ".join(f"{count:,} to {role}" for role, count in corpus.num_tokens().items())
        self.say(f"Text: {self._source()}; tokens: {tokens}; vocabulary {len(corpus.tokenizer):,}.")

        self.data = {"digest": corpus.digest(), "tokens": corpus.num_tokens()}
        if self.settings.proxy == "mlm":
            self.proxy = MaskedLMProxy(self.settings, corpus, self.accelerator.device, self.stop)
            return
        try:
            tasks = read_tasks(self.settings, corpus)
        except ValueError as error:
            raise UsageError(str(error)) from None
        glue = GlueProxy(self.settings, corpus, self.accelerator.device, tasks, self.stop)
        self.proxy, self.data["glue"] = glue, glue.digest()
        rows = ", ".join(f"{name} {len(each.search):,} + {len(each.select):,}" for name, each in tasks.items())
        self.say(f"GLUE, rows to fine-tune on + to select: {rows}.")

    def _make_space(self) -> None:
        settings = self.settings
        if self.own_operations:
            self.data["own_operations"] = own_operations.digest(next(iter(self.own_operations)))
        self.sizes = make_sizes(settings, len(self.corpus.tokenizer))
        for kind in self.own_kinds:
            try:
                OWN_LAYERS[kind](self.sizes)
            except Exception as error:
                sizes = f"hidden_size={settings.hidden_size}, num_attention_heads={settings.num_attention_heads}"
                raise UsageError(
                    f"own_operations: {kind!r} makes no layer of {sizes}: {type(error).__name__}: {error}"
                ) from None
        self.space = make_space(settings, self.sizes, self.own_kinds)
        try:
            self.strategy = make_strategy(settings, self.space)
            first = first_generation(self.space, self.strategy, settings.seed)
            if not first:
                self.space.random(stream(settings.seed))  # says why
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.seeds = [str(genome) for genome in self.strategy.seeds]
        self.identity = _digest([settings.identity(), self.seeds, self.data])
        self._agree(self.identity, "processes differ in settings or text: give all of them the same command and files")
        self.paths = PathSampler(self.space, settings, [record.genome for record in first])

    def _source(self) -> str:
        settings = self.settings
        if settings.train_file:
            return ", ".join(os.path.basename(path) for path in settings.train_file)
        return settings.dataset_name or f"the language reference of Python {platform.python_version()}"

    def _open_history(self, held: contextlib.ExitStack) -> History:
        header = {
            "settings": self.settings.identity(),
            "data": self.data,
            "seed_genomes": self.seeds,
            "own_operations": self.own_operations,
            "seed": self.settings.seed,
            "threads": torch.get_num_threads(),
            "text": self._source(),
            "text_digest": self.corpus.text_digest,
            "unigram_score": self._unigram_score(),
            **self._provenance(),
        }
        try:
            history = History(self.folder / "history.jsonl", header, identity=("settings", "data", "seed_genomes"))
            held.enter_context(history)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if len(history) > self.settings.max_evaluations:
            raise UsageError(
                f"max_evaluations: expected at least {len(history)}, the candidates of this folder, "
                f"got {self.settings.max_evaluations}"
            )
        for name in ("versions", "threads"):
            if history.header.get(name) != header[name]:
                self.say(
                    f"The {name} differ from those that this run began with, {history.header.get(name)}: "
                    "scores may differ, too."
                )
        reporting.write_json(self.folder / "settings.json", self.settings.to_dict())
        return history

    def _finished(self) -> dict[str, Any] | None:
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return summary if summary["identity"] == self._full_identity() else None

    def _full_identity(self) -> str:
        """Of the run and of what comes after its history."""
        return _digest([self.identity, *(getattr(self.settings, name) for name in BUDGET)])

    def _train_supernet(self) -> SuperNetwork:
        settings = self.settings
        seed_torch(settings.seed, "supernet")
        tokenizer = self.corpus.tokenizer
        supernet = SuperNetwork(settings, len(tokenizer), tokenizer.pad_token_id, self.own_kinds)
        supernet.to(self.accelerator.device)
        # Checkpoints of the super-network, the finalists and BERT, each thrice its weights, and one more in writing.
        required = 3 * (3 + settings.finalists) * sum(p.numel() * p.element_size() for p in supernet.parameters())
        if self.main and (free := shutil.disk_usage(self.folder).free) < required:
            raise UsageError(
                f"output_dir: expected {required >> 20} MiB free in {self.folder}, got {free >> 20} MiB: "
                "not enough for the checkpoints of this run"
            )
        checkpoint = self._checkpoint("supernet", self.identity)
        checkpoint.writes = self.main
        self._agree(checkpoint.step(), "output_dir: expected one folder that all processes share, got several")
        progress = self._progress("super-network", settings.supernet_steps, checkpoint.step())

        def report(done: int, loss: float) -> None:
            progress(done, loss)
            self._log({"supernet/loss": loss}, done)

        train_supernet(supernet, self.paths, self.corpus, settings, self.accelerator, checkpoint, report, self.stop)
        progress.close()
        # Or the same candidate would score differently in two of them.
        self._agree(_weights_digest(supernet), "processes hold different super-networks: start them again")
        return supernet

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self.main and self.settings.log_with:
            self.accelerator.log(values, step=step)

    def _run_job(self, job: dict[str, Any]) -> dict[str, Any]:
        genome = Genome.from_list(job["genome"])
        if job["kind"] == "score":
            return self.proxy.score(genome, self.supernet, job["hurdle"])
        progress = self._progress(f"train {job['name']}", job["steps"])
        try:
            checkpoint = self._checkpoint(f"final-{job['name']}", job["run"])
            model = self.proxy.train_from_scratch(genome, checkpoint, progress, job["steps"])
            if job["steps"] < self.settings.final_steps:
                return {"score": self.proxy.final_score(model, self.stop.check)}
            loss = self.proxy.loss(model, "report")
        except FloatingPointError as error:
            return {"score": None, "loss": None, "reason": str(error)}
        finally:
            progress.close()
        return {"loss": loss, "parameters": sum(p.numel() for p in model.parameters())}

    def _score_job(self, genome: Genome, hurdle: float | None) -> dict[str, Any]:
        return {"kind": "score", "genome": genome.to_list(), "hurdle": hurdle, "run": self.identity}

    def _training_job(self, name: str, genome: list, steps: int) -> dict[str, Any]:
        return {"kind": "train", "name": name, "genome": genome, "steps": steps, "run": self._full_identity()}

    def _search(self, history: History, workers: Workers) -> str:
        settings = self.settings
        progress = self._progress("candidates", settings.max_evaluations, len(history), "candidate")
        [best] = Archive(history).best(1) or [None]
        failures, reason = 0, None

        def submit(record: Record, visible: Archive) -> Callable[[], Record]:
            hurdle = None if settings.hurdle is None else visible.hurdle(settings.hurdle_share)
            wait = workers.submit(f"candidate-{record.index}", self._score_job(record.genome, hurdle))

            def evaluated() -> Record:
                nonlocal best, failures, reason
                workers.forget(f"candidate-{record.index - 1}")  # the history has it
                if failures >= MAX_FAILURES_IN_A_ROW:
                    raise SearchFailed(f"{failures} candidates failed one after the other, the last by: {reason}")
                outcome = wait()
                outcome["costs"] = {**self.sizes.of(record.genome), **outcome["costs"]}
                done = record.evaluated(**outcome)
                if done.status == "failed" and not str(done.reason).startswith(_LIMITS):
                    failures, reason = failures + 1, done.reason
                else:
                    failures = 0
                if done.score is not None and (best is None or done.score > best.score):
                    best = done
                progress(done.index + 1, best=best and best.score)
                self.page.write(history)
                if self.verbosity > 0:
                    came = done.reason if done.score is None else f"{done.score:.4f}"
                    self.say(f"#{done.index}: {came} in {done.seconds:.1f} s: {done.genome}")
                self._log_candidate(done, best)
                return done

            return evaluated

        try:
            status = evolve(
                self.space,
                self.strategy,
                submit,
                history,
                settings.seed,
                settings.max_evaluations,
                settings.lookahead,
            )
        except HistoryMismatch as error:  # no other ValueError: one from a candidate's training is a defect
            raise UsageError(str(error)) from None
        finally:
            progress.close()
            self.page.end(history)
        return status

    def _log_candidate(self, record: Record, best: Record | None) -> None:
        values = {f"candidate/{name}": value for name, value in record.costs.items()}
        values |= {"candidate/generation": record.generation, "candidate/seconds": record.seconds}
        if record.score is not None and best:
            values |= {"candidate/score": record.score, "candidate/best_score": best.score}
        self._log(values, self.settings.supernet_steps + record.index + 1)

    def _rank_finalists(self, history: History, workers: Workers) -> list[dict[str, Any]]:
        """The best candidates by score; where each of them begins a training from scratch, the best after it first.

        A short score has its luck, and favours what learns early. What a few reach in the first part of the final
        training orders them better, and costs little: the winner goes on from there.
        """
        finalists = [
            {"index": record.index, "score": record.score, "genome": record.genome.to_list()}
            for record in Archive(history).best(self.settings.finalists)
        ]
        if not finalists:
            raise SearchFailed(f"no candidate could be evaluated; the last one: {history[-1].reason}")
        steps = int(self.settings.finalist_share * self.settings.final_steps)
        if not steps or len(finalists) == 1:
            return finalists
        jobs = {f"finalist-{f['index']}": self._training_job(str(f["index"]), f["genome"], steps) for f in finalists}
        for finalist, result in zip(finalists, workers.map(jobs), strict=True):
            finalist |= {"steps_from_scratch": steps, "score_from_scratch": result["score"]}
        return sorted(finalists, key=lambda f: (f["score_from_scratch"] is None, -(f["score_from_scratch"] or 0)))

    def _train_final(
        self, finalists: list[dict[str, Any]], workers: Workers
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Report losses of the best finalist that can be trained from scratch and of a BERT of its depth and width."""
        bert = Genome([SELF_ATTENTION] * self.settings.num_hidden_layers)

        def train(name: str, genome: list) -> Callable[[], dict[str, Any]]:
            return workers.submit(f"final-{name}", self._training_job(name, genome, self.settings.final_steps))

        waits = [train(str(finalists[0]["index"]), finalists[0]["genome"]), train("bert", bert.to_list())]
        first, of_bert = (wait() for wait in waits)
        for number, finalist in enumerate(finalists):
            result = first if number == 0 else train(str(finalist["index"]), finalist["genome"])()
            if result["loss"] is not None:
                return {"AutoBERT-Zero (found)": result, "BERT": of_bert}, finalist
            self.say(f"Candidate {finalist['index']} cannot be trained: {result['reason']}. The next best is taken.")
        raise SearchFailed("none of the finalists can be trained; try a lower learning_rate in another output_dir")

    def _summarize(
        self,
        history: History,
        status: str,
        results: dict[str, dict[str, Any]],
        finalists: list[dict[str, Any]],
        winner: dict[str, Any],
    ) -> dict[str, Any]:
        settings, corpus = self.settings, self.corpus
        unigram = {"loss": corpus.unigram_loss("report", settings.eval_sequences), "parameters": None}
        results = {**results, "unigram": unigram}
        objectives = settings.objectives
        front = [
            {"index": record.index, "score": record.score, "costs": record.costs, "genome": record.genome.to_list()}
            for record in (pareto_front(history, objectives) if len(objectives) > 1 else [])
        ]
        batch_tokens = settings.batch_size * settings.sequence_length
        return {
            "identity": self._full_identity(),
            "status": status,
            "own_operations": self.own_operations,
            "best": winner,
            "finalists": finalists,
            "front": front,
            "results": {
                name: {**result, "perplexity": reporting.perplexity(result["loss"])}
                for name, result in results.items()
            },
            "counts": {
                "evaluated": len(history),
                "failed": sum(record.status == "failed" for record in history),
                "dropped": sum(record.status == "dropped" for record in history),
                "duplicates avoided": sum(record.duplicates for record in history),
            },
            "tokens": {
                **corpus.num_tokens(),
                "supernet": settings.supernet_steps * settings.paths_per_step * batch_tokens,
                "candidate_each": settings.candidate_steps * batch_tokens,
                "final_each": settings.final_steps * batch_tokens,
            },
            "seconds_of_last_session": self.seconds,
            "seconds_of_candidates": sum(record.seconds for record in history),
            "seed": settings.seed,
            "data": {"source": self._source(), **{k: v for k, v in self.data.items() if k != "tokens"}},
            **self._provenance(),
            "settings": settings.to_dict(),
        }

    def _unigram_score(self) -> float | None:
        """What knowing no context scores; None for a proxy that is not about tokens."""
        if self.settings.proxy != "mlm":
            return None
        return -self.corpus.unigram_loss("select", self.settings.eval_sequences)

    def _program(self) -> list[str]:
        name = Path(sys.argv[0]).name
        return [name] if name == "autobert-zero" else ["python", "-m", "autobert_zero.search"]

    def _provenance(self) -> dict[str, Any]:
        provenance = reporting.provenance(self.commit, self.accelerator.device.type)
        return {
            **provenance,
            "command": shlex.join([*self._program(), *sys.argv[1:]]),
            "machine": {
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "device": provenance["machine"],
                "cores": os.cpu_count(),
            },
        }

    def _save(self, summary: dict[str, Any]) -> None:
        """`model/` as a whole (weights, configuration, tokenizer, the two code files, card), then the summary."""
        genome = Genome.from_list(summary["best"]["genome"])
        checkpoint = self._checkpoint(f"final-{summary['best']['index']}", summary["identity"])
        model = self.proxy.train_from_scratch(genome, checkpoint)  # is done: only loads
        model.config.sparse_prediction = False
        folder, temporary = self.folder / "model", self.folder / "model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        self.corpus.tokenizer.save_pretrained(temporary)
        own_operations.carry(temporary)
        describe(temporary, summary, self.folder.resolve().name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        reporting.write_json(self.folder / "summary.json", summary)
        reporting.write_text(self.folder / "report.html", report.page([RunHistory.read(self.folder)]))
        for path in self.folder.glob("final-*.safetensors"):
            path.unlink()
        shutil.rmtree(self.folder / "results")

    def _show(self, summary: dict[str, Any]) -> None:
        counts = summary["counts"]
        genome = Genome.from_list(summary["best"]["genome"])
        none = {"failed": "failed", "dropped": "dropped", "duplicates avoided": "proposals known already"}
        said = ", ".join(f"{counts[name]} {words}" for name, words in none.items() if counts[name])
        self.say(f"\nBest of {counts['evaluated']} candidates ({summary['status']}{', ' * bool(said)}{said}):\n")
        self.say(reporting.genome_table(genome))
        self.say(f"\nTrained from scratch on {summary['tokens']['final_each']:,} tokens each:\n")
        self.say(reporting.results_table(summary))
        if note := reporting.learning_note(summary):
            self.say(f"\n{note}")
        self.say(f"\nModel: {self.folder / 'model'}\nReport: {self.folder / 'report.html'}")
