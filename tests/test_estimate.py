"""The forecast is the published count of operations and what SR computes again, and follows the settings."""

import pytest

from pipeline.detectors.settings import DetectorSettings
from pipeline.pretrain.settings import PretrainSettings, ReconstructionSettings, ViewSettings
from stages.estimate import estimate

MEASURED = {"full": 2.09, "half": 1.43}  # GiB
VIEWS = ViewSettings(short_sides=(800,), long_side=1344)


@pytest.mark.parametrize(
    ("changes", "gflop", "saved"),
    [
        ({"reconstruction": ReconstructionSettings(second_pass="trained")}, 2144 + 33.7, 1.56),
        ({}, 2144 + 33.7 - 141.5, 1.56),  # counted: the weight gradients of the second pass
        ({"reconstruction": ReconstructionSettings(scale="half")}, 1776 + 8.4 - 35.4, 0.94),
        ({"terms": ("hcl", "lcl", "ar", "det")}, 1652, 0.74),
        ({"terms": ("hcl", "lcl", "det")}, 1466, 0.71),
        ({"terms": ("hcl", "lcl")}, 1104, 0.61),
    ],
)
def test_rows_of_the_count(changes: dict, gflop: float, saved: float) -> None:
    found = estimate(DetectorSettings(), PretrainSettings(views=VIEWS, precision="bf16", **changes), 1000)
    assert found["gflop_per_image"] == pytest.approx(gflop)
    assert found["gb_per_image_of_a_process"] == pytest.approx(saved, abs=0.011)
    for hours, rate in zip(found["hours_on_one"]["H200"], (240e3, 80e3), strict=True):
        assert hours == pytest.approx(1000 * gflop / rate / 3600, rel=0.05)
    assert all(shortest < longest for shortest, longest in found["hours_on_one"].values())


@pytest.mark.parametrize("images_per_second", [10.0, 3.3])
def test_the_demos_own_speed_lies_in_the_range(images_per_second: float) -> None:
    """As it was measured on two cores, alone and beside others' work."""
    detector = DetectorSettings(depth=18, stem_channels=32)
    views = ViewSettings(short_sides=(128,), long_side=160)
    found = estimate(detector, PretrainSettings(views=views), 100_000)["hours_on_one"]["2 CPU cores"]
    assert found[0] < 100_000 / images_per_second / 3600 < found[1]


def test_memory_of_an_image_is_near_what_was_measured() -> None:
    """GiB that a second image of 800 x 1088 adds to the peak of a step, in float32."""
    for scale, measured in MEASURED.items():
        views = ViewSettings(short_sides=(800,), long_side=1088)
        settings = PretrainSettings(views=views, reconstruction=ReconstructionSettings(scale=scale))  # type: ignore[arg-type]
        found = estimate(DetectorSettings(), settings, 1)["gb_per_image_of_a_process"]
        assert found == pytest.approx(measured * 2**30 / 1e9, rel=0.2)


def test_memory_and_arithmetic_follow_precision_depth_and_size() -> None:
    def of(depth: int = 50, **changes: object) -> dict:
        settings = {"views": VIEWS, "precision": "bf16", **changes}
        return estimate(DetectorSettings(depth=depth), PretrainSettings(**settings), 10)

    small = ViewSettings(short_sides=(400,), long_side=672)
    assert of(precision="fp32")["gb_per_image_of_a_process"] == pytest.approx(3.12, abs=0.011)
    assert of(views=small)["gflop_per_image"] == pytest.approx((2144 + 33.7 - 141.5) / 4, abs=0.06)
    assert of(18)["gflop_per_image"] < of()["gflop_per_image"] < of(101)["gflop_per_image"]
