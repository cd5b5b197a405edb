"""The figures of the stage: how long the tail is, and what each scheme does about it (Sec. 3.2, eq. 4).

Categories stand in one order in all figures: frequent, common, rare, and by falling image count within each,
so that the groups are bands of the page, named at its top.  Equal content gives equal bytes.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.repeat_factors import alphas, irfs_factors, repeat_factors, rfs_factors

BANDS = {"f": ("frequent", "#eef3f8"), "c": ("common", "#fdf6e6"), "r": ("rare", "#fbecec")}
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # told apart by colour-blind readers and in grey
INK, QUIET = "#222222", "#777777"
NAMED_CATEGORIES = 60  # more names than this do not fit under an axis
DPI = 150
SCHEMES = {
    "drb": ("eq. 4 (dynamic)", ORANGE, "o"),
    "irfs": ("IRFS", QUIET, "+"),
    "rfs": ("RFS", INK, "s"),
}


def frequency_figure(frequencies: CategoryFrequencies, path: Path) -> None:
    """Images, instances and (if counted) proposals of every category, on a log scale."""
    order = _order(frequencies)
    figure, axes = _canvas(frequencies, order)
    series = [
        ("instances", frequencies.instance_count, ORANGE, "o"),
        ("proposals", frequencies.proposal_count, GREEN, "x"),
    ]
    ranks = np.arange(len(order))
    for name, counts, colour, marker in series:
        if counts is not None:
            _dots(axes, counts[order], colour, marker, name)
    axes.plot(ranks, frequencies.image_count[order], color=BLUE, lw=2, drawstyle="steps-mid", label="images")
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)  # a category without instances stands at 0
    axes.set_ylim(bottom=-0.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("count")
    total = f"{frequencies.num_images:,} images, {int(frequencies.instance_count.sum()):,} instances"
    _finish(figure, axes, path, f"Category frequencies: {len(order):,} categories, {total}")


def repeat_factor_figure(
    frequencies: CategoryFrequencies, epochs: int, threshold: float, path: Path, first_epoch: int = 0
) -> None:
    """Repeat factors by category: RFS, IRFS, and eq. 4 in the first, the middle and the last epoch."""
    order = _order(frequencies)
    figure, axes = _canvas(frequencies, order)
    ranks = np.arange(len(order))
    f_image, f_instance = frequencies.f_image[order], frequencies.f_instance[order]
    schedule = alphas(epochs, first_epoch)
    for epoch, colour, marker in zip(_first_middle_last(epochs), (BLUE, GREEN, ORANGE), "s^o", strict=False):
        factors = repeat_factors(f_image, f_instance, float(schedule[epoch]), threshold)
        label = f"eq. 4, epoch {epoch + 1} (alpha {schedule[epoch]:.2f})"
        _dots(axes, factors, colour, marker, label)
    _dots(axes, irfs_factors(f_image, f_instance, threshold), QUIET, "+", "IRFS")
    axes.plot(ranks, rfs_factors(f_image, threshold), color=INK, lw=1.5, drawstyle="steps-mid", label="RFS")
    axes.set_yscale("log", base=2)
    axes.set_ylim(0.9, 2.2 if axes.dataLim.ymax < 2 else None)  # every factor may be 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("repeat factor r")
    _finish(figure, axes, path, f"Repeat factors of the categories (t = {threshold:.3g})")


def epoch_length_figure(draws: dict[str, np.ndarray], num_images: int, path: Path) -> None:
    """Expected draws of every epoch by scheme; on the right, as a multiple of the images.

    Args:
        draws: rfs, irfs, drb or some of them -> (E,) from `expected_draws`.
        num_images: the length of an epoch that draws each image once.
        path: the PNG.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for scheme, (label, colour, marker) in SCHEMES.items():
        if scheme in draws:
            epochs = np.arange(1, len(draws[scheme]) + 1)
            axes.plot(epochs, draws[scheme], color=colour, marker=marker, ms=5, lw=1.5, label=label)
    axes.axhline(num_images, color=BLUE, lw=1, ls="--", label="each image once")
    axes.set_ylim(0, 1.1 * max(num_images, *(lengths.max() for lengths in draws.values())))
    axes.set_xlim(0.5, max(map(len, draws.values())) + 0.5)
    axes.set_xlabel("epoch")
    axes.set_ylabel("expected draws")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    to_ratio = (lambda n: np.divide(n, num_images), lambda x: np.multiply(x, num_images))
    ratio = axes.secondary_yaxis("right", functions=to_ratio)
    ratio.set_ylabel("times the images")
    ratio.spines["right"].set_visible(False)
    _finish(figure, axes, path, "Expected draws of an epoch")


def _order(frequencies: CategoryFrequencies) -> np.ndarray:
    """(C,) positions of the categories, frequent to rare, then by falling counts."""
    group = np.array([list(BANDS).index(letter) for letter in frequencies.frequency])
    return np.lexsort((-frequencies.instance_count, -frequencies.image_count, group))


def _canvas(frequencies: CategoryFrequencies, order: np.ndarray) -> tuple[Figure, Axes]:
    """Axes over the ranks of the categories, with the r/c/f bands and, if they fit, the names."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    letters = np.array(frequencies.frequency)[order]
    for letter, (name, colour) in BANDS.items():
        ranks = np.flatnonzero(letters == letter)
        if len(ranks):
            axes.axvspan(ranks[0] - 0.5, ranks[-1] + 0.5, color=colour, lw=0, zorder=0)
            axes.axvline(ranks[-1] + 0.5, color=QUIET, lw=0.6, zorder=1)
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


def _dots(axes: Axes, values: np.ndarray, colour: str, marker: str, label: str) -> None:
    """One mark per category, small enough to keep 1,203 neighbours apart."""
    area = float(np.clip(3000 / len(values), 6, 30))
    width = 0.8 if marker in "+x" else 0
    ranks = np.arange(len(values))
    axes.scatter(ranks, values, s=area, c=colour, marker=marker, linewidths=width, alpha=0.75, label=label)


def _first_middle_last(epochs: int) -> list[int]:
    return sorted({0, epochs // 2, epochs - 1})


def _finish(figure: Figure, axes: Axes, path: Path, title: str) -> None:
    axes.set_title(title, loc="left", pad=22 if axes.texts else 10, fontsize=11)
    axes.grid(axis="y", color="#cccccc", lw=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the page: no corner of a long-tailed plot is empty for every data set.
    legend = figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([36])  # marks for 1,203 categories are too small to be a key
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
