"""What proposals look like: how many, how sure, how large; and the best ones on a few images, for the eye.

Equal content gives equal bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.data.annotations import Annotations
from pipeline.data.images import read_image
from pipeline.drawing import BLUE, GREEN, ORANGE, save
from pipeline.proposals.store import ProposalStore

BINS, DPI = 40, 130
ROWS_AT_ONCE = 1_000_000
COLUMNS, SHOWN = 4, 8  # images; boxes drawn on each


def summary_figure(store: ProposalStore, path: Path) -> None:
    """Histograms of the boxes per image, of their scores, and of their sizes.

    Args:
        store: of the split.
        path: the PNG.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    per_image, score, size = figure.subplots(1, 3)
    counts = store.counts
    most = max(int(counts.max()), 1)
    _histogram(per_image, *np.histogram(counts, bins=min(BINS, most + 1), range=(-0.5, most + 0.5)), BLUE)
    per_image.set(xlabel="proposals of an image", ylabel="images")
    edges = np.linspace(0, 1, BINS + 1), np.geomspace(1, 4096, BINS + 1)
    scores, sizes = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for boxes, values in store.batches(ROWS_AT_ONCE):
        scores += np.histogram(values.clip(0, 1), bins=edges[0])[0]
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))  # (n, 4) -> (n,)
        sizes += np.histogram(sides.clip(1, 4096), bins=edges[1])[0]
    _histogram(score, scores, edges[0], ORANGE)
    score.set(xlabel="score", ylabel="proposals")
    _histogram(size, sizes, edges[1], GREEN)
    size.set(xlabel="square root of the area, pixels", ylabel="proposals", xscale="log")
    total = (
        f"{int(counts.sum()):,} proposals in {len(counts):,} images, {int((counts == 0).sum()):,} without any"
    )
    figure.suptitle(f"{store.metadata['2drcl.source']}: {total}", x=0.01, ha="left", fontsize=11)
    save(figure, path, DPI)


def examples_figure(
    store: ProposalStore, annotations: Annotations, images: Path, positions: Sequence[int], path: Path
) -> None:
    """The best proposals on some images, and the annotated objects.

    Args:
        store: of the split.
        annotations: of the split.
        images: their folder.
        positions: of the images to show, at least one.
        path: the PNG.

    Raises:
        MissingInput, InputError: an image is absent or damaged.
    """
    rows = -(-len(positions) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.9 * rows + 0.4), layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, position in zip(cells, positions, strict=False):
        width, height = annotations.sizes_wh[position].tolist()
        image_id = int(annotations.image_ids[position])
        axes.imshow(read_image(images / annotations.file_names[position], (width, height)))
        boxes, scores = store.of_image(image_id)
        _draw_boxes(axes, annotations.clipped_boxes[annotations.of_image(position)], "white", "--")
        _draw_boxes(axes, boxes[:SHOWN], ORANGE, "-")
        best = f"best {scores[0]:.2f}" if len(scores) else "none"
        axes.set_title(f"image {image_id}: {len(scores)} proposals, {best}", fontsize=8)
    title = f"The {SHOWN} best proposals (orange) and the annotated objects (white, dashed)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(figure, path, DPI)


def _histogram(axes: Axes, counts: np.ndarray, edges: np.ndarray, colour: str) -> None:
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=colour, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _draw_boxes(axes: Axes, boxes: np.ndarray, colour: str, style: str) -> None:
    """Boxes (n, 4) xyxy; pixel centres lie at whole numbers in a picture, pixel corners in a box."""
    patches = [Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes.tolist()]
    axes.add_collection(
        PatchCollection(patches, facecolor="none", edgecolor=colour, linestyle=style, linewidth=1.2)
    )
