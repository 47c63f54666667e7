"""The search loop: reproducible, resumable anywhere, with lookahead, failures and exhausted spaces."""

import dataclasses
import subprocess
import sys

import pytest

from autobert_zero.search.evolution.archive import Outcome
from autobert_zero.search.evolution.loop import MAX_TRIES, evolve, propose
from autobert_zero.search.evolution.strategies import OpNas, RandomSearch
from tests.conftest import PAPER_SPACE, SPACE
from tests.evolution.conftest import OP_NAS, STRATEGIES, Evaluation, best, evaluate, search, trace_digest


def test_golden_trace():
    """Changes only when proposals are meant to change: then old histories can no longer be resumed."""
    assert trace_digest(search(count=30)) == "2100d486992c6fcd"
    paper = search(dataclasses.replace(OP_NAS, space=PAPER_SPACE), count=30, space=PAPER_SPACE)
    assert trace_digest(paper) == "fa19117317beb2a5"


def test_the_same_trace_in_another_process():
    code = "from tests.evolution.conftest import *; print(trace_digest(search(count=30)))"
    options = {"capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={"PYTHONHASHSEED": "1"}, **options)
    assert done.stdout.strip() == trace_digest(search(count=30))


def test_another_seed_gives_another_trace():
    for strategy in STRATEGIES:
        assert trace_digest(search(strategy, seed=0)) != trace_digest(search(strategy, seed=1))


def test_shape_of_a_search():
    history = search(count=50)
    assert [record.index for record in history] == list(range(50))
    assert len({record.key for record in history}) == 50
    sizes = [sum(record.generation == g for record in history) for g in range(8)]
    assert sizes == [8, 6, 6, 6, 6, 6, 6, 6]
    for record in history:
        earlier = [r for r in history if r.generation < record.generation]
        assert record.parents == () or record.parents[0] in [r.index for r in best(earlier, 2)]
        assert bool(record.parents) == (record.generation > 0)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("interruptions", "lookahead"), [((1, 8), 0), ((9, 20, 21), 0), (range(1, 60, 2), 2)])
def test_an_interrupted_search_gives_the_same_history(strategy, interruptions, lookahead):
    history = []
    for count in interruptions:

        def interrupted(record, count=count, history=history):
            if len(history) == count:
                raise KeyboardInterrupt
            return evaluate(record)

        with pytest.raises(KeyboardInterrupt):
            search(strategy, history=history, evaluate=interrupted, lookahead=lookahead)
        assert len(history) == count
    assert search(strategy, history=history, lookahead=lookahead) == search(strategy, lookahead=lookahead)


def test_a_longer_search_starts_like_a_shorter_one():
    short = search(count=25)
    long = search(count=60)
    assert long[:25] == short
    assert search(count=60, history=short) == long


def test_lookahead():
    """Generation g is proposed as soon as all generations before g - lookahead are complete, and from these only."""
    for lookahead in (1, 3):
        submitted, history = [], []

        def submit(record, archive, submitted=submitted, history=history, lookahead=lookahead):
            expected = [r for r in history if r.generation < max(1, record.generation - lookahead)]
            assert archive.records == (expected if record.generation else []) == history[: len(expected)]
            assert len(history) == len(archive)
            submitted.append(record)
            return Evaluation(evaluate, record)

        assert len(list(evolve(SPACE, OP_NAS, submit, history, 0, 60, lookahead))) == 60
        assert [r.index for r in submitted] == list(range(60)) and len({r.key for r in history}) == 60
        earliest = {r.generation: r.index for r in reversed(history)}
        for record in history:
            if record.generation > 1:
                seen = earliest[max(1, record.generation - lookahead)]
                assert all(parent < seen for parent in record.parents)


def test_a_history_of_another_search_is_refused():
    history = search(seed=1, count=10)
    with pytest.raises(ValueError, match="history: expected candidate 8 to have the key"):
        search(seed=2, history=history)


def test_failures_are_outcomes():
    def failing(record):
        return Outcome("failed", reason="diverged")

    history = search(evaluate=failing, count=20)
    assert len(history) == 20
    assert {(r.result.status, r.score, r.result.reason) for r in history} == {("failed", None, "diverged")}
    assert best(history, 5) == []

    def sometimes(record):
        return failing(record) if record.index % 2 else evaluate(record)

    history = search(evaluate=sometimes, count=40)
    assert all(history[parent].result.status == "ok" for record in history for parent in record.parents)


def test_a_space_without_new_candidates_ends_the_search():
    class Numbers:
        """Seven genomes, with a functional key that merges them to four."""

        def random(self, rng, choose=None):
            return int(rng.integers(7))

        def mutate(self, genome, rng, choose):
            return (genome + int(rng.integers(1, 7))) % 7

        def operations(self, genome):
            return [f"operation {genome % 2}"]

        def key(self, genome):
            return str(genome // 2)

    def evaluate(record):
        return Outcome(score=float(record.genome))

    for strategy in (RandomSearch(Numbers(), 3), OpNas(Numbers(), 3, 2, 2, 0.2, 0.3)):
        history = search(strategy, count=100, evaluate=evaluate, space=Numbers())
        assert sorted(record.key for record in history) == ["0", "1", "2", "3"]
        # A resumed search ends at once.
        assert len(search(strategy, count=100, evaluate=evaluate, space=Numbers(), history=history)) == 4


def test_retries_are_bounded():
    calls = []

    def propose_the_same(rng):
        calls.append(rng.integers(1 << 60))
        return "the same", ()

    class Space:
        key = staticmethod(str)

        def random(self, rng):
            return propose_the_same(rng)[0]

    assert len(propose(Space(), [propose_the_same, propose_the_same], 0, 0, set(), seed=0)) == 1
    assert len(calls) == 1 + 2 * MAX_TRIES and len(set(calls)) == len(calls)


def test_a_parent_without_new_children_gives_way_to_random_genomes():
    class Space:
        key = staticmethod(str)

        def random(self, rng):
            return int(rng.integers(1000))

    proposals = propose(Space(), [lambda rng: (7, (0,))] * 5, 0, 0, set(), seed=0)
    assert proposals[0].genome == 7 and len({record.key for record in proposals}) == 5
    assert [record.parents for record in proposals] == [(0,), (), (), (), ()]
