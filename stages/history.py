"""history.jsonl as a table that `dvc plots` reads, and as a picture."""

import itertools
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pipeline.drawing import RUN_LINES

SMOOTHED_OVER = 20  # points of the drawn curves, out of many steps
NOT_LOSSES = ("step", "epoch", "images", "lr", "alpha", "grad_norm")
LEVELS = ("norm_c2", "norm_c3", "norm_c4", "norm_c5")
# panel -> columns of what pre-training measures beside its losses
MEASURES = {
    "alpha of eq. 4": ("alpha",),
    "share of rare boxes": ("rare_share",),
    "age of the queued keys, steps": ("hcl_queue_age", "lcl_queue_age"),
    "cosine of images": ("hcl_positive", "hcl_negative"),
    "cosine of proposals": ("lcl_positive", "lcl_negative"),
    "length of the features": LEVELS,
}


def write_history_table(history: Path, table: Path) -> None:
    """history.jsonl -> csv, one row per step."""
    pd.read_json(history, lines=True).to_csv(table, index=False, lineterminator="\n")


def loss_figure(history: Path, path: Path) -> None:
    """Every loss term against the step: raw, and its running mean."""
    rows = pd.read_json(history, lines=True)
    others = {*NOT_LOSSES, *itertools.chain(*MEASURES.values())}
    terms = [name for name in rows.columns if name not in others]
    columns = min(3, len(terms))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(terms) // columns)), layout="constrained")
    for number, term in enumerate(terms, start=1):
        axes = figure.add_subplot(-(-len(terms) // columns), columns, number)
        axes.plot(rows["step"], rows[term], color="0.8", linewidth=0.8)
        axes.plot(rows["step"], _smooth(rows[term]), color="tab:blue")
        axes.set_title(term)
        axes.set_xlabel("step")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def measures_figure(history: Path, path: Path) -> bool:
    """Running means of what pre-training measures beside its losses; whether there was anything to draw."""
    rows = pd.read_json(history, lines=True)
    panels = {title: [n for n in names if n in rows.columns] for title, names in MEASURES.items()}
    panels = {title: names for title, names in panels.items() if names}
    if "rare_share" not in rows.columns:
        return False
    figure = Figure(figsize=(12, 2.8 * -(-len(panels) // 3)), layout="constrained")
    for number, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(-(-len(panels) // 3), 3, number)
        for name, line in zip(names, RUN_LINES, strict=False):  # ages of both queues are often equal
            values = rows[name] if name == "alpha" else _smooth(rows[name])
            axes.plot(rows["step"], values, linestyle=line, label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        if len(names) > 1:
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    return True


def summary(history: Path) -> str:
    """One sentence: what the first and the last tenth of a pre-training say, as means."""
    rows = pd.read_json(history, lines=True)
    tenth = max(1, len(rows) // 10)
    first, last = rows.head(tenth).mean(numeric_only=True), rows.tail(tenth).mean(numeric_only=True)

    def moved(name: str, digits: str = ".3g") -> str:
        return f"{first[name]:{digits}} to {last[name]:{digits}}"

    said = [f"{name} {moved(name)}" for name in ("loss", "hcl", "lcl", "ar", "sr", "det") if name in rows]
    for name, what in (("hcl", "images"), ("lcl", "proposals")):
        if f"{name}_positive" in rows:
            gap = [tenth[f"{name}_positive"] - tenth[f"{name}_negative"] for tenth in (first, last)]
            said.append(f"margin of {what} {gap[0]:.2f} to {gap[1]:.2f}")
    said.append(f"rare boxes {moved('rare_share', '.1%')}")
    said.append(f"C5 as long times {last['norm_c5'] / max(first['norm_c5'], 1e-9):.2f}")
    return f"from the first tenth of the {len(rows)} steps to the last: {', '.join(said)}"


def _smooth(values: "pd.Series[float]") -> "pd.Series[float]":
    return values.rolling(max(1, len(values) // SMOOTHED_OVER), min_periods=1).mean()
