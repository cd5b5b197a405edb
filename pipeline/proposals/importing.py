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
from pipeline.data.boxes import are_corners, corner_votes
from pipeline.errors import InputError, first_ten
from pipeline.proposals.image_names import positions_of
from pipeline.proposals.import_formats import read_rows
from pipeline.proposals.import_rows import Rows
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
            boxes of wrong arity, NaN, infinite, of negative size, normalised, or corners where width and
            height belong; scores beyond float32; a folder of which parts are missing; lists the first ten
            images.
    """
    parts = [_checked(rows, annotations, path) for rows in read_rows(path)]
    _refuse_all(parts, annotations, path)
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
    num_sized: int  # of those written as x, y, width, height
    corner_votes: np.ndarray  # (2,) int64 of those
    leaving: np.ndarray  # (<= 10,) int64 positions of images that such boxes leave
    num_clipped: int
    images: np.ndarray  # (M,) int64 positions
    boxes: np.ndarray  # (M, 4) float32 xyxy
    scores: np.ndarray  # (M,) float32


def _checked(rows: Rows, annotations: Annotations, path: Path) -> _Part:
    images, boxes = positions_of(rows.keys, annotations, path), rows.boxes
    with np.errstate(over="ignore"):  # what overflows is refused next
        scores = rows.scores.astype(np.float32)
    for bad, what, hint in _faults(rows, boxes, scores):
        if bad.any():
            ids = annotations.image_ids[np.unique(images[bad])].tolist()
            raise InputError(f"{path}: {what} in images {first_ten(ids)}", hint)
    sizes_wh = annotations.sizes_wh[images]
    votes = corner_votes(rows.numbers, sizes_wh)[: len(images) if rows.has_sizes else 0]  # (N, 2) or (0, 2)
    inside = np.clip(boxes, 0, np.tile(sizes_wh, 2))  # (N, 2) -> (N, 4)
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    return _Part(
        num_rows=len(kept),
        within_a_pixel=bool(((boxes >= 0) & (boxes <= NORMALISED)).all()),
        num_sized=len(votes),
        corner_votes=votes.sum(axis=0),
        leaving=np.unique(images[: len(votes)][votes[:, 0]])[:10],
        num_clipped=int(((inside != boxes).any(axis=1) & kept).sum()),
        images=images[kept],
        boxes=inside[kept].astype(np.float32),
        scores=scores[kept],
    )


def _faults(rows: Rows, boxes: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, str, str]]:
    """Rows (N,) bool that mean nothing, what is wrong with them, and what to do."""
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(rows.scores)
    yield ~finite, "a box or score is NaN or infinite", "remove or correct these rows"
    beyond = "a score is too large for 32-bit floats (3.4e38)"
    yield ~np.isfinite(scores), beyond, "scale the scores: only their order counts"
    swapped = "is it x1, y1, x2, y2 where x, y, width, height is expected, or the other way round?"
    yield np.less(boxes[:, 2:], boxes[:, :2]).any(axis=1), "a box has a negative size", swapped


def _refuse_all(parts: Sequence[_Part], annotations: Annotations, path: Path) -> None:
    """InputError for what only the boxes of the whole file tell."""
    if not any(part.num_rows for part in parts):
        raise InputError(f"{path} holds no box")
    if all(part.within_a_pixel for part in parts):
        raise InputError(
            f"{path}: no coordinate is larger than 1: the boxes look normalised to [0, 1]",
            "multiply x by the width and y by the height of the stored image",
        )
    num_sized, votes = sum(part.num_sized for part in parts), np.sum([p.corner_votes for p in parts], axis=0)
    if are_corners(votes, num_sized):
        ids = annotations.image_ids[np.unique(np.concatenate([part.leaving for part in parts]))[:10]]
        raise InputError(
            f"{path}: the boxes look like x1, y1, x2, y2: read as x, y, width, height, "
            f"{votes[0] / num_sized:.0%} of them leave their image, such as in images "
            f"{first_ten(ids.tolist())}",
            "write x, y, width, height; corners have their own form: a mapping from image to boxes in JSON, "
            "columns x1, y1, x2, y2 in Parquet",
        )
