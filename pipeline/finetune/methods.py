"""The table of fine-tuning methods: plain data, one entry per method.

A new method with its own loss is a file beside this one with a `BoxHeadLoss`, an entry here, and a test.
Predictor and loss settings are mmdet configs; the recipe is that of the official configuration on LVIS v1
(batch 16, SGD, learning rate 0.02).
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import UsageError
from pipeline.finetune.published import PUBLISHED, Published

SCOPE = "twodrcl"  # of our losses in mmengine's registries, see pipeline.detectors.registry
NORMED_LINEAR = {"type": "NormedLinear", "tempearture": 20}  # mmdet spells the keyword so
NORMED_CONV = {"type": "NormedConv2d", "tempearture": 20}


@dataclass(frozen=True)
class ClassCounts:
    """What a loss may need to know of the training annotations, classes in ascending category id."""

    image_counts: Sequence[int]  # images that show the class
    instance_counts: Sequence[int]  # annotated objects
    num_images: int  # with at least one annotation


@dataclass(frozen=True)
class Method:
    """How one method changes a plain detector and its training."""

    name: str
    summary: str
    loss: str  # mmdet's name, or the dotted path of a class of ours
    loss_arguments: Callable[[int, ClassCounts], dict[str, Any]]  # (C, counts) -> plain keyword arguments
    score: str  # how logits become scores
    sampler: Literal["random", "rfs", "irfs"]
    reference: str  # paper, and the file the numbers of this entry come from
    cls_predictor: dict[str, Any] | None = None  # None: Linear
    mask_predictor: dict[str, Any] | None = None  # None: Conv
    fc_cls_bias_prior: float | None = None  # initial probability of every column; None: bias 0
    grad_clip: float | None = None  # largest gradient norm; None: not clipped
    warmup_iterations: int = 500  # linear, at the reference schedule
    warmup_start_factor: float = 0.001  # of the learning rate, at the first iteration

    @property
    def published(self) -> tuple[Published, ...]:
        """The paper's rows for this method."""
        return PUBLISHED.get(self.name, ())

    def loss_config(self, num_classes: int, counts: ClassCounts) -> dict[str, Any]:
        """mmdet config of `loss_cls` for C = `num_classes`: plain data, complete without any file."""
        module, _, name = self.loss.rpartition(".")
        kind = f"{SCOPE}.{name}" if module else name
        return {"type": kind, **self.loss_arguments(num_classes, counts)}

    def bbox_head(self, num_classes: int, counts: ClassCounts) -> dict[str, Any]:
        """What to merge into the mmdet config of a ConvFCBBoxHead (Shared2FCBBoxHead and the like)."""
        head: dict[str, Any] = {"num_classes": num_classes, "loss_cls": self.loss_config(num_classes, counts)}
        if self.cls_predictor is not None:
            head["cls_predictor_cfg"] = dict(self.cls_predictor)
        if self.fc_cls_bias_prior is not None:
            head["init_cfg"] = _head_init(self.fc_cls_bias_prior)
        return head

    def mask_head(self, num_classes: int) -> dict[str, Any]:
        """What to merge into the mmdet config of an FCNMaskHead."""
        predictor = {} if self.mask_predictor is None else {"predictor_cfg": dict(self.mask_predictor)}
        return {"num_classes": num_classes, **predictor}


def get_method(name: str) -> Method:
    """The entry of `name`.

    Raises:
        UsageError: no such method; the hint lists the known ones.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        known = f"known methods: {', '.join(METHODS)}"
        raise UsageError(f"unknown method: {name}", f"did you mean {close[0]}? {known}" if close else known)
    return METHODS[name]


def _head_init(bias_prior: float) -> list[dict[str, Any]]:
    """mmdet's own initialisation of a ConvFCBBoxHead, but for the classifier's bias; a given init_cfg
    replaces mmdet's whole list, so all of it is repeated."""
    shared = [{"name": "shared_fcs"}, {"name": "cls_fcs"}, {"name": "reg_fcs"}]
    return [
        {"type": "Normal", "std": 0.01, "bias_prob": bias_prior, "override": {"name": "fc_cls"}},
        {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
        {"type": "Xavier", "distribution": "uniform", "override": shared},
    ]


def _softmax(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"use_sigmoid": False, "loss_weight": 1.0}


def _bce(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"num_classes": num_classes, "loss_weight": 1.0}


def _seesaw(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"num_classes": num_classes, "p": 0.8, "q": 2.0, "eps": 0.01, "loss_weight": 1.0}


def _ecm(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    instance_counts = [int(n) for n in counts.instance_counts]
    return {
        "num_classes": num_classes,
        "instance_counts": instance_counts,
        "fg_bg_ratio": 6.3313,
        "loss_weight": 1.0,
    }


_ENTRIES = (
    Method(
        name="ce",
        summary="softmax cross-entropy, images drawn alike: the plain detector",
        loss="CrossEntropyLoss",
        loss_arguments=_softmax,
        score="softmax over C + 1 columns",
        sampler="random",
        reference="He et al., Mask R-CNN, ICCV 2017; mmdet 3.3 configs/_base_/models/mask-rcnn_r50_fpn.py",
    ),
    Method(
        name="bce",
        summary="a binary loss per class and one for background, images drawn alike",
        loss="pipeline.finetune.bce.BCELoss",
        loss_arguments=_bce,
        score="sigmoid(class) (1 - sigmoid(background))",
        sampler="random",
        reference="as in BACL, TMM 2024; Tianhao-Qi/BACL mmdet/models/losses/bce.py, configs/bacl",
        fc_cls_bias_prior=0.001,
    ),
    Method(
        name="rfs",
        summary="softmax cross-entropy, images repeated by how few images show their rarest class",
        loss="CrossEntropyLoss",
        loss_arguments=_softmax,
        score="softmax over C + 1 columns",
        sampler="rfs",
        reference=(
            "Gupta et al., LVIS, CVPR 2019; "
            "mmdet 3.3 configs/lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"
        ),
    ),
    Method(
        name="irfs",
        summary="softmax cross-entropy, images repeated by image and instance frequency together",
        loss="CrossEntropyLoss",
        loss_arguments=_softmax,
        score="softmax over C + 1 columns",
        sampler="irfs",
        reference="Yaman et al., Instance-Aware Repeat Factor Sampling, arXiv 2305.08069; no official code",
    ),
    Method(
        name="seesaw",
        summary="softmax that spares rare classes by the counts seen so far; background apart",
        loss="pipeline.finetune.seesaw.SeesawLoss",
        loss_arguments=_seesaw,
        score="softmax over C classes x softmax(object, background)",
        sampler="rfs",
        reference=(
            "Wang et al., Seesaw Loss, CVPR 2021; "
            "mmdet 3.3 configs/seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1.py"
        ),
        cls_predictor=NORMED_LINEAR,
    ),
    Method(
        name="ecm",
        summary="a binary loss per class with margins from the instance counts: the paper's choice",
        loss="pipeline.finetune.ecm.ECMLoss",
        loss_arguments=_ecm,
        score="sigmoid(class) (1 - sigmoid(background)), without the margin",
        sampler="rfs",
        reference=(
            "Cho and Kraehenbuehl, Long-tail Detection with Effective Class-Margins, ECCV 2022; "
            "janghyuncho/ECM-Loss configs/effective_class_margin_loss/r50_ecm_1x.py"
        ),
        cls_predictor=NORMED_LINEAR,
        mask_predictor=NORMED_CONV,
        grad_clip=5.0,
        warmup_iterations=10_000,
        warmup_start_factor=0.0001,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ENTRIES}
