"""Detections before and after (Fig. A.1): missed and found objects of two runs, side by side.

Every mark says what it is without its colour: a found object has a solid line and its name, a missed one a
dashed line and "missed", a box that finds nothing a dotted line, "?" and its score.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pipeline.analysis.run_differences import Difference, Shown
from pipeline.data.annotations import Annotations
from pipeline.data.images import read_image
from pipeline.drawing import AMBER, GREEN, PINK, save

FOUND, MISSED, WRONG = (GREEN, "-", 2.0), (PINK, "--", 2.0), (AMBER, ":", 1.6)
MOST_NAMED = 12  # objects with a name, on one picture
MOST_WRONG = 4  # boxes that find nothing, the best: more would hide the picture


def difference_figure(
    annotations: Annotations,
    images: Path,
    found: Difference,
    names: tuple[str, str],
    count: int,
    path: Path,
) -> None:
    """The images in which two runs differ most, a row each.

    Args:
        annotations, images: the split.
        found: of `difference`; at least one image differs.
        names: of the runs.
        count: most images.
        path: a PNG; an SVG is written beside it.
    """
    chosen = found.images[:count].tolist()
    figure = Figure(figsize=(9.6, 3.5 * len(chosen) + 1.0), layout="constrained")
    for row, image in zip(figure.subplots(len(chosen), 2, squeeze=False), chosen, strict=True):
        width, height = annotations.sizes_wh[image].tolist()
        pixels = read_image(images / annotations.file_names[image], (width, height))
        inside = annotations.of_image(image)
        for ax, name, side in zip(row, names, (found.before, found.after), strict=True):
            ax.imshow(pixels)
            ax.set_axis_off()
            _objects(ax, annotations, side, inside)
            _wrong(ax, annotations, side, image)
            hits = int(side.is_found[inside].sum())
            of = int((~annotations.is_crowd[inside]).sum())
            title = f"{name}, image {annotations.image_ids[image]}: {hits} of {of} found"
            ax.set_title(title, fontsize=9, parse_math=False)
    _explain(figure, found, names)
    save(figure, path, dpi=100, svg=True)


def _objects(ax: Axes, annotations: Annotations, side: Shown, inside: slice) -> None:
    named = 0
    for row in range(inside.start, inside.stop):
        if annotations.is_crowd[row]:
            continue
        is_found = bool(side.is_found[row])
        name = annotations.category_names[int(annotations.labels[row])][:18]
        label = name if is_found else f"missed: {name}"
        _box(ax, annotations.boxes[row], FOUND if is_found else MISSED, label if named < MOST_NAMED else "")
        named += 1


def _wrong(ax: Axes, annotations: Annotations, side: Shown, image: int) -> None:
    rows = np.flatnonzero((side.boxes.images == image) & side.is_wrong)
    rows = rows[np.argsort(-side.boxes.scores[rows], kind="stable")][:MOST_WRONG]
    for row in rows.tolist():
        name = annotations.category_names[int(side.boxes.labels[row])][:14]
        _box(ax, side.boxes.boxes[row], WRONG, f"? {name} {side.boxes.scores[row]:.2f}", below=True)


def _box(ax: Axes, box: np.ndarray, mark: tuple[str, str, float], label: str, below: bool = False) -> None:
    colour, style, width = mark
    x1, y1, x2, y2 = (float(v) for v in box)
    for edge, thick, line in (("black", width + 1.2, "-" if style == "-" else style), (colour, width, style)):
        ax.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=edge, lw=thick, ls=line)
        )
    if label:
        ground = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
        at, side = (y2, "top") if below else (y1, "bottom")
        is_right = x1 > 0.6 * ax.get_xlim()[1]  # text grows to the left there, and stays inside
        start, align = (x2, "right") if is_right else (x1, "left")
        ax.text(
            start, at, label, fontsize=6.5, va=side, ha=align, bbox=ground, parse_math=False, clip_on=True
        )


def _explain(figure: Figure, found: Difference, names: tuple[str, str]) -> None:
    marks = {"found": FOUND, "missed": MISSED, f"finds nothing (the best {MOST_WRONG})": WRONG}
    lines = [Line2D([], [], color=c, ls=s, lw=w) for c, s, w in marks.values()]
    figure.legend(lines, list(marks), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"Where two runs differ most: {names[1]} finds {int(found.gained.sum())} objects more and "
        f"{int(found.lost.sum())} less than {names[0]}\n"
        f"boxes from score {found.before.least_score:.3f} ({names[0]}) and {found.after.least_score:.3f} "
        f"({names[1]}) on; found: own category, IoU >= .5",
        x=0.01,
        ha="left",
        fontsize=10,
        parse_math=False,
    )
