"""Norms over the ranks of the categories: order, fit, means, correlation, and the files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.weight_norms import (
    Categories,
    Norms,
    fitted,
    group_means,
    norms_figure,
    rank_correlation,
    smooth_degree,
    write_norms,
)

COUNTS = np.array([5, 200, 40, 200, 8, 90])
CATEGORIES = Categories(np.array([3, 9, 4, 7, 1, 2]), list("abcdef"), list("rfcfrc"), COUNTS, "training")


def test_order_is_by_images_then_by_id() -> None:
    assert CATEGORIES.order.tolist() == [3, 1, 5, 2, 4, 0]


def test_a_polynomial_is_found_again() -> None:
    ranks = np.arange(40)
    curve = 2 - 0.1 * ranks + 0.004 * ranks**2
    np.testing.assert_allclose(fitted(curve, 5), curve)
    noisy = curve + np.where(ranks % 2, 0.5, -0.5)
    assert np.abs(fitted(noisy, 5) - curve).max() < 0.25  # the fit smooths


@pytest.mark.parametrize(("categories", "degree"), [(1, 0), (2, 1), (3, 1), (16, 4), (20, 5), (1203, 5)])
def test_few_categories_have_a_smoother_curve(categories: int, degree: int) -> None:
    assert smooth_degree(5, categories) == degree
    assert np.isfinite(fitted(np.ones(categories), 5)).all()


def test_means_by_group_and_rank_correlation() -> None:
    norms = np.array([1.0, 6, 4, 8, 2, 3])
    assert group_means(norms, CATEGORIES.letters) == {"all": 4, "f": 7, "c": 3.5, "r": 1.5}
    assert group_means(norms, [""] * 6) == {"all": 4, "f": None, "c": None, "r": None}
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([1, 10, 100, 1000])) == pytest.approx(1)
    assert rank_correlation(np.array([4.0, 3, 2, 1]), np.array([1, 10, 100, 1000])) == pytest.approx(-1)
    assert rank_correlation(np.ones(4), np.arange(4)) is None


def test_the_files_hold_every_checkpoint(tmp_path: Path) -> None:
    checkpoints = {"ce": Norms(np.arange(6.0)), "ecm": Norms(np.ones(6), "cosine classifier")}
    norms_figure(checkpoints, CATEGORIES, 5, tmp_path / "norms.png")
    write_norms(checkpoints, CATEGORIES, 5, tmp_path / "norms.csv")
    text = (tmp_path / "norms.svg").read_text()
    assert "ce, rank correlation" in text and "(cosine classifier)" in text and "rare (2)" in text
    assert "rank of the category by its images in training" in text
    table = pd.read_csv(tmp_path / "norms.csv")
    assert table[table["run"] == "ce"]["norm"].tolist() == [3, 1, 5, 2, 4, 0]
    assert table[table["run"] == "ce"]["image_count"].is_monotonic_decreasing
    means = pd.read_csv(tmp_path / "norms_groups.csv")
    assert means.query("run == 'ce' and group == 'r'")["mean_norm"].tolist() == [2.0]
    before = (tmp_path / "norms.svg").read_bytes()
    norms_figure(checkpoints, CATEGORIES, 5, tmp_path / "norms.png")
    assert (tmp_path / "norms.svg").read_bytes() == before
