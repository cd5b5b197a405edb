"""What all figures share: the palette, names of groups, patterns beside colours, and how a file is written.

The colours are Okabe and Ito's, told apart by colour-blind readers and in grey; whatever a colour says is
also said by a pattern, a line style, a marker or a word.  Equal figures are equal bytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.artifacts import replacing

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
AMBER, SKY, PINK, YELLOW = "#e69f00", "#56b4e9", "#cc79a7", "#f0e442"
INK, QUIET, GRID, PALE = "#222222", "#777777", "#cccccc", "#bbbbbb"

GROUP_NAMES = {"all": "all", "r": "rare", "c": "common", "f": "frequent"}
GROUP_COLOURS = {"all": INK, "r": ORANGE, "c": GREEN, "f": BLUE}
GROUP_TINTS = {"f": "#eef3f8", "c": "#fdf6e6", "r": "#fbecec"}  # behind the categories of a group
BIN_TINTS = (GROUP_TINTS["r"], GROUP_TINTS["c"], "#eef6ee", GROUP_TINTS["f"])

RUN_COLOURS = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, YELLOW, "#999999")
RUN_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--", "oo")
RUN_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


def clean(axes: Axes) -> None:
    """Horizontal grid lines, no box."""
    axes.grid(axis="y", color=GRID, lw=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, dpi: int = 130, svg: bool = False) -> None:
    """Write a PNG, and with `svg` the same beside it as an SVG, without anything volatile.

    Text of an SVG stays text, to be searched, read aloud and restyled.

    Args:
        figure: drawn without pyplot.
        path: of the PNG; its folder is made.
        dpi: pixels per inch of the PNG.
        svg: also write `path` with the suffix .svg.
    """
    FigureCanvasAgg(figure)
    _write(path, lambda place: figure.savefig(place, dpi=dpi, format="png", metadata={"Software": None}))
    if svg:
        figure.set_layout_engine("none")  # both look the same, and the layout is half of the time
        with matplotlib.rc_context({"svg.hashsalt": "2drcl", "svg.fonttype": "none"}):
            unsigned = {"Date": None, "Creator": None}
            _write(
                path.with_suffix(".svg"),
                lambda place: figure.savefig(place, dpi=dpi, format="svg", metadata=unsigned),
            )


def _write(path: Path, draw: Callable[[Path], None]) -> None:
    with replacing(path) as temporary:
        draw(temporary)
