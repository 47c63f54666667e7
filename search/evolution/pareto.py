"""Several objectives: Pareto fronts and the order of NSGA-II (Deb et al., 2002)."""

import numpy as np


def non_dominated_fronts(values: np.ndarray) -> list[np.ndarray]:
    """Indices of the rows of `values` (points, objectives; lower is better), front by front.

    A point dominates another if it is nowhere worse and somewhere better. The first front is not dominated by any
    point, the next one only by points of the first, and so on.
    """
    no_worse = np.all(values[:, None] <= values[None], axis=2)
    dominates = no_worse & ~no_worse.T
    fronts: list[np.ndarray] = []
    left = np.arange(len(values))
    while len(left):
        dominated = dominates[np.ix_(left, left)].any(0)
        fronts.append(left[~dominated])
        left = left[dominated]
    return fronts


def first_front(values: np.ndarray) -> np.ndarray:
    """Indices of the rows that no other dominates, ordered by the first objective. Fast for many points."""
    front: list[int] = []
    for i in np.lexsort(values.T[::-1]):
        # A row that dominates this one comes before it, and some row of the front dominates both.
        kept = values[front]
        if not (np.all(kept <= values[i], axis=1) & np.any(kept < values[i], axis=1)).any():
            front.append(int(i))
    return np.array(front)


def crowding_distances(values: np.ndarray) -> np.ndarray:
    """Distance between the neighbours of each point of a front, summed over objectives; infinite at the ends."""
    distances = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distances[order[[0, -1]]] = np.inf
        if spread > 0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distances


def nsga2_order(values: np.ndarray) -> list[int]:
    """Indices of all points, best first: by front, and within a front by decreasing crowding distance."""
    order: list[int] = []
    for front in non_dominated_fronts(values):
        distances = crowding_distances(values[front])
        order += front[np.argsort(-distances, kind="stable")].tolist()
    return order
