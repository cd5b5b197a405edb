"""The picture of what a run reconstructed: an image per row, from its view x through the epochs."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.drawing import save

CELL_INCHES, DPI = 1.7, 110
Kept = dict[str, np.ndarray]  # of a moment, see reconstructions


def reconstructions_figure(folder: Path, path: Path) -> bool:
    """Draw what a run has kept as PNG; whether there was anything.

    Args:
        folder: where `Reconstructions` kept it.
        path: where to; appears whole or not at all.
    """
    columns = _columns({int(file.stem.removeprefix("epoch-")): _read(file) for file in folder.glob("*.npz")})
    if not columns:
        return False
    count = sum(name.startswith("view-") for name in columns[0][2])
    shapes = [columns[0][2][f"view-{number}"].shape for number in range(count)]
    height = CELL_INCHES * max(h / w for h, w, _ in shapes)
    figure = Figure(figsize=(CELL_INCHES * len(columns), height * count + 0.3), layout="constrained")
    for row, line in enumerate(figure.subplots(count, len(columns), squeeze=False)):
        for axes, (title, name, kept) in zip(line, columns, strict=True):
            axes.imshow(kept[f"{name}-{row}"], interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=9)
    save(figure, path, dpi=DPI)
    return True


def _columns(moments: dict[int, Kept]) -> list[tuple[str, str, Kept]]:
    """(title, name, where from) of each column."""
    if not moments:
        return []
    epochs = sorted(moments)
    last = moments[epochs[-1]]
    titles = [f"after epoch {epoch}" if epoch else "at the start" for epoch in epochs]
    seen = [(title, "reconstruction", moments[epoch]) for title, epoch in zip(titles, epochs, strict=True)]
    masked = [("masked, for SR", "masked", last)] if "masked-0" in last else []
    return [("view x", "view", last), *seen, *masked]


def _read(file: Path) -> Kept:
    with np.load(file) as arrays:
        return dict(arrays)
