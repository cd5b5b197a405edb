"""`2drcl finetune --method ecm`: a pre-trained detector -> one trained with a long-tailed method.

A method with two stages trains both in one scratch folder (stage-1/, stage-1.pth, stage-2/) and publishes
once.  history.jsonl goes on counting steps, epochs and images through the second stage.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.data.settings import Split
from pipeline.engine.distributed import barrier
from pipeline.errors import UsageError
from pipeline.finetune import second_stage
from pipeline.finetune.methods import get_method
from pipeline.finetune.plan import FinetuneJob, FinetunePlan
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings
from pipeline.finetune.training import build_detector, build_untrained, drawn_by, publish, save_first
from pipeline.finetune.variant import method_of
from pipeline.settings import to_plain
from stages import launch
from stages.common import Order, answer, check_splits, make, refuse_own_input
from stages.console import Stopwatch, say, warn
from stages.machine import is_first
from stages.pretrain import training_inputs
from stages.training import keep_history, nothing_to_do, report_start, train

FIRST = "stage-1.pth"  # in scratch: the first stage's detector


def chosen_runs(
    settings: FinetuneSettings, method: str | None, run: str | None, detector: str
) -> dict[str, FinetuneRun]:
    """Which runs a command means: one by name, one by method, or all of `finetune.runs`.

    Raises:
        UsageError: no such run or method, nothing to run, or a method that is not defined for `detector`.
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
        method_of(entry, detector)
        second_stage.refuse_contradictions(entry)
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
    second_stage.refuse_contradictions(entry)
    artifacts.refuse_foreign(order.out, "finetune")
    order.machine.processes(settings.batch_size, settings.accumulate)
    check_splits(inputs.split, order.params.section("data"))
    plans, manifest = plan_run(order, entry, inputs)
    _introduce(name, plans)
    drawn = _images_drawn(plans)
    manifest |= drawn
    if len(plans) > 1:
        manifest["stages"] = [_account(plan) for plan in plans]
    work = artifacts.scratch(order.out, "finetune", manifest["fingerprint"])

    def produce(state: dict[str, Any], folder: Path) -> None:
        publish(plans[-1], state, folder, drawn)
        if len(plans) > 1:
            _join_histories(plans, work)
        keep_history(work, folder)

    if not nothing_to_do(order, manifest, work):
        watch = Stopwatch()
        with launch.exclusive(work, fresh=order.fresh):
            state, measured = _train_stages(order, name, plans, work)
            if is_first():
                make(order, manifest, lambda folder: produce(state, folder))
                watch.write(order.out, **measured)
                shutil.rmtree(work, ignore_errors=True)
    answer(order)


def _introduce(name: str, plans: list[FinetunePlan]) -> None:
    """Say what the run starts from; refuse before anything long starts what a later stage would refuse."""
    _say_start(name, plans[0])
    for plan in plans[1:]:
        build_untrained(plan)
    for warning in dict.fromkeys(w for plan in plans for w in (*plan.warnings(), *plan.loss_warnings())):
        warn(warning)
    first = plans[0]
    for remark in first.annotations.mask_remarks() if first.job.detector.type == "mask-rcnn" else ():
        say(remark)


def _say_start(name: str, plan: FinetunePlan) -> None:
    """What a stage starts from, and what of it trains."""
    detector, report = build_detector(plan)
    title = f"finetune {name}{plan.title}"
    report_start(title, report, plan.job.detector.norm)
    if plan.job.stage == "second" and plan.job.init is not None:
        say(f"{title}: {second_stage.trained_parts(detector).sentence()}")
        remark = second_stage.remark_on_classifier(plan.asked, second_stage.read_first(Path(plan.job.init)))
        if remark:
            warn(remark)


def _train_stages(
    order: Order, name: str, plans: list[FinetunePlan], work: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train one stage or both, continuing where an earlier command stopped; see `stages.training.train`."""
    settings, measured = order.params.section("finetune"), {}
    if len(plans) > 1:
        measured = _train_first(order, plans[0], work / FIRST, settings)
        _say_start(name, plans[1])
    state, of_last = train(order, "finetune", plans[-1].job, settings)
    return state, measured | of_last


def _train_first(
    order: Order, plan: FinetunePlan, kept: Path, settings: FinetuneSettings
) -> dict[str, float]:
    """Leave the first stage's detector in scratch, where a second stage that was stopped finds it again."""
    # --fresh: the first process of a group has removed the file, or is about to
    if kept.exists() and not order.fresh:
        say("finetune: stage 1 is trained already")
        return {}
    state, measured = train(order, "finetune", plan.job, settings)
    if is_first():
        save_first(plan, state, kept)
        shutil.rmtree(plan.job.work / "checkpoints")
    barrier()  # the other processes of a group read the file next
    return {f"stage1_{key}": value for key, value in measured.items()}


def plan_run(order: Order, entry: FinetuneRun, inputs: Inputs) -> tuple[list[FinetunePlan], dict[str, Any]]:
    """The stages of one run that are to be trained, and the manifest of its product."""
    settings: FinetuneSettings = order.params.section("finetune")
    given = None if entry.stage1 == "train" else Path(entry.stage1)
    init = None if given else _start(entry, inputs.pretrained, order.params.section("pretrain").init)
    refuse_own_input(order.out, given, init)
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
    digests = training_inputs(inputs.split, inputs.stats, init, science["detector"].depth, "none")
    if given:
        second_stage.read_first(given)
        digests["stage1"] = artifacts.file_digest(given)
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
    return [FinetunePlan(stage) for stage in _stages(job, given)], manifest


def _stages(job: FinetuneJob, given: Path | None) -> list[FinetuneJob]:
    """The job, or those of its two stages.

    A control's extra draws go to the first stage: they stand for pre-training, which precedes it too, and
    most of a second stage is frozen.
    """
    if get_method(job.run.method).second_stage is None:
        return [job]
    if given:
        return [replace(job, stage="second", init=str(given))]
    first = replace(job, stage="first", work=job.work / "stage-1")
    start = str(job.work / FIRST)
    return [first, replace(job, stage="second", work=job.work / "stage-2", init=start, extra_draws=0)]


def _start(entry: FinetuneRun, pretrained: Path, backbone: str | None) -> str | None:
    """The file a run starts from."""
    named = {"pretrain": str(pretrained / "detector.pth"), "backbone": backbone, "none": None}
    return named.get(entry.init, entry.init)


def _images_drawn(plans: list[FinetunePlan]) -> dict[str, int]:
    """Draws of this run, and those together with what went into its initial weights."""
    init = plans[0].job.init
    here = sum(plan.images_drawn for plan in plans)
    return {
        "images_drawn": here,
        "images_drawn_with_init": here + drawn_by(None if init is None else Path(init)),
    }


def _account(plan: FinetunePlan) -> dict[str, Any]:
    return {
        "method": plan.method.name,
        "epochs": plan.epochs,
        "steps": plan.schedule.total,
        "images_drawn": plan.images_drawn,
    }


def _join_histories(plans: list[FinetunePlan], work: Path) -> None:
    """One history.jsonl of all stages: steps, epochs and images go on counting."""
    lines, before = [], {"step": 0, "epoch": 0, "images": 0}
    for plan in plans:
        for line in (plan.job.work / "history.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            lines.append(json.dumps(record | {key: record[key] + done for key, done in before.items()}))
        done = {"step": plan.schedule.total, "epoch": plan.epochs, "images": plan.images_drawn}
        before = {key: before[key] + done[key] for key in before}
    artifacts.write_bytes(work / "history.jsonl", ("\n".join(lines) + "\n").encode())
