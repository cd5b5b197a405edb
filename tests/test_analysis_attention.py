"""Which images are shown, how much of a map lies on the objects, and the figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.analysis.attention import Subject, attention_figure, choose, measure, write_measures
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import MismatchedInput

LETTERS = ["f", "r", "r", "c"]


@pytest.fixture
def split(tmp_path: Path) -> Annotations:
    """Category 0 in every image, 1 in images 10 to 13, 2 in image 20, 3 in images 30 and 31; 40 is empty."""
    ids = [10, 11, 12, 13, 20, 30, 31, 40]
    labels = {**dict.fromkeys(ids[:4], 1), 20: 2, 30: 3, 31: 3}
    annotations = []
    for i in ids[:-1]:
        for label, x in ((0, 5), (labels[i], 30)):
            box = {"bbox": [x, 10, 20, 20], "area": 400}
            annotations.append({"id": len(annotations), "image_id": i, "category_id": label, **box})
    for i in ids:
        Image.new("RGB", (64, 48), (200, 60, i)).save(tmp_path / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in ids],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"c{c}"} for c in range(4)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_annotations(tmp_path / "a.json")


def test_every_rare_category_is_drawn_once_before_one_comes_again(split: Annotations) -> None:
    choice = choose(split, LETTERS, 3, seed=0)
    assert choice.group == "r"
    assert sorted(s.label for s in choice.subjects[:2]) == [1, 2]
    assert [s.label for s in choice.subjects].count(2) == 1  # it has one image
    assert len({s.image for s in choice.subjects}) == 3
    np.testing.assert_array_equal(choice.subjects[0].boxes, [[30, 10, 50, 30]])


def test_the_seed_decides(split: Annotations) -> None:
    def images(seed: int) -> list[int]:
        return [s.image for s in choose(split, LETTERS, 3, seed).subjects]

    assert images(1) == images(1)
    assert len({tuple(images(seed)) for seed in range(8)}) > 1


def test_without_rare_objects_the_rarest_group_is_shown(split: Annotations) -> None:
    choice = choose(split, ["f", "f", "f", "c"], 9, seed=0)
    assert choice.group == "c" and {s.label for s in choice.subjects} == {3}
    unknown = choose(split, None, 2, seed=0)
    assert unknown.group is None and unknown.subjects[0].label == 2  # of the fewest images
    assert choose(split, LETTERS, 0, seed=0).subjects == []


def test_images_by_id(split: Annotations) -> None:
    choice = choose(split, LETTERS, 4, 0, image_ids=[30, 10])
    assert [(int(split.image_ids[s.image]), s.label) for s in choice.subjects] == [(30, 3), (10, 1)]
    with pytest.raises(MismatchedInput, match="77, 78 not in"):
        choose(split, LETTERS, 4, 0, image_ids=[77, 10, 78])
    with pytest.raises(MismatchedInput, match="40 show no object"):
        choose(split, LETTERS, 4, 0, image_ids=[40])


def test_measures() -> None:
    heat = np.zeros((10, 10), dtype=np.float32)
    heat[2, 3], heat[8, 8] = 3, 1
    found = measure(heat, np.array([[3, 2, 5, 4], [4, 3, 6, 5]]))
    assert (found.share_in_boxes, found.share_of_area, found.peak_in_boxes) == (0.75, 0.07, True)
    assert measure(heat, np.array([[8, 8, 9, 9]])).peak_in_boxes is False
    nothing = measure(np.zeros((4, 4)), np.array([[0, 0, 2, 4]]))
    assert (nothing.share_in_boxes, nothing.share_of_area, nothing.peak_in_boxes) == (None, 0.5, None)


def test_the_figure_and_its_table_hold_every_run(split: Annotations, tmp_path: Path) -> None:
    choice = choose(split, LETTERS, 2, seed=0)
    heat = np.zeros((48, 64), dtype=np.float32)
    heat[15, 35] = 1
    maps = {"before": [heat, np.zeros_like(heat)], "after": [heat, heat]}
    how = ("grad-cam", "c5")
    attention_figure(split, tmp_path, choice, maps, how, tmp_path / "attention.png")
    text = (tmp_path / "attention.svg").read_text()
    for said in (
        "Grad-CAM of the category on C5",
        "rare, drawn by the seed",
        "0 everywhere",
        "peak on it",
        "c2",
    ):
        assert said in text
    write_measures(tmp_path / "attention.csv", split, LETTERS, choice.subjects, maps, how)
    table = pd.read_csv(tmp_path / "attention.csv")
    assert table["run"].tolist() == ["before", "before", "after", "after"]
    assert table["share_in_boxes"].isna().tolist() == [False, True, False, False]
    assert set(table["frequency"]) == {"r"} and set(table["layer"]) == {"c5"}


def test_subjects_are_of_one_image() -> None:
    assert Subject(3, 1, np.zeros((0, 4))).image == 3
