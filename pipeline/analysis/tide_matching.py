"""One-to-one matching of detections to objects at IoU .5, and what each detection overlaps best.

As the official evaluators match: within an image and category by falling score, ties in file order, each
detection takes the free object it overlaps most, the later one of equals.

Shapes: D detections, G objects, crowds among them.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.analysis.error_decisions import TIGHT
from pipeline.analysis.error_types import by_image, coverage
from pipeline.data.annotations import Annotations
from pipeline.data.boxes import iou
from pipeline.evaluation.predictions import Predictions

NOBODY = -1


@dataclass(frozen=True)
class Matched:
    """Positions of objects are those in the annotations; NOBODY where there is none."""

    object_of: np.ndarray  # (D,) the object that the detection is matched to
    iou_same: np.ndarray  # (D,) largest IoU with an object of its class, matched or not
    iou_other: np.ndarray  # (D,) largest IoU with an object of another class
    best_same: np.ndarray  # (D,) which these are
    best_other: np.ndarray  # (D,)
    is_ignored: np.ndarray  # (D,) bool: unmatched, and nobody can say whether it is wrong


def match(annotations: Annotations, chosen: Predictions) -> Matched:
    """Match detections to the objects of their image and category.

    Args:
        annotations: the split.
        chosen: D detections with an area.
    """
    num = len(chosen)
    found = Matched(
        *(np.full(num, NOBODY), np.zeros(num), np.zeros(num)),
        *(np.full(num, NOBODY), np.full(num, NOBODY), np.zeros(num, dtype=bool)),
    )
    for rows, truth in by_image(annotations, chosen):
        _match_image(annotations, chosen, found, rows, truth)
    found.is_ignored[:] |= _is_not_exhaustive(annotations, chosen)
    found.is_ignored[:] &= found.object_of == NOBODY
    return found


def _match_image(
    annotations: Annotations, chosen: Predictions, found: Matched, rows: np.ndarray, truth: slice
) -> None:
    boxes, objects = chosen.boxes[rows], annotations.boxes[truth].astype(np.float64)
    crowd = annotations.is_crowd[truth]
    overlap = np.where(crowd, 0, iou(boxes, objects))  # (d, g)
    is_same = chosen.labels[rows][:, None] == annotations.labels[truth][None, :]
    same, other = np.where(is_same, overlap, 0), np.where(is_same, 0, overlap)
    for values, largest, which in (
        (same, found.iou_same, found.best_same),
        (other, found.iou_other, found.best_other),
    ):
        largest[rows] = values.max(axis=1)
        which[rows] = np.where(values.max(axis=1) > 0, truth.start + values.argmax(axis=1), NOBODY)
    is_free = ~crowd
    for row in np.argsort(-chosen.scores[rows], kind="stable"):
        free = np.where(is_free, same[row], 0)
        best = len(free) - 1 - int(free[::-1].argmax())
        if free[best] >= TIGHT:
            is_free[best] = False
            found.object_of[rows[row]] = truth.start + best
    on_crowd = np.where(is_same[:, crowd], coverage(boxes, objects[crowd]), 0).max(axis=1, initial=0)
    found.is_ignored[rows] = on_crowd >= TIGHT


def _is_not_exhaustive(annotations: Annotations, chosen: Predictions) -> np.ndarray:
    """(D,) bool: LVIS says that not every object of this category is annotated in this image."""
    if annotations.not_exhaustive_category_ids is None:
        return np.zeros(len(chosen), dtype=bool)
    num_categories = len(annotations.category_ids)
    position = {int(c): i for i, c in enumerate(annotations.category_ids)}
    pairs = [
        image * num_categories + position[c]
        for image, ids in enumerate(annotations.not_exhaustive_category_ids)
        for c in ids
        if c in position
    ]
    keys = chosen.images * num_categories + chosen.labels
    return np.isin(keys, np.array(pairs, dtype=np.int64))
