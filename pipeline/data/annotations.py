"""COCO and LVIS v1 json as columns: checked once, here, so that no other module meets a broken box.

Shapes: I images, A annotations (sorted by image, file order within one), C categories (ascending id).
Boxes are xyxy float32 in pixels of the stored image.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import file_digest
from pipeline.data import annotation_records as fields
from pipeline.data.annotation_columns import parsed
from pipeline.data.segmentations import Segmentations
from pipeline.errors import InputError, MissingInput, first_ten

MASKS_LOOKED_AT = 2000


@dataclass(frozen=True)
class Annotations:
    """One split.  `labels` and `box_images` are 0-based positions, never ids."""

    path: Path
    digest: str
    image_ids: np.ndarray  # (I,) int64
    file_names: list[str]  # relative to the image folder
    sizes_wh: np.ndarray  # (I, 2) int64
    category_ids: np.ndarray  # (C,) int64, ascending
    category_names: list[str]
    frequency: list[str] | None  # r | c | f per category, if the file says
    annotation_ids: np.ndarray  # (A,) int64
    box_images: np.ndarray  # (A,) int64, ascending
    labels: np.ndarray  # (A,) int64
    boxes: np.ndarray  # (A, 4) float32 xyxy, as annotated (not clipped)
    areas: np.ndarray  # (A,) float64 square pixels as annotated, NaN where they are not
    is_crowd: np.ndarray  # (A,) bool
    segmentations: Segmentations  # (A,) polygons, RLE or None, as in the file
    neg_category_ids: list[list[int]] | None  # per image, LVIS only
    not_exhaustive_category_ids: list[list[int]] | None  # per image, LVIS only
    half_federated: list[int]  # ids of images without these fields in a file where others have them

    @property
    def is_lvis(self) -> bool:
        """Whether the file carries LVIS's federated fields.

        Raises:
            InputError: some images have them, others not: no evaluation can be right.
        """
        if self.half_federated:
            raise InputError(
                f"{self.path}: some images have {' and '.join(fields.FEDERATED)}, others not: "
                f"{first_ten(self.half_federated)}",
                "give every image both fields, or none",
            )
        return self.neg_category_ids is not None

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(I + 1,) where the annotations of each image begin."""
        return np.searchsorted(self.box_images, np.arange(len(self.image_ids) + 1))

    @functools.cached_property
    def clipped_boxes(self) -> np.ndarray:
        """(A, 4) boxes clipped to their image."""
        limits = np.tile(self.sizes_wh[self.box_images], 2).astype(np.float32)
        return np.clip(self.boxes, 0, limits)

    def polygons(self, row: int) -> list[list[float]]:
        """Polygons [x, y, ...] of the annotation at position `row`; empty where its mask is none or RLE."""
        return fields.polygons(self.segmentations[row])

    @functools.cached_property
    def without_polygons(self) -> list[int]:
        """Ids of the trainable annotations without polygons."""
        return [
            int(self.annotation_ids[r]) for r in np.flatnonzero(self.trainable) if not self.polygons(int(r))
        ]

    @functools.cached_property
    def trainable(self) -> np.ndarray:
        """(A,) bool: not a crowd, and with an area inside the image."""
        wh = self.clipped_boxes[:, 2:] - self.clipped_boxes[:, :2]
        return (wh > 0).all(axis=1) & ~self.is_crowd

    def mask_remarks(self) -> list[str]:
        """How many of `MASKS_LOOKED_AT` polygon masks do not fit their box, to two pixels."""
        rows = np.flatnonzero(self.trainable)
        rows = rows[np.linspace(0, len(rows) - 1, min(MASKS_LOOKED_AT, len(rows))).astype(int)]
        found = [
            (row, points)
            for row in rows.tolist()
            if (points := np.concatenate([[], *self.polygons(row)])).size
        ]
        off = [row for row, points in found if (abs(_extent(points) - self.boxes[row]) > 2).any()]
        if not off:
            return []
        ids = first_ten(self.annotation_ids[off].tolist())
        return [f"{self.path.name}: {len(off)} of {len(found)} masks looked at do not fit their bbox: {ids}"]

    def of_image(self, index: int) -> slice:
        """The annotations of the image at position `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    @property
    def _largest_areas(self) -> np.ndarray:
        """(A,) area of each box, and a border of a pixel around it: annotators' boxes are rounded."""
        wh = self.boxes[:, 2:] - self.boxes[:, :2] + 2  # (A, 4) -> (A, 2)
        return wh.prod(axis=1)

    def remarks(self) -> list[str]:
        """What was set right silently in the boxes, one sentence each, for the log."""
        partly = int((self.trainable & (self.clipped_boxes != self.boxes).any(axis=1)).sum())
        dropped = int((~self.trainable & ~self.is_crowd).sum())
        empty = int((np.diff(self.offsets) == 0).sum())
        unused = len(self.category_ids) - len(np.unique(self.labels[~self.is_crowd]))
        unlikely = int(np.less_equal(self.areas, 0).sum() + np.greater(self.areas, self._largest_areas).sum())
        counted = [
            (
                unlikely,
                "areas are 0, negative or larger than their box: used as they are, by size groups alone",
            ),
            (partly, "boxes reach over the image border: clipped"),
            (dropped, "boxes are empty or outside their image: not trained on, still counted by stats"),
            (int(self.is_crowd.sum()), "crowd regions: not trained on, not counted"),
            (empty, "images have no annotation"),
            (unused, "categories have no instance"),
        ]
        return [f"{self.path.name}: {count} {text}" for count, text in counted if count]


def _extent(points: np.ndarray) -> np.ndarray:
    """(4,) xyxy around x, y, x, y, ..."""
    corners = points.reshape(-1, 2)  # (2n) -> (n, 2)
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def read_annotations(path: Path) -> Annotations:
    """Read and check a COCO or LVIS v1 json.

    Raises:
        MissingInput: no such file.
        InputError: not JSON, a key is missing, ids repeat or point nowhere, or a box is not four finite
            numbers with non-negative size; the message lists the first ten ids.
    """
    if not path.exists():
        raise MissingInput(f"annotations {path} do not exist", "check data: in params.yaml, or --annotations")
    digest = file_digest(path)
    columns = parsed(path, digest)
    segmentations = Segmentations(path, columns.pop("file_order"), digest)
    return Annotations(path=path, digest=digest, segmentations=segmentations, **columns)
