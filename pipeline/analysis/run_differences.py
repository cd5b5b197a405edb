"""Where two runs differ most (Fig. A.1): objects that one finds and the other does not, image by image.

Each run shows the boxes above its own least score.  By default that is the score of its G-th best verifiable
box in the split that has G objects: both runs then show as many boxes as there are objects, and a run that is
merely less sure of itself does not look blind.  An object is found by a shown box of its category with
IoU >= .5, one to one, the best score first.

Shapes: D detections, G objects without crowds, I images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.analysis.error_types import is_verified
from pipeline.analysis.tables import write_table
from pipeline.analysis.tide_matching import NOBODY, match
from pipeline.data.annotations import Annotations
from pipeline.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Shown:
    """One run's boxes above its least score.

    boxes: D' detections.  object_of: (D',) the object each finds, or NOBODY.  is_wrong: (D',) it finds none,
    and that can be said.  is_found: (A,) bool per annotation.  least_score: of these boxes.
    """

    boxes: Predictions
    object_of: np.ndarray
    is_wrong: np.ndarray
    is_found: np.ndarray
    least_score: float


@dataclass(frozen=True)
class Difference:
    """`gained`, `lost` (A,) bool: objects that only the second run finds, and only the first; `images`:
    positions, the largest number of such objects first, gains before losses, then by id."""

    before: Shown
    after: Shown
    gained: np.ndarray
    lost: np.ndarray
    images: np.ndarray


def shown(
    annotations: Annotations, predictions: Predictions, least_score: float | Literal["auto"] = "auto"
) -> Shown:
    """The boxes of a run that count, and what they find.

    Args:
        annotations: the split.
        predictions: of that split.
        least_score: `auto`: see above.
    """
    verified = ~predictions.is_empty_box & is_verified(annotations, predictions)
    num_objects = int((~annotations.is_crowd).sum())
    best = np.sort(predictions.scores[verified])[::-1][:num_objects]
    limit = (float(best[-1]) if len(best) else 0.0) if least_score == "auto" else float(least_score)
    boxes = predictions.take(np.flatnonzero(verified & (predictions.scores >= limit)))
    found = match(annotations, boxes)
    is_found = np.zeros(len(annotations.labels), dtype=bool)
    is_found[found.object_of[found.object_of != NOBODY]] = True
    is_wrong = (found.object_of == NOBODY) & ~found.is_ignored
    return Shown(boxes, found.object_of, is_wrong, is_found, limit)


def difference(annotations: Annotations, before: Shown, after: Shown) -> Difference:
    """Compare two runs on one split."""
    gained, lost = after.is_found & ~before.is_found, before.is_found & ~after.is_found
    num_images = len(annotations.image_ids)
    wins, losses = (
        np.bincount(annotations.box_images[which], minlength=num_images) for which in (gained, lost)
    )
    order = np.lexsort((annotations.image_ids, -wins, -(wins + losses)))
    return Difference(before, after, gained, lost, order[(wins + losses)[order] > 0])


def write_differences(
    path: Path, annotations: Annotations, found: Difference, letters: list[str] | None
) -> None:
    """A row per object of every image in which the runs differ, those with most differences first."""
    rows = []
    for image in found.images.tolist():
        inside = annotations.of_image(image)
        for row in range(inside.start, inside.stop):
            if annotations.is_crowd[row]:
                continue
            label = int(annotations.labels[row])
            before, after = bool(found.before.is_found[row]), bool(found.after.is_found[row])
            change = {(False, True): "gained", (True, False): "lost"}.get((before, after), "")
            ids = (int(annotations.image_ids[image]), int(annotations.annotation_ids[row]))
            category = (int(annotations.category_ids[label]), annotations.category_names[label])
            rows.append((*ids, *category, letters[label] if letters else "", before, after, change))
    header = ("image_id", "annotation_id", "category_id", "name", "frequency", "found_before", "found_after")
    write_table(path, (*header, "change"), rows)
