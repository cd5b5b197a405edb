"""Norms of the classifier's weight vectors over the categories, frequent to rare (Fig. A.2).

A classifier that training has biased has long vectors for frequent categories and short ones for rare ones.
The curve is a polynomial fitted to the norms over the rank of the category; with few categories its degree is
at most a quarter of their number, so that it stays smooth.

Shapes: C categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.polynomial import Polynomial

from pipeline.analysis.tables import write_table
from pipeline.drawing import (
    GROUP_NAMES,
    GROUP_TINTS,
    RUN_COLOURS,
    RUN_HATCHES,
    RUN_LINES,
    clean,
    save,
)

GROUPS = ("f", "c", "r")


@dataclass(frozen=True)
class Categories:
    """The categories in label order, and how often training saw them."""

    ids: np.ndarray  # (C,) int64
    names: Sequence[str]
    letters: Sequence[str]  # r | c | f, or "" where that is unknown
    image_count: np.ndarray  # (C,) int64
    counted_in: str  # which images these are, for the axis

    @property
    def order(self) -> np.ndarray:
        """(C,) positions, falling image count, ties by id."""
        return np.lexsort((self.ids, -self.image_count))


@dataclass(frozen=True)
class Norms:
    """One checkpoint: `values` (C,) in label order; `note` says what they are where that needs saying."""

    values: np.ndarray
    note: str = ""


def fitted(norms: np.ndarray, degree: int) -> np.ndarray:
    """(C,) polynomial through norms that stand in the order of the ranks, of `smooth_degree`."""
    ranks = np.arange(len(norms))
    return np.asarray(Polynomial.fit(ranks, norms, smooth_degree(degree, len(norms)))(ranks))


def smooth_degree(degree: int, num_categories: int) -> int:
    """`degree`, but at most a quarter of the categories, and one less than there are points."""
    return min(degree, max(1, num_categories // 4), num_categories - 1)


def rank_correlation(norms: np.ndarray, image_count: np.ndarray) -> float | None:
    """Spearman's rho between norm and image count: 0 is unbiased; None where one of them is constant."""
    ranks = [pd.Series(v).rank() for v in (norms, image_count)]
    if any(r.nunique() < 2 for r in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def group_means(norms: np.ndarray, letters: Sequence[str]) -> dict[str, float | None]:
    """Mean norm of all categories and of each group, None for an empty one (Fig. A.2c)."""
    of = np.array(letters)
    members = {"all": np.ones(len(norms), dtype=bool), **{g: of == g for g in GROUPS}}
    return {g: float(norms[m].mean()) if m.any() else None for g, m in members.items()}


def norms_figure(checkpoints: Mapping[str, Norms], categories: Categories, degree: int, path: Path) -> None:
    """Curves over the ranks on the left, means by group on the right; checkpoints in one figure.

    Args:
        checkpoints: name -> norms.
        categories: of all of them.
        degree: of the fitted polynomial.
        path: a PNG; an SVG is written beside it.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(2.2, 1))
    order = categories.order
    _bands(curves, np.array(categories.letters)[order])
    for run, (name, norms) in enumerate(checkpoints.items()):
        colour, line = RUN_COLOURS[run % 8], RUN_LINES[run % 8]
        values = norms.values[order]
        curves.plot(values, color=colour, alpha=0.35, lw=0.8)
        rho = rank_correlation(norms.values, categories.image_count)
        said = f"{name}" + (f", rank correlation {rho:+.2f}" if rho is not None else "")
        label = f"{said}\n({norms.note})" if norms.note else said
        curves.plot(fitted(values, degree), color=colour, ls=line, lw=2.4, label=label)
    curves.set_xlim(-0.5, len(order) - 0.5)
    curves.set_xlabel(f"rank of the category by its images in {categories.counted_in}, frequent to rare")
    curves.set_ylabel("norm of the classifier's weights")
    clean(curves)
    _mean_bars(bars, checkpoints, categories)
    figure.legend(
        *curves.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        handlelength=4,
    )
    figure.suptitle(
        f"Classifier weight norms (thin) and a polynomial of degree {smooth_degree(degree, len(order))}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    save(figure, path, svg=True)


def _bands(axes: Axes, letters: np.ndarray) -> None:
    """Tints behind the ranks of each group, named at the top; groups may interleave at their borders."""
    for letter, tint in GROUP_TINTS.items():
        ranks = np.flatnonzero(letters == letter)
        stretches = np.split(ranks, np.flatnonzero(np.diff(ranks) > 1) + 1) if len(ranks) else []
        for stretch in stretches:
            axes.axvspan(stretch[0] - 0.5, stretch[-1] + 0.5, color=tint, lw=0, zorder=0)
        if len(ranks):
            name = f"{GROUP_NAMES[letter]} ({len(ranks)})"
            at = axes.get_xaxis_transform()
            axes.text(np.median(ranks), 1.01, name, ha="center", va="bottom", transform=at, fontsize=9)


def _mean_bars(axes: Axes, checkpoints: Mapping[str, Norms], categories: Categories) -> None:
    names = [g for g in GROUPS if g in categories.letters] or ["all"]
    width = 0.8 / len(checkpoints)
    for run, norms in enumerate(checkpoints.values()):
        means = group_means(norms.values, categories.letters)
        places = np.arange(len(names)) + (run - (len(checkpoints) - 1) / 2) * width
        heights = [means[g] or 0.0 for g in names]
        hatch, colour = RUN_HATCHES[run % 8], RUN_COLOURS[run % 8]
        axes.bar(places, heights, width, facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.7)
        for place, height in zip(places, heights, strict=True):
            axes.annotate(
                f"{height:.2f}", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    axes.set_xticks(np.arange(len(names)), [GROUP_NAMES[g] for g in names])
    axes.set_ylabel("mean norm")
    clean(axes)


def _category(categories: Categories, c: int) -> tuple[int, str, str, int]:
    return (
        int(categories.ids[c]),
        categories.names[c],
        categories.letters[c],
        int(categories.image_count[c]),
    )


def write_norms(checkpoints: Mapping[str, Norms], categories: Categories, degree: int, path: Path) -> None:
    """A row per checkpoint and category, in the order of the ranks; `PATH` with `_groups`: the means."""
    order, rows = categories.order, []
    for name, norms in checkpoints.items():
        curve = fitted(norms.values[order], degree)
        rows += [
            (name, rank, *_category(categories, c), float(norms.values[c]), float(curve[rank]))
            for rank, c in enumerate(order.tolist())
        ]
    header = ("run", "rank", "category_id", "name", "frequency", "image_count", "norm", "fitted")
    write_table(path, header, rows)
    means = [
        (name, group, mean, rank_correlation(norms.values, categories.image_count), norms.note)
        for name, norms in checkpoints.items()
        for group, mean in group_means(norms.values, categories.letters).items()
    ]
    columns = ("run", "group", "mean_norm", "rank_correlation", "note")
    write_table(path.with_stem(f"{path.stem}_groups"), columns, means)
