"""Settings to factors: every scheme and choice against plain arithmetic; categories whose factor falls."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from test_sampler import frequencies_of

from pipeline.stats.figure_tables import write_falling_factors
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.repeat_factors import irfs_factors, repeat_factors, rfs_factors
from pipeline.stats.schemes import (
    SCHEMES,
    alpha_schedule,
    category_factors,
    factors_at_both_ends,
    falling_categories,
)
from pipeline.stats.settings import StatsSettings

REFERENCE = Path(__file__).parent / "reference" / "lvis_v1_repeat_factors.csv"


def random_frequencies(seed: int) -> CategoryFrequencies:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 300, size=int(rng.integers(1, 20)))
    images[0] += 1  # something to count
    return frequencies_of(images, images * rng.integers(1, 30, size=len(images)), 1000)


def plain_factor(scheme: str, f_im: float, f_in: float, epoch: int, epochs: int, s: StatsSettings) -> float:
    """One category in one epoch, in the words of the settings."""
    if scheme == "random" or f_im == 0:
        return 1.0
    progress = min((epoch + s.first_epoch) / epochs, s.progress_max)
    alpha = progress if s.direction == "to-instances" else 1 - progress
    f = {
        "rfs": f_im,
        "irfs": {
            "geometric": math.sqrt(f_im * f_in),
            "harmonic": 2 / (1 / f_im + 1 / f_in),
            "arithmetic": (f_im + f_in) / 2,
        }[s.irfs_mean],
        "drb": 1 / (alpha / f_in + (1 - alpha) / f_im),
    }[scheme]
    threshold = 0.1 if s.threshold == "auto" else s.threshold  # 100 of 1000 images
    ratio = threshold / f
    raw = max(float(s.floor), math.sqrt(ratio) if s.root else ratio)
    return raw if s.max_factor is None else min(raw, s.max_factor)


def random_settings(seed: int) -> StatsSettings:
    rng = np.random.default_rng(seed)
    return StatsSettings(
        threshold=["auto", 0.02][rng.integers(2)],
        irfs_mean=["geometric", "harmonic", "arithmetic"][rng.integers(3)],
        first_epoch=int(rng.integers(2)),
        progress_max=float(rng.choice([0.5, 1.0])),
        direction=["to-instances", "to-images"][rng.integers(2)],
        floor=int(rng.integers(2)),
        max_factor=[None, 3.0][rng.integers(2)],
        root=bool(rng.integers(2)),
    )


def test_every_scheme_and_setting_equals_plain_arithmetic() -> None:
    for seed in range(60):
        frequencies, settings = random_frequencies(seed), random_settings(seed)
        epochs = seed % 5 + 1
        for scheme in SCHEMES:
            found = category_factors(scheme, frequencies, epochs, settings)
            expected = [
                [
                    plain_factor(scheme, f_im, f_in, epoch, epochs, settings)
                    for f_im, f_in in zip(frequencies.f_image, frequencies.f_instance, strict=True)
                ]
                for epoch in range(epochs)
            ]
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=f"{seed} {scheme}")


def test_defaults_are_the_published_formulas_to_the_bit() -> None:
    frequencies, settings = random_frequencies(1), StatsSettings(threshold=0.02)
    f_im, f_in = frequencies.f_image, frequencies.f_instance
    for epoch in range(4):
        found = {s: category_factors(s, frequencies, 4, settings)[epoch] for s in SCHEMES}
        assert (found["random"] == 1).all()
        np.testing.assert_array_equal(found["rfs"], rfs_factors(f_im, 0.02))
        np.testing.assert_array_equal(found["irfs"], irfs_factors(f_im, f_in, 0.02))
        np.testing.assert_array_equal(found["drb"], repeat_factors(f_im, f_in, epoch / 4, 0.02))
    with pytest.raises(ValueError, match="epochs"):
        category_factors("random", frequencies, 0, settings)


def test_random_is_1_whatever_the_floor() -> None:
    factors = category_factors("random", random_frequencies(2), 2, StatsSettings(floor=0, max_factor=2.0))
    assert (factors == 1).all()


def test_alpha_runs_as_the_settings_say() -> None:
    assert alpha_schedule(2, StatsSettings()).tolist() == [0, 0.5]
    early = StatsSettings(direction="to-images", progress_max=0.5)
    assert alpha_schedule(4, early).tolist() == [1, 0.75, 0.5, 0.5]


def test_falling_categories_are_those_that_a_fine_schedule_sees_falling() -> None:
    for seed in range(30):
        frequencies, settings = random_frequencies(seed), random_settings(seed)
        path = np.array(
            [
                category_factors("drb", frequencies, 1, StatsSettings(**{**vars(settings), **at}))[0]
                for at in (
                    {"direction": "to-instances", "first_epoch": 1, "progress_max": p / 10} for p in range(11)
                )
            ]
        )
        falls = (np.diff(path, axis=0) < -1e-12).any(axis=0)
        rises = (np.diff(path, axis=0) > 1e-12).any(axis=0)
        assert not (falls & rises).any()
        found = falling_categories(frequencies, settings)
        assert sorted(found.tolist()) == np.flatnonzero(falls).tolist()
        first, last = factors_at_both_ends(frequencies, settings)
        assert (np.diff(last[found] / first[found]) >= 0).all()


def test_36_categories_of_lvis_fall(tmp_path: Path) -> None:
    with REFERENCE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images, instances = (
        np.array([int(row[f"{what}_count"]) for row in rows]) for what in ("image", "instance")
    )
    frequencies = frequencies_of(images, instances, 99_388)
    settings = StatsSettings(threshold=0.001)
    expected = [i for i, row in enumerate(rows) if float(row["r_eq4_a1"]) < float(row["r_eq4_a0"])]
    assert sorted(falling_categories(frequencies, settings).tolist()) == expected
    assert write_falling_factors(tmp_path / "falling.csv", frequencies, settings) == len(expected) == 36
    with (tmp_path / "falling.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    for row in written:
        reference = rows[(int(row["category_id"]) - 1) // 2]
        assert float(row["r_alpha_0"]) == pytest.approx(float(reference["r_eq4_a0"]), rel=1e-8)
        assert float(row["r_alpha_1"]) == pytest.approx(float(reference["r_eq4_a1"]), rel=1e-8)
        assert float(row["f_instance"]) > float(row["f_image"])


def test_a_table_without_falling_categories_has_its_header(tmp_path: Path) -> None:
    even = frequencies_of(np.array([5, 5]), np.array([5, 5]), 10)
    assert write_falling_factors(tmp_path / "falling.csv", even, StatsSettings(threshold=1e-9)) == 0
    assert (tmp_path / "falling.csv").read_text().startswith("category_id,name,frequency,image_count")
