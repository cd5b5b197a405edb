"""From settings to an MMDetection model: the only place that writes model configs.

The configs are complete and plain: no inheritance, every number visible in the published config.py.
"""

import contextlib
import copy
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch import nn

from pipeline.data.photometric import MEAN, STD
from pipeline.detectors import sampling as sampling  # registers KeyedRandomSampler
from pipeline.detectors.atss import atss_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.engine.determinism import seeded

C5_OF_STEM = {18: 8, 50: 32, 101: 32}  # channels of C5 per channel of the stem
STRIDES = (4, 8, 16, 32, 64)
TYPES = {"faster-rcnn": "FasterRCNN", "mask-rcnn": "MaskRCNN", "atss": "ATSS"}  # MMDetection's names


def model_config(
    settings: DetectorSettings,
    num_classes: int,
    *,
    box_head: Mapping[str, Any] | None = None,
    mask_head: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `model` section of a MMDetection config.

    Args:
        settings: sizes.
        num_classes: foreground categories.
        box_head, mask_head: what a long-tailed method changes in the heads: loss, last layer, initialisation.
    """
    with_mask = settings.type == "mask-rcnn"
    model: dict[str, Any] = {
        "type": TYPES[settings.type],
        "data_preprocessor": preprocessor_config(with_mask),
        "backbone": backbone_config(
            settings.depth, settings.norm, settings.frozen_stages, settings.stem_channels
        ),
        "neck": neck_config(settings.depth, settings.fpn_channels, settings.stem_channels),
    }
    if settings.type == "atss":
        return atss_config(model, settings, num_classes, box_head or {})
    model |= {
        "rpn_head": _rpn_config(settings),
        "roi_head": _roi_config(settings, num_classes, box_head or {}),
        "train_cfg": _train_config(settings, with_mask),
        "test_cfg": _test_config(settings, with_mask),
    }
    if with_mask:
        model["roi_head"] |= _mask_config(settings, num_classes, mask_head or {})
    return model


def preprocessor_config(with_mask: bool = False) -> dict[str, Any]:
    """Normalisation of a BGR image as MMDetection loads it; the same numbers as pipeline.data.photometric."""
    return {
        "type": "DetDataPreprocessor",
        "mean": [m * 255 for m in MEAN],
        "std": [s * 255 for s in STD],
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
        **({"pad_mask": True} if with_mask else {}),
    }


def backbone_config(depth: int, norm: str, frozen_stages: int, stem_channels: int = 64) -> dict[str, Any]:
    """ResNet with C2..C5 as outputs; GroupNorm leaves nothing frozen, it starts from scratch."""
    frozen_bn = norm == "frozen-bn"
    return {
        "type": "ResNet",
        "depth": depth,
        "base_channels": stem_channels,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": frozen_stages if frozen_bn else -1,
        "norm_cfg": {"type": "BN", "requires_grad": True} if frozen_bn else _group_norm(stem_channels),
        "norm_eval": frozen_bn,
        "style": "pytorch",
    }


def _group_norm(stem_channels: int) -> dict[str, Any]:
    """32 groups (Wu and He 2018), but at least two channels in each."""
    return {"type": "GN", "num_groups": min(32, stem_channels // 2)}


def neck_config(depth: int, channels: int, stem_channels: int = 64) -> dict[str, Any]:
    """FPN P2..P6."""
    last = C5_OF_STEM[depth] * stem_channels
    widths = [last // 8, last // 4, last // 2, last]
    return {"type": "FPN", "in_channels": widths, "out_channels": channels, "num_outs": 5}


def _rpn_config(settings: DetectorSettings) -> dict[str, Any]:
    return {
        "type": "RPNHead",
        "in_channels": settings.fpn_channels,
        "feat_channels": settings.fpn_channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [settings.anchor_scale],
            "ratios": [0.5, 1.0, 2.0],
            "strides": list(STRIDES),
        },
        "bbox_coder": _delta_coder([1.0, 1.0, 1.0, 1.0]),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _roi_config(settings: DetectorSettings, num_classes: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    box_head = {
        "type": "Shared2FCBBoxHead",
        "in_channels": settings.fpn_channels,
        "fc_out_channels": settings.fc_channels,
        "roi_feat_size": 7,
        "num_classes": num_classes,
        "bbox_coder": _delta_coder([0.1, 0.1, 0.2, 0.2]),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        **changes,
    }
    return {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": roi_extractor_config(settings.fpn_channels, settings.finest_scale, 7),
        "bbox_head": box_head,
    }


def _mask_config(settings: DetectorSettings, num_classes: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    head = {
        "type": "FCNMaskHead",
        "num_convs": 4,
        "in_channels": settings.fpn_channels,
        "conv_out_channels": settings.fpn_channels,
        "num_classes": num_classes,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        **changes,
    }
    extractor = roi_extractor_config(settings.fpn_channels, settings.finest_scale, 14)
    return {"mask_roi_extractor": extractor, "mask_head": head}


def roi_extractor_config(channels: int, finest_scale: int, output_size: int) -> dict[str, Any]:
    """RoIAlign on the level that fits the box: floor(log2(sqrt(area) / finest_scale)) above P2."""
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": output_size, "sampling_ratio": 0},
        "out_channels": channels,
        "featmap_strides": list(STRIDES[:4]),
        "finest_scale": finest_scale,
    }


def _delta_coder(stds: list[float]) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": stds}


def _train_config(settings: DetectorSettings, with_mask: bool) -> dict[str, Any]:
    rpn = {
        "assigner": _assigner(0.7, 0.3, 0.3, low_quality=True),
        "sampler": _sampler(256, 0.5, add_gt=False),
        "allowed_border": -1,
        "pos_weight": -1,
        "debug": False,
    }
    rcnn = {
        "assigner": _assigner(0.5, 0.5, 0.5, low_quality=with_mask),
        "sampler": _sampler(settings.roi_samples, 0.25, add_gt=True),
        "pos_weight": -1,
        "debug": False,
        **({"mask_size": 28} if with_mask else {}),
    }
    proposals = _proposal_config(settings, pre=2 * settings.rpn_proposals)
    return {"rpn": rpn, "rpn_proposal": proposals, "rcnn": rcnn}


def _test_config(settings: DetectorSettings, with_mask: bool) -> dict[str, Any]:
    rcnn = {
        "score_thr": settings.score_threshold,
        "nms": {"type": "nms", "iou_threshold": 0.5},
        "max_per_img": settings.max_detections,
        **({"mask_thr_binary": 0.5} if with_mask else {}),
    }
    return {"rpn": _proposal_config(settings, pre=settings.rpn_proposals), "rcnn": rcnn}


def _proposal_config(settings: DetectorSettings, pre: int) -> dict[str, Any]:
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {"nms_pre": pre, "max_per_img": settings.rpn_proposals, "nms": nms, "min_bbox_size": 0}


def _assigner(positive: float, negative: float, minimum: float, low_quality: bool) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": minimum,
        "match_low_quality": low_quality,
        "ignore_iof_thr": -1,
    }


def _sampler(num: int, positive: float, add_gt: bool) -> dict[str, Any]:
    return {
        "type": "KeyedRandomSampler",
        "num": num,
        "pos_fraction": positive,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_gt,
    }


def build_model(config: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a MMDetection model with initial weights drawn from `seed`, whatever the global generator holds.

    `config` is left as it is, though mmdet's constructors write into theirs.
    """
    with seeded(seed), quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(copy.deepcopy(ConfigDict(config)))
        model.init_weights()
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """mmengine logs tens of kilobytes about initialisation to stdout, which is for data.

    Its logger keeps the stream it finds when it is first used: stderr, from here on.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            # mmdet's ATSSHead warns of what mmdet's ATSSHead does
            warnings.filterwarnings("ignore", "DeprecationWarning: `num_anchors`")
            yield
    finally:
        logging.disable(previous)
