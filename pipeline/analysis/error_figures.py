"""Figures of the error types: the paper's Fig. 2 as pies and as bars.

Every type of error has its place, its pattern and its name beside its colour: none needs the colour.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Wedge

from pipeline import drawing
from pipeline.analysis.error_types import TYPES, ErrorReport
from pipeline.drawing import AMBER, GREEN, GROUP_NAMES, PALE, PINK, SKY

COLOURS = dict(zip(TYPES, (GREEN, SKY, PALE, AMBER, PINK), strict=True))
HATCHES = dict(zip(TYPES, ("", "//", "..", "xx", "--"), strict=True))
CONVENTION = (
    "Best N boxes per category, N = {n} (where verified).  No one-to-one matching:\n"
    "duplicates are correct.  Mean over categories; same class first; lower edges closed (IoU >= .5, >= .1)."
)
DPI = 130


def error_pies(reports: Mapping[str, ErrorReport], path: Path) -> None:
    """The paper's Fig. 2: a row per model, a pie per frequency group; one pie of all where no group is known.

    Args:
        reports: model name -> its errors, in the order of the rows.
        path: a PNG; an SVG is written beside it.
    """
    groups = _groups(reports)
    figure = Figure(
        figsize=(max(4.6 * len(groups), 7), 2.7 * len(reports) + 0.6), dpi=DPI, layout="constrained"
    )
    axes = figure.subplots(len(reports), len(groups), squeeze=False)
    for row, (name, report) in zip(axes, reports.items(), strict=True):
        for ax, group in zip(row, groups, strict=True):
            _pie(ax, report.groups[group])
            ax.set_title(f"{name}, {_title(report.groups[group], group)}", fontsize=10)
    figure.supxlabel(convention(reports), fontsize=8)
    drawing.save(figure, path, DPI, svg=True)


def error_bars(reports: Mapping[str, ErrorReport], path: Path) -> None:
    """The same shares as stacked bars, where differences of one or two points between models can be seen.

    Args:
        reports: model name -> its errors; models lie next to each other inside each frequency group.
        path: a PNG; an SVG is written beside it.
    """
    groups = _groups(reports)
    bars = [
        (f"{name}, {GROUP_NAMES[g]}", report.groups[g]) for g in groups for name, report in reports.items()
    ]
    heights = np.arange(len(bars)) + np.repeat(np.arange(len(groups)), len(reports)) * 0.5
    figure = Figure(figsize=(10, 0.55 * len(bars) + 1.6), dpi=DPI, layout="constrained")
    ax = figure.subplots()
    for height, (_, group) in zip(heights, bars, strict=True):
        _stacked_bar(ax, height, group)
    labels = [f"{name}\n{g['n']:,} boxes, {g['categories']:,} categories" for name, g in bars]
    ax.set_yticks(heights, labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel("% of the judged boxes, mean over categories", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    handles = [Patch(facecolor=COLOURS[t], hatch=HATCHES[t], edgecolor="black") for t in TYPES]
    ax.legend(
        handles,
        TYPES,
        ncols=len(TYPES),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
        fontsize=9,
    )
    figure.supxlabel(convention(reports), fontsize=8)
    drawing.save(figure, path, DPI, svg=True)


def convention(reports: Mapping[str, ErrorReport]) -> str:
    """How the boxes were chosen and judged, for a caption."""
    sizes = {str(report.top_n) for report in reports.values()}
    return CONVENTION.format(n=", ".join(sorted(sizes)).replace("objects", "its ground-truth boxes"))


def _groups(reports: Mapping[str, ErrorReport]) -> list[str]:
    known = [
        g
        for g in ("r", "c", "f")
        if any(r.groups[g]["n"] or r.groups[g]["missing"] for r in reports.values())
    ]
    return known or ["all"]


def _title(group: Mapping[str, Any], letter: str) -> str:
    return f"{GROUP_NAMES[letter]}: {group['n']:,} boxes, {group['categories']:,} categories"


def _pie(ax: Axes, group: Mapping[str, Any]) -> None:
    """Five slices clockwise, `correct` around three o'clock, each named beside it."""
    ax.set_axis_off()
    ax.set_xlim(-2.6, 2.6)
    ax.set_ylim(-1.25, 1.25)
    ax.set_aspect("equal")
    if not group["n"]:
        ax.text(0, 0, "no boxes", ha="center", va="center")
        return
    shares = np.array([group[t]["percent"] for t in TYPES])
    ends = 1.8 * shares[0] - 3.6 * np.cumsum(shares)  # degrees: the errors share the left side
    starts = ends + 3.6 * shares
    for kind, start, end in zip(TYPES, starts, ends, strict=True):
        if start > end:
            ax.add_patch(
                Wedge((0, 0), 1, end, start, facecolor=COLOURS[kind], hatch=HATCHES[kind], edgecolor="black")
            )
    _name_slices(ax, shares, np.deg2rad((starts + ends) / 2))


def _name_slices(ax: Axes, shares: np.ndarray, middles: np.ndarray) -> None:
    """Names and percentages left and right of the pie, moved apart where slices are thin, tied by a line."""
    right = np.cos(middles) >= 0
    for side, members in ((1, np.flatnonzero(right)), (-1, np.flatnonzero(~right))):
        members = members[np.argsort(np.sin(middles[members]))]
        for index, height in zip(members, _spread(1.1 * np.sin(middles[members])), strict=True):
            edge = np.cos(middles[index]), np.sin(middles[index])
            ax.plot([edge[0], 1.2 * side], [edge[1], height], color="black", linewidth=0.6)
            text = f"{TYPES[index]} {shares[index]:.1f} %"
            ax.text(1.25 * side, height, text, ha="left" if side > 0 else "right", va="center", fontsize=8)


def _spread(heights: np.ndarray, gap: float = 0.24, limit: float = 1.15) -> np.ndarray:
    """Ascending heights moved `gap` apart around the same mean, inside +-`limit`."""
    moved = heights.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved -= moved.mean() - heights.mean() if len(moved) else 0
    moved -= max(0, moved.max(initial=0) - limit)
    return moved + max(0, -limit - moved.min(initial=0))


def _stacked_bar(ax: Axes, height: float, group: Mapping[str, Any]) -> None:
    if not group["n"]:
        ax.text(1, height, "no boxes", va="center", fontsize=8)
        return
    left = 0.0
    for kind in TYPES:
        share = group[kind]["percent"]
        ax.barh(height, share, left=left, facecolor=COLOURS[kind], hatch=HATCHES[kind], edgecolor="black")
        if share >= 4:  # narrower parts have no room for their number
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(left + share / 2, height, f"{share:.1f}", ha="center", va="center", fontsize=8, bbox=box)
        left += share
