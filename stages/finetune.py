"""`2drcl finetune --method ecm`: a pre-trained detector -> one trained with a long-tailed method."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.data.settings import Split
from pipeline.engine.checkpoint import load_tensors
from pipeline.errors import UsageError
from pipeline.finetune.methods import get_method
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings
from pipeline.finetune.training import FinetuneJob, FinetunePlan, build_detector, publish
from pipeline.settings import to_plain
from stages.common import Order, answer, check_splits
from stages.console import say, warn
from stages.pretrain import training_inputs
from stages.training import keep_history, report_start, train_and_publish


def chosen_runs(settings: FinetuneSettings, method: str | None, run: str | None) -> dict[str, FinetuneRun]:
    """Which runs a command means: one by name, one by method, or all of `finetune.runs`.

    Raises:
        UsageError: no such run or method, or nothing to run.
    """
    if run is not None and method is not None:
        raise UsageError("--run and --method exclude each other", "a run has its method in params.yaml")
    if run is not None:
        if run not in settings.runs:
            known = ", ".join(settings.runs) or "none"
            raise UsageError(f"no run {run!r} in finetune.runs", f"runs in params.yaml: {known}")
        found = {run: settings.runs[run]}
    elif method is not None:
        found = {method: settings.runs.get(method, FinetuneRun(get_method(method).name))}
        if found[method].method != method:
            raise UsageError(
                f"--method {method}: the run of that name in params.yaml uses {found[method].method}",
                f"rename the run, or choose it with --run {method}",
            )
    else:
        found = dict(settings.runs)
    if not found:
        raise UsageError(
            "nothing to fine-tune: finetune.runs is empty", "name a method: 2drcl finetune --method ecm"
        )
    for entry in found.values():
        get_method(entry.method)
    return found


@dataclass(frozen=True)
class Inputs:
    """What one run is made from.

    Args:
        split: what is trained on.
        stats: folder of the stats stage.
        pretrained: folder of the pretrain stage.
        allow_partial: parts the initial weights may lack, besides `finetune.allow_partial`.
    """

    split: Split
    stats: Path
    pretrained: Path
    allow_partial: tuple[str, ...] = ()


def run(order: Order, name: str, entry: FinetuneRun, inputs: Inputs) -> None:
    """Fine-tune the run `name`; `order.out` is its folder."""
    settings: FinetuneSettings = order.params.section("finetune")
    artifacts.refuse_foreign(order.out, "finetune")
    order.machine.processes(settings.batch_size)
    check_splits(inputs.split, order.params.section("data"))
    job, manifest = plan_run(order, entry, inputs)
    plan = FinetunePlan(job)
    report_start(f"finetune {name}", build_detector(plan)[1], job.detector.norm)
    for warning in plan.warnings():
        warn(warning)
    for remark in plan.annotations.mask_remarks() if job.detector.type == "mask-rcnn" else ():
        say(remark)
    before = _drawn_by(job.init)
    manifest |= {"images_drawn": plan.images_drawn, "images_drawn_with_init": plan.images_drawn + before}

    def produce(state: dict[str, Any], folder: Path) -> None:
        publish(plan, state, folder)
        keep_history(job.work, folder)

    train_and_publish(order, manifest, job, settings.batch_size, produce)
    answer(order)


def plan_run(order: Order, entry: FinetuneRun, inputs: Inputs) -> tuple[FinetuneJob, dict[str, Any]]:
    """The job of one run, and the manifest of its product."""
    settings: FinetuneSettings = order.params.section("finetune")
    init = _start(entry, inputs.pretrained, order.params.section("pretrain").init)
    extra = 0
    if entry.match_pretrain_draws:
        extra = int(artifacts.read_manifest(inputs.pretrained, "pretrain")["images_drawn"])
    science = {
        "detector": order.params.section("detector"),
        "finetune": replace(
            settings, runs={}, allow_partial=(*settings.allow_partial, *inputs.allow_partial)
        ),
        "run": entry,
        "sampling": order.params.section("stats"),
    }
    plain = {**to_plain(science), "extra_draws": extra}
    digests = training_inputs(inputs.split, inputs.stats, init)
    manifest = artifacts.manifest("finetune", plain, digests, order.params.seed)
    job = FinetuneJob(
        annotations=inputs.split.annotations,
        images=inputs.split.images,
        stats=inputs.stats,
        work=artifacts.scratch(order.out, "finetune", manifest["fingerprint"]),
        seed=order.params.seed,
        init=init,
        extra_draws=extra,
        **science,
    )
    return job, manifest


def _start(entry: FinetuneRun, pretrained: Path, backbone: str | None) -> str | None:
    """The file a run starts from."""
    named = {"pretrain": str(pretrained / "detector.pth"), "backbone": backbone, "none": None}
    return named.get(entry.init, entry.init)


def _drawn_by(init: str | None) -> int:
    """Draws that went into the initial weights: a detector of ours says so itself."""
    if init is None:
        return 0
    meta = load_tensors(Path(init)).get("meta")
    return int(meta.get("images_drawn", 0)) if isinstance(meta, dict) else 0
