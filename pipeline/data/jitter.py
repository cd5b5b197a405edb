"""Large-scale jittering: an image of random size, cut to a square (Ghiasi et al., CVPR 2021).

As BACL's first stage has it (Tianhao-Qi/BACL configs/bacl/bacl_representation_*: scales 0.8 to 1.25, squares
of 1280 pixels): a jittered view is at most as large as the square, and lies in its upper left corner.
"""

import numpy as np

from pipeline.data.views import Geometry, resized_wh


def draw_jittered(
    source_wh: tuple[int, int],
    side: int,
    scales: tuple[float, float],
    generator: np.random.Generator,
    *,
    flip: float,
) -> Geometry:
    """Draw a view: the long side becomes `side` times a uniform scale; what passes the square is cut off.

    Args:
        source_wh: width and height of the stored image.
        side: of the square, in pixels.
        scales: smallest and largest.
        generator: keyed by the draw.
        flip: probability of a horizontal flip.
    """
    long = max(1, int(side * generator.uniform(*scales)))
    flipped = bool(generator.random() < flip)
    resized = resized_wh(source_wh, long, (long, long))
    x1, x2, width = _cut(source_wh[0], resized[0], side, generator)
    y1, y2, height = _cut(source_wh[1], resized[1], side, generator)
    return Geometry((x1, y1, x2, y2), (width, height), flipped)


def _cut(stored: int, resized: int, side: int, generator: np.random.Generator) -> tuple[int, int, int]:
    """First and last stored pixel of one axis, and the size that they become."""
    kept = max(1, round(stored * min(1.0, side / resized)))
    first = int(generator.integers(stored - kept + 1))
    return first, first + kept, min(side, resized)
