"""Histories of any length as curves that a page can carry."""

import pytest

from pipeline.report.curves import POINTS, curves


def history(steps):
    return [{"step": i, "epoch": 0, "images": 8 * (i + 1), "loss": float(i)} for i in range(steps)]


@pytest.mark.parametrize("steps", [1, POINTS - 1, POINTS, POINTS + 1, 5000])
def test_points_are_means_over_equal_stretches(steps):
    found = curves(history(steps))
    per_point = -(-steps // POINTS)
    assert len(found.images) == len(found.terms["loss"]) == -(-steps // per_point) <= POINTS
    assert found.images[-1] == 8 * steps
    assert found.terms["loss"][0] == pytest.approx((per_point - 1) / 2)


def test_no_number_is_a_hole_and_a_term_without_any_is_left_out():
    records = [{"images": 1, "loss": float("nan"), "x": "text"}, {"images": 2, "loss": 2.0}]
    assert curves(records).terms == {"loss": [None, 2.0]}
    assert curves([]).images == []


def test_steps_are_counted_where_images_are_not():
    assert curves([{"loss": 1.0}, {"loss": 2.0}]).images == [1.0, 2.0]
