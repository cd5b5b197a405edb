"""Geometric views: boxes and pixels move together, and every view fits its canvas."""

import itertools

import numpy as np
import pytest

from pipeline.data.boxes import visible_fraction
from pipeline.data.views import Geometry, canvas_wh, draw_geometry, limit_wh, resized_wh

SIDES = (640, 672, 704, 736, 768, 800)
EXTREMES = [(1, 1), (1, 5000), (5000, 1), (2, 3), (1, 2), (640, 480), (480, 640), (500, 500), (4999, 31)]


def random_geometry(rng: np.random.Generator, wh: tuple[int, int]) -> Geometry:
    """Any crop, resized by about 0.5 to 2, with independent factors of the two sides."""
    x1, y1 = (int(rng.integers(side // 2)) for side in wh)
    x2, y2 = (int(rng.integers(low + side // 4, side + 1)) for low, side in zip((x1, y1), wh, strict=True))
    size = tuple(max(1, round((b - a) * rng.uniform(0.5, 2))) for a, b in ((x1, x2), (y1, y2)))
    return Geometry((x1, y1, x2, y2), (size[0], size[1]), bool(rng.random() < 0.5))


def moved_slowly(x: float, y: float, geometry: Geometry) -> tuple[float, float]:
    """A point cropped, then resized, then flipped."""
    x1, y1, x2, y2 = geometry.crop
    width, height = geometry.size_wh
    x, y = (x - x1) / (x2 - x1) * width, (y - y1) / (y2 - y1) * height
    return (width - x if geometry.flip else x), y


def test_scale_offset_and_flip_by_hand() -> None:
    """Scaled by 2, cut at (30, 20) of the scaled image, flipped in a width of 120: x' = 120 - (2 x - 30)."""
    geometry = Geometry((15, 10, 75, 70), (120, 120), True)
    np.testing.assert_array_equal(geometry.homography, [[-2, 0, 150], [0, 2, -20], [0, 0, 1]])
    box, visible = geometry.map_boxes(np.array([[20, 10, 60, 50]]))
    assert box.tolist() == [[30, 0, 110, 80]] and visible.tolist() == [1]


def test_round_trip_and_points_against_step_by_step_mapping() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        geometry = random_geometry(rng, (200, 150))
        matrix = geometry.homography
        np.testing.assert_allclose(np.linalg.inv(matrix) @ matrix, np.eye(3), atol=1e-9)
        x, y = rng.uniform(-50, 250, 2)
        np.testing.assert_allclose(matrix @ (x, y, 1), [*moved_slowly(x, y, geometry), 1], atol=1e-9)


def test_boxes_against_a_corner_wise_mapping() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        geometry = random_geometry(rng, (200, 150))
        corner, size = rng.uniform(-20, 150, (12, 2)), rng.uniform(0, 90, (12, 2))
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        found, visible = geometry.map_boxes(boxes)
        assert found.dtype == np.float32 and found.shape == (12, 4) and visible.shape == (12,)
        width, height = geometry.size_wh
        for box, new, share in zip(boxes.astype(float), found, visible, strict=True):
            corners = [moved_slowly(x, y, geometry) for x in box[::2] for y in box[1::2]]
            whole = [min(c[0] for c in corners), min(c[1] for c in corners)]
            whole += [max(c[0] for c in corners), max(c[1] for c in corners)]
            cut = [min(max(v, 0), width if i % 2 == 0 else height) for i, v in enumerate(whole)]
            np.testing.assert_allclose(new, cut, atol=1e-3)
            full = (whole[2] - whole[0]) * (whole[3] - whole[1])
            assert share == pytest.approx((cut[2] - cut[0]) * (cut[3] - cut[1]) / full, abs=1e-6)
            assert 0 <= new[0] <= new[2] <= width and 0 <= new[1] <= new[3] <= height
    empty, share = geometry.map_boxes(np.zeros((0, 4), np.float32))
    assert empty.shape == (0, 4) and share.shape == (0,)


def test_bright_box_is_found_where_its_box_is_mapped() -> None:
    rng = np.random.default_rng(2)
    for trial in range(40):
        geometry = random_geometry(rng, (240, 200))
        x1, y1, x2, y2 = geometry.crop
        width, height = (int(rng.integers(8, 20)) for _ in range(2))
        left, top = int(rng.integers(x1, x2 - width)), int(rng.integers(y1, y2 - height))
        image = np.zeros((200, 240, 3), np.uint8)
        image[top : top + height, left : left + width] = 255
        view = geometry.apply(image)
        assert view.shape == (geometry.size_wh[1], geometry.size_wh[0], 3) and view.dtype == np.uint8
        light = view[:, :, trial % 3].astype(float)
        found_x = (light.sum(axis=0) * (np.arange(light.shape[1]) + 0.5)).sum() / light.sum()
        found_y = (light.sum(axis=1) * (np.arange(light.shape[0]) + 0.5)).sum() / light.sum()
        box, visible = geometry.map_boxes(np.array([[left, top, left + width, top + height]]))
        assert visible.item() == pytest.approx(1)
        assert abs(found_x - (box[0, 0] + box[0, 2]) / 2) < 0.5, geometry
        assert abs(found_y - (box[0, 1] + box[0, 3]) / 2) < 0.5, geometry
        # and as large: sums of a row and of a column through the middle
        middle_x, middle_y = int(found_x), int(found_y)
        assert abs(light[middle_y].sum() / 255 - (box[0, 2] - box[0, 0])) < 1
        assert abs(light[:, middle_x].sum() / 255 - (box[0, 3] - box[0, 1])) < 1


def test_crop_and_flip_alone_move_pixels_exactly() -> None:
    image = np.random.default_rng(3).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    whole = Geometry((0, 0, 40, 30), (40, 30), False)
    np.testing.assert_array_equal(whole.apply(image), image)
    np.testing.assert_array_equal(whole.homography, np.eye(3))
    view = Geometry((5, 7, 25, 29), (20, 22), True).apply(image)
    np.testing.assert_array_equal(view, image[7:29, 5:25][:, ::-1])
    assert view.flags.c_contiguous


def test_resized_sizes_are_those_of_mmdetection() -> None:
    """mmcv.rescale_size: factor min(long / longer side, short / shorter side), halves rounded up."""
    rng = np.random.default_rng(4)
    for _ in range(300):
        wh = (int(rng.integers(1, 2000)), int(rng.integers(1, 2000)))
        factor = min(1333 / max(wh), 800 / min(wh))
        expected = tuple(max(1, int(side * factor + 0.5)) for side in wh)
        assert resized_wh(wh, 800, limit_wh(wh, (640, 800), 1333)) == expected


@pytest.mark.parametrize("crop", [(1.0, 1.0), (0.5, 1.0), (0.05, 0.3)])
@pytest.mark.parametrize("sides, long_side", [(SIDES, 1333), ((128,), 192), ((32, 800), 100)])
def test_canvas_holds_every_view_that_can_be_drawn(
    crop: tuple[float, float], sides: tuple[int, ...], long_side: int
) -> None:
    rng = np.random.default_rng(5)
    sizes = EXTREMES + [(int(w), int(h)) for w, h in rng.integers(1, 900, (25, 2))]
    turned = 0
    for wh in sizes:
        width, height = canvas_wh(np.array([wh]), sides, long_side)
        assert width % 32 == 0 and height % 32 == 0
        for _ in range(8):
            geometry = draw_geometry(wh, sides, long_side, rng, crop=crop)
            x1, y1, x2, y2 = geometry.crop
            assert 0 <= x1 < x2 <= wh[0] and 0 <= y1 < y2 <= wh[1]
            assert 1 <= geometry.size_wh[0] <= width and 1 <= geometry.size_wh[1] <= height
            turned += (x2 - x1 > y2 - y1) != (wh[0] > wh[1])
    assert turned > 10 or crop == (1.0, 1.0)  # some crops are of the other orientation


@pytest.mark.parametrize("wh", EXTREMES)
def test_extreme_images_give_views_of_the_size_announced(wh: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (wh[1], wh[0], 3)).astype(np.uint8)
    for crop in ((1.0, 1.0), (0.3, 0.8)):
        geometry = draw_geometry(wh, (64,), 128, rng, crop=crop)
        assert geometry.apply(image).shape == (geometry.size_wh[1], geometry.size_wh[0], 3)


def test_canvas_of_a_batch_holds_each_of_its_images() -> None:
    assert canvas_wh(np.array([[640, 480]]), SIDES, 1333) == (1344, 800)
    assert canvas_wh(np.array([[480, 640], [10, 900]]), SIDES, 1333) == (800, 1344)
    assert canvas_wh(np.array([[640, 480], [480, 640]]), SIDES, 1333) == (1344, 1344)
    assert canvas_wh(np.array([[500, 500]]), SIDES, 1333) == (1344, 800)
    sizes = np.array(EXTREMES)
    for pair in itertools.combinations(range(len(sizes)), 2):
        both = canvas_wh(sizes[list(pair)], SIDES, 1333)
        alone = [canvas_wh(sizes[[i]], SIDES, 1333) for i in pair]
        assert both == (max(w for w, _ in alone), max(h for _, h in alone))


def test_a_crop_keeps_half_of_some_box_or_the_whole_image_is_taken() -> None:
    rng, retried, whole = np.random.default_rng(7), 0, 0
    for _ in range(200):
        corner = rng.uniform(0, [90, 70], (2, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(1, 10, (2, 2))], axis=1)
        key = int(rng.integers(2**32))
        kept, free = (
            draw_geometry((100, 80), (64,), 128, np.random.default_rng(key), crop=(0.2, 0.6), keep=k)
            for k in (boxes, None)
        )
        x1, y1, x2, y2 = kept.crop
        shares = visible_fraction(boxes - [x1, y1, x1, y1], x2 - x1, y2 - y1)
        if kept.crop == (0, 0, 100, 80):
            whole += 1
        else:
            assert shares.max() >= 0.5
        retried += kept.crop != free.crop
    assert retried > 20 and 0 < whole < 40  # both happen


def test_a_box_that_no_crop_can_keep_takes_the_whole_image_and_no_boxes_take_any_crop() -> None:
    rng = np.random.default_rng(8)
    out_of_reach = np.array([[0.0, 0, 100, 80]])  # a crop of 60 % of each side shows 36 % of it
    for _ in range(20):
        kept = draw_geometry((100, 80), (64,), 128, rng, crop=(0.4, 0.6), keep=out_of_reach)
        assert kept.crop == (0, 0, 100, 80)
        free = draw_geometry((100, 80), (64,), 128, rng, crop=(0.4, 0.6), keep=np.zeros((0, 4)))
        assert 38 <= free.crop[2] - free.crop[0] <= 60 and 31 <= free.crop[3] - free.crop[1] <= 48


def test_draws_follow_their_settings() -> None:
    rng = np.random.default_rng(9)
    for flip in (0.0, 1.0):
        drawn = [draw_geometry((100, 80), (48, 64), 128, rng, flip=flip) for _ in range(60)]
        assert all(g.flip == bool(flip) and g.crop == (0, 0, 100, 80) for g in drawn)
        assert {g.size_wh for g in drawn} == {(60, 48), (80, 64)}
    crops = [draw_geometry((10, 8), (64,), 128, rng, crop=(0.5, 0.9)).crop for _ in range(300)]
    assert [min(c[0] for c in crops), min(c[1] for c in crops)] == [0, 0]  # to every border
    assert [max(c[2] for c in crops), max(c[3] for c in crops)] == [10, 8]
    flips = [draw_geometry((100, 80), (64,), 128, rng).flip for _ in range(400)]
    assert 160 < sum(flips) < 240
    same = [
        draw_geometry((100, 80), SIDES, 1333, np.random.default_rng(3), crop=(0.5, 1.0)) for _ in range(2)
    ]
    assert same[0] == same[1]
