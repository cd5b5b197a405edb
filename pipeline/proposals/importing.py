"""Source import: anybody's boxes, checked once and joined to the images by id or name.

`import_formats` says what the files look like.  Who made the boxes, and for which annotations, is not asked:
boxes made with COCO's json serve LVIS, whose images are the same.

Shapes: N boxes of the file, M of them kept, I images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, first_ten
from pipeline.proposals.image_names import positions_of
from pipeline.proposals.import_formats import Rows, read_rows
from pipeline.proposals.sources import Boxes

NORMALISED = (
    1.01  # pixels: no file has all its boxes in the corner pixel; normalised ones overshoot by rounding
)


@dataclass(frozen=True, eq=False)
class Imported:
    """The boxes of one file as a `Source`."""

    path: Path
    image_ids: np.ndarray  # (I,) int64
    offsets: np.ndarray  # (I + 1,) int64 where the boxes of each image begin
    boxes: np.ndarray  # (M, 4) float32
    scores: np.ndarray  # (M,) float32, descending within an image
    num_clipped: int
    num_dropped: int

    def __call__(self, positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        """The boxes of the images at `positions`, all that the file has, best first."""
        for position in positions:
            rows = slice(self.offsets[position], self.offsets[position + 1])
            yield int(self.image_ids[position]), (self.boxes[rows], self.scores[rows])

    def remarks(self) -> list[str]:
        """What the user should know of the file, one sentence each, for the log."""
        counted = [
            (int((np.diff(self.offsets) == 0).sum()), "images have no box"),
            (self.num_clipped, "boxes reach over the image border: clipped"),
            (self.num_dropped, "boxes are empty or outside their image: dropped"),
        ]
        return [f"{self.path.name}: {count} {text}" for count, text in counted if count]


def imported(path: Path, annotations: Annotations) -> Imported:
    """Read and check a file of boxes, or a folder of Parquet files.

    Images are named as `positions_of` knows them.  Boxes are clipped to their image, and dropped if nothing
    is left; none is dropped for its score or its rank.

    Raises:
        MissingInput: there is nothing at `path`.
        InputError: a pickle, neither JSON nor Parquet, damaged, without a box; unknown or ambiguous images;
            boxes of wrong arity, NaN, infinite, of negative size or normalised; lists the first ten images.
    """
    parts = [_checked(rows, annotations, path) for rows in read_rows(path)]
    if not any(part.num_rows for part in parts):
        raise InputError(f"{path} holds no box")
    if all(part.within_a_pixel for part in parts):
        raise InputError(
            f"{path}: no coordinate is larger than 1: the boxes look normalised to [0, 1]",
            "multiply x by the width and y by the height of the stored image",
        )
    images = np.concatenate([part.images for part in parts])
    boxes = np.concatenate([part.boxes for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((-scores, images))  # stable: equal scores keep the file's order
    return Imported(
        path=path,
        image_ids=annotations.image_ids,
        offsets=np.searchsorted(images[order], np.arange(len(annotations.image_ids) + 1)),
        boxes=boxes[order],
        scores=scores[order],
        num_clipped=sum(part.num_clipped for part in parts),
        num_dropped=sum(part.num_rows - len(part.images) for part in parts),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of the file, checked, clipped and without empty boxes; small while a file is read."""

    num_rows: int  # before boxes were dropped
    within_a_pixel: bool  # all of them
    num_clipped: int
    images: np.ndarray  # (M,) int64 positions
    boxes: np.ndarray  # (M, 4) float32 xyxy
    scores: np.ndarray  # (M,) float32


def _checked(rows: Rows, annotations: Annotations, path: Path) -> _Part:
    images = positions_of(rows.keys, annotations, path)
    _refuse(rows, images, annotations, path)
    limits = np.tile(annotations.sizes_wh[images], 2)  # (N, 2) -> (N, 4)
    inside = np.clip(rows.boxes, 0, limits)
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    return _Part(
        num_rows=len(kept),
        within_a_pixel=bool(((rows.boxes >= 0) & (rows.boxes <= NORMALISED)).all()),
        num_clipped=int(((inside != rows.boxes).any(axis=1) & kept).sum()),
        images=images[kept],
        boxes=inside[kept].astype(np.float32),
        scores=rows.scores[kept].astype(np.float32),
    )


def _refuse(rows: Rows, images: np.ndarray, annotations: Annotations, path: Path) -> None:
    """InputError for boxes or scores that mean nothing."""
    finite = np.isfinite(rows.boxes).all(axis=1) & np.isfinite(rows.scores)
    negative: np.ndarray = np.less(rows.boxes[:, 2:], rows.boxes[:, :2]).any(axis=1)
    swapped = "is it x1, y1, x2, y2 where x, y, width, height is expected, or the other way round?"
    for bad, what, hint in (
        (~finite, "a box or score is NaN or infinite", "remove or correct these rows"),
        (negative, "a box has a negative size", swapped),
    ):
        if bad.any():
            ids = annotations.image_ids[np.unique(images[bad])].tolist()
            raise InputError(f"{path}: {what} in images {first_ten(ids)}", hint)
