"""What a pre-training run is, and what follows from it without a network: data, schedule, queues."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.detectors.atss import rate_warnings
from pipeline.detectors.build import model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.engine.schedule import Schedule, resolve_milestones
from pipeline.pretrain.accumulation import part_statistics
from pipeline.pretrain.det_targets import class_names
from pipeline.pretrain.settings import PretrainSettings, resolve_queue
from pipeline.settings import setting
from pipeline.stats.frequencies import CategoryFrequencies, categories_of_images
from pipeline.stats.sampler import EpochSampler, build_sampler
from pipeline.stats.settings import StatsSettings
from pipeline.stats.tables import read_categories


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
    def frequencies(self) -> CategoryFrequencies:
        """Of the training split."""
        return read_categories(self.job.stats / "categories.parquet")

    @cached_property
    def sampler(self) -> EpochSampler:
        """Which images every epoch draws (eq. 4 for `drb`)."""
        settings = self.job.pretrain
        sizes = self.annotations.sizes_wh
        return build_sampler(
            settings.sampler,
            self.frequencies,
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
            resolve_milestones(settings.milestones, settings.epochs),
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
        found += self.schedule.unreached()
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
        """What to know of the detector, and of a step in parts."""
        remarks = part_statistics(self.job.pretrain)
        if not self.has_roi_branch:
            return remarks
        width = self.job.detector.fc_channels
        return [
            *remarks,
            f"atss has no box layers: LCL trains a RoI branch of its own ({width}, {width}), "
            "which stays behind; backbone, neck and bbox_head are published",
        ]

    @property
    def class_names(self) -> list[str]:
        """Of the detector's categories."""
        return class_names(self.job.pretrain.det_targets, self.annotations)

    def model_config(self) -> dict[str, Any]:
        """MMDetection's config of the detector."""
        return model_config(self.job.detector, len(self.class_names))
