"""Copy-paste against whole bitmaps; MMDetection's rule of what is left; which objects are taken."""

import json

import numpy as np
import pytest

from pipeline.data.annotations import read_annotations
from pipeline.data.copy_paste import Layer, choose, layer_of, paste
from pipeline.data.copy_paste_settings import CopyPasteSettings, resolve_side
from pipeline.data.object_masks import ObjectMask
from pipeline.data.views import Geometry
from pipeline.errors import UsageError
from pipeline.settings import build

SIDE = 64  # a twentieth of the authors' 1280: a box may move by 0.5 px, 0.75 px of a mask must be left
LARGE = 1280


def layer(random, number, size_wh):
    """Ellipses of one colour on noise."""
    width, height = size_wh
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = []
    for _ in range(number):
        w, h = random.integers(2, 20, 2)
        x, y = random.integers(0, width - w), random.integers(0, height - h)
        rows, columns = np.mgrid[:h, :w] + 0.5
        bitmap = (rows / h - 0.5) ** 2 + (columns / w - 0.5) ** 2 <= 0.25
        masks.append(ObjectMask((int(x), int(y)), bitmap))
    boxes = np.array([m.bounds() for m in masks], dtype=np.float32).reshape(-1, 4)
    polygons = [[np.array([i, 0, 1, 1, 0, 1.0])] for i in range(number)]
    return Layer(image, boxes, random.integers(0, 5, number), masks, polygons, [[] for _ in masks])


