"""The figures: drawn for any data set, equal to the byte, and without pyplot's global state."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.stats.figures import epoch_length_figure, frequency_figure, repeat_factor_figure
from pipeline.stats.frequencies import CategoryFrequencies, frequency_letters

ORANGE, BLUE = (213, 94, 0), (0, 114, 178)


def long_tail(num_categories: int, proposals: bool = False) -> CategoryFrequencies:
    """Counts that fall from 400 images to none."""
    rng = np.random.default_rng(num_categories)
    images = np.floor(400 / (1 + np.arange(num_categories)) ** 1.3).astype(np.int64)
    images[-1] = 0
    instances = images * rng.integers(1, 9, size=num_categories)
    return CategoryFrequencies(
        annotations_digest="0" * 64,
        num_images=1000,
        category_ids=np.arange(num_categories),
        names=[f"thing_{c}" for c in range(num_categories)],
        frequency=frequency_letters(images),
        image_count=images,
        instance_count=instances,
        proposal_count=instances * 2 if proposals else None,
        f_image=images / 1000,
        f_instance=instances / instances.sum(),
    )


def pixels_near(path: Path, colour: tuple[int, int, int]) -> int:
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(image - colour).max(axis=2) < 12).sum())


@pytest.mark.parametrize("num_categories", [2, 40, 300])
def test_figures_show_their_data(tmp_path: Path, num_categories: int) -> None:
    frequencies = long_tail(num_categories, proposals=num_categories == 40)
    frequency_figure(frequencies, tmp_path / "a.png")
    repeat_factor_figure(frequencies, 6, 0.1, tmp_path / "b.png")
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 1000 and image.height > 600
    assert pixels_near(tmp_path / "a.png", BLUE) > 300  # the line of the image counts


@pytest.mark.parametrize("epochs", [1, 2, 12])
def test_repeat_factor_figure_of_any_number_of_epochs(tmp_path: Path, epochs: int) -> None:
    repeat_factor_figure(long_tail(20), epochs, 1e-6, tmp_path / "ones.png")  # every factor is 1
    repeat_factor_figure(long_tail(20), epochs, 0.1, tmp_path / "some.png", first_epoch=1)
    assert (tmp_path / "ones.png").read_bytes() != (tmp_path / "some.png").read_bytes()


@pytest.mark.parametrize("epochs", [1, 12])
def test_epoch_length_figure(tmp_path: Path, epochs: int) -> None:
    draws = {"rfs": np.full(epochs, 120.0), "drb": np.linspace(120, 180, epochs)}
    epoch_length_figure(draws, 100, tmp_path / "length.png")
    assert pixels_near(tmp_path / "length.png", ORANGE) > 50
    epoch_length_figure({"rfs": draws["rfs"]}, 100, tmp_path / "fixed.png")
    assert pixels_near(tmp_path / "fixed.png", ORANGE) == 0


def test_equal_content_gives_equal_bytes_without_software_or_date(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        frequency_figure(long_tail(30), tmp_path / name)
    content = (tmp_path / "1.png").read_bytes()
    assert content == (tmp_path / "2.png").read_bytes()
    assert b"Software" not in content and b"tIME" not in content


def test_names_are_plain_text(tmp_path: Path) -> None:
    """A dollar sign would start a formula, and an unbalanced brace would break it."""
    frequencies = long_tail(3)
    frequencies.names[:] = ["$\\frac{", "a" * 200, "_^$"]
    frequency_figure(frequencies, tmp_path / "names.png")
    with Image.open(tmp_path / "names.png") as image:
        corner = np.asarray(image.convert("L"))[: image.height // 2]
    assert (corner < 128).sum() > 500  # the plot keeps its room beside a name of 200 letters


def test_pyplot_is_not_loaded() -> None:
    check = "import sys, pipeline.stats.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_sampler_loads_neither_matplotlib_nor_pyarrow() -> None:
    check = (
        "import sys, pipeline.stats; sys.exit(bool({'matplotlib', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
