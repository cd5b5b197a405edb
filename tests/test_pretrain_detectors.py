"""Pre-training around every real detector: Faster R-CNN, Mask R-CNN with and without its mask loss, ATSS.

With each ResNet; with every row of Table 5; and what a step leaves alone.
"""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_pretraining import DETECTORS, batch_of, model_of

from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.objective import TERMS

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
