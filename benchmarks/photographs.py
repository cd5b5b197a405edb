"""Do the methods lift the tail on real photographs, as their papers say?  One table, AP / APr / APc / APf.

    python benchmarks/photographs.py --work DIR                       # every run of the recipe, one seed
    python benchmarks/photographs.py --work DIR --seeds 3 ce rfs ecm  # some, with three
    python benchmarks/photographs.py --work DIR --table               # only what is there

Runs stats, finetune and evaluate (proposals and pretrain too, for runs after pre-training) on
`photographs-r18.yaml` with the paths of TWODRCL_DATA put in; what DIR holds already is kept, so a stopped
benchmark goes on.  A run that was not made stays in the table, empty.  Two-stage methods take the ce or bce
detector of the same seed as their first stage.  `variants` of the recipe name, for some runs, what differs
from the sections above it.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "benchmarks/photographs-r18.yaml"
DATA = Path(os.environ.get("TWODRCL_DATA", ROOT / "../shared/data")).resolve()
METRICS = ("bbox_AP", "bbox_APr", "bbox_APc", "bbox_APf")
OVER_CE = ("bbox_APr_over_ce", "low", "high", "p")  # the interval is that of the first seed's images
COLUMNS = ("run", "seeds", "images_drawn", *METRICS, *OVER_CE, "spread_of_APr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", help="runs of the recipe; all without any")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train nothing")
    asked = parser.parse_args()
    recipe = placed(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))
    variants = recipe.pop("variants")
    asked.work.mkdir(parents=True, exist_ok=True)
    if not asked.table:
        for seed in range(asked.seeds):
            for run in asked.runs or recipe["finetune"]["runs"]:
                make(asked.work, varied(recipe, variants.get(run, {})), run, seed)
    rows = [row_of(asked.work, run) for run in recipe["finetune"]["runs"]]
    write(rows, asked.work / "photographs.csv")


def placed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with paths into the folder of photographs."""
    for split in recipe["data"].values():
        for key, path in split.items():
            split[key] = str(DATA / path)
    for section in ("proposals", "pretrain"):
        recipe[section]["init"] = str(DATA / recipe[section]["init"])
    return recipe


def varied(recipe: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The recipe with some keys of some sections changed."""
    return {**recipe, **{section: recipe[section] | keys for section, keys in changes.items()}}


def make(work: Path, recipe: dict[str, Any], run: str, seed: int) -> None:
    """Train and evaluate one run in `work/seed-N`, unless it is there."""
    folder = work / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    params = f"params-{run}.yaml"
    (folder / params).write_text(yaml.safe_dump({**recipe, "seed": seed}), encoding="utf-8")
    if metrics_of(folder, run) is not None:
        return
    if not (folder / "artifacts/stats/default/manifest.json").exists():
        command(folder, "stats", "--params", params)
    from_elsewhere = {"init", "stage1"} & set(recipe["finetune"]["runs"][run])
    start = [] if from_elsewhere else pretrained(folder, params, run)
    command(folder, "finetune", "--params", params, "--run", run, "--gpus", "0", *start)
    command(folder, "evaluate", "--params", params, "--run", run, "--gpus", "0")


def pretrained(folder: Path, params: str, run: str) -> list[str]:
    """Pre-train a detector for one run; what makes fine-tuning start from it."""
    if not (folder / "artifacts/proposals/default/manifest.json").exists():
        command(folder, "proposals", "--params", params, "--gpus", "0")
    product = f"artifacts/pretrain/{run}"
    command(folder, "pretrain", "--params", params, "--gpus", "0", "--out", product)
    return ["--init", f"{product}/detector.pth"]


def command(folder: Path, *arguments: str) -> None:
    """`2drcl ...` of this checkout; a failure is said and leaves the run empty."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "stages.cli", *arguments], cwd=folder, env=environment)
    if done.returncode:
        print(f"{folder.name}: 2drcl {' '.join(arguments)} ended with {done.returncode}", file=sys.stderr)


def metrics_of(folder: Path, run: str) -> dict[str, float | None] | None:
    path = folder / f"artifacts/evaluate/{run}/metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def drawn(folder: Path, run: str) -> int:
    """Images drawn, in both stages of a method that has two."""
    manifest = folder / f"artifacts/finetune/{run}/manifest.json"
    return int(json.loads(manifest.read_text(encoding="utf-8"))["images_drawn_with_init"])


def row_of(work: Path, run: str) -> dict[str, Any]:
    """Means over the seeds; the difference of APr to ce is taken seed by seed."""
    folders = [folder for folder in sorted(work.glob("seed-*")) if metrics_of(folder, run) is not None]
    row: dict[str, Any] = {"run": run, "seeds": len(folders)}
    if not folders:
        return row
    found = [metrics_of(folder, run) or {} for folder in folders]
    row["images_drawn"] = drawn(folders[0], run)
    for key in METRICS:
        row[key] = mean([values.get(key) for values in found])
    row |= over_ce(folders, run)
    tails = [v for values in found if (v := values.get("bbox_APr")) is not None]
    row["spread_of_APr"] = statistics.stdev(tails) if len(tails) > 1 else None
    return row


def over_ce(folders: Sequence[Path], run: str) -> dict[str, float | None]:
    """How much better the tail is than ce's: mean over the seeds; interval and p value of the first seed."""
    from pipeline.evaluation.intervals import paired

    found = []
    for folder in folders:
        sides = [metrics_of(folder, name) for name in ("ce", run)]
        if run != "ce" and sides[0] is not None and sides[1] is not None:
            places = [folder / f"artifacts/evaluate/{name}" for name in ("ce", run)]
            found.append(paired(places[0], places[1], [side or {} for side in sides])["bbox_APr"])
    if not found:
        return {}
    low, high = found[0].interval or (None, None)
    return dict(zip(OVER_CE, (mean([each.value for each in found]), low, high, found[0].p), strict=True))


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def text_of(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if key == "p" else f"{value:.1f}"
    return "" if value is None else str(value)


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The table for people on stdout, and as CSV."""
    texts = [{key: text_of(key, row.get(key)) for key in COLUMNS} for row in rows]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for text in texts:
        print(f"| {' | '.join(text.values())} |")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(texts)


if __name__ == "__main__":
    main()
