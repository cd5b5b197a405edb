"""Large-scale jitter: sizes, cuts and where a point goes, against resizing first and cutting then."""

import numpy as np
import pytest

from pipeline.data.jitter import draw_jittered

SIDE = 128


def views(source_wh, scales, flip=0.5, number=300):
    random = np.random.default_rng(1)
    return [draw_jittered(source_wh, SIDE, scales, random, flip=flip) for _ in range(number)]


@pytest.mark.parametrize("source_wh", [(90, 60), (60, 90), (70, 70), (500, 21), (3, 2)])
def test_a_view_is_the_resized_image_cut_to_the_square(source_wh):
    for geometry in views(source_wh, (0.8, 1.25)):
        x1, y1, x2, y2 = geometry.crop
        width, height = geometry.size_wh
        assert 0 <= x1 < x2 <= source_wh[0] and 0 <= y1 < y2 <= source_wh[1]
        assert 1 <= width <= SIDE and 1 <= height <= SIDE
        axes = [(source_wh[0], x2 - x1, width), (source_wh[1], y2 - y1, height)]
        _, long_kept, long_size = max(axes, key=lambda axis: axis[0])
        for stored, kept, size in axes:
            # one scale for both axes, but for whole pixels
            scale = long_size / long_kept
            assert abs(kept * scale - size) <= 0.5 + 0.5 * scale + 0.5 * size / long_kept
            assert kept == stored or size == SIDE  # only what passes the square is cut


def test_sizes_are_uniform_between_the_scales():
    long = [max(v.size_wh) for v in views((90, 60), (0.5, 1.0), number=2000)]
    assert min(long) == 64 and max(long) <= SIDE
    counts = np.histogram(long, bins=4, range=(64, 128))[0]
    assert counts.min() > 420 and counts.max() < 580


def test_cuts_are_uniform_and_reach_both_ends():
    cut = [v for v in views((100, 60), (1.25, 1.25), number=1500)]
    assert {v.size_wh for v in cut} == {(128, 96)}
    assert {v.crop[2] - v.crop[0] for v in cut} == {80} and {v.crop[1:4:2] for v in cut} == {(0, 60)}
    firsts = np.array([v.crop[0] for v in cut])
    counts = np.bincount(firsts, minlength=21)
    assert len(counts) == 21 and counts.min() > 40 and counts.max() < 110


def test_flips():
    assert {v.flip for v in views((90, 60), (0.8, 1.2), flip=1.0)} == {True}
    assert {v.flip for v in views((90, 60), (0.8, 1.2), flip=0.0)} == {False}
    assert 0.4 < np.mean([v.flip for v in views((90, 60), (0.8, 1.2))]) < 0.6


def test_a_point_goes_where_resizing_and_cutting_take_it():
    for geometry in views((300, 200), (1.1, 1.25), number=50):
        x1, y1, x2, y2 = geometry.crop
        corners = np.array([[x1, y1, x2, y2]], dtype=np.float32)
        boxes, visible = geometry.map_boxes(corners)
        assert boxes[0].tolist() == pytest.approx([0, 0, *geometry.size_wh], abs=1e-3)
        assert visible[0] == pytest.approx(1)
