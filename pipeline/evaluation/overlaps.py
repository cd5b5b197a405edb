"""Pairs of a detection and an object of its image and class whose IoU can count: at least .5.

Only pairs that exist are looked at: LVIS has 24 million (image, category) cells, nearly all of them empty.
The formulas are pycocotools' to the last bit: no + 1, and on a crowd the share of the detection that it
covers.

Shapes: D detections, G objects, P pairs.
"""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.evaluation.predictions import RLE

LEAST = 0.5
PAIRS_AT_ONCE = 2_000_000  # 16 bytes each for their places, some 100 more while their IoU is computed


@dataclass(frozen=True)
class Pairs:
    """`detections` ascends; within one detection the objects ascend."""

    detections: np.ndarray  # (P,) int64
    objects: np.ndarray  # (P,) int64
    ious: np.ndarray  # (P,) float64


def box_pairs(
    cells: np.ndarray, boxes: np.ndarray, object_cells: np.ndarray, objects: np.ndarray, is_crowd: np.ndarray
) -> Pairs:
    """Pairs by IoU of boxes.

    Args:
        cells: (D,) int64, one number for each (image, category).
        boxes: (D, 4) float64 xywh, of positive size.
        object_cells: (G,) int64, ascending.
        objects: (G, 4) float64 xywh.
        is_crowd: (G,) bool.
    """
    first, count = _spans(cells, object_cells)
    ends = np.cumsum(count)
    found, start = [], 0
    while start < len(cells):  # at least one detection, and about PAIRS_AT_ONCE pairs
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")))
        rows, columns = _places(first[start:stop], count[start:stop])
        rows += start
        found.append(_kept(rows, columns, _iou(boxes[rows], objects[columns], is_crowd[columns])))
        start = stop
    return _joined(found)


def mask_pairs(
    cells: np.ndarray, masks: list[RLE], object_cells: np.ndarray, objects: list[RLE], is_crowd: np.ndarray
) -> Pairs:
    """Pairs by IoU of masks; arguments as of `box_pairs`, `cells` ascending."""
    first, count = _spans(cells, object_cells)
    edges = np.flatnonzero(np.diff(cells, prepend=-1, append=-1))
    found = []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count[start] == 0:
            continue
        inside = slice(int(first[start]), int(first[start] + count[start]))
        ious = coco_mask.iou(masks[start:stop], objects[inside], is_crowd[inside].astype(np.uint8).tolist())
        rows, columns = np.indices((stop - start, inside.stop - inside.start)).reshape(2, -1)
        found.append(_kept(rows + start, columns + inside.start, np.asarray(ious).reshape(-1)))
    return _joined(found)


def _spans(cells: np.ndarray, object_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,), (D,): where the objects of each detection's cell begin, and how many there are."""
    first = np.searchsorted(object_cells, cells, side="left")
    return first, np.searchsorted(object_cells, cells, side="right") - first


def _places(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,), (P,): every detection beside every object of its cell."""
    rows = np.repeat(np.arange(len(count)), count)
    offset = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    return rows, first[rows] + offset


def _iou(a: np.ndarray, b: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """(P, 4), (P, 4) xywh -> (P,)."""
    sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inside = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area = a[:, 2] * a[:, 3]
    union = np.where(is_crowd, area, area + b[:, 2] * b[:, 3] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def _kept(rows: np.ndarray, columns: np.ndarray, ious: np.ndarray) -> Pairs:
    kept = ious >= LEAST
    return Pairs(rows[kept], columns[kept], ious[kept])


def _joined(found: list[Pairs]) -> Pairs:
    none = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    parts = found or none
    return Pairs(
        np.concatenate([p.detections for p in parts]),
        np.concatenate([p.objects for p in parts]),
        np.concatenate([p.ious for p in parts]),
    )
