"""Box arithmetic on float arrays.  Boxes are (N, 4) xyxy in pixels; x2 - x1 is the width (no +1)."""

import numpy as np

FEWEST_TO_JUDGE = 10  # boxes


def area(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas; empty boxes have 0."""
    wh = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return wh[:, 0] * wh[:, 1]


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union; 0 where both boxes are empty."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    union = area(boxes)[:, None] + area(others)[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def clip(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes cut to the rectangle [0, width] x [0, height]."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def transform(boxes: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Axis-aligned bounds of the four corners after a 3 x 3 homography; float64."""
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    corners = np.stack([[x1, x2, x2, x1], [y1, y1, y2, y2], np.ones((4, len(boxes)))])  # (3, 4, N)
    moved = np.einsum("ij,jkn->ikn", homography, corners)
    xy = moved[:2] / moved[2]
    return np.concatenate([xy.min(axis=1), xy.max(axis=1)]).T  # (2, 4, N) -> (N, 4)


def visible_fraction(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """(N,) share of each box that lies inside the image; 0 for empty boxes."""
    whole = area(boxes)
    inside = area(clip(boxes, width, height))
    return np.divide(inside, whole, out=np.zeros_like(whole), where=whole > 0)


def corner_votes(xywh: np.ndarray, sizes_wh: np.ndarray) -> np.ndarray:
    """What each box says on whether x, y, width, height are really corners, for `are_corners`.

    Read as x, y, width, height, most corners reach over the border; read as corners, they never do.

    Args:
        xywh: (N, 4) as they were written.
        sizes_wh: (N, 2) of the image of each box.

    Returns:
        (N, 2) bool: whether it leaves its image as x, y, width, height; whether it is a box inside it as
        corners.
    """
    leaves = (xywh[:, :2] + xywh[:, 2:] > sizes_wh + 1).any(axis=1)
    is_box = ((xywh[:, 2:] > xywh[:, :2]) & (xywh[:, 2:] <= sizes_wh + 1)).all(axis=1)
    return np.stack([leaves, is_box], axis=1)  # 2 x (N,) -> (N, 2)


def are_corners(votes: np.ndarray, num_boxes: int) -> bool:
    """Whether a file's x, y, width, height are x1, y1, x2, y2, to judge by all of its boxes.

    Args:
        votes: (2,) number of boxes of each kind of `corner_votes`.
        num_boxes: how many voted; a few may really be that odd.
    """
    return bool(num_boxes >= FEWEST_TO_JUDGE and votes[0] > 0.5 * num_boxes and votes[1] > 0.99 * num_boxes)
