"""The figures over the epochs: how long they are, and whom they show (Sec. 3.2, eq. 4).

Each draws what the CSV of the same name holds (`figure_tables`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.drawing import clean
from pipeline.stats.drawing import BANDS, LINES, add_legend, add_title, save
from pipeline.stats.expectation import GROUPS
from pipeline.stats.schemes import Scheme


def epoch_length_figure(draws: Mapping[Scheme, np.ndarray], num_images: int, path: Path) -> None:
    """Expected draws of every epoch by scheme; on the right, as a multiple of the images.

    Args:
        draws: scheme -> (E,) of `EpochSampler.expected_draws`.
        num_images: what the right axis counts in.
        path: the PNG.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    _lines(axes, draws)
    axes.set_ylim(0, 1.1 * max(lengths.max() for lengths in draws.values()))
    axes.set_ylabel("expected draws")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    to_ratio = (lambda n: np.divide(n, num_images), lambda x: np.multiply(x, num_images))
    ratio = axes.secondary_yaxis("right", functions=to_ratio)
    ratio.set_ylabel("times the images")
    ratio.spines["right"].set_visible(False)
    add_title(axes, "Expected draws of an epoch")
    add_legend(figure)
    save(figure, path)


def group_share_figure(shares: Mapping[Scheme, np.ndarray], frequency: Sequence[str], path: Path) -> None:
    """Expected share of rare, common and frequent instances in a batch, a panel each with its own scale.

    Args:
        shares: scheme -> (E, 3) of `expectation.group_shares`.
        frequency: (C,) r, c or f; a group without categories has no panel.
        path: the PNG.
    """
    present = [g for g in GROUPS if g in frequency]
    figure = Figure(figsize=(3.3 * len(present) + 0.6, 4), layout="constrained")
    panels = figure.subplots(1, len(present), squeeze=False)[0]
    for axes, group in zip(panels, present, strict=True):
        column = {scheme: 100 * values[:, GROUPS.index(group)] for scheme, values in shares.items()}
        _lines(axes, column)
        axes.set_ylim(0, 1.1 * max(values.max() for values in column.values()) or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        number = list(frequency).count(group)
        add_title(axes, f"{BANDS[group][0]} ({number:,} categor{'y' if number == 1 else 'ies'})")
    figure.suptitle("Expected share of the instances in a batch", x=0.01, ha="left", fontsize=11)
    add_legend(figure, *panels[0].lines)
    save(figure, path)


def _lines(axes: Axes, values: Mapping[Scheme, np.ndarray]) -> None:
    """One line per scheme over the epochs."""
    for scheme, (label, colour, marker) in LINES.items():
        if scheme in values:
            epochs = np.arange(1, len(values[scheme]) + 1)
            style = "-" if marker else "--"
            axes.plot(
                epochs, values[scheme], color=colour, marker=marker, ms=5, lw=1.5, ls=style, label=label
            )
    axes.set_xlim(0.5, max(map(len, values.values())) + 0.5)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    clean(axes)
