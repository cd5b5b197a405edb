"""`2drcl pretrain`: images, proposals, stats -> detector.pth and config.py, pre-trained with 2DRCL."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.data.settings import Split
from pipeline.errors import MismatchedInput
from pipeline.pretrain.reconstructions_figure import reconstructions_figure
from pipeline.pretrain.training import (
    RECONSTRUCTIONS,
    PretrainJob,
    PretrainPlan,
    build_detector,
    publish,
)
from pipeline.proposals.store import ProposalStore
from pipeline.settings import to_plain
from stages import show_batch
from stages.common import Order, answer, check_splits, default_out, proposals_digest, refuse_own_input
from stages.console import say, warn
from stages.estimate import estimate
from stages.history import summary
from stages.initial_weights import initial_digest
from stages.training import keep_history, report_start, train_and_publish


@dataclass(frozen=True)
class Inputs:
    """What the run is made from.

    Args:
        split: what is trained on.
        proposals, stats: folders of those stages, made from the same annotations.
        init: weights that replace `pretrain.init`.
        allow_partial: parts they may lack, besides `pretrain.allow_partial`.
    """

    split: Split
    proposals: Path
    stats: Path
    init: Path | None = None
    allow_partial: tuple[str, ...] = ()


def run(order: Order, inputs: Inputs, picture: Path | None = None) -> None:
    """Pre-train every module of the detector; with `picture`, only draw the next step there."""
    settings = order.params.section("pretrain")
    artifacts.refuse_foreign(order.out, "pretrain")
    order.machine.processes(settings.batch_size, settings.accumulate)
    check_splits(inputs.split, order.params.section("data"))
    job, manifest = plan_run(order, inputs)
    plan = PretrainPlan(job)
    if picture is not None:
        show_batch.write(order, plan, picture)
        return
    report_start("pretrain", build_detector(plan)[1], job.detector.norm)
    for remark in plan.remarks():
        say(f"pretrain: {remark}")
    for warning in plan.warnings():
        warn(warning)
    for remark in ProposalStore.open(job.proposals, plan.annotations.digest).remarks(settings.contrast.boxes):
        say(f"proposals: {remark}")
    say(
        f"pretrain: {plan.images_drawn} images in epochs of {plan.schedule.epoch_steps[0]} to "
        f"{plan.schedule.epoch_steps[-1]} steps; queues of {plan.queues[0]} images and {plan.queues[1]} boxes"
    )
    manifest |= {"images_drawn": plan.images_drawn}
    if order.dry_run:
        manifest["steps"] = plan.schedule.total
        manifest["estimate"] = estimate(job.detector, settings, plan.images_drawn)

    def produce(state: dict[str, Any], folder: Path) -> None:
        publish(plan, state, folder)
        keep_history(job.work, folder)
        reconstructions_figure(job.work / RECONSTRUCTIONS, folder / "figures" / "reconstructions.png")
        say(f"pretrain: {summary(folder / 'history.jsonl')}")

    train_and_publish(order, manifest, job, settings, produce)
    if not order.dry_run:
        init = "" if order.out == default_out("pretrain") else f" --init {order.out}/detector.pth"
        say(f"pretrain: the detector is {order.out}/detector.pth; next: 2drcl finetune{init}")
    answer(order)


def plan_run(order: Order, inputs: Inputs) -> tuple[PretrainJob, dict[str, Any]]:
    """The job, and the manifest of its product."""
    settings = order.params.section("pretrain")
    start = str(inputs.init) if inputs.init else settings.init
    refuse_own_input(order.out, start)
    science = {name: order.params.section(name) for name in ("detector", "pretrain")}
    science["sampling"] = order.params.section("stats")
    digests = training_inputs(inputs.split, inputs.stats, start, science["detector"].depth, "null")
    digests["proposals"] = proposals_digest(inputs.proposals)
    manifest = artifacts.manifest("pretrain", to_plain(science), digests, order.params.seed)
    job = PretrainJob(
        annotations=inputs.split.annotations,
        images=inputs.split.images,
        proposals=inputs.proposals,
        stats=inputs.stats,
        work=artifacts.scratch(order.out, "pretrain", manifest["fingerprint"]),
        seed=order.params.seed,
        init=start,
        allow_partial=(*settings.allow_partial, *inputs.allow_partial),
        **science,
    )
    return job, manifest


def training_inputs(split: Split, stats: Path, init: str | None, depth: int, nothing: str) -> dict[str, str]:
    """Digests of what a training reads, after checking that the stats are of these annotations.

    Args:
        split, stats: what is trained on, and its statistics.
        init, depth, nothing: of `initial_digest`; None: no initial weights.

    Raises:
        MissingInput: a file or a stage's product is not there.
        MismatchedInput: the stats were made for other annotations.
    """
    digest = artifacts.file_digest(split.annotations)
    made_for = artifacts.read_manifest(stats, "stats")["inputs"]["annotations"]
    if made_for != digest:
        raise MismatchedInput(
            f"{stats} is of other annotations ({made_for[:8]}) than {split.annotations} ({digest[:8]})",
            "run `2drcl stats` on these annotations",
        )
    inputs = {"annotations": digest, "stats": artifacts.file_digest(stats / "categories.parquet")}
    if init:
        inputs["init"] = initial_digest(Path(init), depth, nothing)
    return inputs
