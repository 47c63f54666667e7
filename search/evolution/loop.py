"""The search loop. Proposals are functions of (seed, generation, child) and the records before them.

Evaluation is handed in; a history is a list of records, in memory or on disk.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autobert_zero.search.evolution.archive import Archive, Outcome, Record
from autobert_zero.search.evolution.limits import InfeasibleLimits
from autobert_zero.search.evolution.strategies import Proposer, Strategy
from autobert_zero.search.seeding import random_stream


# Maximum number of retries after a duplicate.
MAX_TRIES = 50


class HistoryMismatch(ValueError):
    """The history is not one of this search."""


class Future(Protocol):
    """An evaluation in progress."""

    def result(self) -> Outcome:
        """Wait for the outcome."""


@dataclass(frozen=True)
class Completed:
    """The future of an evaluation that is complete."""

    outcome: Outcome

    def result(self) -> Outcome:
        return self.outcome


def _nothing() -> None: ...


def propose(
    space: Any,
    proposers: Sequence[Proposer],
    generation: int,
    first_index: int,
    known: set[str],
    seed: int,
    check: Callable[[], None] = _nothing,
) -> list[Record]:
    """The candidates of a generation: each a function of (seed, generation, child), and none of them known.

    A child whose key is in `known` (extended in place) is proposed again at most `MAX_TRIES` times, or until no child is
    found within the limits. Then random genomes are tried as often, because the parent may have no new child. Then the
    child is omitted. `check` is called before each try; an exception that it raises ends all.
    """
    proposals: list[Record] = []
    for child, proposer in enumerate(proposers):
        tries = duplicates = 0
        while tries < 2 * MAX_TRIES:
            check()
            rng = random_stream(seed, "proposal", generation, child, tries)
            try:
                genome, parents = proposer(rng) if tries < MAX_TRIES else (space.random(rng), ())
            except InfeasibleLimits:
                if tries >= MAX_TRIES:
                    break
                tries = MAX_TRIES
                continue
            tries += 1
            key = space.key(genome)
            if key not in known:
                known.add(key)
                proposals.append(Record(first_index + len(proposals), key, genome, generation, parents, duplicates))
                break
            duplicates += 1
    return proposals


def first_generation(space: Any, strategy: Strategy, seed: int) -> list[Record]:
    """The first candidates of a search, not evaluated."""
    return propose(space, strategy(0, Archive()), 0, 0, set(), seed)


def _start(records: Sequence[Record], generation: int) -> int:
    """Index of the first record of a generation, or the index that it would have."""
    return bisect_left(records, generation, key=lambda record: record.generation)


def evolve(
    space: Any,
    strategy: Strategy,
    submit: Callable[[Record, Archive], Future],
    history: list[Record],
    seed: int,
    max_evaluations: int,
    lookahead: int = 0,
    check: Callable[[], None] = _nothing,
) -> Iterator[Record]:
    """Search until `history` has `max_evaluations` records, or the space has no new candidate.

    Args:
        submit: starts the evaluation of a proposed record, given the archive that it was proposed from.
        history: records evaluated so far, to which new ones are appended. A search resumes from it, also in the
            middle of a generation.
        lookahead: generations that are proposed before the previous one is complete, so that processes need not wait
            for its slowest candidate: generation g uses the records before g - lookahead, and always the first
            generation. Proposals depend on this number, but not on how long evaluations take.
        check: called before each try to propose a candidate; an exception that it raises ends the search.

    Yields: each new record, after it was appended.

    Raises: HistoryMismatch if the history is not one of this search (another seed, strategy, space or version);
        its last generation is compared.
    """
    generation = history[-1].generation if history else 0
    proposed = _start(history, generation)
    known = {record.key for record in history[:proposed]}
    archive = Archive()
    pending: deque[tuple[Record, Future]] = deque()
    exhausted = False
    while len(history) < max_evaluations:
        while not exhausted and proposed < max_evaluations:
            sees_before = max(1, generation - lookahead) if generation else 0
            if pending and pending[0][0].generation < sees_before:
                break
            for record in history[len(archive) : _start(history, sees_before)]:
                archive.append(record)
            proposals = propose(space, strategy(generation, archive), generation, proposed, known, seed, check)
            exhausted = not proposals
            for proposal in proposals[: max_evaluations - proposed]:
                if proposal.index >= len(history):
                    pending.append((proposal, submit(proposal, archive)))
                elif (key := history[proposal.index].key) != proposal.key:
                    raise HistoryMismatch(
                        f"history: expected candidate {proposal.index} to have the key {proposal.key}, got {key}"
                    )
            proposed += len(proposals)
            generation += 1
        if not pending:
            return
        proposal, future = pending.popleft()
        history.append(proposal.evaluated(future.result()))
        yield history[-1]
