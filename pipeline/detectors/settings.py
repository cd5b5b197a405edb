"""The detector that is pre-trained and fine-tuned: one section, so that both build the same one."""

from dataclasses import dataclass
from typing import Literal

from pipeline.settings import setting

Pixels = Literal["auto", "rgb", "bgr"]


@dataclass(frozen=True)
class DetectorSettings:
    """A detector with a ResNet-FPN trunk.  Sizes default to MMDetection's R50-FPN."""

    type: Literal["faster-rcnn", "mask-rcnn", "atss"] = setting(
        "faster-rcnn", "paper, Sec. 4.1: Faster R-CNN and Mask R-CNN; Table A.2: ATSS, which has one stage"
    )
    depth: int = setting(
        50, "paper, Sec. 4.1: ResNet-50 and -101; 18 for small machines", choices=(18, 50, 101)
    )
    stem_channels: int = setting(
        64,
        "ResNet's width; less makes a network that no published weights fit, for demos",
        choices=(16, 32, 64),
    )
    norm: Literal["frozen-bn", "gn"] = setting(
        "frozen-bn", "MMDetection: ImageNet's statistics stay; `gn` (GroupNorm) needs no initial weights"
    )
    frozen_stages: int = setting(
        1, "MMDetection: stem and layer1 stay as initialised; ignored with gn", low=-1, high=4
    )
    init_pixels: Pixels = setting(
        "auto",
        "what the network of a detectron2 file takes: rgb as torchvision, or bgr from 0 to 255 as its zoo; "
        "auto: what the file says",
    )
    fpn_channels: int = setting(256, "MMDetection", low=32)
    fc_channels: int = setting(
        1024, "MMDetection: width of the shared box layers; with ATSS of the RoI branch made for LCL", low=16
    )
    anchor_scale: float = setting(
        8.0, "MMDetection: 32 px on the finest level (ATSS 64 px); smaller for smaller images", low=1
    )
    finest_scale: int = setting(
        56,
        "MMDetection: RoIs under twice this use P2 (with ATSS, under four times, P3); smaller for smaller "
        "images",
        low=4,
    )
    rpn_proposals: int = setting(1000, "MMDetection: RPN boxes kept per image after NMS", low=10)
    roi_samples: int = setting(512, "MMDetection: RoIs per image in the loss, a quarter positive", low=16)
    nms_pre: int = setting(
        1000, "ATSS, MMDetection: scores kept per level before NMS; classes share them", low=1
    )
    score_threshold: float = setting(1e-4, "LVIS: low scores count in AP", low=0, high=1)
    max_detections: int = setting(300, "LVIS: per image (COCO: 100)", low=1)
