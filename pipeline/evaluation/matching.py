"""Which detection finds which object: the greedy assignment of pycocotools and lvis-api, all cells at once.

In each (image, category) the detections choose in the order of their scores.  One takes the object of
largest IoU that is still free (a crowd always is) and reaches the threshold, the later one of two that tie,
and one that counts before any that is ignored.  Cells never meet, so the r-th detections of all cells choose
together: as many rounds as the fullest cell has detections with a candidate.

Shapes: T IoU thresholds, D detections (by cell, best first), G objects, P pairs.
"""

import numpy as np

from pipeline.evaluation.overlaps import Pairs

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # (T,)
NOTHING = -1


def match(pairs: Pairs, cells: np.ndarray, is_ignored: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Give every detection its object.

    Args:
        pairs: what may be matched.
        cells: (D,) int64, ascending; within a cell best first.
        is_ignored: (G,) bool, objects that do not count.
        is_crowd: (G,) bool, objects that any number of detections may take.

    Returns:
        (T, D) int64 position of the object, or `NOTHING`.
    """
    found = np.full((len(THRESHOLDS), len(cells)), NOTHING, dtype=np.int64)
    is_free = np.ones((len(THRESHOLDS), len(is_ignored)), dtype=bool)
    rounds = _rounds(pairs.detections, cells)
    # within a detection the preferred object is last
    order = np.lexsort((pairs.objects, pairs.ious, ~is_ignored[pairs.objects], pairs.detections, rounds))
    detections, objects = pairs.detections[order], pairs.objects[order]
    reaches = pairs.ious[order] >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]  # (T, P)
    edges = np.flatnonzero(np.diff(rounds[order], prepend=-1, append=-1))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        here = objects[start:stop]
        possible = reaches[:, start:stop] & (is_free[:, here] | is_crowd[here])
        _choose(found, is_free, possible, detections[start:stop], here)
    return found


def _rounds(detections: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(P,) how many detections with a candidate come before this pair's in its cell."""
    with_candidate = np.unique(detections)
    _, first = np.unique(cells[with_candidate], return_index=True)
    size = np.diff(np.append(first, len(with_candidate)))
    rank = np.arange(len(with_candidate)) - np.repeat(first, size)
    return rank[np.searchsorted(with_candidate, detections)]


def _choose(
    found: np.ndarray, is_free: np.ndarray, possible: np.ndarray, detections: np.ndarray, objects: np.ndarray
) -> None:
    """One round: each detection takes the last of its possible objects; writes `found` and `is_free`."""
    first = np.flatnonzero(np.diff(detections, prepend=-1))
    places = np.where(possible, np.arange(len(objects)), NOTHING)
    chosen = np.maximum.reduceat(places, first, axis=1)  # (T, P of the round) -> (T, detections)
    at, who = np.nonzero(chosen != NOTHING)
    taken = objects[chosen[at, who]]
    found[at, detections[first[who]]] = taken
    is_free[at, taken] = False
