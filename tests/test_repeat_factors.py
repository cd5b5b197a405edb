"""Repeat factors against published numbers, closed forms and a slow oracle (Sec. 3.2, eq. 4)."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import pipeline.stats
from pipeline.stats.repeat_factors import (
    alphas,
    effective_frequency,
    factors_of_frequency,
    image_factors,
    instance_aware_frequency,
    irfs_factors,
    repeat_factors,
    rfs_factors,
)

REFERENCE = Path(__file__).parent / "reference"
LVIS_IMAGES, LVIS_BOXES = 99_388, 1_270_141
SHARED = Path(os.environ.get("TWODRCL_DATA", Path(__file__).parents[1] / "../shared/data")) / "longtail"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no reference numbers: set TWODRCL_DATA")


@pytest.fixture(scope="module")
def lvis() -> dict[str, np.ndarray]:
    """Columns of the LVIS v1 table, (1203,) each."""
    with (REFERENCE / "lvis_v1_repeat_factors.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if key.startswith("r_")}
    numbers["f_im"] = np.array([int(row["image_count"]) for row in rows]) / LVIS_IMAGES
    numbers["f_in"] = np.array([int(row["instance_count"]) for row in rows]) / LVIS_BOXES
    numbers["letter"] = np.array([row["frequency"] for row in rows])
    return numbers


@pytest.fixture(scope="module")
def toy() -> dict:
    return json.loads((REFERENCE / "samplers_toy.json").read_text(encoding="utf-8"))


def toy_shares(toy: dict) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([toy[key][str(c)] for c in range(8)]) for key in ("f_im", "f_in"))


def csr(images: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and labels of the distinct categories of each image."""
    distinct = [sorted(set(image)) for image in images]
    offsets = np.cumsum([0] + [len(image) for image in distinct])
    return offsets, np.array([c for image in distinct for c in image], dtype=np.int64)


def slow_eq4(f_im: float, f_in: float, alpha: float, threshold: float) -> float:
    f = f_im * f_in / (alpha * f_im + (1 - alpha) * f_in)
    return max(1.0, math.sqrt(threshold / f))


@pytest.mark.parametrize(
    ("column", "alpha"),
    [("a0", 0.0), ("a025", 0.25), ("a05", 0.5), ("a075", 0.75), ("a1", 1.0)],
)
def test_eq4_reproduces_every_lvis_category(lvis: dict, column: str, alpha: float) -> None:
    found = repeat_factors(lvis["f_im"], lvis["f_in"], alpha, 1e-3)
    np.testing.assert_allclose(found, lvis[f"r_eq4_{column}"], rtol=1e-8, atol=0)


def test_rfs_and_irfs_reproduce_every_lvis_category(lvis: dict) -> None:
    np.testing.assert_allclose(rfs_factors(lvis["f_im"], 1e-3), lvis["r_rfs"], rtol=1e-8, atol=0)
    np.testing.assert_allclose(
        irfs_factors(lvis["f_im"], lvis["f_in"], 1e-3), lvis["r_irfs"], rtol=1e-8, atol=0
    )


