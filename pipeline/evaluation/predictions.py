"""Detections as columns.

Boxes keep the file's own numbers, x, y, width, height in float64, and empty ones stay: official evaluators
count them, each in its own way, and a box that went through xyxy and back overlaps a little differently.

Shapes: N detections in file order, which breaks ties of equal scores.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations

RLE = dict[str, Any]  # {"size": [height, width], "counts": compressed text}


@dataclass(frozen=True)
class Predictions:
    """Detections on one split.  `images` and `labels` are 0-based positions, never ids."""

    images: np.ndarray  # (N,) int64 positions in Annotations.image_ids
    labels: np.ndarray  # (N,) int64 positions in Annotations.category_ids
    boxes_xywh: np.ndarray  # (N, 4) float64, as in the file
    scores: np.ndarray  # (N,) float64
    masks: list[RLE] | None = None  # N run-length encoded masks of the whole image

    @classmethod
    def from_xyxy(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        masks: list[RLE] | None = None,
    ) -> "Predictions":
        """Columns from a detector's output: `boxes` is (N, 4) xyxy in pixels, any float type."""
        corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return cls(
            images=np.asarray(images, dtype=np.int64),
            labels=np.asarray(labels, dtype=np.int64),
            boxes_xywh=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            scores=np.asarray(scores, dtype=np.float64),
            masks=masks,
        )

    def __len__(self) -> int:
        return len(self.scores)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) float64 xyxy."""
        return np.concatenate(
            [self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1
        )

    @property
    def has_masks(self) -> bool:
        """Whether every detection carries a mask."""
        return self.masks is not None

    @property
    def is_empty_box(self) -> np.ndarray:
        """(N,) bool: no width or no height."""
        return np.any(self.boxes_xywh[:, 2:] <= 0, axis=1)

    def take(self, rows: np.ndarray) -> "Predictions":
        """The detections at positions `rows`, in that order."""
        masks = None if self.masks is None else [self.masks[i] for i in rows]
        return Predictions(
            self.images[rows], self.labels[rows], self.boxes_xywh[rows], self.scores[rows], masks
        )

    def remarks(self, annotations: Annotations) -> list[str]:
        """What a reader of the scores should know, one sentence each, for the log."""
        empty = int(self.is_empty_box.sum())
        said = [
            (not len(self), "no detections: every AP is 0"),
            (empty > 0, f"{empty} boxes have no area: the LVIS protocol and the error types leave them out"),
            (
                self._looks_like_xyxy(annotations),
                "the boxes look like x1, y1, x2, y2, not x, y, width, height",
            ),
        ]
        return [sentence for applies, sentence in said if applies]

    def _looks_like_xyxy(self, annotations: Annotations) -> bool:
        """All boxes are good xyxy boxes of their images, but most leave them when read as xywh."""
        xy, wh = self.boxes_xywh[:, :2], self.boxes_xywh[:, 2:]
        limits = annotations.sizes_wh[self.images]
        good_as_corners = (wh >= xy).all() and (wh <= limits + 1).all()
        return bool(len(self) and good_as_corners and (xy + wh > limits + 1).any(axis=1).mean() > 0.5)


def score_rank(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) 0-based rank of each detection in its group, by score descending, ties in file order.

    Args:
        groups: (N,) int64, e.g. the image or the label of each detection.
        scores: (N,) float64.
    """
    order = np.lexsort((-scores, groups))  # stable
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(len(scores)) - np.repeat(starts, sizes)
    return rank


def to_rle(segmentation: Any, height: int, width: int) -> RLE:
    """Polygons, counts or compressed counts of one object as {"size", "counts"} with compressed counts.

    Raises:
        ValueError: it is none of these, or made for an image of another size.
    """
    try:
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
        size = [int(side) for side in rle["size"]]
    except Exception as problem:  # pycocotools raises bare Exception
        raise ValueError(f"not polygons, counts or compressed counts: {problem!r}") from None
    if size != [height, width]:
        raise ValueError(f"size {size} is not the image's height and width {[height, width]}")
    return {"size": size, "counts": counts}
