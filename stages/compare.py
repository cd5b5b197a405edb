"""`2drcl compare A B`: metrics of evaluations side by side, with what each was trained on."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import artifacts
from stages.console import OUT, data

SHOWN = ("bbox_AP", "bbox_AP50", "bbox_APr", "bbox_APc", "bbox_APf", "segm_AP", "segm_APr")


def run(folders: list[Path], as_json: bool) -> None:
    """Print one row per evaluation."""
    rows = [_row(folder) for folder in folders]
    if as_json:
        data(rows, True, [])
        return
    keys = [k for k in SHOWN if any(k in row["metrics"] for row in rows)]
    table = Table("run", *(k.replace("bbox_", "") for k in keys), "images drawn", title="AP in percent")
    for row in rows:
        values = (row["metrics"].get(k) for k in keys)
        cells = ("n/a" if v is None else f"{v:.2f}" for v in values)
        table.add_row(row["run"], *cells, row["images_drawn"])
    OUT.print(table)


def _row(folder: Path) -> dict[str, Any]:
    artifacts.read_manifest(folder, "evaluate")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"run": folder.name, "metrics": metrics, "images_drawn": _images_drawn(folder)}


def _images_drawn(folder: Path) -> str:
    """Fine-tuning's draws, and those of the pre-training before it: a comparison is fair at an equal sum."""
    trained = folder.parent.parent / "finetune" / folder.name
    if not (trained / artifacts.MANIFEST).exists():
        return "unknown"
    made = artifacts.read_manifest(trained, "finetune")
    own, total = int(made["images_drawn"]), int(made["images_drawn_with_init"])
    return f"{own}" if total == own else f"{total - own} + {own} = {total}"
