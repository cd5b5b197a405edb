"""From a judgement to AP and recall of every category, for all images or for resamples of them.

Shapes: B weightings of the images, A sizes, T IoU thresholds, K categories, I images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.average_precision import average_precision
from pipeline.evaluation.judgement import Judgement


@dataclass(frozen=True)
class CategoryScores:
    """Fractions; NaN where the category has no object."""

    precision: np.ndarray  # (B, A, T, K) AP
    recall: np.ndarray  # (B, A, T, K)
    recall_at: Mapping[int, np.ndarray]  # of the best so many of an (image, category): (B, T, K), all sizes


def category_scores(
    judgement: Judgement, limits: Sequence[int] = (), weights: np.ndarray | None = None
) -> CategoryScores:
    """Count up.

    Args:
        judgement: of one kind, boxes or masks.
        limits: detections per image and category that `recall_at` is about.
        weights: (B, I) how often each image is drawn; None: once (B = 1).
    """
    if weights is None:
        weights = np.ones((1, judgement.num_images), dtype=np.int16)
    num_sizes, num_thresholds, _ = judgement.is_true.shape
    shape = (len(weights), num_sizes, num_thresholds, judgement.num_categories)
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    limited = {limit: np.full((shape[0], *shape[2:]), np.nan) for limit in limits}
    detections = _edges(judgement.labels, judgement.num_categories)
    by_label = np.argsort(judgement.object_labels, kind="stable")
    objects = _edges(judgement.object_labels[by_label], judgement.num_categories)
    for category in np.unique(judgement.object_labels).tolist():
        inside = slice(detections[category], detections[category + 1])
        rows = by_label[objects[category] : objects[category + 1]]
        drawn = weights[:, judgement.images[inside]]  # (B, N)
        drawn_objects = weights[:, judgement.object_images[rows]].astype(np.int64)
        num_objects = drawn_objects @ judgement.object_counts[:, rows].T  # (B, A)
        is_true, counts = judgement.is_true[:, :, inside], judgement.counts[:, :, inside]
        for size in range(num_sizes):
            precision[:, size, :, category], recall[:, size, :, category] = average_precision(
                is_true[size], counts[size], drawn, num_objects[:, size]
            )
        for limit, found in limited.items():
            early = is_true[0] & (judgement.ranks[inside] < limit)  # later ones never undo what these found
            found[:, :, category] = _share(drawn.astype(np.int64) @ early.T, num_objects[:, :1])
    return CategoryScores(precision, recall, limited)


def _edges(ascending: np.ndarray, num_categories: int) -> list[int]:
    return np.searchsorted(ascending, np.arange(num_categories + 1)).tolist()


def _share(found: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(B, T), (B, 1) -> (B, T), NaN where there is nothing to find."""
    return np.divide(found, of, out=np.full(found.shape, np.nan), where=of > 0)
