"""`2drcl stats` from end to end: its figures with their tables, what it says, and presets in params.yaml."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.stats.repeat_factors import repeat_factors

FIGURES = {"frequency", "repeat_factors", "factor_map", "epoch_length", "group_shares"}


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 images; `cup` in all of them, `pin` in two with 40 boxes each, `jar` in one; 4 images are empty."""
    monkeypatch.chdir(tmp_path)
    images = [{"id": i + 1, "file_name": f"{i}.jpg", "width": 50, "height": 50} for i in range(64)]
    pairs = [(i + 1, 1) for i in range(60)] + [(1, 2)] * 40 + [(2, 2)] * 40 + [(3, 3)]
    annotations = [
        {"id": i + 1, "image_id": image, "category_id": category, "bbox": [1, 1, 9, 9]}
        for i, (image, category) in enumerate(pairs)
    ]
    names = [{"id": i + 1, "name": name} for i, name in enumerate(("cup", "pin", "jar"))]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_has_its_table(crowded: Path, tmp_path: Path, cli: Callable) -> None:
    answer = cli("stats", "--annotations", crowded, "--out", "s")
    assert answer.code == 0, answer.err
    found = {path.name for path in (tmp_path / "s/figures").iterdir()}
    assert found == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "csv")} | {
        "falling_factors.csv"
    }
    assert "factors that fall as alpha rises: 1 of 3 categories" in answer.err
    falling = rows_of(tmp_path / "s/figures/falling_factors.csv")
    assert [row["name"] for row in falling] == ["pin"]


def test_lengths_and_shares_are_those_of_the_factors(crowded: Path, tmp_path: Path, cli: Callable) -> None:
    """RFS, t = 0.1 of 60 annotated images: pin has sqrt(0.1 * 60 / 2), jar sqrt(0.1 * 60), the others 1."""
    (tmp_path / "params.yaml").write_text("stats: {threshold: 0.1}\npretrain: {epochs: 2, milestones: []}\n")
    assert cli("stats", "--annotations", crowded, "--out", "s").code == 0
    pin, jar = 3**0.5, 6**0.5
    lengths = {
        (r["scheme"], r["epoch"]): float(r["draws"]) for r in rows_of(tmp_path / "s/figures/epoch_length.csv")
    }
    assert lengths["random", "1"] == lengths["random", "2"] == 64
    assert lengths["rfs", "1"] == pytest.approx(61 + 2 * pin + jar)
    assert lengths["drb", "1"] == pytest.approx(lengths["rfs", "1"])
    shares = {(r["scheme"], r["epoch"]): r for r in rows_of(tmp_path / "s/figures/group_shares.csv")}
    rare, all_of_them = 80 * pin + jar, 57 + 82 * pin + 2 * jar
    assert float(shares["rfs", "1"]["r"]) == pytest.approx(rare / all_of_them)
    assert float(shares["random", "2"]["r"]) == pytest.approx(81 / 141)


def test_a_preset_of_the_section_reaches_table_and_manifest(
    crowded: Path, tmp_path: Path, cli: Callable
) -> None:
    (tmp_path / "params.yaml").write_text(
        "preset: paper\nstats: {preset: early-code, threshold: 0.1}\npretrain: {epochs: 4, milestones: []}\n"
    )
    assert cli("stats", "--annotations", crowded, "--out", "s").code == 0
    settings = json.loads((tmp_path / "s/manifest.json").read_text())["settings"]["stats"]
    assert (settings["direction"], settings["floor"], settings["threshold"]) == ("to-images", 0, 0.1)
    table = pq.read_table(tmp_path / "s/repeat_factors.parquet").to_pydict()
    assert table["alpha"][6::3] == [1.0, 0.75, 0.5, 0.5]
    f_im, f_in = np.array([60, 2, 1]) / 60, np.array([60, 80, 1]) / 141
    expected = repeat_factors(f_im, f_in, 0.5, 0.1, floor=0)
    assert table["r"][-3:] == expected.tolist() and expected[0] < 1


def test_an_unknown_preset_exits_2(crowded: Path, tmp_path: Path, cli: Callable) -> None:
    (tmp_path / "params.yaml").write_text("stats: {preset: mmdt}\n")
    answer = cli("stats", "--annotations", crowded, "--out", "s")
    assert answer.code == 2
    assert "stats.preset must be one of default, paper, literal, mmdet, detectron2, early-code" in answer.err
    assert not (tmp_path / "s").exists()


def test_show_config_tells_the_presets_values(crowded: Path, tmp_path: Path, cli: Callable) -> None:
    (tmp_path / "params.yaml").write_text("stats: {preset: mmdet}\n")
    shown = json.loads(cli("show-config", "--json").out)["stats"]
    assert (shown["rounding"], shown["threshold"]) == ("ceil", 0.001)


def test_factors_of_1_are_warned_of(crowded: Path, tmp_path: Path, cli: Callable) -> None:
    (tmp_path / "params.yaml").write_text("stats: {threshold: 0.000001}\n")
    answer = cli("stats", "--annotations", crowded, "--out", "s")
    assert answer.code == 0 and "every repeat factor is 1" in answer.err
