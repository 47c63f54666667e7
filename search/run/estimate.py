"""What a run costs, before it starts: tokens, FLOPs, memory and disk, and from a few timed steps its duration."""

import copy
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from autobert_zero.configuration_autobert_zero import Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.evaluation.glue_proxy import GlueProxy
from autobert_zero.search.evaluation.models import checkpoint_activations
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.evolution.archive import Archive, Outcome
from autobert_zero.search.report.tables import duration, text_table
from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.run.final import BASELINES, finalist_steps
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.text.masking import MASK_PROBABILITY


# Genomes whose costs are averaged; genomes that are timed, and steps of each. The first steps are slower.
NUM_GENOMES, NUM_TIMED, TIMED_STEPS, WARMUP_STEPS = 64, 6, 6, 2
# Bytes of a trained parameter: weight, gradient, and two moments of AdamW.
BYTES_PER_PARAMETER = 16
# A backward pass costs twice a forward pass.
TRAINING = 3


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        steps: training steps, of all models together.
        tokens: that these steps see.
        flops: of trainings and evaluations.
        seconds: on the processes of the run; None if no step was timed.
    """

    name: str
    steps: int
    tokens: int
    flops: float
    seconds: float | None = None


@dataclass(frozen=True)
class Work:
    """Trainings and evaluations of one kind in a phase.

    Attributes:
        count: of trainings.
        steps: of each; a step computes `paths` batches.
        evaluated: sequences that are evaluated for each.
        parallel: processes that can share the work; None for any number.
    """

    name: str
    count: int
    steps: int
    evaluated: int
    paths: int = 1
    parallel: int | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds: to make a model, of a training step, and of an evaluated sequence."""

    start: float
    step: float
    sequence: float


def works(problem: Problem) -> list[Work]:
    """The trainings of a run, in the order of its phases."""
    settings = problem.settings
    evaluated, final, layers = settings.training.eval_sequences, settings.final, settings.model.num_hidden_layers
    first = finalist_steps(settings.final)
    candidates = settings.strategy.max_evaluations
    pruning = evaluated // 4 if settings.candidates.prune_after is not None else 0
    scored = 0 if isinstance(problem.proxy, GlueProxy) else evaluated  # fine-tunings are a phase of their own
    outcome = Outcome(score=0.0, costs=dict.fromkeys(settings.strategy.objectives, 0.0))
    children = len(problem.strategy(1, Archive(record.evaluated(outcome) for record in problem.first)))
    return [
        Work(
            "super-network",
            1,
            settings.supernet.supernet_steps,
            0,
            settings.supernet.paths_per_step,
            settings.supernet.paths_per_step,
        ),
        Work(
            "candidates",
            candidates,
            settings.candidates.candidate_steps,
            scored + pruning,
            parallel=(1 + settings.strategy.lookahead) * children,
        ),
        Work("finalists", min(final.finalists, candidates) if first else 0, first, scored),
        Work("final: found", 1, final.final_steps - first, evaluated * (1 + layers)),
        Work("final: baselines", len(BASELINES), final.final_steps, evaluated * (1 + layers)),
    ]


def estimate(problem: Problem, accelerator: Accelerator | None = None) -> list[Phase]:
    """The phases of a run.

    Args:
        accelerator: of the job, whose processes each time some steps; None to time nothing.
    """
    model, batch = problem.settings.model, problem.settings.training.batch_size
    head = 2 * MASK_PROBABILITY * model.sequence_length * model.hidden_size
    head *= model.hidden_size + len(problem.corpus.tokenizer)
    sampled = {
        "super-network": itertools.islice(_paths(problem), NUM_GENOMES),
        "candidates": (record.genome for record in itertools.islice(problem.first, NUM_GENOMES)),
        "final: baselines": _baselines(problem),
    }
    flops = {
        name: statistics.fmean(problem.costs.flops(genome) + head for genome in genomes)
        for name, genomes in sampled.items()
    }
    timings = None if accelerator is None else _timings(problem)
    processes = 1 if accelerator is None else accelerator.num_processes
    phases = []
    for work in works(problem):
        sequences = work.count * work.steps * work.paths * batch
        forward = flops.get(work.name, flops["candidates"])
        seconds = None
        if timings is not None:
            timing = timings.get(work.name, timings["candidates"])
            each = timing.start + work.steps * timing.step + work.evaluated * timing.sequence
            shared = min(processes, work.parallel or work.count or 1)
            seconds = work.count * each / shared
        total = forward * (TRAINING * sequences + work.count * work.evaluated)
        phases.append(Phase(work.name, work.count * work.steps, sequences * model.sequence_length, total, seconds))
    if isinstance(problem.proxy, GlueProxy):
        phases.append(_fine_tunings(problem, flops["candidates"] - head, processes, timings is not None))
    return phases


