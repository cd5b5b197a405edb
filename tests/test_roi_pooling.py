"""Boxes find their level on the device: the bits of MMDetection's extractor, and nobody waits."""

from typing import Any

import pytest
import torch
from syncs import Syncs
from test_two_stage import tiny
from torch import Tensor

from pipeline.detectors.roi_pooling import pooled
from pipeline.detectors.two_stage import TwoStageModel

SIDES = {"every level": (3, 20, 40, 80, 200), "one level": (10, 12, 14), "empty boxes": (0, 30, 0)}


@pytest.fixture(scope="module")
def model() -> TwoStageModel:
    return TwoStageModel(tiny("faster-rcnn"))


def levels(seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    sizes = ((64, 96), (32, 48), (16, 24), (8, 12))
    return [torch.randn(2, 32, *size, generator=random).requires_grad_() for size in sizes]


def rois_of(sides: tuple[int, ...]) -> Tensor:
    return torch.tensor([[i % 2, 5.5 + i, 3, 5.5 + i + side, 3 + side] for i, side in enumerate(sides)])


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_values_and_gradients_are_mmdets_to_the_bit(model: TwoStageModel, sides: tuple[int, ...]) -> None:
    extractor: Any = model.encoder.roi_extractor
    rois, found, expected = rois_of(sides), levels(), levels()
    ours, theirs = pooled(extractor, found, rois), extractor(tuple(expected), rois)
    assert torch.equal(ours, theirs) and ours.shape == (len(sides), 32, 7, 7)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for one, other in zip(found, expected, strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)
    if sides == SIDES["every level"]:
        assert all(bool(one.grad.any()) for one in found if one.grad is not None)


def test_no_box_gives_no_row(model: TwoStageModel) -> None:
    assert pooled(model.encoder.roi_extractor, levels(), torch.zeros(0, 5)).shape == (0, 32, 7, 7)


def test_box_features_of_a_detector_make_nobody_wait(model: TwoStageModel) -> None:
    encoder, images = model.encoder, torch.randn(2, 3, 64, 96)
    boxes = torch.tensor([[[4.0, 4, 30, 30], [20, 10, 60, 50], [1, 2, 90, 60]]] * 2)
    with Syncs() as syncs:
        encoder.box_features(encoder.pyramid(encoder.trunk(images)), boxes).sum().backward()
    assert syncs.found == []
    with Syncs() as syncs:
        encoder.roi_extractor(levels(), torch.zeros(1, 5))
    assert "aten.nonzero.default" in syncs.found  # what is avoided