@needs_shared
def test_every_column_of_the_whole_lvis_table_is_reproduced() -> None:
    """Also those of the authors' early code, eq. 4 backwards without a floor, and of IRFS's ablations."""
    with (SHARED / "lvis_v1_repeat_factors.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = {
        key: np.array([float(row[key]) for row in rows])
        for key in rows[0]
        if key != "name" and key != "frequency"
    }
    f_im, f_in = column["image_count"] / LVIS_IMAGES, column["instance_count"] / LVIS_BOXES
    to_images = alphas(2, direction="to-images", progress_max=0.5)  # t = 0 and 0.5
    found = {
        "f_im": f_im,
        "f_in": f_in,
        "r_rfs": rfs_factors(f_im, 1e-3),
        "r_irfs": irfs_factors(f_im, f_in, 1e-3),
        "r_irfs_harmonic": irfs_factors(f_im, f_in, 1e-3, "harmonic"),
        "r_irfs_arith": irfs_factors(f_im, f_in, 1e-3, "arithmetic"),
        "r_devcode_t0": repeat_factors(f_im, f_in, to_images[0], 1e-3, floor=0),
        "r_devcode_t05": repeat_factors(f_im, f_in, to_images[1], 1e-3, floor=0),
    }
    for name, alpha in {"a0": 0, "a025": 0.25, "a05": 0.5, "a075": 0.75, "a1": 1}.items():
        found[f"r_eq4_{name}"] = repeat_factors(f_im, f_in, alpha, 1e-3)
    assert set(found) == set(column) - {"id", "index", "image_count", "instance_count"}
    for name, values in found.items():
        np.testing.assert_allclose(values, column[name], rtol=1e-8, atol=0, err_msg=name)


@needs_shared
def test_the_early_codes_factors_are_reproduced_image_by_image() -> None:
    whole = json.loads((SHARED / "vectors" / "samplers_toy.json").read_text(encoding="utf-8"))
    f_im, f_in = toy_shares(whole)
    offsets, labels = csr(whole["images"])
    by_t = whole["devcode_dynamic"]["image_repeat_factor_by_t"]
    assert list(by_t) == ["0", "0.25", "0.5", "1.0"]
    for t, expected in by_t.items():
        found = repeat_factors(f_im, f_in, 1 - float(t), 0.1, floor=0)
        np.testing.assert_allclose(image_factors(found, offsets, labels), expected, rtol=1e-12, err_msg=t)


def test_lvis_group_statistics(lvis: dict) -> None:
    """796 categories repeat under RFS, 977 at alpha = 1; the largest factor is that of one image, one box."""
    rfs = rfs_factors(lvis["f_im"], 1e-3)
    repeated = [int((rfs[lvis["letter"] == letter] > 1).sum()) for letter in "rcf"]
    assert repeated == [337, 459, 0]
    assert rfs.max() == pytest.approx(math.sqrt(1e-3 * LVIS_IMAGES), rel=1e-12)
    last = repeat_factors(lvis["f_im"], lvis["f_in"], 1.0, 1e-3)
    assert int((last > 1).sum()) == 977
    assert last.max() == pytest.approx(math.sqrt(1e-3 * LVIS_BOXES), rel=1e-12)


@pytest.mark.parametrize(
    ("f_im", "f_in", "alpha", "expected"),
    [
        (1e-4, 1e-5, 0.0, 3.16227766),
        (1e-4, 1e-5, 0.25, 5.700877125),
        (1e-4, 1e-5, 0.5, 7.416198487),
        (1e-4, 1e-5, 11 / 12, 9.617692031),
        (1e-4, 1e-5, 1.0, 10.0),
        (0.002, 0.0005, 0.0, 1.0),
        (0.002, 0.0005, 0.5, 1.118033989),
        (0.002, 0.0005, 1.0, 1.414213562),
        (1e-5, 1 / LVIS_BOXES, 0.0, 10.0),
        (1e-5, 1 / LVIS_BOXES, 0.25, 19.81250),
        (1e-5, 1 / LVIS_BOXES, 0.5, 26.17385),
        (1e-5, 1 / LVIS_BOXES, 11 / 12, 34.24367),
        (1e-5, 1 / LVIS_BOXES, 1.0, 35.63904),
    ],
)
def test_eq4_at_hand_computed_points(f_im: float, f_in: float, alpha: float, expected: float) -> None:
    assert repeat_factors([f_im], [f_in], alpha, 1e-3)[0] == pytest.approx(expected, rel=1e-6)


def test_score_by_hand() -> None:
    assert effective_frequency([0.002], [0.0005], 0.5)[0] == pytest.approx(0.0008, rel=1e-12)


