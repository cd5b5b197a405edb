"""What one of our runs was trained with, read from the manifests of its stages, to set it beside the paper's.

An evaluation `artifacts/evaluate/RUN` belongs to the fine-tuning `artifacts/finetune/RUN`, and that to the
pre-training whose detector.pth has the digest it started from.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.errors import InputError
from pipeline.evaluation.paper_tables import OwnRun, Setting

SCHEDULES = {12: "1x", 24: "2x", 36: "3x", 48: "4x"}
MIB_PER_GB = 1e9 / 2**20


def own_run(evaluated: Path) -> OwnRun:
    """An evaluation with what its detector was trained with.

    Args:
        evaluated: a folder of `2drcl evaluate`, beside the folders of the other stages; where fine-tuning was
            not ours, the setting's facts are "unknown" and the run stands for no row of the paper.

    Raises:
        MissingInput, MismatchedInput, InputError: no finished evaluation is there, or a file is broken.
    """
    made = artifacts.read_manifest(evaluated, "evaluate")
    metrics = _read(evaluated / "metrics.json")
    trained = evaluated.parent.parent / "finetune" / evaluated.name
    if not (trained / artifacts.MANIFEST).exists():
        unknown = Setting("unknown", "unknown", frozenset(), "unknown", "unknown", "unknown")
        return OwnRun(evaluated.name, unknown, metrics)
    finetuned = artifacts.read_manifest(trained, "finetune")
    pretrained = _pretraining(trained.parent.parent / "pretrain", finetuned)
    setting = _setting(
        made, finetuned, artifacts.read_manifest(pretrained, "pretrain") if pretrained else None
    )
    cost = training_cost([folder for folder in (pretrained, trained) if folder])
    return OwnRun(evaluated.name, setting, {**metrics, **cost})


def training_cost(folders: Sequence[Path]) -> dict[str, float | None]:
    """`hours` and `vram_gb` of trainings one after the other, from their timing.json; None: not measured.

    Hours are those of the command that ended the training: if it was stopped before, of the last part alone.
    """
    timings = [_read(f / artifacts.TIMING) if (f / artifacts.TIMING).exists() else {} for f in folders]
    memory = [float(t["gpu_memory_mib"]) for t in timings if "gpu_memory_mib" in t]
    seconds = [
        float(t["train_seconds"]) + float(t.get("stage1_train_seconds", 0))
        for t in timings
        if "train_seconds" in t
    ]
    return {
        "hours": sum(seconds) / 3600 if len(seconds) == len(folders) > 0 else None,
        "vram_gb": max(memory) / MIB_PER_GB if len(memory) == len(folders) > 0 else None,
    }


def _pretraining(stage: Path, finetuned: Mapping[str, Any]) -> Path | None:
    """The pretrain folder whose weights a fine-tuning started from."""
    start = finetuned.get("inputs", {}).get("init")
    for weights in sorted(stage.glob("*/detector.pth")) if start else ():
        if artifacts.file_digest(weights) == start:
            return weights.parent
    return None


def _setting(
    evaluated: Mapping[str, Any], finetuned: Mapping[str, Any], pretrained: Mapping[str, Any] | None
) -> Setting:
    science = finetuned["settings"]
    detector = science["detector"]
    start, components = _start(finetuned, pretrained)
    return Setting(
        method=science["run"]["method"],
        start=start,
        components=components,
        detector=f"{detector['type']}_r{detector['depth']}",
        data=_data(evaluated),
        schedule=_schedule(finetuned, pretrained),
    )


def _start(finetuned: Mapping[str, Any], pretrained: Mapping[str, Any] | None) -> tuple[str, frozenset[str]]:
    if pretrained is not None:
        settings = pretrained["settings"]["pretrain"]
        drb = {"drb"} if settings["sampler"] == "drb" else set()
        return settings.get("method", "2drcl"), frozenset({*settings["terms"], *drb} - {"det"})
    kind = finetuned["settings"]["run"]["init"]
    if finetuned["inputs"].get("init") is None:
        return "random", frozenset()
    return ("imagenet" if kind == "backbone" else "unknown"), frozenset()


def _data(evaluated: Mapping[str, Any]) -> str:
    """lvis-v1, coco and coco-lt by protocol and number of categories; anything else is named by them."""
    protocol, count = evaluated.get("protocol", "unknown"), evaluated.get("num_categories", "unknown")
    known = {("lvis", 1203): "lvis-v1", ("coco", 80): "coco", ("coco-lt", 80): "coco-lt"}
    return known.get((protocol, count), f"{count} categories ({protocol})")


def _schedule(finetuned: Mapping[str, Any], pretrained: Mapping[str, Any] | None) -> str:
    """Epochs of fine-tuning; beside them, pre-training if it is not the paper's 12, and a control's draws."""
    stages = [stage["epochs"] for stage in finetuned.get("stages", [])]
    epochs = finetuned["settings"]["finetune"]["epochs"]
    own = "+".join(map(str, stages)) if stages else SCHEDULES.get(epochs, f"{epochs} epochs")
    if finetuned["settings"].get("extra_draws"):
        own += " and the draws of pre-training"
    before = 12 if pretrained is None else pretrained["settings"]["pretrain"]["epochs"]
    return own if before == 12 else f"{before}+{'+'.join(map(str, stages or [epochs]))}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{path} cannot be read: {problem}", "run its stage again with --fresh") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}", "run its stage again with --fresh")
    return content
