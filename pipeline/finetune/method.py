"""What a fine-tuning method is: plain data that says how a plain detector and its training change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.finetune.published import Published, published

SCOPE = "twodrcl"  # of pipeline.detectors.registry, which costs seconds to import; a test keeps them equal


TWO_STAGE = ("faster-rcnn", "mask-rcnn")  # detector.type
ONE_STAGE = "atss"
Augment = Literal["plain", "copy-paste"]


@dataclass(frozen=True)
class ClassCounts:
    """What a loss may need to know of the training annotations, classes in ascending category id."""

    image_counts: Sequence[int]  # images that show the class
    instance_counts: Sequence[int]  # annotated objects
    num_images: int  # with at least one annotation


@dataclass(frozen=True)
class SecondStage:
    """How a decoupled method goes on from a detector that another method has trained.

    It trains with the loss, the clipping and the warm-up of the method itself; the first stage has those of
    its own method.
    """

    first: str  # the method of the first stage
    trains: tuple[str, ...]  # parameters with one of these in their names; all others stay as they are
    keeps_classifier: bool  # of the first stage; else a new one, see fc_cls_bias_prior
    epochs: int
    milestones: tuple[int, ...]
    lr: float  # for 16 images in a step
    score_thresholds: tuple[float, float]  # at test time, of Faster and of Mask R-CNN
    first_weight_decay: float = 0.0001  # of the first stage
    first_augment: Augment = "plain"  # of the first stage, see Method
    first_proposals_factor: int = 1  # of the first stage, see Method; 1: a plain detector serves all methods


@dataclass(frozen=True)
class OnATSS:
    """What is another on ATSS, for a method whose entry describes two-stage detectors; see `Method`.

    Classifier, warm-up and clipping are those that MMDetection trains ATSS with.
    """

    loss: str
    loss_arguments: Callable[[int, ClassCounts], dict[str, Any]]
    score: str
    reference: str


@dataclass(frozen=True)
class Method:
    """How one method changes a plain detector and its training."""

    name: str
    summary: str
    loss: str  # mmdet's name, or the dotted path of a class of ours
    loss_arguments: Callable[[int, ClassCounts], dict[str, Any]]  # (C, counts) -> plain keyword arguments
    score: str  # how logits become scores
    sampler: Literal["random", "rfs", "irfs"]  # that its authors report it with
    reference: str  # paper, and the file the numbers of this entry come from
    other_samplers: tuple[str, ...] = ()  # that its authors have configurations for as well
    cls_predictor: dict[str, Any] | None = None  # None: Linear
    mask_predictor: dict[str, Any] | None = None  # None: Conv
    fc_cls_bias_prior: float | None = None  # initial probability of every column; None: bias 0
    proposals_factor: int = 1  # on the RPN's proposals in training: 2 for 2,000 instead of 1,000
    weight_decay: float = 0.0001
    augment: Augment = "plain"  # multi-scale and flip, or pipeline.data.copy_paste
    grad_clip: float | None = None  # largest gradient norm; None: not clipped
    warmup_iterations: int = 500  # linear, at the reference schedule
    warmup_start_factor: float = 0.001  # of the learning rate, at the first iteration
    roi_head: dict[str, Any] | None = None  # what to merge into mmdet's RoI head
    training_roi_head: dict[str, Any] | None = None  # the same, for training alone
    epochs: int = 12  # of its authors, on LVIS v1; of the first stage where there are two
    milestones: tuple[int, ...] = (8, 11)  # finished epochs after which the rate drops by ten
    second_stage: SecondStage | None = None
    is_random: bool = False  # the loss draws: its arguments include `seed`
    epoch_arguments: tuple[str, ...] = ()  # of the loss: epochs, from 1, of the schedule above
    detectors: tuple[str, ...] = TWO_STAGE  # for which it is defined
    on_atss: OnATSS | None = None  # for one that is defined for two-stage detectors too

    def on(self, detector: str) -> "Method":
        """The method as it is on a `detector` for which it is defined."""
        assert detector in self.detectors, f"{self.name} is not defined for {detector}"
        if detector != ONE_STAGE or self.on_atss is None:
            return self
        plain = {f: getattr(Method, f) for f in _RECIPE}  # a dataclass keeps its defaults in the class
        return replace(self, **vars(self.on_atss), **plain, detectors=(ONE_STAGE,), on_atss=None)

    @property
    def published(self) -> tuple[Published, ...]:
        """The paper's rows for this method."""
        return published(self.name)

    def loss_config(
        self, num_classes: int, counts: ClassCounts, seed: int = 0, epochs: int | None = None
    ) -> dict[str, Any]:
        """mmdet config of `loss_cls`: plain data, complete without any file.

        Args:
            num_classes: C.
            counts: of the C classes.
            seed: of the loss's draws, if it has any.
            epochs: of the run, None: `self.epochs`; what the loss does from an epoch on keeps its share.
        """
        module, _, name = self.loss.rpartition(".")
        config = {"type": f"{SCOPE}.{name}" if module else name, **self.loss_arguments(num_classes, counts)}
        if self.is_random:
            config["seed"] = seed
        for argument in self.epoch_arguments if epochs is not None else ():
            config[argument] = 1 + (config[argument] - 1) * epochs // self.epochs
        return config

    def bbox_head(
        self, num_classes: int, counts: ClassCounts, seed: int = 0, epochs: int | None = None
    ) -> dict[str, Any]:
        """What to merge into the mmdet config of a ConvFCBBoxHead (Shared2FCBBoxHead and the like).

        The arguments are those of `loss_config`.
        """
        loss = self.loss_config(num_classes, counts, seed, epochs)
        head: dict[str, Any] = {"num_classes": num_classes, "loss_cls": loss}
        if self.cls_predictor is not None:
            head["cls_predictor_cfg"] = dict(self.cls_predictor)
        if self.fc_cls_bias_prior is not None:
            head["init_cfg"] = _head_init(self.fc_cls_bias_prior)
        return head

    def mask_head(self, num_classes: int) -> dict[str, Any]:
        """What to merge into the mmdet config of an FCNMaskHead."""
        predictor = {} if self.mask_predictor is None else {"predictor_cfg": dict(self.mask_predictor)}
        return {"num_classes": num_classes, **predictor}


_RECIPE = ("cls_predictor", "mask_predictor", "grad_clip", "warmup_iterations", "warmup_start_factor")


def _head_init(bias_prior: float) -> list[dict[str, Any]]:
    """mmdet's own initialisation of a ConvFCBBoxHead, but for the classifier's bias; a given init_cfg
    replaces mmdet's whole list, so all of it is repeated."""
    shared = [{"name": "shared_fcs"}, {"name": "cls_fcs"}, {"name": "reg_fcs"}]
    return [
        {"type": "Normal", "std": 0.01, "bias_prob": bias_prior, "override": {"name": "fc_cls"}},
        {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
        {"type": "Xavier", "distribution": "uniform", "override": shared},
    ]
