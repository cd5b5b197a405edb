"""Geometric views of an image that carry its boxes exactly.

A view is crop, resize, flip, done in uint8 by one OpenCV call each, and described by one 3 x 3 homography
from pixels of the stored image to pixels of the view.  Boxes are mapped by the homography, never by the image
operations, so the same box in two views corresponds to half a pixel.  Flip: x' = W - x.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.data import boxes as box_math

cv2.setNumThreads(0)  # loader processes are the parallelism; OpenCV's own threads would fight them


@dataclass(frozen=True)
class Geometry:
    """How one view is cut out of an image: crop (xyxy, whole stored pixels), size of the result, flip."""

    crop: tuple[int, int, int, int]
    size_wh: tuple[int, int]
    flip: bool

    @property
    def homography(self) -> np.ndarray:
        """(3, 3) float64: stored pixels -> view pixels."""
        x1, y1, x2, y2 = self.crop
        width, height = self.size_wh
        sx, sy = width / (x2 - x1), height / (y2 - y1)
        matrix = np.array([[sx, 0, -x1 * sx], [0, sy, -y1 * sy], [0, 0, 1]], dtype=np.float64)
        if self.flip:
            matrix = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]], dtype=np.float64) @ matrix
        return matrix

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 stored image -> (h, w, 3) uint8 view."""
        x1, y1, x2, y2 = self.crop
        cut = image[y1:y2, x1:x2]
        if (x2 - x1, y2 - y1) != self.size_wh:
            cut = cv2.resize(cut, self.size_wh, interpolation=cv2.INTER_LINEAR)
        # OpenCV's flip takes 0.1 ms at 1067 x 800, a copy of numpy's mirrored view 3 ms
        return np.ascontiguousarray(cv2.flip(cut, 1) if self.flip else cut)

    def map_boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes in the view, clipped to it, and how much of each is visible.

        Args:
            boxes: (N, 4) xyxy in stored pixels.

        Returns:
            (N, 4) float32 xyxy in view pixels, and (N,) visible fractions.
        """
        moved = box_math.transform(boxes, self.homography)
        width, height = self.size_wh
        visible = box_math.visible_fraction(moved, width, height)
        return box_math.clip(moved, width, height).astype(np.float32), visible


def resized_wh(wh: tuple[int, int], short: int, limit_wh: tuple[int, int]) -> tuple[int, int]:
    """Size with the short side at `short`, or smaller if it would pass `limit_wh`; ratio kept."""
    scale = min(short / min(wh), limit_wh[0] / wh[0], limit_wh[1] / wh[1])
    return max(1, int(wh[0] * scale + 0.5)), max(1, int(wh[1] * scale + 0.5))


def limit_wh(wh: tuple[int, int], short_sides: tuple[int, ...], long_side: int) -> tuple[int, int]:
    """Largest view of an image: `long_side` along its long side (a crop may be of the other orientation)."""
    short = max(short_sides)
    return (short, long_side) if wh[1] > wh[0] else (long_side, short)


def draw_geometry(
    source_wh: tuple[int, int],
    short_sides: tuple[int, ...],
    long_side: int,
    generator: np.random.Generator,
    *,
    crop: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.5,
    keep: np.ndarray | None = None,
    tries: int = 10,
) -> Geometry:
    """Draw a view.

    Args:
        source_wh: width and height of the stored image.
        short_sides: one is chosen uniformly as the short side of the result.
        long_side: upper limit of the long side.
        generator: keyed by the draw.
        crop: smallest and largest share of each side that is kept; (1, 1) keeps the whole image.
        flip: probability of a horizontal flip.
        keep: (N, 4) boxes; a crop is drawn again, up to `tries` times, while no box keeps half of its area,
            then the whole image is taken (pretraining.md 9 P14: independent small crops lose the boxes).
    """
    short = int(short_sides[generator.integers(len(short_sides))])
    flipped = bool(generator.random() < flip)
    window = (0, 0, *source_wh)
    for _ in range(tries if crop[0] < 1 else 0):
        candidate = _draw_window(source_wh, crop, generator)
        if keep is None or not len(keep) or _keeps_one(candidate, keep):
            window = candidate
            break
    cut_wh = (window[2] - window[0], window[3] - window[1])
    size = resized_wh(cut_wh, short, limit_wh(source_wh, short_sides, long_side))
    return Geometry(window, size, flipped)


def _draw_window(
    source_wh: tuple[int, int], crop: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    sides = [max(1, round(side * generator.uniform(*crop))) for side in source_wh]
    x1, y1 = (int(generator.integers(full - side + 1)) for full, side in zip(source_wh, sides, strict=True))
    return x1, y1, x1 + sides[0], y1 + sides[1]


def _keeps_one(window: tuple[int, int, int, int], boxes: np.ndarray) -> bool:
    moved = boxes - np.array([window[0], window[1]] * 2)
    return bool((box_math.visible_fraction(moved, window[2] - window[0], window[3] - window[1]) >= 0.5).any())


def canvas_wh(
    sizes_wh: np.ndarray, short_sides: tuple[int, ...], long_side: int, divisor: int = 32
) -> tuple[int, int]:
    """The canvas that holds any view of these images, a multiple of `divisor` on each side.

    It depends on the sizes of the images alone, not on what is drawn, so that shapes repeat.

    Args:
        sizes_wh: (B, 2) sizes of the images of the *global* batch; a batch of one orientation gets a
            rectangle, a mixed one the square that holds both.
        short_sides, long_side: as in `draw_geometry`.
    """
    limits = [limit_wh((int(w), int(h)), short_sides, long_side) for w, h in sizes_wh]
    width, height = max(w for w, _ in limits), max(h for _, h in limits)
    return -(-width // divisor) * divisor, -(-height // divisor) * divisor