@pytest.mark.parametrize(
    ("alpha", "repeated", "mean", "largest", "growth", "means"),
    [
        (0, 798, 2.70, 10.01, 1.041, (5.89, 1.85, 1.00)),
        (1 / 12, 846, 3.29, 14.06, 1.062, (7.45, 2.23, 1.02)),
        (0.25, 892, 4.18, 19.82, 1.102, (9.76, 2.82, 1.07)),
        (0.5, 926, 5.21, 26.18, 1.154, (12.4, 3.50, 1.16)),
        (0.75, 956, 6.05, 31.27, 1.203, (14.5, 4.06, 1.25)),
        (11 / 12, 974, 6.55, 34.24, 1.235, (15.8, 4.39, 1.30)),
        (1, 977, 6.78, 35.64, 1.251, (16.4, 4.55, 1.33)),
    ],
)
def test_lvis_as_alpha_grows(
    lvis: dict,
    alpha: float,
    repeated: int,
    mean: float,
    largest: float,
    growth: float,
    means: tuple[float, ...],
) -> None:
    """Over all 100,170 images: categories with r > 1, mean and largest r, growth of the (image, category)
    pairs, means of the groups r, c, f."""
    found = repeat_factors(lvis["f_im"] * LVIS_IMAGES / 100_170, lvis["f_in"], alpha, 1e-3)
    groups = [found[lvis["letter"] == letter].mean() for letter in "rcf"]
    assert int((found > 1).sum()) == repeated
    assert (found.mean(), found.max()) == pytest.approx((mean, largest), abs=0.006)
    assert float(lvis["f_im"] @ found / lvis["f_im"].sum()) == pytest.approx(growth, abs=6e-4)
    assert groups == pytest.approx(means, abs=0.06 if alpha >= 0.5 else 0.006)


def test_image_factors_reproduce_the_toy_set_image_by_image(toy: dict) -> None:
    f_im, f_in = toy_shares(toy)
    offsets, labels = csr(toy["images"])
    found = image_factors(rfs_factors(f_im, 0.1), offsets, labels)
    np.testing.assert_allclose(found, toy["rfs"]["image_repeat_factor"], rtol=1e-14)
    assert found.sum() == pytest.approx(toy["rfs"]["expected_length"], rel=1e-12)
    assert np.ceil(found).sum() == toy["rfs"]["mmengine_epoch_length_with_ceil"]
    found = image_factors(irfs_factors(f_im, f_in, 0.1), offsets, labels)
    np.testing.assert_allclose(found, toy["irfs"]["image_repeat_factor"], rtol=1e-14)
    by_alpha = toy["eq4_paper"]["image_repeat_factor_by_alpha"]
    assert len(by_alpha) == 5
    for alpha, expected in by_alpha.items():
        found = image_factors(repeat_factors(f_im, f_in, float(alpha), 0.1), offsets, labels)
        np.testing.assert_allclose(found, expected, rtol=1e-14, err_msg=f"alpha {alpha}")


def test_alpha_0_is_rfs_and_alpha_1_is_the_instance_level_to_the_bit() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        f_im, f_in = 10 ** rng.uniform(-9, 0, size=(2, 50))
        np.testing.assert_array_equal(effective_frequency(f_im, f_in, 0.0), f_im)
        np.testing.assert_array_equal(effective_frequency(f_im, f_in, 1.0), f_in)
        np.testing.assert_array_equal(repeat_factors(f_im, f_in, 0.0, 1e-3), rfs_factors(f_im, 1e-3))
        np.testing.assert_array_equal(repeat_factors(f_im, f_in, 1.0, 1e-3), rfs_factors(f_in, 1e-3))


def test_eq4_equals_the_equation_as_printed_on_random_shares() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        f_im, f_in = 10 ** rng.uniform(-8, 0, size=(2, 30))
        alpha, threshold = rng.random(), 10 ** rng.uniform(-5, 0)
        expected = [slow_eq4(a, b, alpha, threshold) for a, b in zip(f_im, f_in, strict=True)]
        np.testing.assert_allclose(repeat_factors(f_im, f_in, alpha, threshold), expected, rtol=1e-12)