def _fine_tunings(problem: Problem, flops: float, processes: int, timed: bool) -> Phase:
    """Fine-tuning of candidates and finalists on the tasks of GLUE, as if every row had the maximum number of tokens.

    Args:
        flops: of a backbone, forward, for a sequence.
    """
    proxy, settings = problem.proxy, problem.settings
    assert isinstance(proxy, GlueProxy)
    count = settings.strategy.max_evaluations + (settings.final.finalists if finalist_steps(settings.final) else 0)
    steps = count * len(proxy.tasks) * settings.glue.glue_steps
    rows = steps * settings.training.batch_size
    validation = count * sum(len(task.validation) for task in proxy.tasks.values())
    seconds = None
    if timed:
        model = proxy.builder.model(problem.first[0].genome).to(proxy.device)

        def score(steps: int) -> float:
            short = copy.copy(proxy)
            short.glue = dataclasses.replace(proxy.glue, glue_steps=steps)
            start = time.perf_counter()
            short.final_score(model, proxy.stop.check)
            return time.perf_counter() - start

        score(WARMUP_STEPS)
        few, more = score(WARMUP_STEPS), score(WARMUP_STEPS + TIMED_STEPS)
        each = few + max(0.0, more - few) / TIMED_STEPS * (settings.glue.glue_steps - WARMUP_STEPS)
        seconds = count * each / min(processes, count)
    tokens = rows * settings.model.sequence_length
    return Phase("fine-tuning on GLUE", steps, tokens, flops * (TRAINING * rows + validation), seconds)


def _paths(problem: Problem) -> Iterator[Genome]:
    sample = problem.paths()
    return (sample(step, 0) for step in itertools.count())


def _baselines(problem: Problem) -> list[Genome]:
    return [Genome([attention] * problem.settings.model.num_hidden_layers) for attention, _ in BASELINES.values()]


def step_seconds(train: Callable[[Callable[[int, float], None]], None]) -> float:
    """Mean seconds of the steps of a training after the first ones, given its function `progress`."""
    times: list[float] = []
    train(lambda done, loss: times.append(time.perf_counter()))
    return (times[-1] - times[WARMUP_STEPS - 1]) / (len(times) - WARMUP_STEPS)


def _timings(problem: Problem) -> dict[str, Timing]:
    """Timings of some steps of each kind of training, in this process alone."""
    settings, proxy = problem.settings, problem.proxy
    supernet = problem.new_supernet()
    # More steps than of other trainings, because each has other paths.
    short = dataclasses.replace(problem, settings=settings.replace(supernet_steps=2 * NUM_TIMED + WARMUP_STEPS))
    step = step_seconds(lambda progress: short.train_supernet(supernet, progress=progress))
    candidates = [record.genome for record in problem.first[:NUM_TIMED]]
    return {
        "super-network": Timing(0.0, step, 0.0),
        "candidates": _time_models(problem, (supernet.candidate(genome).to(proxy.device) for genome in candidates)),
        "final: baselines": _time_models(
            problem,
            (
                dataclasses.replace(
                    proxy.builder,
                    settings=dataclasses.replace(settings.model, position_embedding_type=positions),
                )
                .model(genome)
                .to(proxy.device)
                for genome, (_, positions) in zip(_baselines(problem), BASELINES.values(), strict=True)
            ),
        ),
    }


