"""Box arithmetic against loops over single boxes and over pixels."""

import numpy as np
import pytest

from pipeline.data.boxes import are_corners, area, clip, corner_votes, iou, transform, visible_fraction


def random_boxes(rng: np.random.Generator, count: int, whole: bool = False) -> np.ndarray:
    """(count, 4) float64 xyxy around a 30 x 20 image, a few of them empty."""
    corner, size = rng.uniform(-10, 30, (count, 2)), rng.uniform(0, 25, (count, 2))
    size[rng.random(count) < 0.2, 0] = 0
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes.round() if whole else boxes


def pixels(box: np.ndarray) -> set[tuple[int, int]]:
    """The unit squares that a box of whole coordinates covers."""
    x1, y1, x2, y2 = box.astype(int)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def test_areas_and_overlaps_count_pixels() -> None:
    rng = np.random.default_rng(0)
    boxes, others = random_boxes(rng, 25, whole=True), random_boxes(rng, 20, whole=True)
    overlaps = iou(boxes, others)
    assert overlaps.shape == (25, 20)
    np.testing.assert_array_equal(area(boxes), [len(pixels(b)) for b in boxes])
    for row, box in zip(overlaps, boxes, strict=True):
        for value, other in zip(row, others, strict=True):
            together = len(pixels(box) | pixels(other))
            expected = len(pixels(box) & pixels(other)) / together if together else 0.0
            assert value == pytest.approx(expected, abs=1e-12)


def test_overlap_of_a_box_with_itself_with_nothing_and_of_no_boxes() -> None:
    box, empty, none = np.array([[1.0, 2, 5, 9]]), np.array([[3.0, 3, 3, 3]]), np.zeros((0, 4))
    assert iou(box, box).item() == 1 and iou(box, empty).item() == 0 and iou(empty, empty).item() == 0
    assert iou(box, none).shape == (1, 0) and iou(none, box).shape == (0, 1) and area(none).shape == (0,)
    assert area(np.array([[5.0, 5, 1, 1]])).item() == 0  # reversed corners are empty, not positive


def test_overlap_keeps_float32() -> None:
    boxes = random_boxes(np.random.default_rng(1), 30)
    found = iou(boxes.astype(np.float32), boxes.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, iou(boxes, boxes), atol=1e-5)


def test_clipping_and_visible_share_count_pixels() -> None:
    boxes = random_boxes(np.random.default_rng(2), 60, whole=True)
    window = {(x, y) for x in range(30) for y in range(20)}
    cut, shares = clip(boxes, 30, 20), visible_fraction(boxes, 30, 20)
    for box, inside, share in zip(boxes, cut, shares, strict=True):
        assert pixels(inside) == pixels(box) & window
        expected = len(pixels(box) & window) / len(pixels(box)) if pixels(box) else 0.0
        assert share == pytest.approx(expected, abs=1e-12)
    assert clip(boxes.astype(np.float32), 30, 20).dtype == np.float32
    assert visible_fraction(np.zeros((0, 4)), 30, 20).shape == (0,)


def test_transform_bounds_the_four_corners() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        matrix = np.eye(3) + rng.normal(0, 0.5, (3, 3)) * np.array([[1, 1, 20], [1, 1, 20], [1e-3, 1e-3, 0]])
        boxes = random_boxes(rng, 7)
        found = transform(boxes.astype(np.float32), matrix)
        assert found.shape == (7, 4) and found.dtype == np.float64
        for box, moved in zip(boxes.astype(np.float32).astype(np.float64), found, strict=True):
            corners = [matrix @ (x, y, 1) for x in box[::2] for y in box[1::2]]
            xs, ys = [c[0] / c[2] for c in corners], [c[1] / c[2] for c in corners]
            np.testing.assert_allclose(moved, [min(xs), min(ys), max(xs), max(ys)], rtol=1e-9, atol=1e-9)
    assert transform(np.zeros((0, 4)), np.eye(3)).shape == (0, 4)


def test_votes_of_single_boxes() -> None:
    boxes = np.array(
        [
            [50, 40, 90, 70],  # corners: 140 is beyond 100
            [10, 10, 20, 30],  # both
            [60, 40, 41, 35],  # over the border by one pixel, which is let pass; no corners, 41 < 60
            [60, 40, 41.5, 35],  # over it by more
            [10, 10, 120, 30],  # leaves the image either way
        ]
    )
    votes = corner_votes(boxes, np.full((5, 2), [100, 80]))
    assert votes.tolist() == [[True, True], [False, True], [False, False], [True, False], [True, False]]


@pytest.mark.parametrize(
    ("leave", "boxes", "total", "expected"),
    [
        (9, 9, 9, False),  # too few
        (10, 10, 10, True),
        (500, 1000, 1000, False),
        (501, 1000, 1000, True),
        (1000, 990, 1000, False),
        (1000, 991, 1000, True),
        (0, 0, 0, False),
    ],
)
def test_the_judgement_needs_most_boxes(leave: int, boxes: int, total: int, expected: bool) -> None:
    assert are_corners(np.array([leave, boxes]), total) is expected
