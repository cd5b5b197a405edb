"""The class-agnostic Faster R-CNN that OLN is compared with, as a MMDetection model config.

Kim et al. 2022, Table 1; numbers of configs/oln_box/class_agn_faster_rcnn.py.  OLN's trunk and its one anchor
per location, but both stages classify: the RPN tells objects from background by binary cross entropy, the RoI
head by a softmax over one class and background.  What the released config fixes is fixed here; sizes,
`rpn_max`, `keep` and `nms_iou` are settings.
"""

from typing import Any

from pipeline.detectors.build import roi_extractor_config
from pipeline.proposals.oln import (
    NUM_ANCHORS,
    NUM_ROIS,
    ROI_POSITIVE,
    anchors_config,
    assigner_config,
    deltas_config,
    kept_config,
    sampler_config,
    trunk_config,
)
from pipeline.proposals.settings import ProposalsSettings

RPN_NMS, RPN_MAX = 0.7, 2000


def faster_rcnn_config(settings: ProposalsSettings) -> dict[str, Any]:
    """The `model` section of a MMDetection config, as `pipeline.proposals.oln.oln_config`."""
    rpn_output = {
        "nms_pre": 2000,
        "max_per_img": settings.rpn_max or RPN_MAX,
        "nms": {"type": "nms", "iou_threshold": RPN_NMS},
        "min_bbox_size": 0,
    }
    return {
        **trunk_config(settings),
        "rpn_head": _rpn_head(settings),
        "roi_head": _roi_head(settings),
        "train_cfg": {
            "rpn": {
                "assigner": assigner_config(0.7, 0.3, 0.3, low_quality=True),
                "sampler": sampler_config(NUM_ANCHORS, 0.5, add_gt=False),
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": rpn_output,
            "rcnn": {
                "assigner": assigner_config(0.5, 0.5, 0.5, low_quality=False),
                "sampler": sampler_config(NUM_ROIS, ROI_POSITIVE, add_gt=True),
                "pos_weight": -1,
                "debug": False,
            },
        },
        "test_cfg": {"rpn": rpn_output, "rcnn": kept_config(settings)},
    }


def _rpn_head(settings: ProposalsSettings) -> dict[str, Any]:
    return {
        "type": "OneAnchorRPNHead",
        "in_channels": settings.fpn_channels,
        "feat_channels": settings.fpn_channels,
        "anchor_generator": anchors_config(settings),
        "bbox_coder": deltas_config([1.0, 1.0, 1.0, 1.0]),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _roi_head(settings: ProposalsSettings) -> dict[str, Any]:
    return {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": roi_extractor_config(settings.fpn_channels, settings.finest_scale, 7),
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "in_channels": settings.fpn_channels,
            "fc_out_channels": settings.fc_channels,
            "roi_feat_size": 7,
            "num_classes": 1,
            "bbox_coder": deltas_config([0.1, 0.1, 0.2, 0.2]),
            "reg_class_agnostic": False,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
    }
