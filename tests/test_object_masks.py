"""Masks in a view against points and single pixels: polygons, run lengths, neither."""

import json
import resource
import time

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.data.annotations import read_annotations
from pipeline.data.object_masks import ObjectMask, from_runs, mask_in_view
from pipeline.data.targets import polygons_in_view, rows_in_view
from pipeline.data.views import Geometry

WIDTH, HEIGHT = 60, 40
VIEWS = [
    Geometry((0, 0, WIDTH, HEIGHT), (WIDTH, HEIGHT), False),
    Geometry((0, 0, WIDTH, HEIGHT), (90, 60), True),
    Geometry((15, 5, 55, 33), (80, 56), False),
    Geometry((15, 5, 55, 33), (20, 14), True),
]
TRIANGLE = [10, 5, 40, 12, 22, 35]
SQUARES = [[5, 5, 25, 5, 25, 25, 5, 25], [15, 15, 45, 15, 45, 36, 15, 36]]  # they overlap


def bitmap_of(polygons):
    """Pixels whose middle lies in any polygon, one by one."""
    found = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            found[y, x] = any(contains(p, x + 0.5, y + 0.5) for p in polygons)
    return found


def contains(polygon, x, y):
    """Even-odd rule."""
    points, inside = list(zip(polygon[::2], polygon[1::2], strict=True)), False
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
        if (ya > y) != (yb > y) and x < xa + (y - ya) / (yb - ya) * (xb - xa):
            inside = not inside
    return inside


def written(folder, segmentation, box):
    x1, y1, x2, y2 = box
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": segmentation,
            }
        ],
    }
    path = folder / "split.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


def seen(folder, segmentation, box, geometry):
    """The mask on the whole view, and the mask itself."""
    annotations = written(folder, segmentation, box)
    rows, boxes, _ = rows_in_view(annotations, 0, geometry)
    found = mask_in_view(annotations, 0, boxes[0], polygons_in_view(annotations, [0], geometry)[0], geometry)
    assert rows.tolist() == [0]
    whole = np.zeros(geometry.size_wh[::-1], dtype=bool)
    whole[found.window] = found.bitmap
    return whole, found


def in_view(stored, geometry):
    """Nearest stored pixel of every pixel of the view."""
    x1, y1, x2, y2 = geometry.crop
    width, height = geometry.size_wh
    view = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            from_x = width - 1 - x if geometry.flip else x
            view[y, x] = stored[
                y1 + int((y + 0.5) * (y2 - y1) / height), x1 + int((from_x + 0.5) * (x2 - x1) / width)
            ]
    return view


def uncompressed(bitmap):
    values, counts, last = bitmap.T.reshape(-1).tolist(), [0], False
    for value in values:
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def compressed(bitmap):
    found = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


@pytest.mark.parametrize("geometry", VIEWS)
@pytest.mark.parametrize(("polygons", "box"), [([TRIANGLE], (10, 5, 40, 35)), (SQUARES, (5, 5, 45, 36))])
def test_polygons_cover_what_lies_in_any_of_them(tmp_path, polygons, box, geometry):
    whole, found = seen(tmp_path, polygons, box, geometry)
    expected = in_view(bitmap_of(polygons), geometry)
    differing = (whole != expected).sum()
    assert differing <= 0.06 * expected.sum() + 6  # pixels on an edge
    assert found.area == whole.sum() and found.bitmap.size < 1.4 * whole.size


@pytest.mark.parametrize("encode", [uncompressed, compressed])
@pytest.mark.parametrize("geometry", VIEWS)
def test_run_lengths_are_read_to_the_pixel(tmp_path, geometry, encode):
    bitmap = bitmap_of(SQUARES)
    bitmap[20:23, 20:23] = False  # a hole
    whole, found = seen(tmp_path, encode(bitmap), (5, 5, 45, 36), geometry)
    assert np.array_equal(whole, in_view(bitmap, geometry))
    rows, columns = np.nonzero(whole)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.bounds().tolist() == box


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        "none",
        {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
        {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": "0"},
        {"size": [HEIGHT, WIDTH], "counts": "\x00\x00"},
        {"size": [HEIGHT, WIDTH], "counts": "o" * 1000},
        {"size": [HEIGHT, WIDTH], "counts": [-5, WIDTH * HEIGHT + 5]},
        {"size": [HEIGHT, WIDTH], "counts": [0.5]},
        {"size": [HEIGHT, WIDTH]},
    ],
)
def test_without_a_mask_an_object_is_its_box(tmp_path, segmentation):
    whole, found = seen(tmp_path, segmentation, (10.4, 5, 20.6, 7), VIEWS[0])
    assert found.corner == (10, 5) and found.area == 22
    assert whole[5:7, 10:21].all() and whole.sum() == 22


def test_a_corner_millions_of_pixels_away_takes_neither_time_nor_memory(tmp_path):
    far = [5, 5, 16_000_000, 5, 16_000_000, 25, 5, 25]
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole, _ = seen(tmp_path, [far], (5, 5, 50, 25), VIEWS[0])
    assert whole[6:24, 6:50].all() and not whole[:4].any() and not whole[26:].any()
    assert time.process_time() - begin < 1  # 3 s and 1.2 GB without a limit
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_random_runs_are_pycocotools():
    random = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        bitmap = random.random((HEIGHT, WIDTH)) < density
        for encode in (uncompressed, compressed):
            assert np.array_equal(from_runs(encode(bitmap), (WIDTH, HEIGHT)), bitmap)
    for value in (False, True):
        assert (from_runs(compressed(np.full((HEIGHT, WIDTH), value)), (WIDTH, HEIGHT)) == value).all()


def test_what_is_hidden_is_taken_away():
    mask = ObjectMask((2, 1), np.ones((3, 4), dtype=bool))
    assert mask.bounds().tolist() == [2, 1, 6, 4] and mask.area == 12
    hidden = np.zeros((6, 8), dtype=bool)
    hidden[:2, :4] = True
    left = mask.without(hidden)
    assert left.area == 10 and left.bounds().tolist() == [2, 1, 6, 4]
    hidden[:, :5] = True
    assert mask.without(hidden).bounds().tolist() == [5, 1, 6, 4]
    hidden[:] = True
    assert mask.without(hidden).bounds().tolist() == [0, 0, 0, 0] and mask.area == 12
