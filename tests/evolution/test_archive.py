"""Records, their archive, and the order of several objectives."""

import numpy as np
import pytest

from autobert_zero.search.evolution.archive import Archive, Incidence, Outcome, Record, pareto_front
from autobert_zero.search.evolution.pareto import crowding_distances, first_front, non_dominated_fronts, nsga2_order


def record(index: int, score: float | None, generation: int = 0, **outcome) -> Record:
    status = outcome.pop("status", "failed" if score is None else "ok")
    return Record(index, f"key {index}", index, generation).evaluated(Outcome(status, score, **outcome))


def test_best():
    archive = Archive([record(0, 1.0), record(1, None, reason="?"), record(2, 3.0), record(3, 1.0), record(4, -5.0)])
    assert [r.index for r in archive.best(3)] == [2, 0, 3]
    assert [r.index for r in archive.best(9)] == [2, 0, 3, 4]
    assert Archive().best(2) == []
    assert Archive([record(0, None, reason="?")]).best(1) == []


def test_a_record_and_its_outcome():
    proposed = Record(0, "key 0", 0, 0)
    assert proposed.outcome is None and proposed.score is None
    pruned = proposed.evaluated(Outcome("pruned", reason="?", intermediate_score=-3.0))
    assert pruned.score is None and (pruned.result.status, pruned.result.intermediate_score) == ("pruned", -3.0)
    assert record(0, 1.0).result.status == "ok" and record(0, 1.0).score == 1.0
    assert record(0, None, reason="?").result.status == "failed"


def test_pruning_threshold_is_a_quantile_of_the_intermediate_scores():
    assert Archive([record(0, 1.0)]).pruning_threshold(0.5) is None
    records = [record(i, 0.0, intermediate_score=float(i)) for i in range(11)] + [record(11, None, reason="?")]
    assert Archive(records).pruning_threshold(0.3) == pytest.approx(3.0)


def test_incidence():
    rng = np.random.default_rng(0)
    present = rng.random((30, 6)) < 0.4
    incidence = Incidence()
    for count, row in enumerate(present, start=1):
        incidence.append([f"{i}" for i in np.flatnonzero(row)])
        if count in (7, 30):  # grows between two calls
            seen = present[:count][:, [int(name) for name in incidence.columns]].astype(float)
            values = rng.random(count)
            np.testing.assert_allclose(incidence.sums(values), seen.T @ values)
            np.testing.assert_array_equal(incidence.gram(), seen.T @ seen)
    assert len(incidence) == 30 and len(incidence.columns) == 6


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_fronts_by_the_definition(objectives):
    values = np.random.default_rng(objectives).integers(6, size=(60, objectives)).astype(float)
    left = set(range(60))
    for front in non_dominated_fronts(values):
        expected = {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
        assert set(front.tolist()) == expected
        left -= expected
    assert not left
    assert set(first_front(values).tolist()) == set(non_dominated_fronts(values)[0].tolist())


def test_the_first_front_of_many_points_is_found_without_comparing_all_pairs():
    values = np.random.default_rng(0).random((50_000, 3))
    front = first_front(values)
    assert 20 < len(front) < 1000 and (np.diff(values[front, 0]) > 0).all()


def test_crowding():
    values = np.array([[0.0, 10.0], [1.0, 4.0], [2.0, 3.0], [10.0, 0.0]])
    assert crowding_distances(values).tolist() == [np.inf, 0.2 + 0.7, 0.9 + 0.4, np.inf]
    assert crowding_distances(np.ones((3, 2)))[1] == 0  # without spread nothing is divided by it


def test_order_is_by_front_and_then_by_crowding_distance():
    values = np.array([[5.0, 5.0], [0.0, 10.0], [1.0, 4.0], [2.0, 3.0], [10.0, 0.0]])
    assert nsga2_order(values) == [1, 4, 3, 2, 0]


def test_survivors_do_not_depend_on_when_they_are_requested():
    rng = np.random.default_rng(0)
    records = [
        record(i, float(rng.random()), costs={"size": float(rng.random())}, generation=i // 5) for i in range(60)
    ]
    at_once, step_by_step = Archive(records), Archive()
    for start in range(0, 60, 5):
        for r in records[start : start + 5]:
            step_by_step.append(r)
        found = step_by_step.survivors(("score", "size"), 8)
    assert at_once.survivors(("score", "size"), 8) == found
    assert len(found) == 8
    assert {r.index for r in pareto_front(records, ("score", "size"))} & {r.index for r in found}


def test_pareto_front_omits_failures():
    assert pareto_front([record(0, None, reason="?")], ["score", "size"]) == []
    records = [record(0, None, reason="?"), record(1, 1.0, costs={"size": 3.0}), record(2, 0.5, costs={"size": 4.0})]
    assert [r.index for r in pareto_front(records, ["score", "size"])] == [1]
