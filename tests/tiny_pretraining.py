"""Pre-training around the smallest real detectors (R18, FPN of 32, 4 classes), and batches of noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from toy_detector import tiny_settings

from pipeline.data.targets import Target
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.one_stage import RoIBranch, in_parts
from pipeline.detectors.settings import DetectorSettings
from pipeline.engine.determinism import seeded
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.objective import TERMS
from pipeline.pretrain.views import PretrainBatch

DETECTORS = {
    "faster-rcnn": ("faster-rcnn", False),
    "mask-rcnn": ("mask-rcnn", False),
    "mask-rcnn, mask loss": ("mask-rcnn", True),
    "atss": ("atss", False),
}
CANVAS_WH = (96, 64)
SMALL: dict[str, Any] = {
    "stem_channels": 16,
    "fpn_channels": 32,
    "fc_channels": 24,
    "anchor_scale": 4.0,
    "finest_scale": 14,
    "rpn_proposals": 50,
    "roi_samples": 32,
}


def model_of(detector: str, terms: tuple[str, ...] = TERMS, depth: int = 18, norm: str = "gn") -> TwoDRCL:
    kind, mask_loss = DETECTORS[detector]
    settings = DetectorSettings(type=kind, depth=depth, norm=norm, **SMALL)  # type: ignore[arg-type]
    built = build_model(training_config(model_config(settings, 4)), seed=0)
    if kind == "mask-rcnn" and not mask_loss:  # as `build_detector`
        built.get_submodule("roi_head.mask_head").requires_grad_(False)
    with seeded(0):
        branch = RoIBranch(settings) if kind == "atss" and "lcl" in terms else None
        chosen = tiny_settings(terms=terms, mask_loss=mask_loss)
        return TwoDRCL(in_parts(built, branch), chosen, (8, 16), lambda batch: batch).train()


def target(count: int) -> Target:
    """The first `count` of two objects, with their masks."""
    boxes = np.array([[5, 6, 40, 50], [50, 10, 90, 60]], np.float32)[:count]
    polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in boxes.tolist()]
    return Target(boxes, np.array([2, 0])[:count], CANVAS_WH, count, polygons)


NOTHING, ONE_OBJECT, TWO_OBJECTS = (target(count) for count in range(3))


def batch_of(seed: int, targets: Sequence[Target] = (ONE_OBJECT, TWO_OBJECTS)) -> PretrainBatch:
    """Two images, whose three boxes both views show."""
    coarse = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    query, key = (F.interpolate(c, size=(CANVAS_WH[1], CANVAS_WH[0]), mode="bilinear") for c in coarse)
    boxes = torch.tensor([[4.0, 4, 30, 30], [20, 10, 60, 50], [1, 2, 90, 60]]).repeat(2, 1, 1)
    sizes = torch.tensor([[90.0, 60], [96, 64]])
    return PretrainBatch(
        query=query,
        key=key,
        query_wh=sizes,
        key_wh=sizes,
        query_boxes=boxes,
        key_boxes=boxes,
        masks=(boxes / 2 + boxes[..., :2].repeat(1, 1, 2) / 2).long(),
        valid=torch.ones(2, 3, dtype=torch.bool),
        image_ids=torch.tensor([3, 4]) + 10 * seed,
        targets=list(targets),
        canvas_wh=CANVAS_WH,
    )