def test_eq4_lies_between_the_shares_and_moves_from_one_to_the_other() -> None:
    rng = np.random.default_rng(5)
    f_im, f_in = 10 ** rng.uniform(-8, 0, size=(2, 200))
    path = effective_frequency(f_im, f_in, np.linspace(0, 1, 21)[:, None])
    assert path.shape == (21, 200)
    slack = 1e-12 * np.maximum(f_im, f_in)
    assert (path >= np.minimum(f_im, f_in) - slack).all() and (path <= np.maximum(f_im, f_in) + slack).all()
    assert (np.diff(path, axis=0) * np.sign(f_in - f_im) >= -slack).all()


def test_a_whole_schedule_equals_its_epochs() -> None:
    f_im, f_in = np.array([0.5, 1e-4, 0.0]), np.array([0.9, 1e-5, 0.0])
    schedule = repeat_factors(f_im, f_in, alphas(4)[:, None], 1e-3)
    for epoch in range(4):
        np.testing.assert_array_equal(schedule[epoch], repeat_factors(f_im, f_in, epoch / 4, 1e-3))


def test_category_without_instances_has_frequency_0_and_factor_1() -> None:
    for alpha in (0.0, 0.3, 1.0):
        assert effective_frequency([0.0], [0.0], alpha)[0] == 0
        assert repeat_factors([0.0, 1e-5], [0.0, 1e-5], alpha, 1e-3).tolist() == [1.0, pytest.approx(10.0)]
    assert rfs_factors([0.0], 1e-3)[0] == 1 and irfs_factors([0.0], [0.0], 1e-3)[0] == 1


def test_a_share_of_0_counts_only_with_positive_weight() -> None:
    assert effective_frequency([0.2], [0.0], 0.0)[0] == 0.2
    assert effective_frequency([0.2], [0.0], 0.5)[0] == 0


def test_tiny_shares_neither_underflow_nor_divide_by_zero() -> None:
    tiny = 1e-200
    with np.errstate(all="raise"):
        assert effective_frequency([tiny], [tiny], 0.5)[0] == pytest.approx(tiny, rel=1e-12)
        assert instance_aware_frequency([tiny], [tiny])[0] == pytest.approx(tiny, rel=1e-12)
        assert effective_frequency([tiny], [1.0], 0.5)[0] == pytest.approx(2 * tiny, rel=1e-12)
        assert repeat_factors([tiny, 0.0], [1.0, 0.0], 0.5, 1e-3).tolist() == [
            pytest.approx(math.sqrt(1e-3 / 2e-200)),
            1.0,
        ]


def test_floor_cap_and_root_against_a_slow_loop() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        f = np.append(10 ** rng.uniform(-6, 0, size=30), 0.0)
        floor, cap, root = float(rng.random()), float(rng.uniform(1, 20)), bool(rng.integers(2))
        found = factors_of_frequency(f, 1e-3, floor=floor, max_factor=cap, root=root)
        for share, r in zip(f.tolist(), found.tolist(), strict=True):
            raw = 1.0 if share == 0 else 1e-3 / share
            assert r == pytest.approx(min(cap, max(floor, math.sqrt(raw) if root else raw)), rel=1e-12)


def test_half_the_share_is_twice_the_factor_only_without_the_root() -> None:
    assert factors_of_frequency([1e-4, 5e-5], 1e-3, root=False) == pytest.approx([10, 20])
    assert factors_of_frequency([1e-4, 5e-5], 1e-3)[1] == pytest.approx(math.sqrt(20))


