"""Training a class-agnostic detector on the boxes of the training split, whatever their category.

With a seen split (`proposals.seen`), boxes of other categories are not trained on.  Images without a box to
train on are left out, as released (filter_empty_gt of object_localization_network's CocoSplitDataset): they
would only teach background.  Boxes are made for all images afterwards.

Shapes: I images of the annotations, T of them trained on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.category_split import images_with_objects, only_seen, seen_categories
from pipeline.data.loading import BatchSource
from pipeline.data.single_view import SingleViewDataset
from pipeline.detectors.build import build_model
from pipeline.detectors.supervised import SupervisedModel
from pipeline.detectors.weights import LoadReport, load_initial
from pipeline.engine.distributed import Process, share_of
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.errors import InputError
from pipeline.proposals.class_agnostic import faster_rcnn_config
from pipeline.proposals.oln import oln_config
from pipeline.proposals.settings import ProposalsSettings
from pipeline.settings import setting
from pipeline.stats.frequencies import ImageCategories
from pipeline.stats.sampler import EpochSampler

FLIP, SGD_MOMENTUM, WEIGHT_DECAY = 0.5, 0.9, 1e-4  # released
CONFIGS = {"oln": oln_config, "rpn": faster_rcnn_config}  # the sources that are trained


@dataclass(frozen=True)
class ProposalsJob:
    """All that decides the training; plain data."""

    annotations: Path = setting(why="json of the training split")
    images: Path = setting(why="its image folder")
    work: Path = setting(why="scratch folder of this run")
    seed: int = setting(why="of every draw")
    proposals: ProposalsSettings = setting(ProposalsSettings)
    allow_partial: tuple[str, ...] = setting((), "parts the initial weights may lack")


@dataclass(frozen=True)
class ImagesOnce:
    """Every image of a selection once per epoch (released: no repeat factor)."""

    images: np.ndarray  # (T,) int64 positions in the annotations
    draws: EpochSampler  # of T images

    def steps(self, epoch: int) -> np.ndarray:
        """(S, batch) positions in the annotations; raises as `EpochSampler.steps`."""
        return self.images[self.draws.steps(epoch)]

    def lengths(self) -> np.ndarray:
        """(epochs,) int64 steps of every epoch; raises as `EpochSampler.lengths`."""
        return self.draws.lengths()


class ProposalsPlan:
    """What follows from a job without building a network."""

    def __init__(self, job: ProposalsJob) -> None:
        self.job = job

    @cached_property
    def annotations(self) -> Annotations:
        """The split, all its categories: what boxes are made for."""
        return read_annotations(self.job.annotations)

    @cached_property
    def trained(self) -> Annotations:
        """The split with the seen objects alone; the same images at the same positions."""
        return only_seen(self.annotations, seen_categories(self.job.proposals.seen, self.annotations))

    @cached_property
    def sampler(self) -> ImagesOnce:
        """Every image with a trainable box once per epoch.

        Raises:
            InputError: there is no such image.
        """
        settings, images = self.job.proposals, images_with_objects(self.trained)
        if not len(images):
            raise InputError(
                f"{self.job.annotations} has no box to train on (proposals.seen: {settings.seen})",
                "boxes count that are no crowds, lie in their image and belong to a seen category",
            )
        sizes = self.annotations.sizes_wh[images]
        uncategorised = ImageCategories(np.zeros(len(images) + 1, np.int64), np.zeros(0, np.int64))
        draws = EpochSampler(
            uncategorised,
            np.ones((settings.epochs, 0)),
            settings.batch_size,
            self.job.seed,
            is_portrait=sizes[:, 1] > sizes[:, 0],
        )
        return ImagesOnce(images, draws)

    @cached_property
    def schedule(self) -> Schedule:
        """Learning rate over the epochs."""
        settings = self.job.proposals
        lengths = tuple(int(n) for n in self.sampler.lengths())
        return Schedule(lengths, settings.milestones, settings.lr, settings.warmup_of(sum(lengths)))

    def model_config(self) -> dict[str, Any]:
        """MMDetection's config of the source, one of `CONFIGS`."""
        return CONFIGS[self.job.proposals.source](self.job.proposals)


def build_detector(plan: ProposalsPlan) -> tuple[nn.Module, LoadReport]:
    """The detector, OLN or another, with its initial weights, and the account of them."""
    job = plan.job
    model = build_model(plan.model_config(), job.seed)
    report = load_initial(
        model, job.proposals.init, classes=["object"], drop={}, allow_partial=job.allow_partial
    )
    return model, report


def build_trainer(plan: ProposalsPlan, process: Process, workers: int, hooks: Iterable[Hook]) -> Trainer:
    """The whole run, ready to train."""
    job, settings = plan.job, plan.job.proposals
    share_of(settings.batch_size, process.world)
    detector, _ = build_detector(plan)
    model = SupervisedModel(detector, process.device, with_mask=False, bf16=False).to(process.device)
    model.train()
    source = BatchSource(
        SingleViewDataset(
            plan.trained,
            job.images,
            (settings.short_side,),
            settings.long_side,
            flip=FLIP,
            seed=job.seed,
            class_agnostic=True,
        ),
        plan.sampler,
        plan.schedule,
        plan.annotations.sizes_wh,
        (settings.short_side,),
        settings.long_side,
        process=process,
        workers=workers,
    )
    return Trainer(
        model,
        sgd(model, settings.lr, SGD_MOMENTUM, WEIGHT_DECAY),
        plan.schedule,
        source,
        images_per_step=settings.batch_size,
        process=process,
        hooks=hooks,
        clip_norm=settings.clip_norm,
    )
