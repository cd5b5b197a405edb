"""Ground truth of one view: the annotations of an image moved by the view's geometry."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.data.views import Geometry
from pipeline.errors import InputError, first_ten

MIN_SIDE = 1.0  # pixels: what is left of a box must be at least this wide and high (MMDetection's filter)


@dataclass(frozen=True)
class Target:
    """Ground truth of one view.

    Args:
        boxes: (n, 4) float32 xyxy in pixels of the view, inside it, not empty.
        labels: (n,) int64, 0-based.
        size_wh: size of the view on its canvas.
        key: decides RoI and anchor sampling (pipeline.detectors.sampling).
        polygons: for mask losses, per box a list of flat [x, y, ...] arrays in view pixels; else None.
        hidden: per box the polygons of what lies before it, if anything was pasted there; else None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    size_wh: tuple[int, int]
    key: int
    polygons: list[list[np.ndarray]] | None = None
    hidden: list[list[np.ndarray]] | None = None


def target_of(
    annotations: Annotations, image: int, geometry: Geometry, key: int, with_polygons: bool
) -> Target:
    """The trainable boxes of the image at position `image`, in view pixels, clipped to the view.

    Args:
        annotations: the split.
        image: 0-based position.
        geometry: the view.
        key: the draw's key for RoI sampling.
        with_polygons: carry the polygons too.

    Raises:
        InputError: polygons are asked for and some annotation of the split has none; lists the first ten ids.
    """
    if with_polygons:
        refuse_without_polygons(annotations)
    rows, boxes, _ = rows_in_view(annotations, image, geometry)
    polygons = polygons_in_view(annotations, rows, geometry) if with_polygons else None
    return Target(boxes, annotations.labels[rows], geometry.size_wh, key, polygons)


def refuse_without_polygons(annotations: Annotations) -> None:
    """Refuse a split where any annotation has no polygons: better now than hours later.

    Raises:
        InputError: listing the first ten ids.
    """
    lacking = annotations.without_polygons
    if lacking:
        raise InputError(
            f"{annotations.path}: annotations without polygons: {first_ten(lacking)}",
            "mask losses need polygons: use detector.type faster-rcnn, or fix the annotations",
        )


def rows_in_view(
    annotations: Annotations, image: int, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trainable annotations that a view shows, by at least `MIN_SIDE` each way.

    Returns:
        (n,) their rows, (n, 4) float32 boxes in view pixels, inside the view, and (n,) visible fractions.
    """
    span = annotations.of_image(image)
    rows = np.arange(span.start, span.stop)[annotations.trainable[span]]
    boxes, visible = geometry.map_boxes(annotations.clipped_boxes[rows])
    kept = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    return rows[kept], boxes[kept], visible[kept]


def polygons_in_view(
    annotations: Annotations, rows: Sequence[int] | np.ndarray, geometry: Geometry
) -> list[list[np.ndarray]]:
    """Polygons of each annotation in view pixels; parts outside the view stay: mask targets are cut per RoI.

    The corners of all are moved at once: numpy's calls for each polygon took longer than their work.
    """
    masks = [annotations.polygons(row) for row in rows]
    polygons = list(chain.from_iterable(masks))
    corners = np.array(list(chain.from_iterable(polygons)), dtype=np.float64).reshape(-1, 2)
    matrix = geometry.homography
    moved = (corners @ matrix[:2, :2].T + matrix[:2, 2]).reshape(-1)  # (n, 2) -> (2 n,)
    lengths = [len(polygon) for polygon in polygons]
    cut = (moved[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True))
    return [list(islice(cut, len(mask))) for mask in masks]