def test_means_of_irfs_are_ordered_and_its_harmonic_one_is_eq4_half_way() -> None:
    rng = np.random.default_rng(1)
    f_im, f_in = 10 ** rng.uniform(-6, 0, size=(2, 100))
    mean = {m: instance_aware_frequency(f_im, f_in, m) for m in ("harmonic", "geometric", "arithmetic")}
    assert (mean["harmonic"] <= mean["geometric"] * (1 + 1e-12)).all()
    assert (mean["geometric"] <= mean["arithmetic"] * (1 + 1e-12)).all()
    np.testing.assert_array_equal(mean["harmonic"], effective_frequency(f_im, f_in, 0.5))


def test_the_schedule_of_alpha() -> None:
    assert alphas(4).tolist() == [0, 0.25, 0.5, 0.75]
    assert alphas(4, first_epoch=1).tolist() == [0.25, 0.5, 0.75, 1]
    assert alphas(4, progress_max=0.5).tolist() == [0, 0.25, 0.5, 0.5]
    assert alphas(4, direction="to-images", progress_max=0.5).tolist() == [1, 0.75, 0.5, 0.5]
    with pytest.raises(ValueError, match="epochs"):
        alphas(0)


@pytest.mark.parametrize(
    "wrong", [{"floor": -0.1}, {"floor": 1.5}, {"max_factor": 0.9}, {"max_factor": float("nan")}]
)
def test_floor_and_cap_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        factors_of_frequency([0.1], 1e-3, **wrong)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan")])
def test_alpha_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        repeat_factors([0.1], [0.1], alpha, 1e-3)


@pytest.mark.parametrize("share", [-1e-9, float("nan"), float("inf"), 17.0])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="f_image"):
        repeat_factors([0.1, share], [0.1, 0.1], 0.5, 1e-3)
    with pytest.raises(ValueError, match="f_instance"):
        irfs_factors([0.1, 0.1], [0.1, share], 1e-3)
    with pytest.raises(ValueError, match="frequency"):
        rfs_factors([share], 1e-3)


@pytest.mark.parametrize("threshold", [0.0, -1e-3, float("nan"), float("inf")])
def test_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        factors_of_frequency([0.1], threshold)


def test_shares_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        effective_frequency([0.1, 0.2], [0.1], 0.5)


def test_image_factors_equal_a_slow_loop_on_random_data() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        num_categories, num_images = rng.integers(1, 9), rng.integers(0, 40)
        factors = 1 + 5 * rng.random(num_categories)
        images = [rng.integers(num_categories, size=rng.integers(0, 4)).tolist() for _ in range(num_images)]
        offsets, labels = csr(images)
        expected = [max((factors[c] for c in image), default=1.0) for image in images]
        np.testing.assert_array_equal(image_factors(factors, offsets, labels), expected)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], []),
        ([[]], [1.0]),
        ([[], [], [0]], [1.0, 1.0, 2.0]),  # empty images first, last and in a row
        ([[1], [], []], [3.0, 1.0, 1.0]),
        ([[0], [], [0, 1], []], [2.0, 1.0, 3.0, 1.0]),
    ],
)
def test_empty_images_get_1_and_shift_nobody(images: list[list[int]], expected: list[float]) -> None:
    assert image_factors(np.array([2.0, 3.0]), *csr(images)).tolist() == expected


@pytest.mark.parametrize("offsets", [[0, 1], [1, 2], [0, 2, 1, 2], [0, 3]])
def test_offsets_that_do_not_partition_the_labels_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        image_factors(np.ones(2), np.array(offsets), np.array([0, 1]))


def test_alphas_start_at_0_or_end_at_1() -> None:
    np.testing.assert_allclose(alphas(12), [k / 12 for k in range(12)])
    np.testing.assert_allclose(alphas(4, first_epoch=1), [0.25, 0.5, 0.75, 1.0])
    with pytest.raises(ValueError, match="epochs"):
        alphas(0)


def test_the_public_name_is_the_function() -> None:
    assert pipeline.stats.repeat_factors is repeat_factors
    assert pipeline.stats.repeat_factors([1e-4], [1e-5], 1.0, 1e-3)[0] == pytest.approx(10.0)
