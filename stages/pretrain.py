"""`2drcl pretrain`: images, proposals, stats -> detector.pth and config.py, pre-trained with 2DRCL."""

from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.data.settings import Split
from pipeline.errors import MismatchedInput
from pipeline.pretrain.training import PretrainJob, PretrainPlan, build_detector, publish
from pipeline.settings import to_plain
from stages.common import Order, answer, check_splits, folder_digest
from stages.console import say, warn
from stages.training import keep_history, train_and_publish


def run(
    order: Order,
    split: Split,
    proposals: Path,
    stats: Path,
    init: Path | None = None,
    allow_partial: tuple[str, ...] = (),
) -> None:
    """Pre-train every module of the detector.

    Args:
        order: options.
        split: what is trained on.
        proposals, stats: folders of those stages, made from the same annotations.
        init: weights that replace `pretrain.init`.
        allow_partial: parts they may lack, besides `pretrain.allow_partial`.
    """
    order.machine.check()
    order.params.check_all()
    settings, detector = order.params.section("pretrain"), order.params.section("detector")
    sampling = order.params.section("stats")
    check_splits(split, order.params.section("data"))
    start = str(init) if init else settings.init
    inputs = training_inputs(split, stats, start) | {"proposals": folder_digest(proposals, "proposals")}
    plain = {"detector": to_plain(detector), "pretrain": to_plain(settings), "stats": to_plain(sampling)}
    manifest = artifacts.manifest("pretrain", plain, inputs, order.params.seed)
    job = PretrainJob(
        annotations=split.annotations,
        images=split.images,
        proposals=proposals,
        stats=stats,
        work=artifacts.scratch(order.out, "pretrain", manifest["fingerprint"]),
        seed=order.params.seed,
        detector=detector,
        pretrain=settings,
        sampling=sampling,
        init=start,
        allow_partial=(*settings.allow_partial, *allow_partial),
    )
    plan = PretrainPlan(job)
    order.machine.processes(settings.batch_size)
    say(f"pretrain: {build_detector(plan)[1].sentence()}")
    for warning in plan.warnings():
        warn(warning)
    say(
        f"pretrain: {plan.images_drawn} images in epochs of {plan.schedule.epoch_steps[0]} to "
        f"{plan.schedule.epoch_steps[-1]} steps; queues of {plan.queues[0]} images and {plan.queues[1]} boxes"
    )
    manifest |= {"images_drawn": plan.images_drawn}

    def produce(state: dict[str, Any], folder: Path) -> None:
        publish(plan, state, folder)
        keep_history(job.work, folder)

    train_and_publish(order, manifest, job, settings.batch_size, produce)
    answer(order)


def training_inputs(split: Split, stats: Path, init: str | None) -> dict[str, str]:
    """Digests of what a training reads, after checking that the stats are of these annotations.

    Raises:
        MissingInput: a file or a stage's product is not there.
        MismatchedInput: the stats were made for other annotations.
    """
    digest = artifacts.file_digest(split.annotations)
    made_for = artifacts.read_manifest(stats, "stats")["inputs"]["annotations"]
    if made_for != digest:
        raise MismatchedInput(
            f"{stats} was made for other annotations ({made_for[:8]}) than {split.annotations} ({digest[:8]})",
            "run `2drcl stats` on these annotations",
        )
    inputs = {"annotations": digest, "stats": artifacts.file_digest(stats / "categories.parquet")}
    if init:
        inputs["init"] = artifacts.file_digest(Path(init))
    return inputs
