"""The figures: drawn for any data set, equal to the byte, and without pyplot's global state."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.stats import figure_tables
from pipeline.stats.drawing import ranked
from pipeline.stats.epoch_figures import epoch_length_figure, group_share_figure
from pipeline.stats.figures import factor_map_figure, frequency_figure, repeat_factor_figure
from pipeline.stats.frequencies import CategoryFrequencies, frequency_letters
from pipeline.stats.schemes import category_factors
from pipeline.stats.settings import StatsSettings

ORANGE, BLUE = (213, 94, 0), (0, 114, 178)
BELOW_TENTH = StatsSettings(threshold=0.1)
NOTHING = StatsSettings(threshold=1e-6)  # every factor is 1


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
    repeat_factor_figure(frequencies, 6, BELOW_TENTH, tmp_path / "b.png")
    factor_map_figure(frequencies, 6, BELOW_TENTH, tmp_path / "c.png")
    for name in "abc":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 1000 and image.height > 600
    assert pixels_near(tmp_path / "a.png", BLUE) > 300  # the line of the image counts


@pytest.mark.parametrize("epochs", [1, 2, 12])
def test_repeat_factor_figure_of_any_number_of_epochs(tmp_path: Path, epochs: int) -> None:
    early_code = StatsSettings(threshold=0.1, floor=0, direction="to-images", progress_max=0.5)
    for draw in (repeat_factor_figure, factor_map_figure):
        content = set()
        for settings in (NOTHING, BELOW_TENTH, early_code):
            draw(long_tail(20), epochs, settings, tmp_path / "one.png")
            content.add((tmp_path / "one.png").read_bytes())
        assert len(content) == 3


def test_the_map_is_bright_where_the_factor_is_large(tmp_path: Path) -> None:
    """To the right stand the rare; the last category has no image, hence a factor of 1."""
    frequencies = long_tail(61)
    factor_map_figure(frequencies, 6, BELOW_TENTH, tmp_path / "map.png")
    light = np.asarray(Image.open(tmp_path / "map.png").convert("L")).astype(int)
    height, width = light.shape
    rows = light[height // 5 : 4 * height // 5]
    assert rows[:, 7 * width // 10 : 3 * width // 4].mean() > rows[:, width // 10 : width // 5].mean() + 50


@pytest.mark.parametrize("epochs", [1, 12])
def test_epoch_length_figure(tmp_path: Path, epochs: int) -> None:
    draws = {
        "rfs": np.full(epochs, 120.0),
        "drb": np.linspace(120, 180, epochs),
        "random": np.full(epochs, 100.0),
    }
    epoch_length_figure(draws, 100, tmp_path / "length.png")
    assert pixels_near(tmp_path / "length.png", ORANGE) > 50
    epoch_length_figure({"rfs": draws["rfs"]}, 100, tmp_path / "fixed.png")
    assert pixels_near(tmp_path / "fixed.png", ORANGE) == 0


@pytest.mark.parametrize("letters", ["rcf", "f", "rf"])
def test_group_share_figure_has_a_panel_per_group(tmp_path: Path, letters: str) -> None:
    shares = {
        "random": np.tile([0.0, 0.1, 0.9], (4, 1)),
        "drb": np.stack([np.linspace(0, 0.1, 4), np.full(4, 0.2), np.linspace(0.8, 0.7, 4)], axis=1),
    }
    group_share_figure(shares, list(letters) * 3, tmp_path / "shares.png")
    with Image.open(tmp_path / "shares.png") as image:
        assert abs(image.width - 150 * (3.3 * len(letters) + 0.6)) < 3
    assert pixels_near(tmp_path / "shares.png", ORANGE) > 50


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_the_frequencies(tmp_path: Path) -> None:
    frequencies = long_tail(12, proposals=True)
    frequencies.names[3] = 'a "quoted", name'
    figure_tables.write_frequencies(tmp_path / "f.csv", frequencies)
    rows, order = rows_of(tmp_path / "f.csv"), ranked(frequencies)
    assert [int(row["category_id"]) for row in rows] == frequencies.category_ids[order].tolist()
    assert [row["name"] for row in rows] == [frequencies.names[i] for i in order]
    for key in ("image_count", "instance_count", "proposal_count"):
        assert [int(row[key]) for row in rows] == getattr(frequencies, key)[order].tolist()
    figure_tables.write_frequencies(tmp_path / "g.csv", long_tail(12))
    assert "proposal_count" not in rows_of(tmp_path / "g.csv")[0]


def test_csv_of_the_factors(tmp_path: Path) -> None:
    frequencies = long_tail(12)
    figure_tables.write_factors(tmp_path / "r.csv", frequencies, 3, BELOW_TENTH, ("rfs", "drb"))
    rows, order = rows_of(tmp_path / "r.csv"), ranked(frequencies)
    assert list(rows[0]) == [
        "category_id",
        "name",
        "frequency",
        "rfs",
        *(f"drb_epoch_{e}" for e in (1, 2, 3)),
    ]
    assert [float(row["rfs"]) for row in rows] == category_factors("rfs", frequencies, 1, BELOW_TENTH)[
        0, order
    ].tolist()
    dynamic = category_factors("drb", frequencies, 3, BELOW_TENTH)[:, order]
    for epoch in range(3):
        assert [float(row[f"drb_epoch_{epoch + 1}"]) for row in rows] == dynamic[epoch].tolist()


def test_csv_of_lengths_and_shares(tmp_path: Path) -> None:
    figure_tables.write_epoch_lengths(
        tmp_path / "l.csv", {"rfs": np.array([3.5, 3.5]), "drb": np.array([3.0, 4.25])}
    )
    assert (tmp_path / "l.csv").read_text() == (
        "scheme,epoch,draws\nrfs,1,3.5\nrfs,2,3.5\ndrb,1,3.0\ndrb,2,4.25\n"
    )
    figure_tables.write_group_shares(tmp_path / "s.csv", {"drb": np.array([[0.25, 0.5, 0.25], [0, 0, 1]])})
    assert (tmp_path / "s.csv").read_text() == "scheme,epoch,r,c,f\ndrb,1,0.25,0.5,0.25\ndrb,2,0.0,0.0,1.0\n"


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
