"""`2drcl compare`: two stats folders side by side, and what is refused; evaluations as before."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer

from pipeline import artifacts
from pipeline.errors import InputError
from pipeline.settings import to_plain
from pipeline.stats import figure_tables, tables
from pipeline.stats.comparison import differences, match, read_stats, summarize
from pipeline.stats.frequencies import CategoryFrequencies, frequency_letters
from pipeline.stats.schemes import category_factors
from pipeline.stats.settings import StatsSettings

EPOCHS = 3


def frequencies_of(names: list[str], image_count: list[int], first_id: int = 1) -> CategoryFrequencies:
    """Two boxes in every image of a category; 400 images."""
    images = np.array(image_count)
    return CategoryFrequencies(
        annotations_digest="0" * 64,
        num_images=400,
        category_ids=np.arange(len(names)) + first_id,
        names=names,
        frequency=frequency_letters(images),
        image_count=images,
        instance_count=2 * images,
        proposal_count=None,
        f_image=images / 400,
        f_instance=images / images.sum(),
    )


def stats_folder(place: Path, frequencies: CategoryFrequencies, draws: bool = True, **chosen: object) -> Path:
    """What `2drcl stats` leaves, as far as a comparison reads it."""
    settings = StatsSettings(threshold=0.1, **chosen)
    (place / "figures").mkdir(parents=True)
    tables.write_categories(place / "categories.parquet", frequencies)
    tables.write_repeat_factors(place / "repeat_factors.parquet", frequencies, EPOCHS, settings)
    if draws:
        lengths = {
            "rfs": np.full(EPOCHS, 500.0),
            "irfs": np.full(EPOCHS, 550.0),
            "drb": np.arange(3) + 500.25,
        }
        figure_tables.write_epoch_lengths(place / "figures" / "epoch_length.csv", lengths)
    plain = {"stats": to_plain(settings), "epochs": EPOCHS}
    artifacts.write_json(place / artifacts.MANIFEST, artifacts.manifest("stats", plain, {}, 0))
    return place


def evaluation(place: Path, average: float) -> Path:
    place.mkdir(parents=True)
    artifacts.write_json(place / artifacts.MANIFEST, artifacts.manifest("evaluate", {}, {}, 0))
    artifacts.write_json(place / "metrics.json", {"bbox_AP": average, "bbox_APr": None})
    return place


NAMES, COUNTS = ["cup", "pan", "pot", "jar"], [300, 50, 8, 3]


def test_groups_are_summed_as_a_loop_does(tmp_path: Path) -> None:
    frequencies = frequencies_of(NAMES, COUNTS)
    stats = read_stats(stats_folder(tmp_path / "a", frequencies))
    groups = summarize(stats)
    assert frequencies.frequency == ["f", "c", "r", "r"]
    settings = StatsSettings(threshold=0.1)
    drb = category_factors("drb", frequencies, EPOCHS, settings)
    rfs = category_factors("rfs", frequencies, 1, settings)[0]
    for group, members in {"all": [0, 1, 2, 3], "r": [2, 3], "c": [1], "f": [0]}.items():
        row = groups[group]
        assert row["categories"] == len(members)
        assert row["image_count"] == sum(COUNTS[i] for i in members)
        assert row["instance_count"] == 2 * row["image_count"]
        for kind, r in {"rfs": rfs, "drb_first": drb[0], "drb_last": drb[-1]}.items():
            assert row[f"{kind}_repeated"] == sum(r[i] > 1 for i in members)
            assert row[f"{kind}_mean"] == pytest.approx(sum(r[i] for i in members) / len(members))
            assert row[f"{kind}_max"] == max(r[i] for i in members)
    assert stats.draws == {"rfs": 500.0, "irfs": 550.0, "drb_first": 500.25, "drb_last": 502.25}


def test_an_empty_group_has_no_mean(tmp_path: Path) -> None:
    stats = read_stats(stats_folder(tmp_path / "a", frequencies_of(["cup"], [300]), draws=False))
    assert summarize(stats)["r"] == {
        "categories": 0,
        "image_count": 0,
        "instance_count": 0,
        **{f"{kind}_repeated": 0 for kind in ("rfs", "irfs", "drb_first", "drb_last")},
        **{f"{kind}_mean": None for kind in ("rfs", "irfs", "drb_first", "drb_last")},
        **{f"{kind}_max": None for kind in ("rfs", "irfs", "drb_first", "drb_last")},
    }
    assert stats.draws is None


def test_categories_match_by_name_where_ids_differ() -> None:
    a = frequencies_of(["cup", "pan", "pot", "pot"], [9, 8, 7, 6])
    b = frequencies_of(["pot", "jar", "cup"], [9, 8, 7], first_id=50)
    left, right = match(a, b)
    assert (left.tolist(), right.tolist()) == ([0], [2])  # two are called pot: which is meant is not known
    assert [side.tolist() for side in match(a, a)] == [[0, 1, 2, 3]] * 2
    left, right = match(a, frequencies_of(["box"], [3]))
    assert len(left) == len(right) == 0


def test_differences_are_the_largest_ratios_first(tmp_path: Path) -> None:
    a = read_stats(stats_folder(tmp_path / "a", frequencies_of(NAMES, COUNTS)))
    b = read_stats(stats_folder(tmp_path / "b", frequencies_of(NAMES, COUNTS), max_factor=3.0))
    found = differences(a, b, most=10)
    ratio = {
        name: max(abs(np.log(a.factors[kind][i] / b.factors[kind][i])) for kind in a.factors)
        for i, name in enumerate(NAMES)
    }
    assert [row["name"] for row in found] == sorted(
        (n for n in NAMES if ratio[n] > 0), key=lambda n: -ratio[n]
    )
    assert found[0]["name"] == "jar" and found[0]["rfs"] == [pytest.approx(np.sqrt(0.1 * 400 / 3)), 3.0]
    assert [row["name"] for row in differences(a, b, most=1)] == ["jar"]
    assert differences(a, a, most=10) == []


def test_tables_of_two_runs_are_refused(tmp_path: Path) -> None:
    folder = stats_folder(tmp_path / "a", frequencies_of(NAMES, COUNTS))
    tables.write_categories(folder / "categories.parquet", frequencies_of(NAMES, COUNTS, first_id=9))
    with pytest.raises(InputError, match="other categories"):
        read_stats(folder)


def test_stats_in_text_and_json(tmp_path: Path, cli: Callable) -> None:
    a = stats_folder(tmp_path / "a", frequencies_of(NAMES, COUNTS))
    b = stats_folder(
        tmp_path / "b", frequencies_of(["pan", "jar", "lid"], [40, 3, 2], 7), draws=False, floor=0
    )
    answer = cli("compare", a, b)
    assert answer.code == 0, answer.err
    for text in (
        "stats.floor: A 1, B 0",
        "2 categories are in both by name, 2 only in A, 1 only in B",
        "unknown",
    ):
        assert text in answer.out
    content = json.loads(cli("compare", a, b, "--json").out)
    assert content["settings"] == {"floor": [1, 0]}
    assert (content["matched"], content["unmatched"]) == (2, [2, 1])
    assert {row["name"] for row in content["differences"]} <= {"pan", "jar"}
    assert [side["groups"]["all"]["categories"] for side in content["stats"]] == [4, 3]
    assert content["stats"][0]["expected_draws"]["drb_last"] == 502.25
    assert content["stats"][1]["expected_draws"] is None


def test_equal_stats_do_not_differ(tmp_path: Path, cli: Callable) -> None:
    a = stats_folder(tmp_path / "a", frequencies_of(NAMES, COUNTS))
    answer = cli("compare", a, a)
    assert answer.code == 0 and "no category of both differs" in answer.out


def test_evaluations_are_compared_as_before(tmp_path: Path, cli: Callable) -> None:
    folders = [
        evaluation(tmp_path / name, ap) for name, ap in (("one", 12.5), ("two", 13.25), ("three", 9.0))
    ]
    answer = cli("compare", *folders)
    assert answer.code == 0 and "13.25" in answer.out and "n/a" in answer.out
    content = json.loads(cli("compare", *folders, "--json").out)
    assert [(row["run"], row["metrics"]["bbox_AP"]) for row in content] == [
        ("one", 12.5),
        ("two", 13.25),
        ("three", 9.0),
    ]
    assert {row["images_drawn"] for row in content} == {"unknown"}


def test_numbers_by_different_protocols_are_said_to_be(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    folders = [evaluation(tmp_path / name, 12.5) for name in ("one", "two")]
    for folder, protocol in zip(folders, ("lvis", "lvis-fixed"), strict=True):
        made = artifacts.manifest("evaluate", {}, {}, 0, protocol=protocol)
        artifacts.write_json(folder / artifacts.MANIFEST, made)
    answer = cli("compare", *folders)
    assert answer.code == 0 and "different protocols" in answer.err and "by lvis-fixed" in answer.err
    assert "different protocols" not in cli("compare", folders[0], folders[0]).err


def test_what_cannot_be_compared_is_refused(tmp_path: Path, cli: Callable) -> None:
    stats = stats_folder(tmp_path / "a", frequencies_of(NAMES, COUNTS))
    mixed = cli("compare", stats, evaluation(tmp_path / "e", 1.0))
    assert mixed.code == 2 and "evaluations and stats cannot be compared" in mixed.err
    alone = cli("compare", stats)
    assert alone.code == 2 and "two at a time" in alone.err
    missing = cli("compare", stats, tmp_path / "nowhere")
    assert missing.code == 3 and "holds nothing finished" in missing.err
    other = tmp_path / "p"
    other.mkdir()
    artifacts.write_json(other / artifacts.MANIFEST, artifacts.manifest("pretrain", {}, {}, 0))
    foreign = cli("compare", stats, other)
    assert foreign.code == 3 and "written by `pretrain`" in foreign.err and "2drcl stats" in foreign.err


def test_recall_of_proposals_is_shown(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    for name, recall in (("a", 41.5), ("b", 43.25)):
        place = evaluation(tmp_path / name, 0.0)
        artifacts.write_json(place / "metrics.json", {"AR@100": recall, "AR@1000_r": None, "R50@10": 1.0})
    answer = cli("compare", tmp_path / "a", tmp_path / "b")
    assert answer.code == 0 and "AR@100" in answer.out and "41.50" in answer.out and "43.25" in answer.out


def test_damaged_folders_are_refused_with_a_remedy(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    whole, bare = evaluation(tmp_path / "whole", 1.0), evaluation(tmp_path / "bare", 1.0)
    (bare / "metrics.json").unlink()
    answer = cli("compare", whole, bare)
    assert answer.code == 3 and "bare/metrics.json cannot be read" in answer.err
    stats = [stats_folder(tmp_path / name, frequencies_of(["a"], [40])) for name in ("one", "two")]
    manifest = json.loads((stats[1] / artifacts.MANIFEST).read_text())
    artifacts.write_json(
        stats[1] / artifacts.MANIFEST, {k: v for k, v in manifest.items() if k != "settings"}
    )
    answer = cli("compare", *stats)
    assert answer.code == 3 and "two lacks its settings" in answer.err
