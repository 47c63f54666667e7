"""Command line of a search: arguments and wiring, and the only place that prints.

    accelerate launch -m autobert_zero.search --output_dir runs/demo

The pure side (space, strategy, history) and the torch side (super-network, proxy) meet here: `evaluate` is handed to
the loop.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import datasets
import filelock
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Genome
from autobert_zero.search import reporting
from autobert_zero.search.data import Corpus
from autobert_zero.search.evolution import (
    Evolution,
    HistoryMismatch,
    LargestFirst,
    OpNas,
    RandomSearch,
    Record,
    RegularizedEvolution,
    Strategy,
    ThompsonOpNas,
    best,
    evolve,
    first_generation,
)
from autobert_zero.search.history import History
from autobert_zero.search.proxy import MaskedLMProxy
from autobert_zero.search.settings import SearchSettings
from autobert_zero.search.space import BackboneSpace
from autobert_zero.search.supernet import PathSampler, SuperNetwork, train_supernet
from autobert_zero.search.training import Checkpoint, seed_torch
from autobert_zero.search.workers import Workers


CONTINUE = "What is done is kept: the same command continues it."


class UsageError(Exception):
    """Bad input: its message is for the user, and the exit code 2."""


def parse_settings(arguments: list[str] | None = None) -> SearchSettings:
    parser = HfArgumentParser(
        SearchSettings,  # type: ignore[arg-type]
        prog="python -m autobert_zero.search",
        description="Evolve a BERT backbone from text: train a bi-branch super-network, search by OP-NAS, "
        "then train the best backbone and a BERT of the same depth and width from scratch.",
        allow_abbrev=False,
    )
    try:
        namespace, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return SearchSettings.from_dict(vars(namespace))
    except ValueError as error:
        parser.error(str(error))


def make_strategy(settings: SearchSettings, space: BackboneSpace) -> Strategy:
    population, parents, children = settings.population_size, settings.num_parents, settings.num_children
    match settings.strategy:
        case "random":
            return RandomSearch(space, population)
        case "largest_first":
            return LargestFirst(space, population)
        case "regularized_evolution":
            # As many children in a generation as the others have, so that processes have as much to share.
            return RegularizedEvolution(space, population, settings.tournament_size, parents * children)
        case "thompson_op_nas":
            return ThompsonOpNas(space, population, parents, children)
        case "evolution":
            return Evolution(space, population, parents, children)
        case _:
            alpha, temperature = settings.priority_alpha, settings.priority_temperature
            return OpNas(space, population, parents, children, alpha, temperature)


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
            bar_format=None if on_terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]\n",
            disable=not enabled,
        )

    def __call__(self, done: int, loss: float | None = None, **values: float | None) -> None:
        values = {"loss": loss, **values}
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in values.items() if v is not None}, refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        self.bar.close()


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

    Raises: UsageError for bad input, before anything is trained.
    """

    def __init__(self, settings: SearchSettings, accelerator: accelerate.Accelerator):
        self.settings = settings
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.folder = Path(settings.output_dir)
        self.space = BackboneSpace(
            settings.num_hidden_layers,
            tuple(settings.kernel_sizes),
            settings.max_nodes,
            settings.min_attention_layers,
        )
        self.strategy = make_strategy(settings, self.space)
        self.seconds: dict[str, float] = {}

    def execute(self) -> None:
        with contextlib.ExitStack() as held:
            if self.main:
                held.enter_context(hold_folder(self.settings))
            self._describe_machine()
            with self._phase("text"):
                self.corpus, self.identity = self._read_corpus()
            history = held.enter_context(self._open_history()) if self.main else None
            summary = self._finished() if self.main else None
            if broadcast_object_list([summary is not None])[0]:
                self.say(f"{self.folder} holds this run, finished.")
            else:
                self.proxy = MaskedLMProxy(self.settings, self.corpus, self.accelerator.device)
                with self._phase("super-network"):
                    self.supernet = self._train_supernet()
                workers = Workers(self.accelerator, self._run_job)
                if history is None:
                    workers.serve()
                    return
                with self._phase("search"):
                    status = self._search(history, workers)
                with self._phase("final training"):
                    results = self._train_final(history, workers)
                workers.release()
                summary = self._summarize(history, status, results)
                self._save(summary)
            if summary:
                self._show(summary)

    def say(self, text: str = "") -> None:
        if self.main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def _agree(self, value: Any, otherwise: str) -> None:
        """Raise UsageError in all processes unless `value` is the same in all."""
        if len(set(gather_object([value]))) > 1:
            raise UsageError(otherwise)

    def _checkpoint(self, name: str) -> Checkpoint:
        path = self.folder / f"{name}.safetensors"
        return Checkpoint(path, f"{name} {self.identity}", self.settings.checkpoint_seconds)

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

    def _read_corpus(self) -> tuple[Corpus, str]:
        try:
            corpus = Corpus.build(self.settings)
        except ValueError as error:
            raise UsageError(str(error)) from None
        tokens = ", ".join(f"{count:,} to {role}" for role, count in corpus.num_tokens().items())
        self.say(f"Text: {self._source()}; tokens: {tokens}; vocabulary {len(corpus.tokenizer):,}.")
        identity = json.dumps([self.settings.identity(), corpus.digest()], sort_keys=True)
        identity = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._agree(identity, "processes differ in settings or text: give all of them the same command and files")
        return corpus, identity

    def _source(self) -> str:
        settings = self.settings
        if settings.train_file:
            return ", ".join(os.path.basename(path) for path in settings.train_file)
        return settings.dataset_name or f"the language reference of Python {platform.python_version()}"

    def _open_history(self) -> History:
        header = {
            "settings": self.settings.identity(),
            "data": {"digest": self.corpus.digest(), "tokens": self.corpus.num_tokens()},
            "seed": self.settings.seed,
            "threads": torch.get_num_threads(),
            "versions": reporting.versions(),
        }
        try:
            history = History(self.folder / "history.jsonl", header, identity=("settings", "data"))
        except ValueError as error:
            raise UsageError(str(error)) from None
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
        return summary if summary["identity"] == self.identity else None

    def _train_supernet(self) -> SuperNetwork:
        settings = self.settings
        seed_torch(settings.seed, "supernet")
        tokenizer = self.corpus.tokenizer
        supernet = SuperNetwork(settings, len(tokenizer), tokenizer.pad_token_id).to(self.accelerator.device)
        # Checkpoints of the super-network and of two final trainings, each thrice its weights and once more in writing.
        required = 12 * sum(p.numel() * p.element_size() for p in supernet.parameters())
        if self.main and (free := shutil.disk_usage(self.folder).free) < required:
            raise UsageError(
                f"output_dir: expected {required >> 20} MiB free in {self.folder}, got {free >> 20} MiB: "
                "not enough for the checkpoints of this run"
            )
        checkpoint = self._checkpoint("supernet")
        checkpoint.writes = self.main
        self._agree(checkpoint.step(), "output_dir: expected one folder that all processes share, got several")
        progress = Progress("super-network", settings.supernet_steps, enabled=self.main)
        population = [record.genome for record in first_generation(self.space, self.strategy, settings.seed)]
        paths = PathSampler(self.space, settings, population)
        train_supernet(supernet, paths, self.corpus, settings, self.accelerator, checkpoint, progress)
        progress.close()
        return supernet

    def _run_job(self, job: dict[str, Any]) -> dict[str, Any]:
        genome = Genome.from_list(job["genome"])
        if job["kind"] == "score":
            return self.proxy.score(genome, self.supernet)
        progress = Progress(f"train {job['name']}", self.settings.final_steps, enabled=self.main)
        model = self.proxy.train_from_scratch(genome, self._checkpoint(f"final-{job['name']}"), progress)
        progress.close()
        return {
            "loss": self.proxy.loss(model, "report"),
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    def _search(self, history: History, workers: Workers) -> str:
        settings = self.settings
        progress = Progress("candidates", settings.max_evaluations, len(history), "candidate")

        leaders = best(history, 1)

        def evaluate(proposals: list[Record]) -> Iterator[Record]:
            nonlocal leaders
            jobs = [{"kind": "score", "genome": record.genome.to_list()} for record in proposals]
            for record, outcome in zip(proposals, workers.map(jobs), strict=True):
                record = record.evaluated(**outcome)
                leaders = best([*leaders, record], 1)
                progress(record.index + 1, best=leaders[0].score if leaders else None)
                yield record

        try:
            status = evolve(
                self.space,
                self.strategy,
                evaluate,
                history,
                settings.seed,
                settings.max_evaluations,
            )
        except HistoryMismatch as error:  # no other ValueError: one from a candidate's training is a defect
            raise UsageError(str(error)) from None
        progress.close()
        return status

    def _train_final(self, history: History, workers: Workers) -> dict[str, dict[str, Any]]:
        """Report losses of the best candidate and of a BERT of its depth and width, both trained from scratch."""
        found = best(history, 1)
        if not found:
            raise UsageError(f"no candidate could be evaluated; the last one: {history[-1].reason}")
        genomes = {"best": found[0].genome, "bert": Genome([SELF_ATTENTION] * self.settings.num_hidden_layers)}
        jobs = [{"kind": "train", "name": name, "genome": genome.to_list()} for name, genome in genomes.items()]
        return dict(zip(genomes, workers.map(jobs), strict=True))

    def _summarize(self, history: History, status: str, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        settings, corpus = self.settings, self.corpus
        unigram = {"loss": corpus.unigram_loss("report", settings.eval_sequences), "parameters": None}
        named = {"AutoBERT-Zero (found)": results["best"], "BERT": results["bert"], "unigram": unigram}
        [winner] = best(history, 1)
        batch_tokens = settings.batch_size * settings.sequence_length
        return {
            "identity": self.identity,
            "status": status,
            "best": {"genome": winner.genome.to_list(), "score": winner.score, "index": winner.index},
            "results": {name: {**result, "perplexity": math.exp(result["loss"])} for name, result in named.items()},
            "counts": {
                "evaluated": len(history),
                "failed": sum(record.status == "failed" for record in history),
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
            "data": {"source": self._source(), "digest": corpus.digest()},
            "machine": {
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "device": self._device_name(),
                "cores": os.cpu_count(),
            },
            "command": shlex.join(["python", "-m", "autobert_zero.search", *sys.argv[1:]]),
            "versions": reporting.versions(),
            "commit": reporting.commit(),
            "settings": settings.to_dict(),
        }

    def _device_name(self) -> str:
        if self.accelerator.device.type == "cuda":
            return torch.cuda.get_device_name(self.accelerator.device)
        return platform.processor() or platform.machine()

    def _save(self, summary: dict[str, Any]) -> None:
        """`model/` as a whole (weights, configuration, tokenizer, the two code files, card), then the summary."""
        genome = Genome.from_list(summary["best"]["genome"])
        model = self.proxy.train_from_scratch(genome, self._checkpoint("final-best"))  # is done: only loads
        model.config.sparse_prediction = False
        folder, temporary = self.folder / "model", self.folder / "model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        self.corpus.tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(reporting.model_card(summary), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        reporting.write_json(self.folder / "summary.json", summary)
        for name in ("best", "bert"):
            self._checkpoint(f"final-{name}").path.unlink()

    def _show(self, summary: dict[str, Any]) -> None:
        counts = summary["counts"]
        genome = Genome.from_list(summary["best"]["genome"])
        self.say(f"\nBest of {counts['evaluated']} candidates ({counts['failed']} failed; {summary['status']}):\n")
        self.say(reporting.genome_table(genome))
        self.say(f"\nTrained from scratch on {summary['tokens']['final_each']:,} tokens each:\n")
        self.say(reporting.results_table(summary))
        self.say(f"\nModel: {self.folder / 'model'}")


def main(arguments: list[str] | None = None) -> None:
    settings = parse_settings(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # On a machine without an accelerator the processes of a launcher find each other only with `cpu=True`.
    accelerator = accelerate.Accelerator(cpu=not torch.accelerator.is_available() or None)
    try:
        launched = int(os.environ.get("WORLD_SIZE", accelerator.num_processes))
        if accelerator.num_processes != launched:
            raise UsageError(
                f"the launcher started {launched} processes, but they run as {accelerator.num_processes}: "
                "set ACCELERATE_USE_CPU=true to run several on CPUs"
            )
        Run(settings, accelerator).execute()
    except UsageError as error:
        sys.exit(_complain(str(error), code=2))
    except FloatingPointError as error:
        sys.exit(_complain(f"{error}: a training diverged; try a lower learning_rate in another output_dir", code=1))
    except (OSError, SafetensorError) as error:
        sys.exit(_complain(f"{error}. {CONTINUE}", code=1))
    except KeyboardInterrupt:
        sys.exit(_complain(f"interrupted. {CONTINUE}", code=130))
    finally:
        accelerator.end_training()


def _complain(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
