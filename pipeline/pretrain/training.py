"""From settings and files to a running pre-training, and from its last checkpoint to a detector."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.loading import BatchSource
from pipeline.detectors.atss import rate_warnings
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.one_stage import RoIBranch, in_parts
from pipeline.detectors.publish import publish_detector
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.weights import LoadReport, clone_state, load_initial
from pipeline.engine.determinism import seeded
from pipeline.engine.distributed import Process, share_of
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.errors import UsageError
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.settings import PretrainSettings, resolve_queue
from pipeline.pretrain.views import PretrainDataset, to_batch
from pipeline.proposals.store import ProposalStore
from pipeline.settings import setting
from pipeline.stats.frequencies import categories_of_images
from pipeline.stats.sampler import EpochSampler, build_sampler
from pipeline.stats.schemes import alpha_schedule
from pipeline.stats.settings import StatsSettings
from pipeline.stats.tables import read_categories

LEFT_BEHIND = "the RoI branch that pre-training gave LCL"
DETECTOR_PREFIX = "detector.detector."  # TwoDRCL.detector has the parts, its detector is mmdet's


@dataclass(frozen=True)
class PretrainJob:
    """All that decides a pre-training run; plain data, so that it can travel to other processes."""

    annotations: Path = setting(why="json of the training split")
    images: Path = setting(why="its image folder")
    proposals: Path = setting(why="folder of the proposals stage")
    stats: Path = setting(why="folder of the stats stage")
    work: Path = setting(why="scratch folder of this run")
    seed: int = setting(why="of every draw")
    detector: DetectorSettings = setting(DetectorSettings)
    pretrain: PretrainSettings = setting(PretrainSettings)
    sampling: StatsSettings = setting(StatsSettings)
    init: str | None = setting(None, "initial weights")
    allow_partial: tuple[str, ...] = setting((), "parts the initial weights may lack")


class PretrainPlan:
    """What follows from a job without building a network."""

    def __init__(self, job: PretrainJob) -> None:
        self.job = job

    @cached_property
    def annotations(self) -> Annotations:
        """The training split."""
        return read_annotations(self.job.annotations)

    @cached_property
    def sampler(self) -> EpochSampler:
        """Which images every epoch draws (eq. 4 for `drb`)."""
        settings = self.job.pretrain
        frequencies = read_categories(self.job.stats / "categories.parquet")
        sizes = self.annotations.sizes_wh
        return build_sampler(
            settings.sampler,
            frequencies,
            categories_of_images(self.annotations),
            settings.epochs,
            self.job.sampling,
            settings.batch_size,
            self.job.seed,
            is_portrait=sizes[:, 1] > sizes[:, 0],
        )

    @cached_property
    def schedule(self) -> Schedule:
        """Learning rate over the growing epochs."""
        settings = self.job.pretrain
        return Schedule(
            tuple(int(n) for n in self.sampler.lengths()),
            settings.milestones,
            settings.lr,
            settings.warmup_steps,
        )

    @property
    def images_drawn(self) -> int:
        """Draws of the whole run: what a fair comparison must equal."""
        return self.schedule.total * self.job.pretrain.batch_size

    @cached_property
    def queues(self) -> tuple[int, int]:
        """Lengths of the holistic and the local queue."""
        contrast = self.job.pretrain.contrast
        per_epoch = self.images_drawn // self.job.pretrain.epochs
        return resolve_queue(contrast.queue, per_epoch), resolve_queue(
            contrast.local_queue, per_epoch * contrast.boxes
        )

    def warnings(self) -> list[str]:
        """Settings that leave part of the method without effect on this data."""
        found = rate_warnings(self.job.detector, self.job.pretrain.lr, self.job.pretrain.batch_size)
        if self.job.pretrain.sampler != "random" and self.sampler.all_ones:
            found.append("every repeat factor is 1: rebalancing has no effect; set stats.threshold: auto")
        boxes = self.job.pretrain.contrast.boxes
        for name, size, keys in zip(
            ("contrast.queue", "contrast.local_queue"),
            self.queues,
            (self.images_drawn, self.images_drawn * boxes),
            strict=True,
        ):
            if keys < size:
                found.append(
                    f"{name} holds {size} keys, but the run makes {keys}: it never fills; set it to auto"
                )
        if self.job.init is None and self.job.detector.norm == "frozen-bn":
            found.append(
                "no initial weights, and batch norm is frozen at its empty statistics: "
                "give --init, or set detector.norm: gn"
            )
        return found

    @property
    def has_roi_branch(self) -> bool:
        """Whether LCL needs box layers that the detector does not have."""
        return self.job.detector.type == "atss" and "lcl" in self.job.pretrain.terms

    def remarks(self) -> list[str]:
        """What to know of the detector."""
        if not self.has_roi_branch:
            return []
        width = self.job.detector.fc_channels
        return [
            f"atss has no box layers: LCL trains a RoI branch of its own ({width}, {width}), "
            "which stays behind; backbone, neck and bbox_head are published"
        ]

    def model_config(self) -> dict[str, Any]:
        """MMDetection's config of the detector."""
        return model_config(self.job.detector, len(self.annotations.category_ids))


def build_detector(plan: PretrainPlan) -> tuple[nn.Module, LoadReport]:
    """The detector with its initial weights, and the account of them."""
    job = plan.job
    detector = build_model(training_config(plan.model_config()), job.seed)
    report = load_initial(
        detector,
        Path(job.init) if job.init else None,
        classes=plan.annotations.category_names,
        drop={},
        allow_partial=job.allow_partial,
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
    job, settings = plan.job, plan.job.pretrain
    share_of(settings.batch_size, process.world)
    model = build_step(plan, process.device)
    alpha = alpha_schedule(settings.epochs, job.sampling)
    return Trainer(
        model,
        sgd(model, settings.lr, settings.sgd_momentum, settings.weight_decay),
        plan.schedule,
        batch_source(plan, process, workers),
        images_per_step=settings.batch_size,
        process=process,
        clip_norm=settings.clip_norm,
        hooks=hooks,
        describe=lambda step: {"alpha": float(alpha[plan.schedule.epoch_of(step)])},
    )


def publish(plan: PretrainPlan, state: dict[str, Any], folder: Path) -> None:
    """Write detector.pth and config.py from the last checkpoint's model state."""
    views = plan.job.pretrain.views
    publish_detector(
        folder,
        clone_state(state, DETECTOR_PREFIX),
        plan.model_config(),
        plan.annotations.category_names,
        (views.long_side, max(views.short_sides)),
        {
            "stage": "pretrain",
            "images_drawn": plan.images_drawn,
            "classifier": "focal" if plan.job.detector.type == "atss" else "softmax",
            **({"left_behind": LEFT_BEHIND} if plan.has_roi_branch else {}),
        },
    )
