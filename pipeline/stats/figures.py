"""The figures by category: how long the tail is, and what each scheme does about it (Sec. 3.2, eq. 4).

Each draws what the CSV of the same name holds (`figure_tables`).
"""

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.drawing import BLUE, GREEN, INK, ORANGE, QUIET, clean
from pipeline.stats.drawing import add_legend, add_title, category_axes, dots, ranked, save
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.schemes import alpha_schedule, category_factors
from pipeline.stats.settings import StatsSettings, resolve_threshold


def frequency_figure(frequencies: CategoryFrequencies, path: Path) -> None:
    """Images, instances and (if counted) proposals of every category, on a log scale."""
    order = ranked(frequencies)
    figure, axes = category_axes(frequencies, order)
    series = [
        ("instances", frequencies.instance_count, ORANGE, "o"),
        ("proposals", frequencies.proposal_count, GREEN, "x"),
    ]
    ranks = np.arange(len(order))
    for name, counts, colour, marker in series:
        if counts is not None:
            dots(axes, counts[order], colour, marker, name)
    axes.plot(ranks, frequencies.image_count[order], color=BLUE, lw=2, drawstyle="steps-mid", label="images")
    axes.set_yscale("symlog", linthresh=1, linscale=0.4)  # a category without instances stands at 0
    axes.set_ylim(bottom=-0.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("count")
    total = f"{frequencies.num_images:,} images, {int(frequencies.instance_count.sum()):,} instances"
    add_title(axes, f"Category frequencies: {len(order):,} categories, {total}")
    clean(axes)
    add_legend(figure)
    save(figure, path)


def repeat_factor_figure(
    frequencies: CategoryFrequencies, epochs: int, settings: StatsSettings, path: Path
) -> None:
    """Repeat factors by category: RFS, IRFS, and eq. 4 in the first, the middle and the last epoch."""
    order = ranked(frequencies)
    figure, axes = category_axes(frequencies, order)
    ranks = np.arange(len(order))
    rfs, irfs = (category_factors(s, frequencies, 1, settings)[0, order] for s in ("rfs", "irfs"))
    factors = category_factors("drb", frequencies, epochs, settings)[:, order]
    schedule = alpha_schedule(epochs, settings)
    shown = sorted({0, epochs // 2, epochs - 1})
    for epoch, colour, marker in zip(shown, (BLUE, GREEN, ORANGE), "s^o", strict=False):
        dots(axes, factors[epoch], colour, marker, f"eq. 4, epoch {epoch + 1} (alpha {schedule[epoch]:.2f})")
    dots(axes, irfs, QUIET, "+", "IRFS")
    axes.plot(ranks, rfs, color=INK, lw=1.5, drawstyle="steps-mid", label="RFS")
    axes.set_yscale("log", base=2)
    lowest = min(1.0, factors.min(), rfs.min(), irfs.min())
    axes.set_ylim(0.9 * lowest, 2.2 if axes.dataLim.ymax < 2 else None)  # every factor may be 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("repeat factor r")
    threshold = resolve_threshold(settings.threshold, frequencies.num_images)
    add_title(axes, f"Repeat factors of the categories (t = {threshold:.3g})")
    clean(axes)
    add_legend(figure)
    save(figure, path)


def factor_map_figure(
    frequencies: CategoryFrequencies, epochs: int, settings: StatsSettings, path: Path
) -> None:
    """The repeat factor of eq. 4 as a map: categories to the right, epochs upward, colour by log r."""
    order = ranked(frequencies)
    figure, axes = category_axes(frequencies, order, shaded=False)
    factors = category_factors("drb", frequencies, epochs, settings)[:, order]
    scale = LogNorm(min(1.0, factors.min()), max(2.0, factors.max()))  # every factor may be 1
    drawn = axes.pcolormesh(
        np.arange(len(order)), np.arange(1, epochs + 1), factors, norm=scale, cmap="viridis", rasterized=True
    )
    bar = figure.colorbar(drawn, ax=axes, label="repeat factor r", pad=0.02)
    bar.ax.yaxis.set_major_locator(LogLocator(base=2))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("epoch")
    schedule = alpha_schedule(epochs, settings)
    path_of_alpha = f"alpha {schedule[0]:.2f} to {schedule[-1]:.2f}"
    add_title(axes, f"Repeat factors by eq. 4 over the epochs ({path_of_alpha})")
    save(figure, path)
