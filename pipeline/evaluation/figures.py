"""The comparison of runs as bars: AP of each and of its frequency groups."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline import drawing
from pipeline.drawing import RUN_COLOURS, RUN_HATCHES

DPI = 130


def metrics_figure(metrics: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """AP, APr, APc and APf of each run as grouped bars, boxes and, where any run has them, masks.

    Args:
        metrics: run name -> its metrics.json, percent; a group that is null is drawn as "n/a".
        path: a PNG; an SVG is written beside it.
    """
    kinds = [kind for kind in ("bbox", "segm") if any(f"{kind}_AP" in m for m in metrics.values())]
    figure = Figure(figsize=(5.2 * len(kinds) + 1.2, 4), dpi=DPI, layout="constrained")
    for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _grouped_bars(ax, metrics, kind)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=9
    )
    drawing.save(figure, path, DPI, svg=True)


def _grouped_bars(ax: Axes, metrics: Mapping[str, Mapping[str, float | None]], kind: str) -> None:
    names = [n for n in ("AP", "APr", "APc", "APf") if any(f"{kind}_{n}" in m for m in metrics.values())]
    width = 0.8 / len(metrics)
    for run, (label, values) in enumerate(metrics.items()):
        found = [values.get(f"{kind}_{n}") for n in names]
        places = np.arange(len(names)) + (run - (len(metrics) - 1) / 2) * width
        style: dict[str, Any] = {
            "facecolor": RUN_COLOURS[run % 8],
            "hatch": RUN_HATCHES[run % 8],
            "edgecolor": "black",
        }
        ax.bar(places, [0.0 if v is None else v for v in found], width, label=label, **style)
        for place, value in zip(places, found, strict=True):
            text = "n/a" if value is None else f"{value:.1f}"
            ax.annotate(
                text, (place, value or 0), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    ax.set_xticks(np.arange(len(names)), names)
    spare = max(0, 3 - len(names)) / 2  # keeps a lone AP from filling the panel
    ax.set_xlim(-0.6 - spare, len(names) - 0.4 + spare)
    ax.set_ylabel(f"{ {'bbox': 'box', 'segm': 'mask'}[kind] } AP, %")
    ax.spines[["top", "right"]].set_visible(False)
