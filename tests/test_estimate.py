"""The forecast is the published count of operations, and follows the settings that change it."""

import pytest

from pipeline.detectors.settings import DetectorSettings
from pipeline.pretrain.settings import PretrainSettings, ReconstructionSettings, ViewSettings
from stages.estimate import estimate

VIEWS = ViewSettings(short_sides=(800,), long_side=1344)


@pytest.mark.parametrize(
    ("changes", "gflop", "saved"),
    [
        ({}, 2144, 1.96),
        ({"reconstruction": ReconstructionSettings(scale="half")}, 1776, 1.04),
        ({"terms": ("hcl", "lcl", "ar", "det")}, 1652, 0.74),
        ({"terms": ("hcl", "lcl", "det")}, 1466, 0.71),
        ({"terms": ("hcl", "lcl")}, 1104, 0.61),
    ],
)
def test_rows_of_the_count(changes: dict, gflop: float, saved: float) -> None:
    found = estimate(DetectorSettings(), PretrainSettings(views=VIEWS, precision="bf16", **changes), 1000)
    assert found["gflop_per_image"] == gflop
    assert found["gb_per_image_of_a_process"] == pytest.approx(saved, abs=0.011)
    assert found["hours_on_one"]["H200"] == pytest.approx(1000 * gflop / 240e3 / 3600, abs=0.006)


def test_memory_and_arithmetic_follow_precision_depth_and_size() -> None:
    def of(depth: int = 50, **changes: object) -> dict:
        settings = {"views": VIEWS, "precision": "bf16", **changes}
        return estimate(DetectorSettings(depth=depth), PretrainSettings(**settings), 10)

    small = ViewSettings(short_sides=(400,), long_side=672)
    assert of(precision="fp32")["gb_per_image_of_a_process"] == pytest.approx(3.92, abs=0.011)
    assert of(views=small)["gflop_per_image"] == 2144 / 4
    assert of(18)["gflop_per_image"] < of()["gflop_per_image"] < of(101)["gflop_per_image"]
