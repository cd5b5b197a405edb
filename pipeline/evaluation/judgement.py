"""Every detection judged at every IoU threshold and size, category by category, best first.

This is where a protocol ends and the counting begins: AP, recall and the bootstrap only weigh and add up what
stands here.

Shapes: A sizes (all, small, medium, large), T IoU thresholds, D detections, G objects, K categories,
I images.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.matching import NOTHING, THRESHOLDS, match
from pipeline.evaluation.overlaps import Pairs, box_pairs, mask_pairs
from pipeline.evaluation.protocols import Cases

SIZES = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])  # (A, 2) px^2, closed at both ends


@dataclass(frozen=True)
class Judgement:
    """Detections sorted by category, then score; ties by image id, then file order."""

    labels: np.ndarray  # (D,) int64, ascending
    images: np.ndarray  # (D,) int64 positions
    ranks: np.ndarray  # (D,) int64 place among the detections of its (image, category), from 0
    is_true: np.ndarray  # (A, T, D) bool: found an object that counts
    counts: np.ndarray  # (A, T, D) bool: true or false; what is neither is ignored
    object_labels: np.ndarray  # (G,) int64
    object_images: np.ndarray  # (G,) int64
    object_counts: np.ndarray  # (A, G) bool
    num_categories: int
    num_images: int


def judge(cases: Cases, image_ids: np.ndarray, num_categories: int, kind: str) -> Judgement:
    """Match and judge.

    Args:
        cases: see `protocols.cases`.
        image_ids: (I,) ids of the split, which break ties.
        num_categories: K.
        kind: "bbox" or "segm".
    """
    truth, detections = cases.truth, cases.detections
    cells = detections.images * num_categories + detections.labels
    by_cell = np.lexsort((-detections.scores, cells))  # stable: ties in file order
    object_cells = truth.images * num_categories + truth.labels
    truth = truth.take(by_object := np.argsort(object_cells, kind="stable"))
    object_cells = object_cells[by_object]
    cells = cells[by_cell]
    ordered = detections.take(by_cell)
    if kind == "segm":
        assert ordered.masks is not None
        pairs = mask_pairs(cells, ordered.masks, object_cells, truth.masks, truth.is_crowd)
    else:
        pairs = box_pairs(cells, ordered.boxes_xywh, object_cells, truth.boxes_xywh, truth.is_crowd)
    areas, is_excused = cases.areas[by_cell], cases.is_excused[by_cell]
    outside = (truth.areas < SIZES[:, :1]) | (truth.areas > SIZES[:, 1:])  # (A, G)
    is_ignored = outside | truth.is_crowd
    order = _by_category(ordered.labels, ordered.scores, ordered.images, image_ids)
    is_true, counts = _verdicts(pairs, cells, is_ignored, truth.is_crowd, areas, is_excused, order)
    return Judgement(
        labels=ordered.labels[order],
        images=ordered.images[order],
        ranks=_ranks(cells)[order],
        is_true=is_true,
        counts=counts,
        object_labels=truth.labels,
        object_images=truth.images,
        object_counts=~is_ignored,
        num_categories=num_categories,
        num_images=len(image_ids),
    )


def _verdicts(
    pairs: Pairs,
    cells: np.ndarray,
    is_ignored: np.ndarray,
    is_crowd: np.ndarray,
    areas: np.ndarray,
    is_excused: np.ndarray,
    order: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(A, T, D), (A, T, D) in `order`: true, and counted at all."""
    shape = (len(SIZES), len(THRESHOLDS), len(cells))
    is_true, counts = np.empty(shape, dtype=bool), np.empty(shape, dtype=bool)
    for size, (least, most) in enumerate(SIZES):
        found = match(pairs, cells, is_ignored[size], is_crowd)[:, order]
        nothing = found == NOTHING
        on_ignored = np.append(is_ignored[size], False)[found]  # NOTHING is the last one
        is_true[size] = ~nothing & ~on_ignored
        excused = is_excused | (areas < least) | (areas > most)
        counts[size] = is_true[size] | (nothing & ~excused[order])
    return is_true, counts


def _by_category(
    labels: np.ndarray, scores: np.ndarray, images: np.ndarray, image_ids: np.ndarray
) -> np.ndarray:
    place = np.empty(len(image_ids), dtype=np.int64)
    place[np.argsort(image_ids, kind="stable")] = np.arange(len(image_ids))
    return np.lexsort((place[images], -scores, labels))


def _ranks(cells: np.ndarray) -> np.ndarray:
    """(D,) of ascending cells: 0, 1, 2, ... in each."""
    _, first, size = np.unique(cells, return_index=True, return_counts=True)
    return np.arange(len(cells)) - np.repeat(first, size)
