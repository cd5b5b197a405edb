"""Sections of params.yaml and their presets: of the whole file, of one section, and those nobody has."""

from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.stats.settings import PRESETS, StatsSettings
from stages.params import SECTIONS, Params, load


def stats(**content: object) -> StatsSettings:
    return Params(content, 0).section("stats")


def test_a_sections_preset_overrides_the_files() -> None:
    assert stats(preset="paper").threshold == 0.001
    assert stats(preset="paper", stats={"preset": "mmdet"}).rounding == "ceil"
    assert stats(preset="paper", stats={"preset": "default"}) == StatsSettings()
    assert stats(stats={"preset": "detectron2"}).threshold == 0.001


def test_the_other_sections_keep_the_files_preset() -> None:
    params = Params({"preset": "paper", "stats": {"preset": "early-code"}}, 0)
    assert params.section("pretrain").contrast.queue == 65536
    assert params.section("stats").direction == "to-images"


def test_keys_of_the_section_override_its_preset() -> None:
    found = stats(stats={"preset": "early-code", "threshold": "auto", "floor": 1})
    assert (found.threshold, found.floor, found.direction) == ("auto", 1, "to-images")
    assert (found.progress_max, found.rounding, found.length) == (0.5, "stochastic", "growing")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_of_stats_is_made_of_settings(preset: str) -> None:
    assert stats(stats={"preset": preset}).threshold == 0.001


def test_presets_of_stats_say_what_their_sources_do() -> None:
    paper, mmdet, early = (stats(stats={"preset": name}) for name in ("paper", "mmdet", "early-code"))
    assert stats(stats={"preset": "literal"}) == stats(stats={"preset": "detectron2"}) == paper
    assert (paper.direction, paper.floor, paper.rounding) == ("to-instances", 1, "stochastic")
    assert (mmdet.rounding, mmdet.floor) == ("ceil", 1)
    assert (early.direction, early.floor, early.progress_max) == ("to-images", 0, 0.5)


@pytest.mark.parametrize("wrong", ["mmdt", None, ["mmdet"], 3])
def test_an_unknown_preset_lists_those_of_its_section(wrong: object) -> None:
    with pytest.raises(SettingsError, match=r"stats.preset must be one of default, paper, literal, mmdet"):
        stats(stats={"preset": wrong})


def test_a_section_without_presets_has_the_default_alone() -> None:
    assert Params({"sample": {"preset": "default"}}, 0).section("sample")
    with pytest.raises(SettingsError, match=r"sample.preset must be one of default, but it is 'paper'"):
        Params({"sample": {"preset": "paper"}}, 0).section("sample")


def test_no_section_has_a_setting_that_a_preset_would_hide() -> None:
    for name in SECTIONS:
        assert "preset" not in vars(type(Params({}, 0).section(name)))["__dataclass_fields__"]


def test_a_preset_and_a_key_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"stats.length is fixed"):
        stats(stats={"preset": "mmdet", "length": "fixed"})


def test_sections_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("seed: 4\npreset: literal\nstats: {preset: mmdet, max_factor: 8.0}\n")
    params = load(path, {"stats": {"first_epoch": 1}})
    found = params.section("stats")
    assert (params.seed, found.rounding, found.max_factor, found.first_epoch) == (4, "ceil", 8.0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: mmdet", "preset must be one of default, paper, literal"),
        ("stats: mmdet", "stats must be a section"),
        ("stats: {preset: mmdet, flor: 0}", "unknown key: stats.flor"),
        ("statz: {}", "unknown key: statz"),
        ("seed: -1", "seed must be"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load(tmp_path / "p.yaml").check_all()
