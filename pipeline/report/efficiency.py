"""What each stage cost (Table A.4): time, images per second, memory, from timing.json beside each product.

These files are volatile and tracked by nobody; so are the table and the figure.  Times are those of the
command that finished a product: one that continued where another had stopped counts its own part alone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.analysis.tables import write_table
from pipeline.artifacts import TIMING
from pipeline.drawing import BLUE, GREEN, ORANGE, save
from pipeline.errors import InputError

STAGES = ("sample", "proposals", "stats", "pretrain", "finetune", "evaluate", "analyze", "report")


@dataclass(frozen=True)
class Cost:
    """One product: of the whole command, and where it trains, of the training.

    gpu_memory_mib is reserved on all cards together; peak_memory_mib is of the largest process.  None: not
    measured.
    """

    stage: str
    run: str
    seconds: float | None
    train_seconds: float | None
    images_per_second: float | None
    peak_memory_mib: float | None
    gpu_memory_mib: float | None


def costs(root: Path) -> list[Cost]:
    """Of every finished product under `root`, in the order of the chain, then by run.

    Args:
        root: the artifacts folder.

    Raises:
        InputError: a timing.json is broken.
    """
    found = []
    for stage in STAGES:
        inside = [root / stage / TIMING, *sorted((root / stage).glob(f"*/{TIMING}"))]
        for path in (p for p in inside if p.exists()):
            run = path.parent.name if path.parent.parent.name == stage else ""
            found.append(_cost(stage, run, path))
    return found


def _cost(stage: str, run: str, path: Path) -> Cost:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {
            f.name: None if content.get(f.name) is None else float(content[f.name])
            for f in fields(Cost)
            if f.name not in ("stage", "run")
        }
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise InputError(f"{path} is broken: {problem}", "remove it: it is only shown") from None
    if values["train_seconds"] is not None and "stage1_train_seconds" in content:
        values["train_seconds"] += float(content["stage1_train_seconds"])
    return Cost(stage, run, **values)


def write_costs(found: Sequence[Cost], path: Path) -> None:
    """A row per product, empty where nothing was measured."""
    write_table(path, [f.name for f in fields(Cost)], (asdict(cost).values() for cost in found))


def cost_figure(found: Sequence[Cost], path: Path) -> None:
    """Bars per product: minutes, images per second, memory.

    Args:
        found: of `costs`, at least one.
        path: a PNG; an SVG is written beside it.
    """
    memory = "gpu_memory_mib" if any(c.gpu_memory_mib is not None for c in found) else "peak_memory_mib"
    names = [f"{c.stage} {c.run}".strip() for c in found]
    figure = Figure(figsize=(11, 0.32 * len(found) + 1.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    seconds = [None if c.seconds is None else c.seconds / 60 for c in found]
    _bars(axes[0], seconds, BLUE, "", "minutes, whole command")
    _bars(axes[1], [c.images_per_second for c in found], GREEN, "//", "images/s, training")
    what = "GPU memory, GiB, all cards" if memory == "gpu_memory_mib" else "memory, GiB, largest process"
    gib = [None if (v := getattr(c, memory)) is None else v / 1024 for c in found]
    _bars(axes[2], gib, ORANGE, "..", what)
    axes[0].set_yticks(np.arange(len(found)), names, fontsize=8)
    axes[0].invert_yaxis()
    save(figure, path, svg=True)


def _bars(ax: Axes, values: Sequence[float | None], colour: str, hatch: str, label: str) -> None:
    places = np.arange(len(values))
    ax.barh(
        places, [v or 0.0 for v in values], facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.6
    )
    for place, value in enumerate(values):
        text = "" if value is None else f" {value:.1f}"
        ax.text(value or 0.0, place, text, va="center", fontsize=7.5)
    ax.set_xlabel(label)
    ax.margins(x=0.15)
    ax.spines[["top", "right"]].set_visible(False)
