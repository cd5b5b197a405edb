"""What a fine-tuning run is, and what follows from it without a network: data, schedule, config."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.detectors.atss import rate_warnings
from pipeline.detectors.build import model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.engine.schedule import Schedule, extended
from pipeline.finetune.method import Augment, ClassCounts, Method, SecondStage
from pipeline.finetune.second_stage import first_method
from pipeline.finetune.settings import (
    FinetuneRun,
    FinetuneSettings,
    Recipe,
    first_recipe,
    resolve_warmup,
    second_recipe,
)
from pipeline.finetune.variant import method_of
from pipeline.settings import setting
from pipeline.stats.frequencies import CategoryFrequencies, categories_of_images
from pipeline.stats.sampler import EpochSampler, build_sampler
from pipeline.stats.settings import StatsSettings
from pipeline.stats.tables import read_categories

SAMPLERS = ("random", "rfs", "irfs", "drb")
PLAIN = ("ce", "bce")  # methods whose losses know nothing of frequencies


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
    stage: Literal["only", "first", "second"] = setting("only", "of how many the method has")


class FinetunePlan:
    """What follows from a job without building a network.

    Attributes:
        asked: the method of the run; method: what this stage trains with, in a first stage another one.
    """

    def __init__(self, job: FinetuneJob) -> None:
        self.job = job
        self.asked: Method = method_of(job.run, job.detector.type)
        self.method = first_method(self.asked) if job.stage == "first" else self.asked

    @property
    def title(self) -> str:
        """For the log, after the run's name: the stage of two, its method, views that are not plain."""
        number = {"only": "", "first": "1", "second": "2"}[self.job.stage]
        stage = f", stage {number} ({self.method.name})" if number else ""
        return stage if self.augment == "plain" else f"{stage} with {self.augment}"

    @property
    def second_stage(self) -> SecondStage | None:
        """What is special about this stage, if it is a second one."""
        return self.asked.second_stage if self.job.stage == "second" else None

    @cached_property
    def recipe(self) -> Recipe:
        """Epochs, milestones and learning rate of this stage."""
        settings = self.job.finetune
        if self.second_stage is not None:
            return second_recipe(self.second_stage, settings.second_stage)
        return first_recipe(self.asked, settings)

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
        """The recipe's schedule, or that schedule stretched to the control's draws."""
        base = self._own_schedule
        if not self._extra_steps:
            return base
        steps = tuple(int(n) for n in self.sampler.lengths())
        return extended(base, base.total + self._extra_steps, steps)

    @property
    def images_drawn(self) -> int:
        """Draws of this stage."""
        return self.schedule.total * self.job.finetune.batch_size

    @property
    def epochs(self) -> int:
        """Epochs of this stage, the last one perhaps not to its end."""
        return self.schedule.epoch_of(self.schedule.total - 1) + 1

    @cached_property
    def _own_schedule(self) -> Schedule:
        recipe, asked = self.recipe, self.job.finetune.warmup_steps
        lengths = tuple(int(n) for n in self._sampler(recipe.epochs).lengths())
        warmup = resolve_warmup(asked, self.method.warmup_iterations, sum(lengths))
        factor = self.method.warmup_start_factor
        return Schedule(lengths, recipe.milestones, recipe.lr, warmup, warmup_factor=factor)

    @property
    def _steps_without_extra(self) -> int:
        return self._own_schedule.total

    @property
    def _extra_steps(self) -> int:
        return self.job.extra_draws // self.job.finetune.batch_size

    def _epochs_for(self, steps: int) -> int:
        """Enough epochs of about the own length to hold `steps`; one spare, as lengths are drawn."""
        own = self._own_schedule
        return 1 - (-steps // min(own.epoch_steps)) if steps > own.total else self.recipe.epochs

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
        found = rate_warnings(self.job.detector, self.recipe.lr, self.job.finetune.batch_size)
        found += self._own_schedule.unreached()
        sampler = self.method.sampler if self.job.run.sampler == "method" else self.job.run.sampler
        if sampler != "random" and self.sampler.all_ones:
            found.append("every repeat factor is 1: the sampler has no effect; set stats.threshold to auto")
        if sampler != "random" and sampler not in self._own_samplers and self.method.name not in PLAIN:
            found.append(
                f"{self.method.name} corrects the imbalance in its loss, and sampler {sampler} corrects it "
                "again: its authors draw at random"
            )
        if self.job.init is None and self.job.detector.norm == "frozen-bn":
            found.append(
                "no initial weights, and batch norm is frozen at its empty statistics: set detector.norm: gn"
            )
        return found

    @property
    def augment(self) -> Augment:
        """Of this stage's views; a second one, whose features stay as they are, has plain ones."""
        asked = self.job.run.augment
        return self.method.augment if asked == "method" or self.second_stage is not None else asked

    @property
    def weight_decay(self) -> float:
        """Of the settings, else of the method."""
        asked = self.job.finetune.weight_decay
        return self.method.weight_decay if asked == "method" else asked

    def loss_warnings(self) -> list[str]:
        """A threshold of LVIS under which a small data set has no category: EQL and DropLoss spare none."""
        threshold, shares = self.loss_config.get("lambda_"), self.frequencies.f_image
        if threshold is None or (shares < threshold).any():
            return []
        return [
            f"{self.method.name}: every category is in at least lambda_ = {threshold:g} of the images (the "
            f"rarest in {shares.min():.2g}): none is spared; set finetune.runs.NAME.loss: {{lambda_: ...}}"
        ]

    @property
    def loss_config(self) -> dict[str, Any]:
        """Settings of the classification loss."""
        loss: dict[str, Any] = self._box_head.get("loss_cls", {})
        return loss

    @cached_property
    def _box_head(self) -> dict[str, Any]:
        counts = ClassCounts(
            self.frequencies.image_count.tolist(),
            self.frequencies.instance_count.tolist(),
            self.frequencies.num_images,
        )
        num_classes = len(self.annotations.category_ids)
        return self.method.bbox_head(num_classes, counts, self.job.seed, self.epochs)

    def model_config(self) -> dict[str, Any]:
        """MMDetection's config of the detector with the method's heads."""
        num_classes = len(self.annotations.category_ids)
        config = model_config(
            replace(self.job.detector, score_threshold=self._score_threshold),
            num_classes,
            box_head=self._box_head,
            mask_head=self.method.mask_head(num_classes),
        )
        if self.method.roi_head is not None:
            config["roi_head"] |= self.method.roi_head
        if self.method.proposals_factor != 1:
            config["train_cfg"]["rpn_proposal"]["max_per_img"] *= self.method.proposals_factor
        return config

    @property
    def _own_samplers(self) -> tuple[str, ...]:
        """Samplers that go with the method's loss: whose repeats it was made for, whatever they follow."""
        method = self.method
        return SAMPLERS if method.sampler != "random" else method.other_samplers

    @property
    def _score_threshold(self) -> float:
        """At test time: of the settings or the method in a second stage, else of the detector."""
        asked = self.job.finetune.second_stage.score_threshold
        if self.second_stage is None:
            return self.job.detector.score_threshold
        if asked != "auto":
            return asked
        of_faster, of_mask = self.second_stage.score_thresholds
        return of_mask if self.job.detector.type == "mask-rcnn" else of_faster
