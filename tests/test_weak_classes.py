"""Boxes jittered around objects, and classes drawn by weakness."""

import torch

from pipeline.finetune.weak_classes import draw_classes, jittered_boxes

BOXES = torch.tensor([[12.0, 30.0, 24.0, 90.0], [0.0, 0.0, 60.0, 6.0]])


def test_full_lengths_move_every_side_by_a_sixth_in_all_combinations():
    found = jittered_boxes(BOXES[:1], torch.ones(1, 64), (100.0, 100.0))
    assert found.shape == (1, 16, 4)
    sides = [(10.0, 14.0), (20.0, 40.0), (22.0, 26.0), (80.0, 100.0)]
    corners = {tuple(round(v, 3) for v in box) for box in found[0].tolist()}
    assert corners == {(a, b, c, d) for a in sides[0] for b in sides[1] for c in sides[2] for d in sides[3]}


def test_lengths_of_0_leave_the_box():
    found = jittered_boxes(BOXES, torch.zeros(1, 64), (100.0, 100.0))
    assert torch.equal(found, BOXES[:, None].expand(2, 16, 4))


def test_boxes_stay_in_the_image_and_overlap_their_object():
    uniform = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    found = jittered_boxes(BOXES, uniform, (50.0, 92.0))
    assert (found >= 0).all()
    assert (found[..., 0::2] <= 50).all() and (found[..., 1::2] <= 92).all()
    assert (found[..., 2:] > found[..., :2]).all()
    assert not torch.equal(found[0] - BOXES[0], found[1] - BOXES[1])


def test_no_objects():
    assert jittered_boxes(torch.zeros(0, 4), torch.zeros(0, 64), (9.0, 9.0)).shape == (0, 16, 4)


def test_classes_are_drawn_by_their_weights():
    uniform = (torch.arange(1000) + 0.5) / 1000  # every share of the unit interval, exactly
    found = draw_classes(torch.tensor([1.0, 0.0, 3.0, 4.0]), uniform)
    assert torch.bincount(found, minlength=4).tolist() == [125, 0, 375, 500]


def test_bounds_of_the_draw():
    weights = torch.tensor([0.0, 1.0, 2.0])
    assert draw_classes(weights, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 2]
    assert draw_classes(torch.zeros(3), torch.tensor([0.0, 0.4, 0.99])).tolist() == [0, 1, 2]
    assert draw_classes(torch.full((3,), torch.nan), torch.tensor([0.5])).max() <= 2
