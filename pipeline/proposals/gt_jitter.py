"""Source gt-jitter: boxes around the annotated ones, as good as wanted, without any detector.

For ablations (how good must proposals be?) and for starting before a detector is trained.

Shapes: G objects of one image, K copies of each.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.data.boxes import area, clip
from pipeline.data.draws import Draw, generator
from pipeline.proposals.settings import JitterSettings, ProposalsSettings
from pipeline.proposals.sources import Boxes, Source


def jittered(annotations: Annotations, settings: ProposalsSettings, seed: int) -> Source:
    """A source of `settings.jitter.per_object` boxes for each trainable object, of whatever category.

    The first copy of an object is its box itself, so that `per_object: 1` is plain ground truth, and so that
    however strong the jitter, every object has one good box.  The others have their centre shifted and their
    sides scaled, are cut to the image, and dropped if nothing is left.  The score is the IoU with the object;
    the best `settings.keep` of an image are kept.  An image's boxes depend on its id and `seed` alone.
    """

    def source(positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        for position in positions:
            image_id = int(annotations.image_ids[position])
            # drawn once for all epochs; ids may be negative, the numbers of a key may not
            draw = Draw(epoch=0, index=image_id % 2**64, image=int(position), canvas_wh=(0, 0))
            random = generator(seed, draw, "proposals")
            yield image_id, _of_image(annotations, int(position), settings, random)

    return source


def _of_image(
    annotations: Annotations, position: int, settings: ProposalsSettings, random: np.random.Generator
) -> Boxes:
    rows = annotations.of_image(position)
    objects = annotations.clipped_boxes[rows][annotations.trainable[rows]].astype(np.float64)  # (G, 4)
    width, height = annotations.sizes_wh[position].tolist()
    moved = clip(_copies(objects, settings.jitter, random), width, height)  # (G K, 4)
    scores = _aligned_iou(moved, np.repeat(objects, settings.jitter.per_object, axis=0))
    order = np.argsort(-scores, kind="stable")
    order = order[area(moved[order]) > 0][: settings.keep]
    return moved[order].astype(np.float32), scores[order].astype(np.float32)


def _copies(objects: np.ndarray, jitter: JitterSettings, random: np.random.Generator) -> np.ndarray:
    """(G, 4) -> (G K, 4), the copies of one object in a row, its own box first."""
    noise = random.uniform(-1, 1, (len(objects), jitter.per_object, 2, 2))  # object, copy, (shift, scale), xy
    side = (objects[:, 2:] - objects[:, :2])[:, None]  # (G, 2) -> (G, 1, 2)
    centre = (objects[:, :2] + objects[:, 2:])[:, None] / 2 + noise[:, :, 0] * jitter.shift * side
    half = side / 2 * np.exp(noise[:, :, 1] * jitter.log_scale)  # (G, K, 2)
    made = np.concatenate([centre - half, centre + half], axis=2)  # (G, K, 4)
    made[:, 0] = objects
    return made.reshape(-1, 4)  # (G, K, 4) -> (G K, 4)


def _aligned_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) IoU of each box with the other box of its row; `others` have an area."""
    corners = [np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])]
    overlap = area(np.concatenate(corners, axis=1))  # 2 x (N, 2) -> (N, 4) -> (N,)
    return overlap / (area(boxes) + area(others) - overlap)