def slow_paste(below, above, side):
    """Image, and (box, label, bitmap) of every object, from bitmaps of the whole square."""
    canvases = []
    for one in (below, above):
        canvas = np.zeros((side, side, 3), dtype=np.uint8)
        for y in range(one.image.shape[0]):
            for x in range(one.image.shape[1]):
                canvas[y, x] = one.image[y, x]
        canvases.append(canvas)
    image, pasted = canvases
    hidden, objects = set(), []
    for mask in above.masks:
        hidden |= pixels(mask)
    for x, y in hidden:
        image[y, x] = pasted[y, x]
    for mask, box, label in zip(below.masks, below.boxes, below.labels, strict=True):
        left = pixels(mask) - hidden
        if left == pixels(mask):
            objects.append((box.tolist(), label, left))
        elif left:
            xs, ys = [x for x, _ in left], [y for _, y in left]
            new = [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
            moved = max(abs(a - b) for a, b in zip(new, box.tolist(), strict=True))
            if moved <= 10 * side / 1280 or len(left) > 300 * (side / 1280) ** 2:
                objects.append((new, label, left))
    return image, objects + [
        (box.tolist(), label, pixels(mask))
        for mask, box, label in zip(above.masks, above.boxes, above.labels, strict=True)
    ]


def pixels(mask):
    return {(mask.corner[0] + x, mask.corner[1] + y) for y, x in np.argwhere(mask.bitmap).tolist()}


@pytest.mark.parametrize("seed", range(12))
def test_a_paste_equals_whole_bitmaps(seed):
    random = np.random.default_rng(seed)
    below = layer(random, int(random.integers(0, 12)), (SIDE, 50) if seed % 2 else (40, SIDE))
    above = layer(random, int(random.integers(0, 9)), (SIDE, SIDE) if seed % 3 else (SIDE, 37))
    found = paste(below, above, SIDE)
    image, objects = slow_paste(below, above, SIDE)
    assert np.array_equal(found.image, image)
    assert [
        (b.tolist(), x, pixels(m)) for b, x, m in zip(found.boxes, found.labels, found.masks, strict=True)
    ] == objects
    assert found.boxes.dtype == np.float32
    for before, mask, shape in zip(found.hidden, found.masks, found.polygons, strict=True):
        own = [m for m, p in zip(below.masks, below.polygons, strict=True) if p is shape]
        cut = bool(own) and own[0].area != mask.area
        assert [p.tolist() for p in before] == ([p[0].tolist() for p in above.polygons] if cut else [])


def square(corner, side, label):
    mask = ObjectMask(corner, np.ones((side, side), dtype=bool))
    return mask.bounds(), label, mask


def squares(*objects):
    boxes, labels, masks = zip(*objects, strict=True)
    blank = np.zeros((LARGE, LARGE, 3), dtype=np.uint8)
    empty = [[] for _ in masks]
    return Layer(blank, np.array(boxes), np.array(labels), list(masks), empty, empty)


@pytest.mark.parametrize(
    ("below", "above", "box"),
    [
        (square((100, 100), 100, 7), square((190, 50), 300, 0), [100, 100, 190, 200]),  # moved by 10
        (square((100, 100), 100, 7), square((103, 50), 300, 0), None),  # 300 px left, and not one more
        (square((100, 100), 101, 7), square((103, 50), 300, 0), [100, 100, 103, 201]),  # 303 px
        (
            square((100, 100), 10, 7),
            square((101, 50), 300, 0),
            [100, 100, 101, 110],
        ),  # small
        (square((0, 0), 8, 7), square((0, 0), 300, 0), None),  # nothing left, though near the corner
        (square((100, 100), 100, 7), square((120, 120), 50, 0), [100, 100, 200, 200]),  # a hole
        (square((100, 100), 100, 7), square((200, 100), 50, 0), [100, 100, 200, 200]),  # beside
    ],
)
def test_what_is_left_of_a_hidden_object_counts_as_in_mmdetection(below, above, box):
    found = paste(squares(below), squares(above), LARGE)
    assert found.labels.tolist() == ([0] if box is None else [7, 0])
    assert found.boxes[:-1].tolist() == ([] if box is None else [box])


def test_an_object_too_thin_for_a_pixel_stays_but_is_not_pasted():
    thin = (np.array([5, 5, 90, 6.2], np.float32), 3, ObjectMask((5, 5), np.zeros((1, 85), dtype=bool)))
    found = paste(squares(thin), squares(square((0, 0), 300, 0)), LARGE)
    assert found.labels.tolist() == [3, 0]
    both = squares(thin, square((9, 9), 5, 1))
    taken = [choose(both, 99, np.random.default_rng(seed)).labels.tolist() for seed in range(20)]
    assert {tuple(labels) for labels in taken} == {(), (1,)}


def test_any_number_of_objects_is_as_likely_and_so_is_any_object():
    three, random = squares(*(square((9 * i, 9), 5, i) for i in range(3))), np.random.default_rng(0)
    taken = [choose(three, 99, random).labels.tolist() for _ in range(2000)]
    numbers = np.bincount([len(labels) for labels in taken], minlength=4)
    assert numbers.min() > 430 and numbers.max() < 570
    assert all(len(set(labels)) == len(labels) for labels in taken)
    each = np.bincount([label for labels in taken for label in labels])
    assert each.min() > 900 and each.max() < 1100
    assert {len(choose(three, 1, random).labels) for _ in range(50)} == {0, 1}
    assert {len(choose(three, 0, random).labels) for _ in range(50)} == {0}


def test_boxes_of_objects_that_the_view_cuts_are_those_of_what_is_left(tmp_path):
    """A triangle whose wide end is cut off: its own box would stay high, what is left is not."""
    triangle, free = [0, 10, 40, 30, 0, 50], [50, 10.25, 60, 10.25, 60, 20, 50, 20]
    boxes = [[0, 10, 40, 40], [50, 10.25, 10, 9.75]]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": [polygon]}
            for i, (box, polygon) in enumerate(zip(boxes, (triangle, free), strict=True))
        ],
    }
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    pixels_of_image = np.arange(80 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3)
    geometry = Geometry((20, 0, 80, 60), (60, 60), False)
    found = layer_of(read_annotations(path), 0, geometry, pixels_of_image)
    assert np.array_equal(found.image, pixels_of_image[:, 20:])
    assert found.boxes[0].tolist() == pytest.approx([0, 20, 20, 40], abs=1)
    assert found.boxes[1].tolist() == [30, 10.25, 40, 20]  # as annotated, not as its pixels
    assert found.polygons[0][0].tolist() == [-20, 10, 20, 30, -20, 50]
    content["annotations"][0]["segmentation"] = [[70, 50, 79, 50, 79, 59]]  # not where its box is
    path.write_text(json.dumps(content))
    wrong = layer_of(read_annotations(path), 0, geometry, pixels_of_image)
    assert wrong.boxes[0].tolist() == [0, 10, 20, 50] and not wrong.masks[0].area
    beside = layer_of(read_annotations(path), 0, Geometry((41, 0, 80, 60), (39, 60), False), pixels_of_image)
    assert beside.boxes.tolist() == [[9, 10.25, 19, 20]]


@pytest.mark.parametrize(
    ("long_side", "side"), [(1333, 1280), (176, 160), (160, 160), (96, 96), (32, 32), (666, 640)]
)
def test_the_square_grows_with_the_views(long_side, side):
    assert resolve_side("auto", long_side) == side
    assert resolve_side(200, long_side) == 200


def test_settings_are_checked():
    assert build(CopyPasteSettings, {"scales": [0.1, 2.0], "side": 64}, "p") == CopyPasteSettings(
        64, (0.1, 2.0)
    )
    for wrong in ({"side": 0}, {"scales": [0.0, 1.0]}, {"scales": [2.0, 1.0]}, {"most": -1}, {"scale": 1}):
        with pytest.raises(UsageError):
            build(CopyPasteSettings, wrong, "finetune.copy_paste")
