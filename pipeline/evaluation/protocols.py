"""What each protocol looks at: which detections and objects, and which misses nobody can judge.

    coco         the best 100 detections of an (image, category); crowds are ignored
    lvis         the best 300 of an image over all categories, before anything else; then only categories that
                 were checked in the image (it shows them, or they are among its negatives); what finds
                 nothing is no mistake where the category is not exhaustively annotated; nothing without area
    lvis-fixed   the same with the best 10,000 of a category over all images instead of the 300 of an image
                 (Dave et al., arXiv 2102.01066): confidence need not be comparable between categories

Shapes: D detections, G objects, I images, C categories.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations
from pipeline.evaluation.predictions import Predictions, score_rank
from pipeline.evaluation.truth import Truth

CAPS = {"coco": 100, "coco-lt": 100, "lvis": 300, "lvis-fixed": 10_000}
FEDERATED = ("lvis", "lvis-fixed")


@dataclass(frozen=True)
class Cases:
    """What is judged, and how."""

    truth: Truth
    detections: Predictions
    areas: np.ndarray  # (D,) float64 square pixels of what is scored, box or mask
    is_excused: np.ndarray  # (D,) bool: no mistake if it finds nothing


def capped(predictions: Predictions, protocol: str, cap: int) -> Predictions:
    """The detections that the protocol's limit leaves, in file order."""
    cells = predictions.images * (int(predictions.labels.max(initial=0)) + 1) + predictions.labels
    groups = {"lvis": predictions.images, "lvis-fixed": predictions.labels}.get(protocol, cells)
    return predictions.take(np.flatnonzero(score_rank(groups, predictions.scores) < cap))


def cases(annotations: Annotations, truth: Truth, detections: Predictions, protocol: str, kind: str) -> Cases:
    """Apply a protocol to what `capped` has left.

    Args:
        annotations: with federated fields if the protocol wants them.
        truth: of that file.
        detections: of that split.
        protocol: see the module.
        kind: "bbox" or "segm".
    """
    areas = _areas(detections, kind)
    if protocol not in FEDERATED:
        return Cases(truth, detections, areas, np.zeros(len(detections), dtype=bool))
    truth = truth.take(np.flatnonzero(truth.areas > 0))
    truth = replace(truth, is_crowd=np.zeros(len(truth.labels), dtype=bool))  # LVIS has no crowds
    cell = _cells(len(annotations.category_ids))
    assert annotations.neg_category_ids is not None
    assert annotations.not_exhaustive_category_ids is not None
    checked = np.union1d(
        cell(truth.images, truth.labels), _listed(annotations, annotations.neg_category_ids, cell)
    )
    of = cell(detections.images, detections.labels)
    kept = np.flatnonzero(np.isin(of, checked) & (areas > 0))
    partial = _listed(annotations, annotations.not_exhaustive_category_ids, cell)
    return Cases(truth, detections.take(kept), areas[kept], np.isin(of[kept], partial))


def _areas(detections: Predictions, kind: str) -> np.ndarray:
    if kind == "bbox" or detections.masks is None:
        return detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]
    return np.array([coco_mask.area(mask) for mask in detections.masks], dtype=np.float64)


def _cells(num_categories: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(image, category) -> one number."""
    return lambda images, labels: images * num_categories + labels


def _listed(
    annotations: Annotations,
    ids: Sequence[Sequence[int]],
    cell: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Cells of a list of category ids per image; ids that no category has are passed over."""
    images = np.repeat(np.arange(len(ids)), [len(of_image) for of_image in ids])
    listed = np.array([i for of_image in ids for i in of_image], dtype=np.int64)
    places = np.searchsorted(annotations.category_ids, listed).clip(max=len(annotations.category_ids) - 1)
    known = annotations.category_ids[places] == listed
    return cell(images[known], places[known])
