"""The official COCO evaluator (pycocotools) on records in memory, without its prints.

Shapes: T = 10 IoU thresholds, R = 101 recalls, K categories, A = 4 areas (all, small, medium, large).
"""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 100  # an image and category


def precision(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, max_detections: int = MAX_DETECTIONS
) -> np.ndarray:
    """Interpolated precision of each category.

    Args:
        truth: images, categories, annotations with `area`, `iscrowd` and ids from 1 (inside, 0 means
            "unmatched").
        detections: records with ids from 1 and `area`.
        kind: "bbox" or "segm".
        max_detections: kept per image and category, best first.

    Returns:
        (T, R, K, A), K in ascending category id; -1 where there is no ground truth but crowds.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(truth), _indexed({**truth, "annotations": detections}), kind)
        evaluation.params.maxDets = [max_detections]  # the usual 1 and 10 beside it serve only AR
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]  # (T, R, K, A, 1) -> (T, R, K, A)


def _indexed(dataset: dict[str, Any]) -> COCO:
    made = COCO()
    made.dataset = dataset
    made.createIndex()
    return made
