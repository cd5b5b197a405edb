"""Which pixels of a view an annotated object covers, as a bitmap no larger than the object.

Polygons and run lengths are both read; an object without a mask, or with one that is none, is its box.
Polygons are filled by COCO's rule, as mask losses fill them.  A run-length mask is stored down the columns:
runs of 0 and 1 in turn, or their compressed text (pipeline.evaluation.mask_counts says how).
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations
from pipeline.data.views import Geometry

LONGEST_RUN_BITS = 35
FAR = 20_000  # pixels: an edge takes memory by its length, and some files have corners millions away


@dataclass(frozen=True)
class ObjectMask:
    """Pixels of a view that one object covers.

    Args:
        corner: x and y of the bitmap's first pixel.
        bitmap: (h, w) bool.
    """

    corner: tuple[int, int]
    bitmap: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Of an array (H, W, ...) of the whole view."""
        (x, y), (height, width) = self.corner, self.bitmap.shape
        return slice(y, y + height), slice(x, x + width)

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.bitmap.sum())

    def bounds(self) -> np.ndarray:
        """(4,) float32 xyxy around what is covered; zeros if nothing is."""
        rows, columns = (np.flatnonzero(self.bitmap.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return np.zeros(4, dtype=np.float32)
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)
        return box + np.tile(np.array(self.corner, dtype=np.float32), 2)

    def without(self, hidden: np.ndarray) -> "ObjectMask":
        """What is left of it where (H, W) `hidden` is not set."""
        return replace(self, bitmap=self.bitmap & ~hidden[self.window])


def mask_in_view(
    annotations: Annotations, row: int, box: np.ndarray, polygons: list[np.ndarray], geometry: Geometry
) -> ObjectMask:
    """The mask of one annotation.

    Args:
        annotations: the split.
        row: of the annotation.
        box: (4,) xyxy in view pixels, inside the view: the mask is looked for there.
        polygons: of the annotation, flat [x, y, ...] in view pixels; may be empty.
        geometry: of the view.
    """
    # a pixel more on each side: annotators' boxes are rounded
    limits = np.tile(np.array(geometry.size_wh), 2)
    x1, y1, x2, y2 = np.clip([*np.floor(box[:2]) - 1, *np.ceil(box[2:]) + 1], 0, limits).astype(int).tolist()
    if polygons:
        bitmap = _filled(polygons, (x1, y1), (x2 - x1, y2 - y1))
    else:
        stored = annotations.sizes_wh[annotations.box_images[row]]
        whole = from_runs(annotations.segmentations[row], (int(stored[0]), int(stored[1])))
        if whole is None:
            x1, y1, x2, y2 = np.floor(box + 0.5).astype(int).tolist()
            return ObjectMask((x1, y1), np.ones((y2 - y1, x2 - x1), dtype=bool))
        bitmap = _seen(whole, geometry)[y1:y2, x1:x2]
    return ObjectMask((x1, y1), bitmap)


def _filled(polygons: list[np.ndarray], corner: tuple[int, int], size_wh: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: what lies in any of the polygons, in a window of the view."""
    shifted = [(xy.reshape(-1, 2) - corner).clip(-FAR, FAR).reshape(-1).tolist() for xy in polygons]
    runs = coco_mask.frPyObjects(shifted, size_wh[1], size_wh[0])
    return np.asarray(coco_mask.decode(coco_mask.merge(runs)), dtype=bool)


def _seen(whole: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(H, W) bool of the stored image -> (h, w) bool of the view."""
    x1, y1, x2, y2 = geometry.crop
    cut = whole[y1:y2, x1:x2].astype(np.uint8)
    seen = cv2.resize(cut, geometry.size_wh, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    return seen[:, ::-1] if geometry.flip else seen


def from_runs(segmentation: Any, size_wh: tuple[int, int]) -> np.ndarray | None:
    """(H, W) bool of a run-length mask; None where it is none, or does not fill an image of that size."""
    width, height = size_wh
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return None
    counts = segmentation.get("counts")
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        return None
    if sum(runs) != width * height:
        return None
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T  # (H W,) -> (W, H) -> (H, W)


def _uncompressed(text: str) -> list[int] | None:
    """Runs of COCO's compressed counts; from the fourth on the difference to the one two places before."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits <= 63 or shift > LONGEST_RUN_BITS:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        number -= 1 << shift if bits & 16 else 0
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return None if shift else runs
