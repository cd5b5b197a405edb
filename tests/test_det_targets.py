"""What L_det learns from: labels, objects, or proposals."""

from pathlib import Path

import numpy as np
import pytest
from test_pretrain_views import dataset, draws, geometries
from test_pretrain_views import split as split  # the fixture

from pipeline.data.boxes import visible_fraction
from pipeline.errors import SettingsError
from pipeline.pretrain.det_targets import class_names
from pipeline.pretrain.plan import PretrainJob, PretrainPlan
from pipeline.pretrain.settings import PretrainSettings
from pipeline.settings import build


def targets(split, kind):
    found = dataset(split, det_targets=kind)
    return found, [(draw, found[draw].target) for draw in draws(30)]


def test_objects_are_the_annotations_of_one_category(split):
    _, named = targets(split, "categories")
    _, unnamed = targets(split, "objects")
    for (_, one), (_, other) in zip(named, unnamed, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert not other.labels.any() and len(other.labels) == len(one.labels) and other.key == one.key
    assert any(target.labels.any() for _, target in named)


def test_proposals_take_the_place_of_annotations(split):
    found, made = targets(split, "proposals")
    counts = set()
    for draw, target in made:
        query, _ = geometries(found, draw)
        boxes, _ = found.proposals.of_image(11 + draw.image)
        corners = np.stack([boxes[:, [0, 1]], boxes[:, [2, 3]]], axis=1)  # (n, 2, 2)
        matrix = query.homography
        moved = corners @ matrix[:2, :2].T + matrix[:2, 2]
        moved = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
        width, height = query.size_wh
        kept = visible_fraction(moved, width, height) >= 0.5
        expected = np.clip(moved[kept], 0, [width, height, width, height])
        np.testing.assert_allclose(target.boxes, expected, atol=1e-3)
        assert not target.labels.any() and target.polygons is None
        counts.add(len(target.boxes))
    assert len(counts) > 3 and min(counts) < 40  # crops leave some out


def test_without_proposals_there_is_an_empty_target(split):
    target = dataset(split, proposals={}, det_targets="proposals")[draws(1)[0]].target
    assert target.boxes.shape == (0, 4) and target.labels.shape == (0,)


@pytest.mark.parametrize(("kind", "names"), [("categories", ["a", "b"]), ("objects", ["object"])])
def test_the_detector_has_the_categories_of_its_targets(split, kind, names):
    annotations, folder = split
    assert class_names(kind, annotations) == names
    settings = build(PretrainSettings, {"det_targets": kind}, "pretrain")
    job = PretrainJob(folder / "train.json", folder, Path("p"), Path("s"), Path("w"), 0, pretrain=settings)
    plan = PretrainPlan(job)
    assert plan.model_config()["roi_head"]["bbox_head"]["num_classes"] == len(names) == len(plan.class_names)


def test_masks_of_proposals_do_not_exist():
    with pytest.raises(SettingsError, match="mask_loss needs polygons"):
        build(PretrainSettings, {"mask_loss": True, "det_targets": "proposals"}, "pretrain")
