"""ATSS (Zhang et al., CVPR 2020) as a MMDetection config: configs/atss/atss_r50_fpn_1x_coco.py of mmdet 3.3.

One stage on P3..P7: a square anchor per cell, four convolutions each for classes and for boxes, a sigmoid per
class, and a centerness that scores are multiplied by.  What is positive follows from the mean and the
deviation of the overlaps of each object's nearest anchors: nothing is drawn.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.detectors.settings import DetectorSettings

STRIDES = (8, 16, 32, 64, 128)  # of P3..P7
CLASSIFIER = "bbox_head.atss_cls"
RATE, BATCH = 0.01, 16  # MMDetection's learning rate for ATSS, and the images of its steps


def atss_config(
    trunk: Mapping[str, Any], settings: DetectorSettings, num_classes: int, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The `model` section of a MMDetection config.

    Args:
        trunk: type, preprocessor, backbone and the FPN of a two-stage detector, which starts at C3 here and
            gets P6 and P7 by convolutions.
        settings: sizes.
        num_classes: foreground categories.
        changes: what a long-tailed method changes in the head.
    """
    assigner = {"type": "ATSSAssigner", "topk": 9}
    nms = {"type": "nms", "iou_threshold": 0.6}
    return {
        **trunk,
        "neck": {**trunk["neck"], "start_level": 1, "add_extra_convs": "on_output"},
        "bbox_head": {**_head_config(settings, num_classes), **changes},
        "train_cfg": {"assigner": assigner, "allowed_border": -1, "pos_weight": -1, "debug": False},
        "test_cfg": {
            "nms_pre": settings.nms_pre,
            "min_bbox_size": 0,
            "score_thr": settings.score_threshold,
            "nms": nms,
            "max_per_img": settings.max_detections,
        },
    }


def rate_warnings(settings: DetectorSettings, lr: float, batch_size: int) -> list[str]:
    """What to say of a learning rate that is a two-stage detector's."""
    if settings.type != "atss" or lr * BATCH <= RATE * batch_size * 1.01:
        return []
    return [f"lr {lr:g} for {batch_size} images in a step: MMDetection trains ATSS with {RATE} for {BATCH}"]


def _head_config(settings: DetectorSettings, num_classes: int) -> dict[str, Any]:
    width = settings.fpn_channels
    focal = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
    return {
        "type": "ATSSHead",
        "num_classes": num_classes,
        "in_channels": width,
        "stacked_convs": 4,
        "feat_channels": width,
        "norm_cfg": {"type": "GN", "num_groups": _num_groups(width), "requires_grad": True},
        "anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [1.0],
            "octave_base_scale": settings.anchor_scale,
            "scales_per_octave": 1,
            "strides": list(STRIDES),
        },
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0] * 4,
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
        "loss_cls": focal,
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
    }


def _num_groups(width: int) -> int:
    """MMDetection's 32, but at least two channels in each: P7 may be one cell, and one number has no
    deviation."""
    return max(n for n in range(1, min(32, width // 2) + 1) if width % n == 0)
