"""Where M of eq. 6 hides what: one mask for each of the selected proposals (Sec. 3.3.3, "e.g. 25 %").

Drawn on the host with the draw's own generator; applied in reconstruction.
"""

import numpy as np


def draw_mask(
    box: np.ndarray, fraction: float, generator: np.random.Generator, shape: str = "rectangle"
) -> np.ndarray:
    """One rectangle of `fraction` of the box's area at a random place inside it (Sec. 3.3.3, "e.g. 25 %").

    Paper: shape and place not given; here: a rectangle of nearly the box's proportions, in whole pixels, so
    that its area is within a hundredth of the box's for any box of 16 px or more.

    Args:
        box: (4,) xyxy in pixels of the view.
        fraction: share of the box's area, in [0, 1].
        generator: keyed by the draw.
        shape: `rectangle`; `square`, where it fits into the box; or `proposal`: the whole box, with
            probability `fraction`.

    Returns:
        (4,) int64 xyxy, empty if the box holds no whole pixel.
    """
    (x1, y1), (x2, y2) = np.ceil(box[:2]).astype(np.int64), np.floor(box[2:]).astype(np.int64)
    width, height = int(x2 - x1), int(y2 - y1)
    wanted = fraction * float((box[2] - box[0]) * (box[3] - box[1]))
    if shape == "proposal":
        mask_wh = (width, height) if generator.random() < fraction else (0, 0)
    elif shape == "square":
        mask_wh = _squarest_rectangle(max(width, 0), max(height, 0), wanted)
    else:
        mask_wh = _best_rectangle(width, height, wanted, fraction)
    left = int(generator.integers(0, max(width - mask_wh[0], 0) + 1))
    top = int(generator.integers(0, max(height - mask_wh[1], 0) + 1))
    return np.array([x1 + left, y1 + top, x1 + left + mask_wh[0], y1 + top + mask_wh[1]], dtype=np.int64)


def _best_rectangle(width: int, height: int, wanted: float, fraction: float) -> tuple[int, int]:
    """Whole sides close to sqrt(fraction) of the box's whose product is nearest to the wanted area."""
    if width < 1 or height < 1:
        return 0, 0
    ideal = width * fraction**0.5
    candidates = [w for w in range(int(ideal) - 2, int(ideal) + 4) if 1 <= w <= width]
    sized = [(w, min(height, max(0, round(wanted / w)))) for w in candidates]
    return min(sized, key=lambda wh: (abs(wh[0] * wh[1] - wanted), abs(wh[0] - ideal)))


def _squarest_rectangle(width: int, height: int, wanted: float) -> tuple[int, int]:
    """Whole sides of the wanted area, as equal as the box allows."""
    side = wanted**0.5
    w = min(width, max(round(side), round(wanted / max(height, 1))))
    return w, min(height, round(wanted / max(w, 1)))
