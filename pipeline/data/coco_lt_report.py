"""A COCO-LT split beside the published one: the numbers, what differs, and a figure.

Shapes: A annotations, C classes in COCO's order.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.data.coco_lt import Columns, Selection
from pipeline.data.coco_lt_counts import NUM_BINS, PublishedSplit, bin_sizes, bins_of, differences
from pipeline.drawing import BIN_TINTS, BLUE, ORANGE, QUIET, clean, save

BIN_NAMES = ("below 20", "20 to 399", "400 to 7,999", "8,000 and more")
DPI = 150


def report(
    columns: Columns, selection: Selection, published: PublishedSplit, canonical: bool
) -> dict[str, Any]:
    """Counts of a split and every difference from the published ones, as plain data.

    Args:
        columns: of the file it was selected from.
        selection: what stays.
        published: what it should have.
        canonical: whether images must agree too; a sample of annotations has its own.

    Returns:
        images, published_images, annotations, crowds, drawn (annotations that another seed may not have
        kept): totals; bins and bins_without_crowds: four numbers of classes; classes: a row for each;
        differences: rows of subject, quantity, found, expected.
    """
    labels, at = columns.labels[selection.keep], columns.images[selection.keep]
    size = len(published.classes)
    instances = np.bincount(labels, minlength=size)
    crowds = np.bincount(columns.labels[selection.keep & columns.is_crowd], minlength=size)
    drawn = np.bincount(columns.labels[selection.drawn], minlength=size)
    pairs = np.unique(columns.pairs(labels, at))
    images = np.bincount(pairs // len(columns.image_ids), minlength=size)
    num_images = len(np.unique(at))
    differ = differences(
        published, instances, images if canonical else None, num_images if canonical else None
    )
    counts = {
        "instances": instances,
        "images": images,
        "crowds": crowds,
        "drawn": drawn,
        "bin": bins_of(instances),
    }
    rows = []
    for i, c in enumerate(published.classes):
        expected = {"published_instances": c.instances, "published_images": c.images}
        own = {name: int(values[i]) for name, values in counts.items()}
        rows.append({"category_id": c.category_id, "name": c.name, **own, **expected})
    return {
        "images": num_images,
        "published_images": published.num_images,
        "annotations": int(instances.sum()),
        "crowds": int(crowds.sum()),
        "drawn": int(drawn.sum()),
        "bins": bin_sizes(instances),
        "bins_without_crowds": bin_sizes(instances - crowds),
        "classes": rows,
        "differences": [d._asdict() for d in differ],
    }


def counts_figure(made: dict[str, Any], path: Path) -> None:
    """Instances of every class, ours on the published ones, with the four bins as bands; a PNG.

    Args:
        made: of `report`.
        path: the PNG; equal numbers give equal bytes.
    """
    rows = sorted(made["classes"], key=lambda r: (-r["published_instances"], r["category_id"]))
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    ranks = np.arange(len(rows))
    expected = np.array([r["published_instances"] for r in rows])
    _bands(axes, bins_of(expected))
    axes.plot(ranks, expected, color=BLUE, lw=2, drawstyle="steps-mid", label="published instances")
    images = [r["published_images"] for r in rows]
    axes.plot(ranks, images, color=BLUE, lw=1, ls=":", drawstyle="steps-mid", label="published images")
    axes.scatter(ranks, [r["instances"] for r in rows], s=14, c=ORANGE, zorder=3, label="our instances")
    axes.scatter(
        ranks, [r["images"] for r in rows], s=16, c=ORANGE, marker="_", lw=1.2, zorder=3, label="our images"
    )
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)  # a class may have none
    axes.set_ylim(bottom=0)
    axes.set_ylabel("count")
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_xticks(ranks, [r["name"] for r in rows], rotation=90, fontsize=7)
    title = f"COCO-LT: {made['images']:,} images, {made['annotations']:,} instances"
    axes.set_title(title, loc="left", pad=22, fontsize=11)
    clean(axes)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, path, DPI)


def _bands(axes: Axes, bins: np.ndarray) -> None:
    """Bands of the bins behind the ranks, which stand by falling instances."""
    for number in range(1, NUM_BINS + 1):
        ranks = np.flatnonzero(bins == number)
        if len(ranks):
            left, right = ranks[0] - 0.5, ranks[-1] + 0.5
            axes.axvspan(left, right, color=BIN_TINTS[number - 1], lw=0, zorder=0)
            axes.axvline(right, color=QUIET, lw=0.6, zorder=1)
            label = f"AP{number}: {BIN_NAMES[number - 1]} ({len(ranks)})"
            if len(ranks) < 0.12 * len(bins):
                label = f"AP{number} ({len(ranks)})"
            middle = (left + right) / 2
            top = axes.get_xaxis_transform()
            axes.text(middle, 1.01, label, ha="center", va="bottom", fontsize=9, transform=top)
