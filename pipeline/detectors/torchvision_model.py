"""Torchvision's Faster or Mask R-CNN that computes what a detector of ours does, from the same config.

torchvision's stock models differ from MMDetection's in two things that no weight can make good: RoIAlign
without the half-pixel shift (`aligned=False`, two samples a bin), and anchors rounded to whole pixels.  Here
both are as in training; a stock model takes the same weights, and its boxes are off by about a pixel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align

from pipeline.errors import MismatchedInput

POOLED, MASK_POOLED, MASK_WIDTH = 7, 14, 256
LEVELS = ("0", "1", "2", "3")  # torchvision's names of P2..P5


class AlignedRoIPool(MultiScaleRoIAlign):
    """MMDetection's SingleRoIExtractor in the place of torchvision's; it insists on its class."""

    def __init__(self, size: int, strides: Sequence[int], finest_scale: float) -> None:
        super().__init__(LEVELS, size, sampling_ratio=-1)  # -1: as many samples as a bin has pixels
        self.size, self.strides, self.finest_scale = size, tuple(strides), finest_scale

    def forward(self, features: Mapping[str, Tensor], boxes: list[Tensor], sizes: object) -> Tensor:
        """Boxes of each image, (n, 4) xyxy -> (sum of n, C, size, size)."""
        image = torch.cat([torch.full((len(b), 1), i, device=b.device) for i, b in enumerate(boxes)])
        every = torch.cat(boxes)
        rois = torch.cat([image.to(every.dtype), every], dim=1)  # (R, 5)
        area = (every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1])
        level = torch.log2(area.clamp(min=0).sqrt() / self.finest_scale + 1e-6).floor()
        level = level.clamp(0, len(self.strides) - 1)
        maps = [features[name] for name in LEVELS]
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], self.size, self.size)
        for i, (own, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = torch.nonzero(level == i)[:, 0]
            pooled[here] = roi_align(own, rois[here], self.size, 1 / stride, -1, aligned=True)
        return pooled


def torchvision_detector(config: Mapping[str, Any], num_classes: int, test_wh: tuple[int, int]) -> nn.Module:
    """The model, in eval mode with random weights.

    Args:
        config: the `model` section of config.py.
        num_classes: N, without the background.
        test_wh: long and short side at test time.

    Raises:
        MismatchedInput: torchvision has no such trunk.
    """
    backbone, neck, head = config["backbone"], config["neck"], config["roi_head"]
    norm = backbone["norm_cfg"]["type"]
    trunk = (backbone["type"], backbone.get("base_channels", 64), neck["out_channels"], norm)
    if trunk != ("ResNet", 64, 256, "BN"):
        raise MismatchedInput(
            f"torchvision's trunk is (ResNet, 64, 256, BN), but this one is ({', '.join(map(str, trunk))})",
            "--to mmdet and --to safetensors take every detector",
        )
    body = resnet_fpn_backbone(
        backbone_name=f"resnet{backbone['depth']}", weights=None, norm_layer=FrozenBatchNorm2d
    )
    width = head["bbox_head"]["fc_out_channels"]
    extractor = head["bbox_roi_extractor"]
    strides, finest = extractor["featmap_strides"], extractor["finest_scale"]
    options: dict[str, Any] = {
        "rpn_anchor_generator": exact_anchors(config["rpn_head"]["anchor_generator"]),
        "box_roi_pool": AlignedRoIPool(POOLED, strides, finest),
        "box_head": TwoMLPHead(256 * POOLED**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes + 1),
        "min_size": min(test_wh),
        "max_size": max(test_wh),
        **_thresholds(config["test_cfg"]),
    }
    if "mask_head" not in head:
        return FasterRCNN(body, **options).eval()
    return MaskRCNN(
        body,
        mask_roi_pool=AlignedRoIPool(MASK_POOLED, strides, finest),
        mask_head=MaskRCNNHeads(256, (MASK_WIDTH,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(MASK_WIDTH, MASK_WIDTH, num_classes + 1),
        **options,
    ).eval()


def _thresholds(test: Mapping[str, Any]) -> dict[str, Any]:
    rpn, rcnn = test["rpn"], test["rcnn"]
    return {
        "rpn_pre_nms_top_n_test": rpn["nms_pre"],
        "rpn_post_nms_top_n_test": rpn["max_per_img"],
        "rpn_nms_thresh": rpn["nms"]["iou_threshold"],
        "box_score_thresh": rcnn["score_thr"],
        "box_nms_thresh": rcnn["nms"]["iou_threshold"],
        "box_detections_per_img": rcnn["max_per_img"],
    }


def exact_anchors(settings: Mapping[str, Any]) -> AnchorGenerator:
    """MMDetection's anchors: centred on the grid's corners, sides not rounded."""
    (scale,), ratios = settings["scales"], tuple(settings["ratios"])
    sizes = tuple((stride * scale,) for stride in settings["strides"])
    generator = AnchorGenerator(sizes, (ratios,) * len(sizes))
    generator.cell_anchors = [
        torch.tensor([_anchor(size, ratio) for ratio in ratios]) for (size,) in sizes
    ]  # per level (A, 4)
    return generator


def _anchor(size: float, ratio: float) -> tuple[float, float, float, float]:
    """xyxy of an anchor around the origin; `ratio` is height over width."""
    width, height = size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2
    return -width, -height, width, height
