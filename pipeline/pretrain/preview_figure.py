"""The picture of a preview: both views with their paired boxes, SR's masks, and the reconstruction.

One row per image.  A pair of boxes has one number and one colour in both views; the rectangle that SR hides
of a box is hatched in its colour.  Coordinates are those of the arrays: pixel (0, 0) covers [0, 1] x [0, 1].
"""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from pipeline.artifacts import replacing
from pipeline.data.photometric import pixels_of
from pipeline.pretrain.preview import Preview

CELL_INCHES, DPI = 4.0, 160
COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]


def preview_figure(shown: Preview, path: Path, title: str) -> None:
    """Draw a preview as PNG.

    Args:
        shown: the draws.
        path: where to; appears whole or not at all.
        title: what the weights are.
    """
    batch, painting = shown.batch, shown.painting
    count, columns = len(batch.image_ids), 2 if painting is None else 4
    height = CELL_INCHES * batch.canvas_wh[1] / batch.canvas_wh[0] + 0.3
    figure = Figure(figsize=(columns * CELL_INCHES, count * height + 0.6), layout="constrained", dpi=DPI)
    for row, axes in zip(range(count), figure.subplots(count, columns, squeeze=False), strict=True):
        _show(axes[0], batch.query[row], batch.query_wh[row], f"image {int(batch.image_ids[row])}, query x")
        _show(axes[1], batch.key[row], batch.key_wh[row], "key x+")
        boxes = (batch.query_boxes[row], batch.key_boxes[row], batch.masks[row])
        for number in np.flatnonzero(batch.valid[row].cpu()):
            query, key, mask = (_plain(rows[number]) for rows in boxes)
            _draw_box(axes[0], query, int(number))
            _draw_box(axes[1], key, int(number))
            _hatch(axes[0], mask, int(number))
        if painting is not None:
            size = painting.sizes_wh[row]
            _show(axes[2], painting.masked[row], size, "M(g(f(x))): what SR encodes again")
            _show(axes[3], painting.reconstruction[row], size, "g(f(x)): the reconstruction")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _show(axes: Axes, view: Tensor, size_wh: Tensor, title: str) -> None:
    pixels = pixels_of(view, size_wh)
    axes.imshow(pixels, extent=(0, pixels.shape[1], pixels.shape[0], 0), interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _draw_box(axes: Axes, box: tuple[float, ...], number: int) -> None:
    x1, y1, x2, y2 = box
    colour = COLOURS[number % len(COLOURS)]
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.2))
    label = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
    axes.text(x1, y1, str(number + 1), fontsize=6, color="white", va="top", bbox=label)


def _hatch(axes: Axes, mask: tuple[float, ...], number: int) -> None:
    x1, y1, x2, y2 = mask
    style = {"edgecolor": COLOURS[number % len(COLOURS)], "hatch": "////", "linewidth": 0.0}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def _plain(row: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in row)
