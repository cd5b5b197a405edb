"""What the figures of the stage share besides the palette: axes over the categories, and legends.

Categories stand in one order in all figures: frequent, common, rare, and by falling image count within each,
so that the groups are bands of the page, named at its top.  Equal content gives equal bytes.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from pipeline import drawing
from pipeline.drawing import BLUE, GROUP_NAMES, GROUP_TINTS, INK, ORANGE, QUIET
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.schemes import Scheme

BANDS = {letter: (GROUP_NAMES[letter], GROUP_TINTS[letter]) for letter in "fcr"}
NAMED_CATEGORIES = 60  # more names than this do not fit under an axis
DPI = 150
LINES: dict[Scheme, tuple[str, str, str]] = {
    "drb": ("eq. 4 (dynamic)", ORANGE, "o"),
    "irfs": ("IRFS", QUIET, "+"),
    "rfs": ("RFS", INK, "s"),
    "random": ("each image once", BLUE, ""),
}


def ranked(frequencies: CategoryFrequencies) -> np.ndarray:
    """(C,) positions of the categories, frequent to rare, then by falling counts."""
    group = np.array([list(BANDS).index(letter) for letter in frequencies.frequency])
    return np.lexsort((-frequencies.instance_count, -frequencies.image_count, group))


def category_axes(
    frequencies: CategoryFrequencies, order: np.ndarray, shaded: bool = True
) -> tuple[Figure, Axes]:
    """Axes over the ranks of the categories, with the r/c/f bands and, if they fit, the names.

    Args:
        frequencies: of the categories.
        order: of `ranked`.
        shaded: False where the drawing covers the bands: their borders and names remain.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    letters = np.array(frequencies.frequency)[order]
    for letter, (name, colour) in BANDS.items():
        ranks = np.flatnonzero(letters == letter)
        if len(ranks):
            if shaded:
                axes.axvspan(ranks[0] - 0.5, ranks[-1] + 0.5, color=colour, lw=0, zorder=0)
            axes.axvline(ranks[-1] + 0.5, color=QUIET if shaded else "white", lw=0.6, zorder=1 + (not shaded))
            label = f"{name if len(ranks) > 0.12 * len(order) else letter} ({len(ranks)})"
            middle = (ranks[0] + ranks[-1]) / 2
            axes.text(middle, 1.01, label, ha="center", va="bottom", transform=axes.get_xaxis_transform())
    axes.set_xlim(-0.5, len(order) - 0.5)
    if len(order) <= NAMED_CATEGORIES:
        names = [frequencies.names[i][:20] for i in order]
        axes.set_xticks(range(len(order)), names, rotation=90, fontsize=7, parse_math=False)
    else:
        axes.set_xlabel("rank of the category, frequent to rare")
    return figure, axes


def dots(axes: Axes, values: np.ndarray, colour: str, marker: str, label: str) -> None:
    """One mark per category, small enough to keep 1,203 neighbours apart."""
    area = float(np.clip(3000 / len(values), 6, 30))
    width = 0.8 if marker in "+x" else 0
    ranks = np.arange(len(values))
    axes.scatter(ranks, values, s=area, c=colour, marker=marker, linewidths=width, alpha=0.75, label=label)


def add_legend(figure: Figure, *handles: object) -> None:
    """Below the page: no corner of a long-tailed plot is empty for every data set."""
    which = {"handles": handles} if handles else {}
    legend = figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9, **which)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([36])  # marks for 1,203 categories are too small to be a key


def add_title(axes: Axes, title: str) -> None:
    """On the left, above the names of the bands if there are any."""
    axes.set_title(title, loc="left", pad=22 if axes.texts else 10, fontsize=11)


def save(figure: Figure, path: Path) -> None:
    """A PNG without volatile metadata."""
    drawing.save(figure, path, DPI)
