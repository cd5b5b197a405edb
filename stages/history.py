"""history.jsonl as a table that `dvc plots` reads, and as a picture."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

SMOOTHED_OVER = 20  # points of the drawn curves, out of many steps
NOT_LOSSES = ("step", "epoch", "images", "lr", "alpha", "grad_norm")


def write_history_table(history: Path, table: Path) -> None:
    """history.jsonl -> csv, one row per step."""
    pd.read_json(history, lines=True).to_csv(table, index=False, lineterminator="\n")


def loss_figure(history: Path, path: Path) -> None:
    """Every loss term against the step: raw, and its running mean."""
    rows = pd.read_json(history, lines=True)
    terms = [name for name in rows.columns if name not in NOT_LOSSES]
    columns = min(3, len(terms))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(terms) // columns)), layout="constrained")
    for number, term in enumerate(terms, start=1):
        axes = figure.add_subplot(-(-len(terms) // columns), columns, number)
        axes.plot(rows["step"], rows[term], color="0.8", linewidth=0.8)
        smooth = rows[term].rolling(max(1, len(rows) // SMOOTHED_OVER), min_periods=1).mean()
        axes.plot(rows["step"], smooth, color="tab:blue")
        axes.set_title(term)
        axes.set_xlabel("step")
    figure.savefig(path, dpi=100, metadata={"Software": None})
