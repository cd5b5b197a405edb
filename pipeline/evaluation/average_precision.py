"""AP and recall of a ranked list, for one weighting of the images or for many at once (the bootstrap).

    AP = mean over the recalls 0, .01, ..., 1 of the best precision at that recall or beyond

Only at a true positive does recall grow and can precision be best, so the curve is kept at those alone: each
stands for the recalls between its predecessor's and its own.

Shapes: B weightings, T IoU thresholds, N detections of a category (best first), H true positives.
"""

import numpy as np

RECALLS = np.linspace(0.0, 1.0, 101)
WEIGHTS_AT_ONCE = 2_000_000  # B x N numbers in one pass


def average_precision(
    is_true: np.ndarray, counts: np.ndarray, weights: np.ndarray, num_objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AP and final recall.

    Args:
        is_true: (T, N) bool, found an object that counts.
        counts: (T, N) bool, true or false positive; the others are ignored.
        weights: (B, N) how often the image of each detection is in the sample.
        num_objects: (B,) objects that count, as often as their images are in the sample.

    Returns:
        (B, T) and (B, T) float64 in 0..1; NaN where there is no object.
    """
    shape = (len(weights), len(is_true))
    precision, recall = np.zeros(shape), np.zeros(shape)
    step = max(1, WEIGHTS_AT_ONCE // max(1, is_true.shape[1]))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        for t in range(len(is_true)):
            of = _area_under(is_true[t], counts[t], weights[part], num_objects[part])
            precision[part, t], recall[part, t] = of
    absent = num_objects == 0
    precision[absent], recall[absent] = np.nan, np.nan
    return precision, recall


def _area_under(
    is_true: np.ndarray, counts: np.ndarray, weights: np.ndarray, num_objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(B,), (B,) at one threshold."""
    places = np.flatnonzero(is_true)
    if not len(places):
        return np.zeros(len(weights)), np.zeros(len(weights))
    judged = np.cumsum(weights[:, counts], axis=1, dtype=np.float64)  # (B, N) -> (B, judged)
    judged = judged[:, np.cumsum(counts)[places] - 1]  # (B, H)
    true = np.cumsum(weights[:, places], axis=1, dtype=np.float64)
    best = np.maximum.accumulate((true / (judged + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.maximum(num_objects, 1)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")  # (B, H) recalls up to here
    stands_for = np.diff(reached, axis=1, prepend=0)
    return (best * stands_for).sum(axis=1) / len(RECALLS), recall[:, -1]