def _time_models(problem: Problem, models: Iterable[AutoBertZeroForMaskedLM]) -> Timing:
    proxy, sequences = (
        problem.proxy,
        min(problem.settings.training.eval_sequences, 4 * problem.settings.training.batch_size),
    )
    schedule = proxy.schedule(TIMED_STEPS, problem.settings.candidates.candidate_learning_rate)
    timings, diverged = [], None
    before = time.perf_counter()
    for model in models:
        start = time.perf_counter() - before

        def train(progress: Callable[[int, float], None], model: AutoBertZeroForMaskedLM = model) -> None:
            proxy.train(model, schedule, "candidate", progress=progress)

        try:
            step = step_seconds(train)
            before = time.perf_counter()
            proxy.loss(model, "validation", sequences)
        except FloatingPointError as error:  # in a search it would fail as a candidate
            diverged = error
            before = time.perf_counter()
            continue
        timings.append(Timing(start, step, (time.perf_counter() - before) / sequences))
        before = time.perf_counter()
    if not timings:
        raise UsageError(f"estimate: expected a model that can be trained, got none: {diverged}")
    return Timing(
        *(statistics.fmean(getattr(timing, each.name) for timing in timings) for each in dataclasses.fields(Timing))
    )


def activation_bytes(model: AutoBertZeroForMaskedLM, sequences: int, tokens: int) -> int:
    """Bytes that a forward pass stores for its backward pass. Args: model: on the meta device, in float32."""
    stored: dict[int, torch.UntypedStorage] = {}
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def store(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            stored[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    ids = torch.zeros((sequences, tokens), dtype=torch.long, device="meta")
    labels = torch.full((sequences, tokens), -100)
    labels[:, : max(1, round(MASK_PROBABILITY * tokens))] = 0
    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        model.train()(ids, labels=labels).loss  # noqa: B018 (the hooks are its purpose)
    return sum(storage.nbytes() for storage in stored.values())


def memory_bytes(problem: Problem, supernet: SuperNetwork) -> int:
    """Bytes of the largest phase: parameters, gradients, optimizer and activations of the super-network, or of a model
    beside it."""
    settings = problem.settings
    with torch.device("meta"):
        genomes = [record.genome for record in problem.first[:NUM_TIMED]]
        models = [problem.proxy.builder.model(genome) for genome in genomes]
    sequences = settings.training.micro_batch_size or settings.training.batch_size
    size = (sequences, settings.model.sequence_length)
    activations = max(activation_bytes(model, *size) for model in models)
    if settings.training.gradient_checkpointing:
        for model in models:
            checkpoint_activations(model)
        outside, layers = max(activation_bytes(model, *size) for model in models), settings.model.num_hidden_layers
        # The inputs of all layers, and the activations of the layer that is computed again.
        inputs = 4 * layers * math.prod(size) * settings.model.hidden_size
        activations = outside + inputs + (activations - outside) // layers
    if settings.training.mixed_precision != "no":
        activations //= 2
    store = sum(parameter.numel() for parameter in supernet.parameters())
    largest = max(sum(parameter.numel() for parameter in model.parameters()) for model in models)
    return activations + max(BYTES_PER_PARAMETER * store, 4 * store + BYTES_PER_PARAMETER * largest)


def disk_bytes(problem: Problem, supernet: SuperNetwork) -> int:
    """Bytes of the checkpoints that may exist at once: of the super-network, the finalists and the baselines, each three
    times its weights, and one being written."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in supernet.parameters())
    return 3 * (2 + len(BASELINES) + problem.settings.final.finalists) * size


def sizes(problem: Problem) -> tuple[int, int]:
    """Bytes that a run needs of the memory of each process, and of the disk."""
    with torch.device("meta"):
        supernet = problem.make_supernet()
    return memory_bytes(problem, supernet), disk_bytes(problem, supernet)


def sizes_text(memory: int, disk: int) -> str:
    """The `sizes` of a run as a sentence."""
    return f"Memory: {memory / (1 << 20):,.0f} MiB beside that of torch itself; disk: at most {disk / (1 << 20):,.0f} MiB."


def total_of(phases: list[Phase]) -> Phase:
    """The sum of phases."""
    seconds = [phase.seconds for phase in phases]
    return Phase(
        "all",
        sum(phase.steps for phase in phases),
        sum(phase.tokens for phase in phases),
        sum(phase.flops for phase in phases),
        None if None in seconds else sum(seconds),  # type: ignore[arg-type]
    )


def costs_table(phases: list[Phase]) -> str:
    """Phases and their sum as a table."""
    rows = [("phase", "steps", "tokens", "FLOPs", "time")]
    for phase in (*phases, total_of(phases)):
        seconds = "" if phase.seconds is None else duration(phase.seconds)
        rows.append((phase.name, f"{phase.steps:,}", f"{phase.tokens:,}", f"{phase.flops:.2e}", seconds))
    return text_table(rows)
