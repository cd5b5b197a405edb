"""From settings and files to a running fine-tuning with one long-tailed method, and to its detector."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

import pipeline.finetune as losses  # registers the methods' losses
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.loading import BatchSource
from pipeline.data.single_view import SingleViewDataset
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.publish import publish_detector
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.supervised import SupervisedModel
from pipeline.detectors.weights import LoadReport, clone_state, load_initial
from pipeline.engine.distributed import Process, share_of
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule, extended
from pipeline.finetune.method import ClassCounts, Method
from pipeline.finetune.methods import get_method
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings, resolve_warmup
from pipeline.settings import setting
from pipeline.stats.frequencies import CategoryFrequencies, categories_of_images
from pipeline.stats.sampler import EpochSampler, build_sampler
from pipeline.stats.schemes import alpha_schedule
from pipeline.stats.settings import StatsSettings
from pipeline.stats.tables import read_categories

OWN_LOSSES = losses.__name__


@dataclass(frozen=True)
class FinetuneJob:
    """All that decides a fine-tuning run; plain data."""

    annotations: Path = setting(why="json of the training split")
    images: Path = setting(why="its image folder")
    stats: Path = setting(why="folder of the stats stage")
    work: Path = setting(why="scratch folder of this run")
    seed: int = setting(why="of every draw")
    run: FinetuneRun = setting(why="the run")
    detector: DetectorSettings = setting(DetectorSettings)
    finetune: FinetuneSettings = setting(FinetuneSettings)
    sampling: StatsSettings = setting(StatsSettings)
    init: str | None = setting(None, "initial weights")
    extra_draws: int = setting(0, "draws added to the schedule's own, for a control", low=0)


class FinetunePlan:
    """What follows from a job without building a network."""

    def __init__(self, job: FinetuneJob) -> None:
        self.job = job
        self.method: Method = get_method(job.run.method)

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
        """Which images every epoch draws."""
        return self._sampler(self._epochs_for(self._steps_without_extra + self._extra_steps))

    @cached_property
    def schedule(self) -> Schedule:
        """The 1x schedule, or that schedule stretched to the control's draws."""
        base = self._own_schedule
        if not self._extra_steps:
            return base
        steps = tuple(int(n) for n in self.sampler.lengths())
        return extended(base, base.total + self._extra_steps, steps)

    @property
    def images_drawn(self) -> int:
        """Draws of the whole run."""
        return self.schedule.total * self.job.finetune.batch_size

    @cached_property
    def _own_schedule(self) -> Schedule:
        settings = self.job.finetune
        lengths = tuple(int(n) for n in self._sampler(settings.epochs).lengths())
        warmup = resolve_warmup(settings.warmup_steps, self.method.warmup_iterations, sum(lengths))
        return Schedule(
            lengths, settings.milestones, settings.lr, warmup, warmup_factor=self.method.warmup_start_factor
        )

    @property
    def _steps_without_extra(self) -> int:
        return self._own_schedule.total

    @property
    def _extra_steps(self) -> int:
        return self.job.extra_draws // self.job.finetune.batch_size

    def _epochs_for(self, steps: int) -> int:
        """Enough epochs of about the own length to hold `steps`; one spare, as lengths are drawn."""
        own = self._own_schedule
        return 1 - (-steps // min(own.epoch_steps)) if steps > own.total else self.job.finetune.epochs

    def _sampler(self, epochs: int) -> EpochSampler:
        settings, run = self.job.finetune, self.job.run
        sizes = self.annotations.sizes_wh
        return build_sampler(
            self.method.sampler if run.sampler == "method" else run.sampler,
            self.frequencies,
            categories_of_images(self.annotations),
            epochs,
            self.job.sampling,
            settings.batch_size,
            self.job.seed,
            is_portrait=sizes[:, 1] > sizes[:, 0],
        )

    def warnings(self) -> list[str]:
        """Choices that are legal but probably not meant."""
        found = []
        sampler = self.method.sampler if self.job.run.sampler == "method" else self.job.run.sampler
        if sampler != "random" and self.sampler.all_ones:
            found.append("every repeat factor is 1: the sampler has no effect; set stats.threshold to auto")
        if self.job.init is None and self.job.detector.norm == "frozen-bn":
            found.append(
                "no initial weights, and batch norm is frozen at its empty statistics: set detector.norm: gn"
            )
        return found

    def model_config(self) -> dict[str, Any]:
        """MMDetection's config of the detector with the method's heads."""
        num_classes = len(self.annotations.category_ids)
        counts = ClassCounts(
            self.frequencies.image_count.tolist(),
            self.frequencies.instance_count.tolist(),
            self.frequencies.num_images,
        )
        return model_config(
            self.job.detector,
            num_classes,
            box_head=self.method.bbox_head(num_classes, counts),
            mask_head=self.method.mask_head(num_classes),
        )


def build_detector(plan: FinetunePlan) -> tuple[nn.Module, LoadReport]:
    """The detector with its initial weights, and the account of them."""
    job = plan.job
    detector = build_model(plan.model_config(), job.seed)
    drop = {}
    if not _is_softmax(plan.method):
        drop["roi_head.bbox_head.fc_cls"] = f"{plan.method.name} classifies in another way than pre-training"
    if plan.method.mask_predictor is not None:
        drop["roi_head.mask_head.conv_logits"] = f"{plan.method.name} has another mask predictor"
    report = load_initial(
        detector,
        Path(job.init) if job.init else None,
        classes=plan.annotations.category_names,
        drop=drop,
        allow_partial=job.finetune.allow_partial,
    )
    return detector, report


def _is_softmax(method: Method) -> bool:
    """Whether the classifier means the same as pre-training's, which is a plain detector's."""
    return method.loss == "CrossEntropyLoss"


def build_trainer(plan: FinetunePlan, process: Process, workers: int, hooks: Iterable[Hook]) -> Trainer:
    """The whole run, ready to train."""
    job, settings = plan.job, plan.job.finetune
    share_of(settings.batch_size, process.world)
    with_mask = job.detector.type == "mask-rcnn"
    detector, _ = build_detector(plan)
    bf16 = settings.precision == "bf16"
    model = SupervisedModel(detector, process.device, with_mask=with_mask, bf16=bf16).to(process.device)
    model.train()
    source = BatchSource(
        SingleViewDataset(
            plan.annotations,
            job.images,
            settings.short_sides,
            settings.long_side,
            flip=settings.flip,
            seed=job.seed,
            with_polygons=with_mask,
        ),
        plan.sampler,
        plan.schedule,
        plan.annotations.sizes_wh,
        settings.short_sides,
        settings.long_side,
        process=process,
        workers=workers,
    )
    return Trainer(
        model,
        sgd(model, settings.lr, settings.sgd_momentum, settings.weight_decay),
        plan.schedule,
        source,
        images_per_step=settings.batch_size,
        process=process,
        clip_norm=plan.method.grad_clip if settings.clip_norm == "method" else settings.clip_norm,
        hooks=hooks,
        describe=_describe(plan),
    )


def _describe(plan: FinetunePlan) -> Any:
    """alpha belongs in the history only where it drives the sampler."""
    if plan.job.run.sampler != "drb":
        return lambda step: {}
    alpha = alpha_schedule(plan.sampler.epochs, plan.job.sampling)
    return lambda step: {"alpha": float(alpha[plan.schedule.epoch_of(step)])}


def publish(plan: FinetunePlan, state: dict[str, Any], folder: Path) -> None:
    """Write detector.pth and config.py from the last checkpoint's model state."""
    settings = plan.job.finetune
    publish_detector(
        folder,
        clone_state(state, SupervisedModel.PREFIX),
        plan.model_config(),
        plan.annotations.category_names,
        (settings.long_side, max(settings.short_sides)),
        {"stage": "finetune", "images_drawn": plan.images_drawn, "classifier": plan.method.name},
        custom_imports=() if _is_softmax(plan.method) else (OWN_LOSSES,),
    )
