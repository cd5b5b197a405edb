"""Pre-training around every real detector: Faster R-CNN, Mask R-CNN with and without its mask loss, ATSS.

With each ResNet; with every row of Table 5; and what a step leaves alone.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
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
# Table 5, with L_det in every row, and what the paper's components are alone
ROWS = [
    ("det",),
    ("hcl", "det"),
    ("lcl", "det"),
    ("hcl", "lcl", "det"),
    ("hcl", "lcl", "ar", "det"),  # the last row, all of them, is in the test of every detector
    *((term,) for term in TERMS[:-1]),
]
CASES = [
    *((detector, row) for detector in ("faster-rcnn", "atss") for row in ROWS),
    *((detector, row) for detector in ("mask-rcnn", "mask-rcnn, mask loss") for row in ROWS[:2]),
]


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


def target(number: int) -> Target:
    boxes = np.array([[5, 6, 40, 50], [50, 10, 90, 60]], np.float32)[: number + 1]
    polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in boxes.tolist()]
    return Target(boxes, np.array([2, 0])[: number + 1], CANVAS_WH, number, polygons)


def batch_of(seed: int) -> PretrainBatch:
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
        targets=[target(0), target(1)],
        canvas_wh=CANVAS_WH,
    )


def two_steps(model: TwoDRCL) -> dict[str, Any]:
    """The second has queues that are not empty."""
    losses: dict[str, Any] = {}
    for seed in (0, 1):
        model.zero_grad(set_to_none=True)
        losses = model(batch_of(seed))
        losses["loss"].backward()
        model.after_step()
    return losses


def assert_nothing_waits(model: TwoDRCL, losses: dict[str, Any], terms: tuple[str, ...]) -> None:
    """A parameter without a gradient would stop a run on several processes."""
    assert set(losses) & set(TERMS) == set(terms)
    assert all(bool(value.isfinite()) for value in losses.values())
    assert all(losses[term] > 0 for term in terms)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("depth", [18, 50, 101])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_step_of_every_detector_with_every_resnet(detector: str, depth: int) -> None:
    model = model_of(detector, depth=depth)
    assert_nothing_waits(model, two_steps(model), TERMS)
    learns = {
        name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"backbone", "neck"} <= learns
    heads = ["bbox_head"] if detector == "atss" else ["rpn_head", "roi_head"]
    assert set(heads) <= learns
    masks = [p for name, p in model.named_parameters() if "detector.roi_head.mask_head" in name]
    assert [p.grad is not None and bool(p.grad.any()) for p in masks] == [DETECTORS[detector][1]] * len(masks)


@pytest.mark.parametrize(("detector", "terms"), CASES, ids=[f"{d}-{'+'.join(row)}" for d, row in CASES])
def test_no_row_of_table_5_leaves_a_parameter_waiting(detector: str, terms: tuple[str, ...]) -> None:
    model = model_of(detector, terms)
    assert_nothing_waits(model, two_steps(model), terms)


@pytest.mark.parametrize("detector", ["faster-rcnn", "atss"])
def test_no_pass_touches_the_statistics_of_the_backbones_batch_norm(detector: str) -> None:
    """Neither the views nor what SR re-encodes, which no detector will ever see."""
    model = model_of(detector, norm="frozen-bn")
    trunk: Any = model.detector.encoder.backbone
    before = {name: value.clone() for name, value in trunk.named_buffers()}
    passes: dict[str, int] = {"layer1": 0, "layer4": 0}
    for name in passes:
        trunk.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: passes.update({name: passes[name] + 1})
        )
    two_steps(model)
    # in each step the query view and the masked reconstruction, the latter's first stage once more
    assert passes == {"layer1": 6, "layer4": 4}
    assert len(before) > 20
    assert all(torch.equal(value, before[name]) for name, value in trunk.named_buffers())


def test_an_image_twice_in_a_batch_is_no_negative_of_itself() -> None:
    """As DRB draws it: its two keys are queued after the step, and left out when it comes again."""
    model = model_of("faster-rcnn", ("hcl", "lcl"))
    for seed in (0, 1, 2):
        losses = model(dataclasses.replace(batch_of(seed), image_ids=torch.tensor([7, 7])))
        model.after_step()
        assert losses["hcl"] == 0.0 and losses["lcl"] == 0.0  # nobody else is in the queues
    other = model(dataclasses.replace(batch_of(3), image_ids=torch.tensor([7, 8])))
    assert other["hcl"] > 0 and other["lcl"] > 0
    assert model.holistic is not None and set(model.holistic.queue.image_ids.tolist()[:6]) == {7}
