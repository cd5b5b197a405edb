"""Centerness and score fusion against loops and the published numbers."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.proposals.quality import centerness, fuse


def random_boxes(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 50
    size = torch.rand(count, 2, generator=generator, dtype=dtype) * 50 + 1
    return torch.cat([corner, corner + size], dim=1)


def slow_centerness(anchor: list[float], box: list[float]) -> float:
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    left, right, top, bottom = x - box[0], box[2] - x, y - box[1], box[3] - y
    if min(left, right, top, bottom) < 0 or left + right == 0 or top + bottom == 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def test_published_value() -> None:
    anchor, box = torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    assert centerness(anchor, box).item() == pytest.approx(0.5773502692, abs=1e-7)


def test_equals_the_loop() -> None:
    anchors, boxes = random_boxes(500, 0), random_boxes(500, 1)
    found = centerness(anchors, boxes)
    wanted = [slow_centerness(a, b) for a, b in zip(anchors.tolist(), boxes.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    assert 50 < sum(w > 0 for w in wanted) < 450  # both cases are there


def test_is_one_at_the_centre_and_nowhere_larger() -> None:
    boxes = random_boxes(50, 2)
    torch.testing.assert_close(centerness(boxes, boxes), torch.ones(50, dtype=torch.float64))
    assert (centerness(random_boxes(50, 3), boxes) <= 1).all()


@pytest.mark.parametrize(
    "box",
    [
        [6.0, 0, 20, 20],  # the centre (5, 5) lies left of it
        [0.0, 6, 20, 20],  # above
        [0.0, 0, 4, 20],  # right
        [0.0, 0, 20, 4],  # below
        [5.0, 0, 20, 20],  # on its side
        [6.0, 6, 20, 20],  # outside in both: two negative distances must not make a positive
        [5.0, 5, 5, 5],  # an empty box: no 0 / 0
    ],
)
def test_is_zero_outside_and_for_empty_boxes(box: list[float]) -> None:
    assert centerness(torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([box])).item() == 0


def test_no_box_at_all() -> None:
    assert centerness(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_fused_score_is_the_geometric_mean() -> None:
    assert fuse(torch.tensor(0.81), torch.tensor(0.64)).item() == pytest.approx(0.72)
    first, second = torch.rand(2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(fuse(first, second), ((first.log() + second.log()) / 2).exp())
