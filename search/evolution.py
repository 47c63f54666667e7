"""The search loop: proposals, as functions of (seed, generation, child) and the records before. Pure: no BERT, no torch.

Evaluation is handed in; a history is a list of records, in memory or on disk.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from autobert_zero.search.costs import NoGenome
from autobert_zero.search.records import Archive, Record
from autobert_zero.search.settings import stream
from autobert_zero.search.strategies import Birth, Strategy


# How often a child is drawn anew when what comes is known already.
MAX_TRIES = 50


class HistoryMismatch(ValueError):
    """The history is not one of this search."""


def propose(
    space: Any, births: Sequence[Birth], generation: int, first_index: int, known: set[str], seed: int
) -> list[Record]:
    """The candidates of a generation: each a function of (seed, generation, child), none known already.

    A child whose key is in `known`, which grows, is drawn anew, at most `MAX_TRIES` times; then random genomes are
    tried as often, for it may be the parent alone that has no new child; then its place stays empty.
    """
    proposals: list[Record] = []
    for child, birth in enumerate(births):
        for duplicates in range(2 * MAX_TRIES):
            rng = stream(seed, "proposal", generation, child, duplicates)
            try:
                genome, parents = birth(rng) if duplicates < MAX_TRIES else (space.random(rng), ())
            except NoGenome:
                break
            key = space.key(genome)
            if key not in known:
                known.add(key)
                proposals.append(Record(first_index + len(proposals), key, genome, generation, parents, duplicates))
                break
    return proposals


def first_generation(space: Any, strategy: Strategy, seed: int) -> list[Record]:
    """What a search begins with, not evaluated."""
    return propose(space, strategy(0, Archive()), 0, 0, set(), seed)


def _start(records: Sequence[Record], generation: int) -> int:
    """Index of the first record of a generation, or of where it would stand."""
    return bisect_left(records, generation, key=lambda record: record.generation)


def evolve(
    space: Any,
    strategy: Strategy,
    submit: Callable[[Record, Archive], Callable[[], Record]],
    history: list[Record],
    seed: int,
    max_evaluations: int,
    lookahead: int = 0,
) -> str:
    """Search until `max_evaluations` records stand in `history`, or the space has no new candidate.

    Args:
        submit: takes a proposed record, and the archive that it was proposed from; returns what waits for its
            evaluation and gives the record back evaluated.
        history: records of what is done already; continued where it stops, in the middle of a generation too.
        lookahead: generations that are proposed before the last one is done, so that nobody waits for its slowest
            candidate: generation g looks at those before g - lookahead, and always at the first. What is proposed
            depends on this number, and not on who was how fast.

    Returns: "budget spent" or "space exhausted".

    Raises: HistoryMismatch where the history is not one of this search (other seed, strategy, space or version); its
        last generation is what is compared.
    """
    generation = history[-1].generation if history else 0
    proposed = _start(history, generation)
    known = {record.key for record in history[:proposed]}
    archive = Archive()
    waiting: deque[tuple[int, Callable[[], Record]]] = deque()  # generation, and what waits for the record
    exhausted = False
    while len(history) < max_evaluations:
        while not exhausted and proposed < max_evaluations:
            sees_before = max(1, generation - lookahead) if generation else 0
            if waiting and waiting[0][0] < sees_before:
                break
            for record in history[len(archive) : _start(history, sees_before)]:
                archive.append(record)
            proposals = propose(space, strategy(generation, archive), generation, proposed, known, seed)
            exhausted = not proposals
            for proposal in proposals[: max_evaluations - proposed]:
                if proposal.index >= len(history):
                    waiting.append((generation, submit(proposal, archive)))
                elif (key := history[proposal.index].key) != proposal.key:
                    raise HistoryMismatch(
                        f"history: expected candidate {proposal.index} to have the key {proposal.key}, got {key}"
                    )
            proposed += len(proposals)
            generation += 1
        if not waiting:
            return "space exhausted"
        history.append(waiting.popleft()[1]())
    return "budget spent"
