"""The five error types of the paper (Fig. 2, App. A.1, after YOLO v1).

Of each category the N best-scored detections are judged, N = its ground-truth boxes in the split (crowds
apart), or a number that is given.  What each is, `pipeline.analysis.error_decisions` says in one table.

What cannot be verified is not called an error: in LVIS files, boxes of categories that nobody checked in that
image are passed over before N is counted off, as are boxes without area.

Shapes: D judged detections (category by category, best first), C categories, G objects of one image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline.analysis.error_decisions import TYPES, decide
from pipeline.data.annotations import Annotations
from pipeline.data.boxes import area, iou
from pipeline.errors import MismatchedInput
from pipeline.evaluation.predictions import Predictions, score_rank

GROUPS = ("all", "r", "c", "f")


@dataclass(frozen=True)
class ErrorReport:
    """`groups` is errors.json; `table` has a row per judged detection, for a CSV.

    A group holds `n` (boxes judged, without the ignored), the five types and `duplicates` (correct boxes on
    an object that a better-scored correct box already has; part of `correct`) as {count, percent,
    pooled_percent}, and the numbers `categories` (with boxes: the mean's denominator), `missing` (how many
    boxes fewer than N there were) and `ignored`.
    """

    groups: dict[str, dict[str, Any]]
    table: pd.DataFrame
    top_n: int | Literal["objects"] = "objects"

    def to_plain(self) -> dict[str, dict[str, Any]]:
        """errors.json: str, int, float, None in dicts."""
        return self.groups


@dataclass(frozen=True)
class _Verdicts:
    kinds: np.ndarray  # (D,) one of TYPES, or "ignored"
    is_duplicate: np.ndarray  # (D,) bool
    iou_same: np.ndarray  # (D,) float64
    iou_other: np.ndarray  # (D,) float64


def error_types(
    annotations: Annotations,
    predictions: Predictions,
    frequency: list[str] | None = None,
    top_n: int | Literal["objects"] = "objects",
) -> ErrorReport:
    """Sort the top-N detections of each category into the paper's five types.

    Args:
        annotations: the split that was predicted.
        predictions: of that split.
        frequency: r, c or f per category (C); None: the annotations' own; with neither, r, c and f are empty.
        top_n: N of every category that has objects; `objects`: as many as it has.

    Returns:
        per group counts and percentages: `percent` is the mean over categories (as in YOLO v1),
        `pooled_percent` that over boxes; both None where the group has no box.

    Raises:
        MismatchedInput: letters of other categories.
    """
    letters = annotations.frequency if frequency is None else frequency
    num_categories = len(annotations.category_ids)
    if letters is not None and len(letters) != num_categories:
        raise MismatchedInput(f"{len(letters)} frequencies for {num_categories} categories")
    objects = np.bincount(annotations.labels[~annotations.is_crowd], minlength=num_categories)
    wanted = objects if top_n == "objects" else np.where(objects > 0, top_n, 0)
    chosen = predictions.take(_top_n(annotations, predictions, wanted))
    verdicts = _judge(annotations, chosen)
    groups = {}
    for name in GROUPS:
        members = np.array([name in ("all", letter) for letter in letters or [""] * num_categories])
        groups[name] = _group(members, chosen.labels, verdicts, wanted)
    return ErrorReport(groups, _table(annotations, chosen, verdicts), top_n)


def _top_n(annotations: Annotations, predictions: Predictions, wanted: np.ndarray) -> np.ndarray:
    """(D,) rows of the `wanted` (C,) best verifiable detections of each category, ties in file order."""
    candidates = np.flatnonzero(~predictions.is_empty_box & is_verified(annotations, predictions))
    labels, scores = predictions.labels[candidates], predictions.scores[candidates]
    rank = score_rank(labels, scores)
    order = np.lexsort((rank, labels))
    return candidates[order][rank[order] < wanted[labels[order]]]


def is_verified(annotations: Annotations, predictions: Predictions) -> np.ndarray:
    """(N,) bool: the category was checked in the image, so that a box there can be called right or wrong."""
    if not annotations.is_lvis or annotations.neg_category_ids is None:
        return np.ones(len(predictions), dtype=bool)
    num_categories = len(annotations.category_ids)
    position = {int(c): i for i, c in enumerate(annotations.category_ids)}
    absent = [
        image * num_categories + position[c]
        for image, ids in enumerate(annotations.neg_category_ids)
        for c in ids
        if c in position
    ]
    present = annotations.box_images * num_categories + annotations.labels
    checked = np.concatenate([present, np.array(absent, dtype=np.int64)])
    return np.isin(predictions.images * num_categories + predictions.labels, checked)


def _judge(annotations: Annotations, chosen: Predictions) -> _Verdicts:
    """The type of each judged detection; rows of one category must be best first."""
    iou_same, iou_other, on_crowd = (np.zeros(len(chosen)) for _ in range(3))
    nearest = np.full(len(chosen), -1)  # the object of its class that iou_same is about
    for rows, truth in by_image(annotations, chosen):
        boxes, objects = chosen.boxes[rows], annotations.boxes[truth].astype(np.float64)
        crowd = annotations.is_crowd[truth]
        overlap = np.where(crowd, 0, iou(boxes, objects))  # (D_image, G)
        is_same = chosen.labels[rows][:, None] == annotations.labels[truth][None, :]
        iou_same[rows] = np.where(is_same, overlap, 0).max(axis=1)
        iou_other[rows] = np.where(is_same, 0, overlap).max(axis=1)
        nearest[rows] = truth.start + np.where(is_same, overlap, 0).argmax(axis=1)
        on_crowd[rows] = coverage(boxes, objects[crowd]).max(axis=1, initial=0)
    kinds = decide(iou_same, iou_other, on_crowd)
    return _Verdicts(kinds, _duplicates(kinds == "correct", nearest), iou_same, iou_other)


def by_image(annotations: Annotations, chosen: Predictions) -> Iterator[tuple[np.ndarray, slice]]:
    """For each image with objects and judged detections: rows of these, and the slice of those."""
    order = np.argsort(chosen.images, kind="stable")
    images, starts = np.unique(chosen.images[order], return_index=True)
    for image, rows in zip(images, np.split(order, starts[1:]), strict=False):
        truth = annotations.of_image(int(image))
        if truth.stop > truth.start:
            yield rows, truth


def coverage(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """(D, G) share of each box that lies in each crowd region, COCO's overlap for crowds."""
    top_left = np.maximum(boxes[:, None, :2], crowds[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=2) / np.maximum(area(boxes), 1e-9)[:, None]


def _duplicates(is_correct: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """(D,) bool: correct, and an earlier (better-scored) row of the class is correct on the same object."""
    rows = np.flatnonzero(is_correct)
    _, first = np.unique(nearest[rows], return_index=True)
    is_duplicate = is_correct.copy()
    is_duplicate[rows[first]] = False
    return is_duplicate


def _group(
    members: np.ndarray, labels: np.ndarray, verdicts: _Verdicts, wanted: np.ndarray
) -> dict[str, Any]:
    """One group of errors.json; `members` (C,) bool are its categories."""
    num_categories = len(members)
    inside = members[labels]
    counted = inside & (verdicts.kinds != "ignored")
    boxes = np.bincount(labels[counted], minlength=num_categories)
    selected = np.bincount(labels, minlength=num_categories)

    def share(flags: np.ndarray) -> dict[str, Any]:
        found = np.bincount(labels[counted & flags], minlength=num_categories)
        if not boxes.any():
            return {"count": 0, "percent": None, "pooled_percent": None}
        per_category = found[boxes > 0] / boxes[boxes > 0]
        return {
            "count": int(found.sum()),
            "percent": 100 * float(per_category.mean()),
            "pooled_percent": 100 * float(found.sum() / boxes.sum()),
        }

    return {
        "n": int(boxes.sum()),
        **{kind: share(verdicts.kinds == kind) for kind in TYPES},
        "duplicates": share(verdicts.is_duplicate),
        "categories": int((boxes > 0).sum()),
        "missing": int((wanted - selected)[members].sum()),
        "ignored": int((inside & ~counted).sum()),
    }


def _table(annotations: Annotations, chosen: Predictions, verdicts: _Verdicts) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": annotations.image_ids[chosen.images],
            "category_id": annotations.category_ids[chosen.labels],
            "score": chosen.scores,
            "type": verdicts.kinds,
            "iou_same": verdicts.iou_same,
            "iou_other": verdicts.iou_other,
        }
    )
