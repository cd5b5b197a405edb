"""Mask targets of partly hidden objects against points, one by one."""

import numpy as np
import pytest
import torch

from pipeline.data.targets import Target
from pipeline.detectors.two_stage import data_sample
from pipeline.detectors.visible_masks import VisibleMasks

# isort: split
from mmdet.structures.mask import PolygonMasks, mask_target
from mmengine.config import ConfigDict

SIZE = 28
CONFIG = ConfigDict(mask_size=SIZE)
OWN = [[np.array([10.0, 10, 50, 10, 50, 50, 10, 50])], [np.array([20.0, 5, 60, 30, 25, 55])]]
BEFORE = [np.array([30.0, 0, 70, 0, 70, 30, 30, 30]), np.array([0.0, 40, 20, 40, 20, 64, 0, 64])]
ROIS = np.array([[8, 8, 52, 54], [15, 3, 62, 60], [25, 5, 55, 35], [12, 12, 28, 28]], dtype=np.float32)
OBJECTS = np.array([0, 1, 1, 0])


def contains(polygon, x, y):
    points, inside = polygon.reshape(-1, 2).tolist(), False
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
        if (ya > y) != (yb > y) and x < xa + (y - ya) / (yb - ya) * (xb - xa):
            inside = not inside
    return inside


def slow_target(roi, own, before):
    target = np.zeros((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            x = roi[0] + (j + 0.5) / SIZE * (roi[2] - roi[0])
            y = roi[1] + (i + 0.5) / SIZE * (roi[3] - roi[1])
            seen = any(contains(p, x, y) for p in own) and not any(contains(p, x, y) for p in before)
            target[i, j] = seen
    return target


def targets(masks):
    found = mask_target([torch.from_numpy(ROIS)], [torch.from_numpy(OBJECTS)], [masks], CONFIG)
    return found.numpy()


@pytest.mark.parametrize("hidden", [[BEFORE, BEFORE], [BEFORE, []], [[], BEFORE[:1]], [[], []]])
def test_targets_are_what_is_seen(hidden):
    found = targets(VisibleMasks(OWN, hidden, 64, 72))
    assert found.shape == (4, SIZE, SIZE)
    for target, roi, number in zip(found, ROIS, OBJECTS, strict=True):
        expected = slow_target(roi, OWN[number], hidden[number])
        assert (target != expected).mean() < 0.05  # pixels on an edge
    plain = targets(PolygonMasks(OWN, 64, 72))
    for target, whole, number in zip(found, plain, OBJECTS, strict=True):
        assert (target <= whole).all() and (
            np.array_equal(target, whole) == (not hidden[number]) or number == 0
        )


def test_without_rois_or_objects():
    masks = VisibleMasks(OWN, [BEFORE, []], 64, 72)
    nothing = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    assert mask_target(*nothing, [masks], CONFIG).shape == (0, SIZE, SIZE)
    assert len(VisibleMasks([], [], 64, 72)) == 0 and len(masks) == 2


def test_a_sample_has_them_where_something_was_pasted():
    boxes = np.array([[10, 10, 50, 50], [20, 5, 60, 55]], np.float32)
    settings = {"labels": np.array([0, 1]), "size_wh": (72, 64), "key": 1, "polygons": OWN}

    def masks(hidden):
        target = Target(boxes, hidden=hidden, **settings)
        return data_sample(target, (96, 64), torch.device("cpu"), with_mask=True).gt_instances.masks

    assert type(masks(None)) is PolygonMasks
    assert np.array_equal(targets(masks([BEFORE, []])), targets(VisibleMasks(OWN, [BEFORE, []], 64, 72)))
