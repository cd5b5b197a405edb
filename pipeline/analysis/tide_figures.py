"""The cost of each kind of error as bars, runs side by side, and the tables behind the two error figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.analysis.error_types import GROUPS, TYPES, ErrorReport
from pipeline.analysis.tables import write_table
from pipeline.analysis.tide import MAIN, SPECIAL, TideReport
from pipeline.drawing import GROUP_NAMES, RUN_COLOURS, RUN_HATCHES, clean, save

SHOWN = (*MAIN, *SPECIAL)
CONVENTION = (
    "TIDE-style: AP50 that an oracle wins by mending one kind alone; the bars do not add up.  All that\n"
    "counts for AP50, matched one-to-one; loc: own class, IoU .1 to .5; cls: other class, IoU >= .5."
)


def tide_bars(reports: Mapping[str, TideReport], path: Path) -> None:
    """A panel per frequency group, or one of all: a bar per kind of error and run.

    Args:
        reports: run name -> its costs.
        path: a PNG; an SVG is written beside it.
    """
    groups = [g for g in "rcf" if any(r.groups[g]["ap50"] is not None for r in reports.values())] or ["all"]
    figure = Figure(figsize=(max(4.4 * len(groups), 7), 3.6), layout="constrained")
    for ax, group in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups, strict=True):
        _panel(ax, reports, group)
    figure.axes[0].set_ylabel("AP50 to be won, points")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.supxlabel(CONVENTION, fontsize=8)
    save(figure, path, svg=True)


def _panel(ax: Axes, reports: Mapping[str, TideReport], group: str) -> None:
    width = 0.8 / len(reports)
    places = np.arange(len(SHOWN)) + np.repeat([0, 0.4], [len(MAIN), len(SPECIAL)])
    for run, (name, report) in enumerate(reports.items()):
        values = [report.groups[group][kind] or 0.0 for kind in SHOWN]
        style: dict[str, Any] = {"facecolor": RUN_COLOURS[run % 8], "hatch": RUN_HATCHES[run % 8]}
        at = places + (run - (len(reports) - 1) / 2) * width
        ax.bar(at, values, width, edgecolor="black", linewidth=0.7, label=name, **style)
        for place, value in zip(at, values, strict=True):
            spot: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 6.5}
            ax.annotate(f"{value:.1f}", (place, value), (0, 2), **spot)
    ax.set_xticks(places, SHOWN)
    plain = (report.groups[group]["ap50"] for report in reports.values())
    texts = ", ".join("n/a" if value is None else f"{value:.1f}" for value in plain)
    ax.set_title(f"{GROUP_NAMES[group]}: AP50 {texts}", fontsize=10)
    clean(ax)


def write_tide(reports: Mapping[str, TideReport], path: Path) -> None:
    """A row per run, group and kind: dAP50 in points, and how many errors there are."""
    rows = [
        (
            name,
            group,
            kind,
            report.groups[group][kind],
            report.counts[group][kind],
            report.groups[group]["ap50"],
        )
        for name, report in reports.items()
        for group in GROUPS
        for kind in SHOWN
    ]
    write_table(path, ("run", "group", "error", "dap50", "count", "ap50"), rows)


def write_error_types(reports: Mapping[str, ErrorReport], path: Path) -> None:
    """A row per run, group and type: what the pies show."""
    rows = [
        (
            name,
            group,
            kind,
            *(report.groups[group][kind][key] for key in ("count", "percent", "pooled_percent")),
        )
        for name, report in reports.items()
        for group in GROUPS
        for kind in (*TYPES, "duplicates")
    ]
    write_table(path, ("run", "group", "type", "count", "percent", "pooled_percent"), rows)
