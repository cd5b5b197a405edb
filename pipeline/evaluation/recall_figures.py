"""The recall curve of proposals by frequency group and by size, as a PNG and as tables (CSV).

Drawn without pyplot and without volatile metadata, so that the same numbers give the same PNG bytes; every
curve has its line style and its name beside its colour (Okabe-Ito).
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pipeline.data.annotations import Annotations
from pipeline.drawing import AMBER, BLUE, GREEN, GRID, INK, ORANGE, PINK, SKY, save
from pipeline.evaluation.proposal_recall import AREAS, BUDGETS, ProposalRecall, groups

CURVE_BUDGETS = np.unique(np.geomspace(1, BUDGETS[-1], 61).round().astype(np.int64)).tolist()
CATEGORY_BUDGETS = (100, 1000)
STYLES = {
    "all": ("all", INK, "-"),
    "r": ("rare", ORANGE, "--"),
    "c": ("common", GREEN, "-."),
    "f": ("frequent", BLUE, ":"),
    "s": ("small, under 32 x 32 px", PINK, "--"),
    "m": ("medium", AMBER, "-."),
    "l": ("large, over 96 x 96 px", SKY, ":"),
}
CONVENTION = (
    "Recall of the k best boxes of each image, one-to-one in score order, mean over IoU .5, .55, ..., .95"
)
FEDERATED = "Not every object is annotated (LVIS): recall is of those that are; precision would mean nothing."
DPI = 130


@dataclass(frozen=True)
class RecallCurves:
    """AR in percent over CURVE_BUDGETS: `all`, and r, c, f, s, m, l as far as they are known."""

    values: dict[str, list[float | None]]
    num_objects: dict[str, int]
    most_kept: int  # proposals of the image that has most
    is_lvis: bool


def recall_curves(
    recall: ProposalRecall, annotations: Annotations, letters: Sequence[str] | None
) -> RecallCurves:
    """The curves of these annotations; `letters` are r, c or f of each category (C), or None."""
    values, num_objects = {}, {}
    everything = np.ones(len(annotations.labels), dtype=bool)
    by_group = {"all": everything, **groups(annotations, letters)}
    chosen = [(name, "all", group) for name, group in by_group.items()]
    chosen += [(area, area, everything) for area in AREAS if area != "all"]
    for name, area, group in chosen:
        values[name] = recall.at(CURVE_BUDGETS, area, group)
        num_objects[name] = int((recall.counts[area] & group).sum())
    most_kept = int(recall.num_proposals.max(initial=0))
    return RecallCurves(values, num_objects, most_kept, annotations.is_lvis)


def recall_figure(curves: RecallCurves, path: Path) -> None:
    """Average recall over the budget k (log): by frequency on the left, by size on the right.

    Args:
        curves: a group without objects is named, but not drawn.
        path: a PNG.
    """
    panels = {"by frequency of the category": "rcf", "by size of the object": "sml"}
    drawn = {t: [n for n in names if n in curves.values] for t, names in panels.items()}
    drawn = {title: names for title, names in drawn.items() if names}  # without letters, sizes alone
    figure = Figure(figsize=(5.4 * len(drawn) + 0.4, 4.6), dpi=DPI, layout="constrained")
    all_axes = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    for ax, (title, names) in zip(all_axes, drawn.items(), strict=True):
        for name in ("all", *names):
            _curve(ax, curves, name)
        _finish(ax, curves.most_kept, title)
    all_axes[0].set_ylabel("average recall, %")
    figure.supxlabel("\n".join([CONVENTION, *([FEDERATED] if curves.is_lvis else [])]), fontsize=8)
    save(figure, path, DPI)


def write_curves(curves: RecallCurves, path: Path) -> None:
    """The figure's numbers: a row per budget, percent; empty where a group has no objects."""
    rows = zip(CURVE_BUDGETS, *curves.values.values(), strict=True)
    _write(path, ["proposals", *curves.values], rows)


@dataclass(frozen=True)
class CategoryRecall:
    """Recall of each category's objects.  `columns[name]` is (C,) float64, NaN without objects."""

    num_objects: np.ndarray  # (C,) int64, of those that are to be found
    columns: dict[str, np.ndarray]  # AR@k and R50@k in percent

    @property
    def is_missed(self) -> np.ndarray:
        """(C,) bool: there are objects, and the proposals find none of them even at IoU .5."""
        return self.columns[f"R50@{CATEGORY_BUDGETS[-1]}"] == 0


def category_recall(recall: ProposalRecall, annotations: Annotations) -> CategoryRecall:
    """AR@k and R50@k of every category for k of CATEGORY_BUDGETS."""
    num_categories, counts = len(annotations.category_ids), recall.counts["all"]
    labels, ranks = annotations.labels[counts], recall.ranks["all"][:, counts]
    num_objects = np.bincount(labels, minlength=num_categories)
    columns = {}
    for name, levels in (("AR", ranks), ("R50", ranks[:1])):
        for budget in CATEGORY_BUDGETS:
            times_found = (levels < budget).sum(axis=0)  # (T, A) -> (A,)
            found = np.bincount(labels, weights=times_found, minlength=num_categories)
            with np.errstate(invalid="ignore"):
                columns[f"{name}@{budget}"] = 100 * found / (len(levels) * num_objects)
    return CategoryRecall(num_objects, columns)


def write_categories(
    found: CategoryRecall, annotations: Annotations, letters: Sequence[str] | None, path: Path
) -> None:
    """One row per category, by id; empty where it has no objects."""
    values = np.stack(list(found.columns.values()), axis=1).tolist()  # (C, 4)
    rows = [
        [number, name, letter, count, *(v if v == v else None for v in row)]
        for number, name, letter, count, row in zip(
            annotations.category_ids.tolist(),
            annotations.category_names,
            letters or [""] * len(values),
            found.num_objects.tolist(),
            values,
            strict=True,
        )
    ]
    _write(path, ["category_id", "name", "frequency", "objects", *found.columns], rows)


def _curve(ax: Axes, curves: RecallCurves, name: str) -> None:
    label, colour, line = STYLES[name]
    known = [value for value in curves.values[name] if value is not None]
    budgets = CURVE_BUDGETS[: len(known)]  # all of them, or none
    text = f"{label}: {curves.num_objects[name]:,} objects"
    ax.plot(budgets, known, color=colour, linestyle=line, linewidth=2, label=text)


def _finish(ax: Axes, most_kept: int, title: str) -> None:
    ax.set_xscale("log")
    ax.set_xlim(1, BUDGETS[-1])
    ax.set_ylim(0, 100)
    if 0 < most_kept < BUDGETS[-1]:
        ax.axvspan(most_kept, BUDGETS[-1], facecolor="#eeeeee", zorder=0)
        text = f"no image has more than {most_kept:,} boxes "
        ax.text(BUDGETS[-1], 2, text, ha="right", fontsize=8, color="#555555")
    ax.set_xticks([1, *BUDGETS])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(color=GRID, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("k, boxes of each image")
    ax.set_title(title, fontsize=10)
    ax.legend(loc="upper left", frameon=False, fontsize=8, handlelength=3.5)


def _write(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)  # floats as repr, None as nothing
