"""Training OLN on the boxes of the training split, whatever their category."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.loading import BatchSource
from pipeline.data.single_view import SingleViewDataset
from pipeline.detectors.build import build_model
from pipeline.detectors.supervised import SupervisedModel
from pipeline.detectors.weights import LoadReport, load_initial
from pipeline.engine.distributed import Process, share_of
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.proposals.oln import oln_config
from pipeline.proposals.settings import ProposalsSettings
from pipeline.settings import setting
from pipeline.stats.frequencies import categories_of_images
from pipeline.stats.sampler import EpochSampler

FLIP, SGD_MOMENTUM, WEIGHT_DECAY = 0.5, 0.9, 1e-4  # released
CLIP_NORM = 35.0  # released: none; only a gradient that would ruin the run is that long


@dataclass(frozen=True)
class ProposalsJob:
    """All that decides an OLN training; plain data."""

    annotations: Path = setting(why="json of the training split")
    images: Path = setting(why="its image folder")
    work: Path = setting(why="scratch folder of this run")
    seed: int = setting(why="of every draw")
    proposals: ProposalsSettings = setting(ProposalsSettings)
    allow_partial: tuple[str, ...] = setting((), "parts the initial weights may lack")


class ProposalsPlan:
    """What follows from a job without building a network."""

    def __init__(self, job: ProposalsJob) -> None:
        self.job = job

    @cached_property
    def annotations(self) -> Annotations:
        """The training split."""
        return read_annotations(self.job.annotations)

    @cached_property
    def sampler(self) -> EpochSampler:
        """Every image once per epoch (released: no repeat factor)."""
        settings, sizes = self.job.proposals, self.annotations.sizes_wh
        ones = np.ones((settings.epochs, len(self.annotations.category_ids)))
        return EpochSampler(
            categories_of_images(self.annotations),
            ones,
            settings.batch_size,
            self.job.seed,
            is_portrait=sizes[:, 1] > sizes[:, 0],
        )

    @cached_property
    def schedule(self) -> Schedule:
        """Learning rate over the epochs."""
        settings = self.job.proposals
        lengths = tuple(int(n) for n in self.sampler.lengths())
        return Schedule(lengths, settings.milestones, settings.lr, settings.warmup_of(sum(lengths)))

    def model_config(self) -> dict[str, Any]:
        """MMDetection's config of OLN."""
        return oln_config(self.job.proposals)


def build_oln(plan: ProposalsPlan) -> tuple[nn.Module, LoadReport]:
    """OLN with its initial weights, and the account of them."""
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
    detector, _ = build_oln(plan)
    model = SupervisedModel(detector, process.device, with_mask=False, bf16=False).to(process.device)
    model.train()
    source = BatchSource(
        SingleViewDataset(
            plan.annotations,
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
        clip_norm=CLIP_NORM,
    )
