"""Simple copy-paste: objects of one image, in their shape, on another (Ghiasi et al., CVPR 2021).

Both images are jittered views in the upper left corner of a black square of the same size.  Of a random image
a random number of objects is copied to the same place of the other square; what they cover there is hidden.
As BACL's first stage has it (MMDetection's CopyPaste): an object that is partly hidden goes on with the box
of what is left, unless little is left: then it is no object any more.

Shapes: n objects of the view below, m of the one above, a square of S x S pixels.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.data.copy_paste_settings import OF_SIDE
from pipeline.data.object_masks import ObjectMask, mask_in_view
from pipeline.data.targets import MIN_SIDE, polygons_in_view, rows_in_view
from pipeline.data.views import Geometry

MOVED, LEFT = 10, 300  # pixels that a side of a box may move, and that must be left of a mask; one suffices


@dataclass(frozen=True)
class Layer:
    """A view with its objects.

    Args:
        image: (h, w, 3) uint8.
        boxes: (n, 4) float32 xyxy in view pixels.
        labels: (n,) int64.
        masks: n bitmaps.
        polygons: n lists of flat [x, y, ...] arrays in view pixels.
        hidden: n lists of polygons of what lies before each object.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: list[ObjectMask]
    polygons: list[list[np.ndarray]]
    hidden: list[list[np.ndarray]]

    def take(self, chosen: np.ndarray) -> "Layer":
        """The objects at the positions `chosen`, in that order."""
        at = chosen.tolist()
        return Layer(
            self.image,
            self.boxes[chosen],
            self.labels[chosen],
            [self.masks[i] for i in at],
            [self.polygons[i] for i in at],
            [self.hidden[i] for i in at],
        )


def layer_of(annotations: Annotations, image: int, geometry: Geometry, pixels: np.ndarray) -> Layer:
    """A view of the image at position `image`: boxes of objects that the view cuts are those of what is left.

    Args:
        annotations: the split.
        image: 0-based position.
        geometry: the view.
        pixels: (H, W, 3) uint8 stored image.
    """
    rows, boxes, visible = rows_in_view(annotations, image, geometry)
    polygons = polygons_in_view(annotations, rows, geometry)
    masks = [
        mask_in_view(annotations, row, box, shape, geometry)
        for row, box, shape in zip(rows.tolist(), boxes, polygons, strict=True)
    ]
    whole = visible > 1 - 1e-6
    boxes = boxes.copy()
    for i in np.flatnonzero(~whole).tolist():
        if masks[i].area:  # else thinner than a pixel, or beside its box: what is in view of the box stays
            boxes[i] = masks[i].bounds()
    kept = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1))
    hidden: list[list[np.ndarray]] = [[] for _ in polygons]
    layer = Layer(geometry.apply(pixels), boxes, annotations.labels[rows], masks, polygons, hidden)
    return layer.take(kept)


def choose(layer: Layer, most: int, generator: np.random.Generator) -> Layer:
    """The view with up to `most` of its objects, any number of them as likely; none without a pixel."""
    shown = np.flatnonzero([mask.area > 0 for mask in layer.masks])
    return layer.take(generator.permutation(shown)[: generator.integers(min(len(shown), most) + 1)])


def paste(below: Layer, above: Layer, side: int) -> Layer:
    """All objects of `above` on `below`, in a square.

    Args:
        below: of any size up to the square's.
        above: likewise; of its image only the pixels of its objects are taken.
        side: of the square.
    """
    hidden, image = np.zeros((side, side), dtype=bool), _on_square(below.image, side)
    for mask in above.masks:  # object by object: a whole square takes ten times as long
        hidden[mask.window] |= mask.bitmap
        seen = above.image[mask.window]
        np.copyto(image[mask.window], seen, where=mask.bitmap[:, :, None])  # (h, w) -> (h, w, 1)
    left = _what_is_left(below, hidden, [polygon for shape in above.polygons for polygon in shape], side)
    return Layer(
        image,
        np.concatenate([left.boxes, above.boxes]),
        np.concatenate([left.labels, above.labels]),
        left.masks + above.masks,
        left.polygons + above.polygons,
        left.hidden + above.hidden,
    )


def _on_square(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) -> (S, S, 3)."""
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[: image.shape[0], : image.shape[1]] = image
    return square


def _what_is_left(below: Layer, hidden: np.ndarray, polygons: list[np.ndarray], side: int) -> Layer:
    """Objects of which enough is to be seen beside (S, S) `hidden`, whose outlines are `polygons`."""
    scale = side / OF_SIDE
    boxes, masks, before, kept = below.boxes.copy(), list(below.masks), list(below.hidden), []
    for i, mask in enumerate(below.masks):
        left = mask.without(hidden)
        if left.area < mask.area:
            masks[i], boxes[i], before[i] = left, left.bounds(), [*before[i], *polygons]
            moved = np.abs(boxes[i] - below.boxes[i]).max()
            if not left.area or (moved > MOVED * scale and left.area <= LEFT * scale**2):
                continue
        kept.append(i)
    return replace(below, boxes=boxes, masks=masks, hidden=before).take(np.array(kept, dtype=np.int64))
