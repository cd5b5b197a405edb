"""Ground truth of views against a record-by-record computation."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.targets import MIN_SIDE, target_of
from pipeline.data.views import Geometry
from pipeline.errors import InputError

WIDTH, HEIGHT = 100, 80
WHOLE = Geometry((0, 0, WIDTH, HEIGHT), (WIDTH, HEIGHT), False)
VIEWS = [
    WHOLE,
    Geometry((0, 0, WIDTH, HEIGHT), (250, 200), True),
    Geometry((20, 10, 70, 80), (25, 35), False),
    Geometry((20, 10, 70, 80), (120, 130), True),
]


def annotations_of(folder: Path, records: list[dict[str, Any]]) -> Annotations:
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (5, 6, 7)],
        "categories": [{"id": c, "name": f"thing {c}"} for c in (4, 2, 9)],
        "annotations": [{"id": i, "image_id": 6, "category_id": 2} | r for i, r in enumerate(records)],
    }
    path = folder / "split.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_annotations(path)


def random_records(seed: int) -> list[dict[str, Any]]:
    """Boxes of images 5 and 6 (7 has none) with crowds, empty and outside boxes, each with two triangles."""
    rng = random.Random(seed)
    records = []
    for _ in range(30):
        x, y, w, h = rng.uniform(-20, 90), rng.uniform(-20, 70), rng.choice([0, 0.6, 40]), rng.uniform(0, 50)
        triangles = [[x, y, x + w, y, x, y + h], [x + w, y, x + w, y + h, x, y + h]]
        crowd = rng.random() < 0.2
        records.append(
            {
                "image_id": rng.choice([5, 6]),
                "category_id": rng.choice([2, 4, 9]),
                "bbox": [x, y, w, h],
                "iscrowd": int(crowd),
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": [8000]} if crowd else triangles,
            }
        )
    return records


def seen(x: float, y: float, geometry: Geometry) -> tuple[float, float]:
    """Where the view shows a point: cropped, resized, flipped."""
    x1, y1, x2, y2 = geometry.crop
    width, height = geometry.size_wh
    x, y = (x - x1) * width / (x2 - x1), (y - y1) * height / (y2 - y1)
    return (width - x if geometry.flip else x), y


def expected_target(
    records: list[dict[str, Any]], image_id: int, geometry: Geometry
) -> list[tuple[Any, ...]]:
    """(box, label, polygons) of every record that the view shows, one after the other."""
    width, height = geometry.size_wh
    found = []
    for r in records:
        x, y, w, h = r["bbox"]
        left, right = max(x, 0), min(x + w, WIDTH)
        top, bottom = max(y, 0), min(y + h, HEIGHT)
        if r["image_id"] != image_id or r["iscrowd"] or right <= left or bottom <= top:
            continue
        (xa, ya), (xb, yb) = seen(left, top, geometry), seen(right, bottom, geometry)
        xa, xb = (min(max(v, 0), width) for v in sorted((xa, xb)))
        ya, yb = (min(max(v, 0), height) for v in (ya, yb))
        if xb - xa < 1 or yb - ya < 1:
            continue
        polygons = []
        for polygon in r["segmentation"]:
            points = [seen(*polygon[i : i + 2], geometry) for i in range(0, len(polygon), 2)]
            polygons.append([v for point in points for v in point])
        found.append(([xa, ya, xb, yb], [2, 4, 9].index(r["category_id"]), polygons))
    return found


@pytest.mark.parametrize("geometry", VIEWS)
def test_targets_equal_a_slow_computation(tmp_path: Path, geometry: Geometry) -> None:
    kept = 0
    for seed in range(8):
        records = random_records(seed)
        annotations = annotations_of(tmp_path, records)
        for position, image_id in enumerate((5, 6, 7)):
            target = target_of(annotations, position, geometry, 17, with_polygons=True)
            expected = expected_target(records, image_id, geometry)
            assert target.size_wh == geometry.size_wh and target.key == 17
            assert target.boxes.dtype == np.float32 and target.boxes.shape == (len(expected), 4)
            assert target.labels.dtype == np.int64
            assert target.labels.tolist() == [label for _, label, _ in expected]
            np.testing.assert_allclose(
                target.boxes, np.array([box for box, _, _ in expected]).reshape(-1, 4), atol=1e-3
            )
            assert target.polygons is not None and len(target.polygons) == len(expected)
            for found, (_, _, polygons) in zip(target.polygons, expected, strict=True):
                for one, other in zip(found, polygons, strict=True):
                    np.testing.assert_allclose(one, other, atol=1e-9)
            kept += len(expected)
    assert kept > 30


def test_what_is_left_of_a_box_must_be_a_pixel_in_each_direction(tmp_path: Path) -> None:
    boxes = [[10, 10, 0.5, 30], [10, 10, 1, 1], [10, 10, 30, 0.9], [99.5, 10, 30, 30], [99, 10, 30, 30]]
    annotations = annotations_of(tmp_path, [{"bbox": b, "segmentation": None} for b in boxes])
    assert MIN_SIDE == 1.0
    kept = target_of(annotations, 1, WHOLE, 0, with_polygons=False)
    assert kept.boxes.tolist() == [[10, 10, 11, 11], [99, 10, 100, 40]] and kept.polygons is None
    doubled = Geometry(WHOLE.crop, (2 * WIDTH, 2 * HEIGHT), False)
    assert len(target_of(annotations, 1, doubled, 0, with_polygons=False).boxes) == 5
    halved = Geometry(WHOLE.crop, (WIDTH // 2, HEIGHT // 2), False)
    assert len(target_of(annotations, 1, halved, 0, with_polygons=False).boxes) == 0


def test_image_without_trainable_boxes_gives_empty_arrays(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, [{"bbox": [500, 5, 9, 9]}, {"bbox": [5, 5, 9, 9], "iscrowd": 1}])
    for image in range(3):
        target = target_of(annotations, image, WHOLE, 0, with_polygons=True)
        assert target.boxes.shape == (0, 4) and target.labels.shape == (0,) and target.polygons == []


@pytest.mark.parametrize(
    "mask",
    [None, [], {"size": [80, 100], "counts": [8000]}, [[1, 1, 5, 5]], [[1, 1, 5, 5, "9", 9]], "absent"],
)
def test_missing_polygons_are_refused_whatever_image_is_drawn_first(tmp_path: Path, mask: Any) -> None:
    good = {"bbox": [5, 5, 9, 9], "segmentation": [[5, 5, 14, 5, 14, 14]]}
    bad = {"bbox": [5, 5, 9, 9], "segmentation": mask}
    if mask == "absent":
        del bad["segmentation"]
    annotations = annotations_of(tmp_path, [good | {"image_id": 5}] + [bad] * 12)
    with pytest.raises(InputError) as caught:
        target_of(annotations, 0, WHOLE, 0, with_polygons=True)
    assert caught.value.message.endswith(
        "annotations without polygons: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"
    )
    assert "faster-rcnn" in caught.value.hint
    assert len(target_of(annotations, 0, WHOLE, 0, with_polygons=False).boxes) == 1


def test_polygons_of_two_corners_are_left_out_beside_others(tmp_path: Path) -> None:
    triangle = [5.0, 5.0, 14.0, 5.0, 14.0, 14.0]
    annotations = annotations_of(tmp_path, [{"bbox": [5, 5, 9, 9], "segmentation": [[1, 1, 5, 5], triangle]}])
    target = target_of(annotations, 1, WHOLE, 0, with_polygons=True)
    assert target.polygons is not None and [[p.tolist() for p in box] for box in target.polygons] == [
        [triangle]
    ]
