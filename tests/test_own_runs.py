"""What a run was trained with, from the manifests beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.errors import InputError, MissingInput
from pipeline.report.own_runs import own_run, training_cost

LVIS = {"protocol": "lvis", "num_categories": 1203}


def evaluated(root: Path, name: str = "ecm", **facts: Any) -> Path:
    folder = root / "evaluate" / name
    made = artifacts.manifest("evaluate", {}, {}, 0, **{**LVIS, **facts})
    artifacts.write_json(folder / artifacts.MANIFEST, made)
    artifacts.write_json(folder / "metrics.json", {"bbox_AP": 20.5, "bbox_APr": None})
    return folder


def finetuned(root: Path, name: str, init: str, digest: str | None, epochs: int = 12, **more: Any) -> Path:
    settings = {
        "detector": {"type": "mask-rcnn", "depth": 50},
        "finetune": {"epochs": epochs},
        "run": {"method": "ecm", "init": init},
    }
    inputs = {"init": digest} if digest else {}
    folder = root / "finetune" / name
    artifacts.write_json(
        folder / artifacts.MANIFEST, artifacts.manifest("finetune", settings, inputs, 0, **more)
    )
    return folder


def pretrained(root: Path, **settings: Any) -> str:
    folder = root / "pretrain" / "default"
    science = {"terms": ["hcl", "lcl", "ar", "sr", "det"], "sampler": "drb", "epochs": 12, **settings}
    artifacts.write_json(
        folder / artifacts.MANIFEST, artifacts.manifest("pretrain", {"pretrain": science}, {}, 0)
    )
    (folder / "detector.pth").write_bytes(b"weights")
    return artifacts.file_digest(folder / "detector.pth")


def test_a_run_after_our_pretraining(tmp_path: Path) -> None:
    finetuned(tmp_path, "ecm", "pretrain", pretrained(tmp_path))
    run = own_run(evaluated(tmp_path))
    assert (run.name, run.metrics["bbox_AP"]) == ("ecm", 20.5)
    assert (run.setting.method, run.setting.start, run.setting.detector) == ("ecm", "2drcl", "mask-rcnn_r50")
    assert run.setting.components == {"hcl", "lcl", "drb", "ar", "sr"}
    assert (run.setting.data, run.setting.schedule) == ("lvis-v1", "1x")


@pytest.mark.parametrize(
    ("settings", "components"),
    [
        ({"sampler": "rfs"}, {"hcl", "lcl", "ar", "sr"}),
        ({"terms": ["hcl", "det"], "sampler": "random"}, {"hcl"}),
    ],
)
def test_components_of_an_ablation(tmp_path: Path, settings: dict[str, Any], components: set[str]) -> None:
    finetuned(tmp_path, "ecm", "pretrain", pretrained(tmp_path, **settings))
    assert own_run(evaluated(tmp_path)).setting.components == components


def test_equal_epochs_and_two_stages(tmp_path: Path) -> None:
    digest = pretrained(tmp_path, epochs=6)
    finetuned(tmp_path, "ecm", "pretrain", digest, epochs=6)
    assert own_run(evaluated(tmp_path)).setting.schedule == "6+6"
    finetuned(tmp_path, "loce", "backbone", "d" * 64, stages=[{"epochs": 24}, {"epochs": 6}])
    assert own_run(evaluated(tmp_path, "loce")).setting.schedule == "24+6"


def test_a_control_is_no_plain_schedule(tmp_path: Path) -> None:
    folder = finetuned(tmp_path, "ecm", "backbone", "d" * 64)
    made = json.loads((folder / artifacts.MANIFEST).read_text())
    made["settings"]["extra_draws"] = 1624
    artifacts.write_json(folder / artifacts.MANIFEST, made)
    assert own_run(evaluated(tmp_path)).setting.schedule == "1x and the draws of pre-training"


@pytest.mark.parametrize(
    ("init", "digest", "start"),
    [
        ("backbone", "d" * 64, "imagenet"),
        ("backbone", None, "random"),
        ("none", None, "random"),
        ("weights/other.pth", "d" * 64, "unknown"),
    ],
)
def test_runs_without_pretraining(tmp_path: Path, init: str, digest: str | None, start: str) -> None:
    pretrained(tmp_path)
    finetuned(tmp_path, "ecm", init, digest)
    setting = own_run(evaluated(tmp_path)).setting
    assert (setting.start, setting.components) == (start, frozenset())


def test_other_data_is_named_by_what_it_is(tmp_path: Path) -> None:
    finetuned(tmp_path, "ecm", "none", None)
    assert own_run(evaluated(tmp_path, num_categories=16)).setting.data == "16 categories (lvis)"
    coco_lt = {"protocol": "coco-lt", "num_categories": 80}
    assert own_run(evaluated(tmp_path, **coco_lt)).setting.data == "coco-lt"


def test_predictions_of_others_are_of_unknown_make(tmp_path: Path) -> None:
    assert own_run(evaluated(tmp_path, "theirs")).setting.method == "unknown"


def test_cost_is_that_of_both_trainings(tmp_path: Path) -> None:
    folder = finetuned(tmp_path, "ecm", "pretrain", pretrained(tmp_path))
    both = {"train_seconds": 600, "stage1_train_seconds": 3000, "gpu_memory_mib": 20000}
    artifacts.write_json(folder / artifacts.TIMING, both)
    assert own_run(evaluated(tmp_path)).metrics["hours"] is None  # pre-training was not timed
    artifacts.write_json(
        tmp_path / "pretrain/default" / artifacts.TIMING, {"train_seconds": 1800, "gpu_memory_mib": 22000}
    )
    metrics = own_run(evaluated(tmp_path)).metrics
    assert metrics["hours"] == 1.5
    assert metrics["vram_gb"] == pytest.approx(22000 * 2**20 / 1e9)
    assert training_cost([]) == {"hours": None, "vram_gb": None}


def test_broken_and_missing_evaluations(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="holds no finished evaluate"):
        own_run(tmp_path / "evaluate" / "ecm")
    folder = evaluated(tmp_path)
    (folder / "metrics.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"metrics\.json holds a list"):
        own_run(folder)
