"""The search phase of a run: candidates are proposed, scored by the workers, and recorded."""

from collections.abc import Callable
from typing import Any

from autobert_zero.search.evolution.archive import Archive, Record
from autobert_zero.search.evolution.history import History
from autobert_zero.search.evolution.loop import HistoryMismatch, evolve
from autobert_zero.search.run.errors import SearchFailed, UsageError
from autobert_zero.search.run.jobs import ScoreFuture, score_job
from autobert_zero.search.run.problem import Problem
from autobert_zero.search.run.progress import Console, LivePage
from autobert_zero.search.run.workers import Workers


# Consecutive failures after which a search ends: they have a common cause, which is not in the candidates.
MAX_CONSECUTIVE_FAILURES = 20

# Failures whose cause is the candidate.
_LIMITS = ("LatencyExceeded", "TimeoutError")


def search_candidates(
    problem: Problem,
    history: History,
    workers: Workers,
    live_page: LivePage,
    console: Console,
    log: Callable[[dict[str, Any], int], None],
) -> str:
    """Run the search until its budget is spent or its space exhausted.

    Args:
        history: resumed and extended.
        live_page, console, log: informed about every candidate; `log` is called with values and a step.

    Returns: why it ended: "budget spent" or "space exhausted".

    Raises: SearchFailed after too many consecutive failures; UsageError if the history is of another search; Stopped.
    """
    settings, pruning = problem.settings.strategy, problem.settings.candidates
    bar = console.bar("candidates", settings.max_evaluations, len(history), "candidate")
    [best] = Archive(history).best(1) or [None]
    failures = 0

    def submit(record: Record, archive: Archive) -> ScoreFuture:
        threshold = None
        if pruning.prune_after is not None:
            threshold = archive.pruning_threshold(pruning.prune_fraction)
        job = score_job(problem, record.genome, threshold)
        return ScoreFuture(workers.submit(f"candidate-{record.index}", job), problem.costs.costs(record.genome))

    try:
        for record in evolve(
            problem.space,
            problem.strategy,
            submit,
            history,
            problem.settings.run.seed,
            settings.max_evaluations,
            settings.lookahead,
            problem.proxy.stop.check,
        ):
            workers.forget(f"candidate-{record.index}")
            outcome = record.result
            if outcome.score is not None and (best is None or outcome.score > best.score):
                best = record
            bar(record.index + 1, best=best and best.score)
            live_page.write(history)
            result = outcome.reason if outcome.score is None else f"{outcome.score:.4f}"
            console.say_verbosely(f"#{record.index}: {result} in {outcome.seconds:.1f} s: {record.genome}")
            log(_values(record, best), problem.settings.supernet.supernet_steps + record.index + 1)
            is_failure = outcome.status == "failed" and not str(outcome.reason).startswith(_LIMITS)
            failures = failures + 1 if is_failure else 0
            if failures >= MAX_CONSECUTIVE_FAILURES:
                raise SearchFailed(f"{failures} candidates in a row failed, the last one: {outcome.reason}")
    except HistoryMismatch as error:  # no other ValueError: one from a candidate's training is a bug
        raise UsageError(str(error)) from None
    finally:
        bar.close()
        live_page.end(history)
    return "budget spent" if len(history) >= settings.max_evaluations else "space exhausted"


def _values(record: Record, best: Record | None) -> dict[str, Any]:
    """What trackers log about a candidate."""
    values = {f"candidate/{name}": value for name, value in record.result.costs.items()}
    values |= {"candidate/generation": record.generation, "candidate/seconds": record.result.seconds}
    if record.score is not None and best:
        values |= {"candidate/score": record.score, "candidate/best_score": best.score}
    return values
