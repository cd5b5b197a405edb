"""A small project whose artifacts are real, trainings apart: sample, stats, evaluations and analyses by the
commands themselves, of detections made from the true boxes; only manifests and histories of training are
written by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY
from PIL import Image

# names that would break a page which puts them into html, and one that no column has room for
HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "a & b 'c' \"d\"",
    "line\u2028separator\u2029here",
    "very_" * 40 + "long",
    "\u202eright-to-left",
)
RUNS = {"ecm": {"method": "ecm"}, "ecm-alone": {"method": "ecm", "init": "backbone"}}
RUNS["ecm-control"] = {**RUNS["ecm-alone"], "match_pretrain_draws": True}
DRAWN = {"ecm": (100, 150), "ecm-alone": (100, 100), "ecm-control": (150, 150)}
# of a run: the share of the rare categories' objects that it finds, and of the others'
SKILL = {"ecm": (0.9, 0.8), "ecm-alone": (0.2, 0.8), "ecm-control": (0.4, 0.8)}
SAMPLE = {
    **TINY["sample"],
    **{"categories": 8, "train_images": 60, "val_images": 30, "val_instances": 4},
    **{"rare_fraction": 0.12, "common_fraction": 0.3},
}


def build(folder: Path) -> None:
    """Make the project in `folder`."""
    params = {**TINY, "sample": SAMPLE, "finetune": {**TINY["finetune"], "runs": RUNS}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command(patch, "sample")
        for split in ("train", "val"):
            _rename(folder / f"artifacts/sample/{split}_lvis.json")
        command(patch, "stats")
        for run in RUNS:
            _trained(folder / f"artifacts/finetune/{run}", run)
            found = folder / f"{run}.json"
            found.write_text(json.dumps(_detections(folder / "artifacts/sample/val_lvis.json", run)))
            for stage in ("evaluate", "analyze"):
                out = f"artifacts/{stage}/{run}"
                command(patch, stage, "--predictions", found, "--run", run, "--out", out)
    _manifest(folder / "artifacts/pretrain/default", "pretrain", images_drawn=50)
    _history(folder / "artifacts/pretrain/default", ("hcl", "lcl", "ar", "sr", "det"))
    painted = folder / "artifacts/pretrain/default/figures/reconstructions.png"
    painted.parent.mkdir()
    Image.new("RGB", (600, 300), "gray").save(painted)


def command(patch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """Run one in this process; it must succeed."""
    from stages.cli import main

    patch.setattr(sys, "argv", ["2drcl", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, arguments


def _rename(path: Path) -> None:
    content = json.loads(path.read_text())
    for category, name in zip(content["categories"], HOSTILE, strict=False):
        category["name"] = name
    path.write_text(json.dumps(content))


def _trained(folder: Path, run: str) -> None:
    own, total = DRAWN[run]
    settings = {
        "run": {"init": "pretrain", **RUNS[run]},
        "extra_draws": 50 if run == "ecm-control" else 0,
        "finetune": {"epochs": 1, "lr": 0.01},
        "detector": {"type": "faster-rcnn", "depth": 18},
    }
    _manifest(
        folder, "finetune", settings=settings, inputs={}, images_drawn=own, images_drawn_with_init=total
    )
    _history(folder, ("rpn_cls", "cls", "bbox"))


def _manifest(folder: Path, stage: str, **content: Any) -> None:
    folder.mkdir(parents=True)
    made = {"stage": stage, "seed": 3, "fingerprint": "0" * 16, **content}
    (folder / "manifest.json").write_text(json.dumps(made))
    (folder / "timing.json").write_text(json.dumps({"seconds": 12.5, "peak_memory_mib": 512}))


def _history(folder: Path, terms: tuple[str, ...]) -> None:
    lines = [
        {
            "step": i,
            "epoch": 0,
            "images": 4 * (i + 1),
            "loss": 3 / (i + 1),
            **dict.fromkeys(terms, 1 / (i + 1)),
        }
        for i in range(400)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _detections(annotations: Path, run: str) -> list[dict[str, Any]]:
    """Of each object a box, which is near it or, by chance, nowhere; the same chances for every run."""
    content = json.loads(annotations.read_text())
    letter = {c["id"]: c["frequency"] for c in content["categories"]}
    random = np.random.default_rng(5)
    found = []
    for record in content["annotations"]:
        skill = SKILL[run][letter[record["category_id"]] != "r"]
        x, y, width, height = record["bbox"]
        moved = 0 if random.random() < skill else 2 * width
        found.append(
            {
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "bbox": [x + moved, y, width, height],
                "score": 0.5 + 0.4 * random.random(),
            }
        )
    return found
