"""From settings and files to a running pre-training, and from its last checkpoint to a detector."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.loading import BatchSource
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model
from pipeline.detectors.one_stage import RoIBranch, in_parts
from pipeline.detectors.publish import publish_detector
from pipeline.detectors.weights import LoadReport, clone_state, load_initial
from pipeline.engine.determinism import seeded
from pipeline.engine.distributed import Process, share_of
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.errors import UsageError
from pipeline.pretrain.accumulation import parts_of
from pipeline.pretrain.feature_growth import FeatureGrowth
from pipeline.pretrain.measures import RareShare, queue_age
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.momentum_schedule import MomentumSchedule
from pipeline.pretrain.plan import PretrainJob as PretrainJob
from pipeline.pretrain.plan import PretrainPlan as PretrainPlan
from pipeline.pretrain.reconstructions import Reconstructions
from pipeline.pretrain.views import PretrainDataset, to_batch
from pipeline.proposals.store import ProposalStore
from pipeline.stats.schemes import alpha_schedule

LEFT_BEHIND = "the RoI branch that pre-training gave LCL"
RECONSTRUCTIONS, HISTORY = "reconstructions", "history.jsonl"  # in the scratch folder
DETECTOR_PREFIX = "detector.detector."  # TwoDRCL.detector has the parts, its detector is mmdet's


def build_detector(plan: PretrainPlan) -> tuple[nn.Module, LoadReport]:
    """The detector with its initial weights, and the account of them."""
    job = plan.job
    detector = build_model(training_config(plan.model_config()), job.seed)
    report = load_initial(
        detector,
        Path(job.init) if job.init else None,
        classes=plan.class_names,
        drop={},
        allow_partial=job.allow_partial,
        pixels=job.detector.init_pixels,
    )
    if not job.pretrain.mask_loss and job.detector.type == "mask-rcnn":
        detector.get_submodule("roi_head.mask_head").requires_grad_(False)
    return detector, report


def build_step(plan: PretrainPlan, device: torch.device) -> TwoDRCL:
    """The model that trains, with its initial weights, on its device.

    Raises:
        UsageError: a mask loss without a mask head.
        InputError and its children: something is wrong with the initial weights.
    """
    job, settings = plan.job, plan.job.pretrain
    if settings.mask_loss and job.detector.type != "mask-rcnn":
        raise UsageError("pretrain.mask_loss needs detector.type: mask-rcnn")
    detector, _ = build_detector(plan)
    with seeded(job.seed + 1):  # RoI branch of ATSS, projectors, predictors, generator
        parts = in_parts(detector, RoIBranch(job.detector) if plan.has_roi_branch else None)
        model = TwoDRCL(parts, settings, plan.queues, partial(to_batch, device=device))
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return model.to(device, memory_format=layout).train()  # tensor cores want it; the views come in it


def batch_source(plan: PretrainPlan, process: Process, workers: int) -> BatchSource:
    """The draws of every step.

    Raises:
        InputError and its children: something is wrong with the proposals.
    """
    job, settings = plan.job, plan.job.pretrain
    store = ProposalStore.open(job.proposals, plan.annotations.digest)
    return BatchSource(
        PretrainDataset(plan.annotations, job.images, store, settings, job.seed),
        plan.sampler,
        plan.schedule,
        plan.annotations.sizes_wh,
        settings.views.short_sides,
        settings.views.long_side,
        process=process,
        workers=workers,
    )


def build_trainer(plan: PretrainPlan, process: Process, workers: int, hooks: Iterable[Hook]) -> Trainer:
    """The whole run, ready to train.

    Raises:
        UsageError: the batch does not divide among the processes.
        InputError and its children: something is wrong with the inputs.
    """
    settings = plan.job.pretrain
    share_of(settings.batch_size, process.world, settings.accumulate)
    model = build_step(plan, process.device)
    momentum = MomentumSchedule(settings.contrast.momentum, settings.contrast.momentum_schedule)
    return Trainer(
        model,
        sgd(model, settings.lr, settings.sgd_momentum, settings.weight_decay),
        plan.schedule,
        batch_source(plan, process, workers),
        images_per_step=settings.batch_size,
        process=process,
        accumulate=settings.accumulate,
        split=parts_of,
        clip_norm=settings.clip_norm,
        hooks=[*_watching(plan, process, model), *hooks, momentum],
        describe=_describe(plan),
    )


def _watching(plan: PretrainPlan, process: Process, model: TwoDRCL) -> list[Hook]:
    """What is kept for people to look at, and said to them; without a generator there is nothing to see."""
    if model.generator is None:
        return []
    alone = Process(0, 1, process.device)  # the same images on any number of processes
    folder = plan.job.work / RECONSTRUCTIONS
    seen = Reconstructions(folder, lambda: next(batch_source(plan, alone, workers=0)(0)))
    if "sr" not in model.settings.terms:
        return [seen]
    return [seen, FeatureGrowth(plan.job.work / HISTORY, model.settings.reconstruction)]


def _describe(plan: PretrainPlan) -> Callable[[int], dict[str, float]]:
    """What a history line says of its step beside losses: alpha, share of rare boxes, ages of the queues."""
    settings, steps = plan.job.pretrain, plan.schedule.epoch_steps
    alpha = alpha_schedule(settings.epochs, plan.job.sampling)
    rare = RareShare(plan.annotations, plan.frequencies.frequency, plan.sampler, steps)
    keys = (settings.batch_size, settings.batch_size * settings.contrast.boxes)
    queues = [q for q in zip(("hcl", "lcl"), plan.queues, keys, strict=True) if q[0] in settings.terms]

    def describe(step: int) -> dict[str, float]:
        ages = {f"{name}_queue_age": queue_age(step, size, per_step) for name, size, per_step in queues}
        epoch = plan.schedule.epoch_of(step)
        return {"alpha": float(alpha[epoch]), "rare_share": rare.of_step(step), **ages}

    return describe


def publish(plan: PretrainPlan, state: dict[str, Any], folder: Path) -> None:
    """Write detector.pth and config.py from the last checkpoint's model state."""
    views = plan.job.pretrain.views
    publish_detector(
        folder,
        clone_state(state, DETECTOR_PREFIX),
        plan.model_config(),
        plan.class_names,
        (views.long_side, max(views.short_sides)),
        {
            "stage": "pretrain",
            "images_drawn": plan.images_drawn,
            "classifier": "focal" if plan.job.detector.type == "atss" else "softmax",
            **({"left_behind": LEFT_BEHIND} if plan.has_roi_branch else {}),
        },
    )
