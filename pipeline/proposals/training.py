"""Training OLN on the boxes of the training split, whatever their category."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.draws import Draw, generator, key_of
from pipeline.data.images import read_image
from pipeline.data.loading import BatchSource
from pipeline.data.photometric import normalise, on_canvas, to_float
from pipeline.data.targets import Target, target_of
from pipeline.data.views import draw_geometry
from pipeline.detectors.build import build_model
from pipeline.detectors.two_stage import TwoStageModel
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

MODEL_PREFIX = "model.detector."


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


@dataclass(frozen=True)
class OLNSample:
    """One draw on the host; all labels are 0."""

    canvas_wh: tuple[int, int]
    image: np.ndarray  # (h, w, 3) uint8
    target: Target


class OLNDataset(Dataset[OLNSample]):
    """Draw -> OLNSample: one scale and a flip, as released."""

    def __init__(
        self, annotations: Annotations, images: Path, settings: ProposalsSettings, seed: int
    ) -> None:
        self.annotations, self.images, self.settings, self.seed = annotations, images, settings, seed

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, draw: Draw) -> OLNSample:
        width, height = (int(v) for v in self.annotations.sizes_wh[draw.image])
        sides = ((self.settings.short_side,), self.settings.long_side)
        geometry = draw_geometry((width, height), *sides, generator(self.seed, draw, "view_query"))
        pixels = read_image(self.images / self.annotations.file_names[draw.image], (width, height))
        key = key_of(self.seed, draw, "roi_samples")
        target = target_of(self.annotations, draw.image, geometry, key, with_polygons=False)
        agnostic = replace(target, labels=np.zeros_like(target.labels))
        return OLNSample(draw.canvas_wh, geometry.apply(pixels), agnostic)


class OLNModel(nn.Module):
    """OLN's own losses, by name."""

    def __init__(self, detector: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = TwoStageModel(detector), device

    def forward(self, samples: Sequence[OLNSample]) -> dict[str, Tensor]:
        """Losses of this process's share of the batch."""
        canvas = samples[0].canvas_wh
        images = on_canvas([normalise(to_float(s.image, self.device)) for s in samples], canvas)
        pyramid = self.model.encoder.pyramid(self.model.encoder.trunk(images))
        terms = self.model.detection_losses(pyramid, [s.target for s in samples], canvas, with_mask=False)
        named = {name.removeprefix("loss_"): value for name, value in terms.items()}
        return {"loss": torch.stack(list(named.values())).sum(), **named}

    def after_step(self) -> None:
        """Nothing to move."""


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
    model = OLNModel(detector, process.device).to(process.device)
    model.train()
    source = BatchSource(
        OLNDataset(plan.annotations, job.images, settings, job.seed),
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
        sgd(model, settings.lr, momentum=0.9, weight_decay=1e-4),
        plan.schedule,
        source,
        images_per_step=settings.batch_size,
        process=process,
        hooks=hooks,
        clip_norm=35.0,  # released: none; only a gradient that would ruin the run is that long
    )
