"""OLN as a MMDetection model config: Faster R-CNN with heads that localise and never classify.

Kim et al. 2022, Sec. 3; numbers of configs/oln_box/oln_box.py.  Importing this file registers the heads.
"""

from typing import Any

from pipeline.detectors.build import (
    STRIDES,
    backbone_config,
    neck_config,
    preprocessor_config,
    roi_extractor_config,
)
from pipeline.proposals import roi_head, rpn_head  # noqa: F401  registers the heads
from pipeline.proposals.settings import ProposalsSettings

NUM_ANCHORS = 256  # sampled per image, for the box loss and again for the objectness loss
NUM_ROIS, ROI_POSITIVE = 512, 0.25  # sampled per image, at most this share positive


def oln_config(settings: ProposalsSettings) -> dict[str, Any]:
    """The `model` section of a MMDetection config; `pipeline.detectors.build.build_model` builds it.

    Its input is RGB, as `pipeline.data` decodes it.  Weights of the trunk (`settings.init`) are loaded by the
    caller, after initialisation.
    """
    return {
        **trunk_config(settings),
        "rpn_head": _rpn_head(settings),
        "roi_head": _roi_head(settings),
        "train_cfg": _train_config(settings),
        "test_cfg": {"rpn": _rpn_output(settings), "rcnn": kept_config(settings)},
    }


def trunk_config(settings: ProposalsSettings) -> dict[str, Any]:
    """Type, input, backbone and neck."""
    return {
        "type": "FasterRCNN",
        "data_preprocessor": {**preprocessor_config(), "bgr_to_rgb": False},
        "backbone": backbone_config(settings.depth, settings.norm, 1, settings.stem_channels),
        "neck": neck_config(settings.depth, settings.fpn_channels, settings.stem_channels),
    }


def anchors_config(settings: ProposalsSettings) -> dict[str, Any]:
    """One square anchor per location."""
    return {
        "type": "AnchorGenerator",
        "scales": [settings.anchor_scale],
        "ratios": [1.0],
        "strides": list(STRIDES),
    }


def kept_config(settings: ProposalsSettings) -> dict[str, Any]:
    """What becomes of the refined boxes."""
    return {
        "score_thr": 0.0,
        "nms": {"type": "nms", "iou_threshold": settings.nms_iou},
        "max_per_img": settings.keep,
    }


def _rpn_head(settings: ProposalsSettings) -> dict[str, Any]:
    # Released: sum / (256 B) with weight 10, that is 1/25.6 per positive anchor.  A mean over the positives
    # with weight 1 is the same loss for images with 26 positive anchors, so the learning rate carries over.
    box_weight = 10.0 if settings.normalize_by == "samples" else 1.0
    start = {"type": "Normal", "layer": "Conv2d", "std": 0.01}
    box = {"override": {"type": "Normal", "name": "rpn_reg", "std": 0.01, "bias": settings.reg_bias}}
    return {
        "type": "OLNRPNHead",
        "in_channels": settings.fpn_channels,
        "feat_channels": settings.fpn_channels,
        "anchor_generator": anchors_config(settings),
        "bbox_coder": {"type": "TBLRBBoxCoder", "normalizer": 1.0},
        "reg_decoded_bbox": True,
        "loss_bbox": {"type": "IoULoss", "mode": "linear", "loss_weight": box_weight},
        "loss_objectness": {"type": "L1Loss", "loss_weight": 1.0},
        "normalize_by": settings.normalize_by,
        "border_objects": settings.border_objects,
        "init_cfg": {**start, **box},
    }


def _roi_head(settings: ProposalsSettings) -> dict[str, Any]:
    # Likewise: a mean over the positives, as large as the released loss when the sampler finds all it may.
    weight = 1.0 if settings.normalize_by == "samples" else ROI_POSITIVE
    return {
        "type": "OLNRoIHead",
        "bbox_roi_extractor": roi_extractor_config(settings.fpn_channels, settings.finest_scale, 7),
        "bbox_head": {
            "type": "OLNBBoxHead",
            "in_channels": settings.fpn_channels,
            "fc_out_channels": settings.fc_channels,
            "roi_feat_size": 7,
            "bbox_coder": deltas_config([0.1, 0.1, 0.2, 0.2]),
            "loss_bbox": {"type": "L1Loss", "loss_weight": weight},
            "loss_overlap": {"type": "L1Loss", "loss_weight": weight},
            "normalize_by": settings.normalize_by,
        },
    }


def _train_config(settings: ProposalsSettings) -> dict[str, Any]:
    return {
        "rpn": {
            "assigner": assigner_config(0.7, 0.3, 0.3, low_quality=True),
            "sampler": sampler_config(NUM_ANCHORS, 0.5, add_gt=False),
            "objectness_assigner": assigner_config(0.3, 0.1, 0.3, low_quality=True),
            "objectness_sampler": sampler_config(NUM_ANCHORS, 1.0, add_gt=False, negatives=settings.neg_fill),
            "allowed_border": settings.allowed_border,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _rpn_output(settings),
        "rcnn": {
            "assigner": assigner_config(0.5, 0.5, 0.5, low_quality=False),
            # negatives carry no loss: they only count when the losses are divided by all samples
            "sampler": sampler_config(
                NUM_ROIS, ROI_POSITIVE, add_gt=True, negatives=settings.normalize_by == "samples"
            ),
            "pos_weight": -1,
            "debug": False,
        },
    }


def _rpn_output(settings: ProposalsSettings) -> dict[str, Any]:
    """2,000 boxes of each level, in training and testing alike; boxes of no size cannot be pooled."""
    nms = None if settings.rpn_nms is None else {"type": "nms", "iou_threshold": settings.rpn_nms}
    return {"nms_pre": 2000, "max_per_img": settings.rpn_max, "nms": nms, "min_bbox_size": 0}


def deltas_config(stds: list[float]) -> dict[str, Any]:
    """The box code of Faster R-CNN, scaled to unit variance."""
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": stds}


def assigner_config(positive: float, negative: float, minimum: float, low_quality: bool) -> dict[str, Any]:
    """MaxIoUAssigner with these IoU thresholds; `low_quality` gives every object its best anchors."""
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": minimum,
        "match_low_quality": low_quality,
        "ignore_iof_thr": -1,
    }


def sampler_config(num: int, positive: float, add_gt: bool, negatives: bool = True) -> dict[str, Any]:
    """`negatives` fill up to `num`; without them, the upper bound of negatives per positive is 0."""
    return {
        "type": "KeyedRandomSampler",
        "num": num,
        "pos_fraction": positive,
        "neg_pos_ub": -1 if negatives else 0,
        "add_gt_as_proposals": add_gt,
    }
