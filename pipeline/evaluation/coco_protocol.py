"""The official COCO evaluator (pycocotools) on records in memory, without its prints.

Shapes: T = 10 IoU thresholds, R = 101 recalls, K categories, A = 4 areas (all, small, medium, large).
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def evaluate(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision, and recall, of each category.

    Args:
        truth: images, categories, annotations with `area`, `iscrowd` and ids from 1 (inside, 0 means
            "unmatched").
        detections: records with ids from 1 and `area`.
        kind: "bbox" or "segm".
        limits: detections kept per image and category, best first, ascending; the last is precision's.

    Returns:
        (T, R, K, A) and (T, K, A, limits), K in ascending category id; -1 where there is no ground truth but
        crowds.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(truth), _indexed({**truth, "annotations": detections}), kind)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"]


def _indexed(dataset: dict[str, Any]) -> COCO:
    made = COCO()
    made.dataset = dataset
    made.createIndex()
    return made
