"""Boxes around the ground truth: how far, how good, and the same on any share of the images."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.boxes import iou
from pipeline.proposals.gt_jitter import jittered
from pipeline.proposals.settings import JitterSettings, ProposalsSettings
from pipeline.proposals.sources import Boxes

WIDTH, HEIGHT = 200, 120
# image id -> boxes xywh; negative ids are legal
OBJECTS: dict[int, list[list[float]]] = {
    7: [[50, 40, 30, 20], [0, 0, 40, 30], [180, 100, 40, 40]],
    -3: [[90, 50, 20, 20]],
    11: [],
    5: [[60, 60, 10, 40], [300, 10, 20, 20], [10, 10, 0, 5]],  # one outside the image, one empty
}


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    records = [
        {"image_id": i, "category_id": 1 + k % 2, "bbox": box, "area": 1, "iscrowd": 0}
        for i, boxes in OBJECTS.items()
        for k, box in enumerate(boxes)
    ]
    records.append({"image_id": -3, "category_id": 1, "bbox": [0, 0, 99, 99], "area": 1, "iscrowd": 1})
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in OBJECTS],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}],
        "annotations": [{"id": k} | record for k, record in enumerate(records)],
    }
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


def settings(keep: int = 1000, **jitter: Any) -> ProposalsSettings:
    return ProposalsSettings(source="gt-jitter", keep=keep, jitter=JitterSettings(**jitter))


def made(
    annotations: Annotations, wanted: ProposalsSettings, seed: int = 3, positions: Any = range(4)
) -> dict[int, Boxes]:
    return dict(jittered(annotations, wanted, seed)(positions))


def test_one_copy_is_the_ground_truth_itself(annotations: Annotations) -> None:
    found = made(annotations, settings(per_object=1))
    assert list(found) == [7, -3, 11, 5]
    assert found[7][0].tolist() == [[50, 40, 80, 60], [0, 0, 40, 30], [180, 100, 200, 120]]
    assert found[-3][0].tolist() == [[90, 50, 110, 70]]  # not the crowd
    assert found[5][0].tolist() == [[60, 60, 70, 100]]
    for boxes, scores in found.values():
        assert boxes.dtype == scores.dtype == np.float32 and boxes.shape == (len(scores), 4)
        assert (scores == 1).all()


def test_scores_are_the_iou_with_the_object(annotations: Annotations) -> None:
    boxes, scores = made(annotations, settings(per_object=50, shift=0.3, log_scale=0.4))[-3]
    assert len(boxes) == 50 and (np.diff(scores) <= 0).all() and scores[0] == 1
    overlaps = iou(boxes.astype(np.float64), np.array([[90.0, 50, 110, 70]]))[:, 0]
    np.testing.assert_allclose(scores, overlaps, atol=1e-6)
    assert scores.min() < 0.7


def test_jitter_stays_within_its_bounds_and_fills_them(annotations: Annotations) -> None:
    boxes = made(annotations, settings(per_object=2000, keep=2000, shift=0.25, log_scale=0.5))[-3][0]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - [100, 60]
    side = np.log((boxes[:, 2:] - boxes[:, :2]) / 20)
    for noise, bound in ((centre / 20, 0.25), (side, 0.5)):
        assert np.abs(noise).max() <= bound + 1e-5
        assert np.abs(noise).max(axis=0).min() > 0.98 * bound
        assert np.abs(noise.mean(axis=0)).max() < 0.05 * bound  # uniform on both sides
        assert np.abs(noise.std(axis=0) - bound / 3**0.5).max() < 0.05 * bound
    assert abs(np.corrcoef(np.concatenate([centre, side], axis=1).T) - np.eye(4)).max() < 0.1


def test_boxes_lie_in_the_image_and_have_an_area(annotations: Annotations) -> None:
    for boxes, _ in made(annotations, settings(per_object=200, shift=1.0, log_scale=2.0)).values():
        assert (boxes >= 0).all() and (boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_best_are_kept(annotations: Annotations) -> None:
    everything, some = (made(annotations, settings(keep=k))[7] for k in (1000, 8))
    assert len(everything[1]) == 30 and len(some[1]) == 8
    assert np.array_equal(some[0], everything[0][:8]) and np.array_equal(some[1], everything[1][:8])
    assert (some[1][:3] == 1).all()  # each object's own box comes first


def test_any_share_of_the_images_gives_the_same_boxes(annotations: Annotations) -> None:
    whole = made(annotations, settings())
    for share in ([3], [2, 0], [1, 3, 0, 2]):
        part = made(annotations, settings(), positions=share)
        assert list(part) == annotations.image_ids[share].tolist()
        for image_id, (boxes, scores) in part.items():
            assert np.array_equal(boxes, whole[image_id][0])
            assert np.array_equal(scores, whole[image_id][1])


def test_boxes_depend_on_the_id_not_on_the_position(annotations: Annotations) -> None:
    order = np.argsort(3 - annotations.box_images, kind="stable")
    turned = dataclasses.replace(
        annotations,
        image_ids=annotations.image_ids[::-1].copy(),
        sizes_wh=annotations.sizes_wh[::-1].copy(),
        box_images=np.sort(3 - annotations.box_images),
        labels=annotations.labels[order],
        boxes=annotations.boxes[order],
        is_crowd=annotations.is_crowd[order],
    )
    first, second = made(annotations, settings()), made(turned, settings())
    assert list(second) == list(first)[::-1]
    assert all(np.array_equal(first[i][0], second[i][0]) for i in first)


def test_seeds_and_images_draw_differently(annotations: Annotations) -> None:
    one, same, other = (made(annotations, settings(), seed=s)[-3][0] for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    boxes = made(annotations, settings(per_object=2))
    noise = [boxes[i][0][-1] for i in (-3, 5)]
    assert not np.allclose((noise[0][:2] + noise[0][2:]) / 2 - [100, 60], 0)
    assert len(boxes[11][0]) == 0 and boxes[11][0].shape == (0, 4)
