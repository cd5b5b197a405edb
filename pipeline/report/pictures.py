"""Validation images of the hardest categories, tail first, with the true boxes and those of every run.

Of each category one image is shown, the one with most of its objects (ties: first in the file), so that the
choice does not depend on any run.  Of a run the N best-scored boxes of the image are shown, N = its objects,
at least three.  The boxes are data: the page draws them over the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.boxes import iou
from pipeline.data.images import read_image
from pipeline.data.settings import Split
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.predictions_file import read_predictions
from pipeline.report.embed import Embedded, embed
from pipeline.report.reader import Reader

MOST = 24  # pictures
WIDEST = 480  # px
FEWEST_BOXES = 3
MATCHED = 0.5  # IoU with an object of the same category


@dataclass(frozen=True)
class Box:
    """xyxy in the picture's own pixels (the stored image, not the scaled one); score None: an annotation.

    matched: overlaps an object of its category by at least `MATCHED`.
    """

    category: int
    xyxy: list[float]
    score: float | None
    matched: bool


@dataclass(frozen=True)
class Picture:
    """One image, chosen for `category`; `width`, `height` of the stored image."""

    category: int
    image_id: int
    width: int
    height: int
    picture: Embedded
    truth: list[Box]
    found: dict[str, list[Box]]


def hardest_first(
    ids: Sequence[int], frequency: Sequence[str], instances: Sequence[int], ap: Mapping[int, float | None]
) -> list[int]:
    """Category ids: rare, common, frequent; in each low AP first, unknown AP last; then few instances."""

    def rank(position: int) -> tuple[int, bool, float, int, int]:
        found = ap.get(ids[position])
        letter = frequency[position] if position < len(frequency) else ""
        group = "rcf".index(letter) if letter in ("r", "c", "f") else 3
        return group, found is None, found or 0.0, instances[position], ids[position]

    return [ids[position] for position in sorted(range(len(ids)), key=rank)]


def read_pictures(reader: Reader, split: Split, runs: Sequence[str], order: Sequence[int]) -> list[Picture]:
    """Pictures of the first `MOST` categories of `order` that the split shows.

    Args:
        reader: of the predictions; takes the gaps.
        split: what was evaluated on.
        runs: names.
        order: category ids, see `hardest_first`.
    """
    try:
        annotations = read_annotations(split.annotations)
    except Exception as problem:  # a report comes about whatever its data looks like
        reader.note("example pictures", str(problem))
        return []
    found = {run: _predictions(reader, run, annotations) for run in runs}
    pictures = []
    for category, image in _chosen(annotations, order):
        path = split.images / annotations.file_names[image]
        try:
            pixels = read_image(path)
        except Exception as problem:
            reader.note("example pictures", str(problem))
            break  # the folder is missing, or foreign: one gap says so
        truth = _truth(annotations, image)
        boxes = {run: _best(p, annotations, image) for run, p in found.items() if p is not None}
        height, width = pixels.shape[:2]
        number = int(annotations.image_ids[image])
        pictures.append(Picture(category, number, width, height, embed(pixels, WIDEST), truth, boxes))
    return pictures


def _predictions(reader: Reader, run: str, annotations: Annotations) -> Predictions | None:
    def parse(path: Path) -> Predictions:
        return read_predictions(path, annotations)

    return reader.value(
        f"evaluate/{run}/predictions.json", f"predictions of {run}", f"2drcl evaluate --run {run}", parse
    )


def _chosen(annotations: Annotations, order: Sequence[int]) -> list[tuple[int, int]]:
    """(category id, position of its image), each image once."""
    position = {int(c): i for i, c in enumerate(annotations.category_ids)}
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    for category in order:
        if len(chosen) == MOST or category not in position:
            continue
        rows = (annotations.labels == position[category]) & ~annotations.is_crowd
        counts = np.bincount(annotations.box_images[rows], minlength=1)
        for image in np.argsort(-counts, kind="stable").tolist():
            if counts[image] and image not in used:
                used.add(image)
                chosen.append((category, image))
                break
    return chosen


def _truth(annotations: Annotations, image: int) -> list[Box]:
    rows = annotations.of_image(image)
    return [
        Box(int(annotations.category_ids[label]), _rounded(box), None, True)
        for label, box, crowd in zip(
            annotations.labels[rows], annotations.boxes[rows], annotations.is_crowd[rows], strict=True
        )
        if not crowd
    ]


def _best(predictions: Predictions, annotations: Annotations, image: int) -> list[Box]:
    objects = annotations.of_image(image)
    wanted = max(FEWEST_BOXES, objects.stop - objects.start)
    rows = np.flatnonzero((predictions.images == image) & ~predictions.is_empty_box)
    rows = rows[np.argsort(-predictions.scores[rows], kind="stable")][:wanted]
    boxes, labels = predictions.boxes[rows], predictions.labels[rows]
    same = (labels[:, None] == annotations.labels[objects]) & ~annotations.is_crowd[objects]  # (N, M)
    overlap = np.where(same, iou(boxes, annotations.boxes[objects].astype(np.float64)), 0)
    matched = overlap.max(axis=1, initial=0) >= MATCHED
    return [
        Box(int(annotations.category_ids[label]), _rounded(box), round(float(score), 3), bool(hit))
        for label, box, score, hit in zip(labels, boxes, predictions.scores[rows], matched, strict=True)
    ]


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(side), 1) for side in box]
