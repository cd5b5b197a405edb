"""Two runs on one split: which boxes count, what they find, where they differ, and the picture of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_error_types import CUP, HAT, OBJECT, found, truth

from pipeline.analysis.difference_figures import difference_figure
from pipeline.analysis.run_differences import difference, shown, write_differences
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.predictions_file import read_predictions

FAR = [500.0, 500.0, 50.0, 50.0]


@pytest.fixture
def split(tmp_path: Path) -> Annotations:
    """Image 1: a cup and a hat; image 2: a cup; image 3: a cup that is a crowd."""
    rng = np.random.default_rng(0)
    for i in (1, 2, 3):
        Image.fromarray(rng.integers(0, 256, (900, 900, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    objects = [truth(OBJECT), truth(FAR, HAT), truth(OBJECT, image=2), truth(OBJECT, image=3, iscrowd=1)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 900, "height": 900} for i in (1, 2, 3)],
        "annotations": [{"id": n, **o} for n, o in enumerate(objects)],
        "categories": [{"id": i, "name": n} for i, n in ((CUP, "cup"), (HAT, "hat"))],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_annotations(tmp_path / "a.json")


def predictions(split: Annotations, *records: dict[str, Any]) -> Predictions:
    path = split.path.with_name("p.json")
    path.write_text(json.dumps(list(records)))
    return read_predictions(path, split)


def test_as_many_boxes_as_objects_are_shown(split: Annotations) -> None:
    boxes = [found(FAR, CUP, score=s / 10) for s in range(1, 8)]
    side = shown(split, predictions(split, *boxes))
    assert (len(side.boxes), side.least_score) == (3, 0.5)  # three objects, the crowd apart
    assert len(shown(split, predictions(split, *boxes), 0.25).boxes) == 5
    assert len(shown(split, predictions(split)).boxes) == 0


def test_what_a_box_finds(split: Annotations) -> None:
    records = [
        found(OBJECT, score=0.9),
        found(OBJECT, score=0.8),  # the cup is found already
        found(FAR, CUP, score=0.7),  # a hat
        found(OBJECT, image=3, score=0.6),  # on the crowd: nobody can say
    ]
    side = shown(split, predictions(split, *records), 0.0)
    assert side.is_found.tolist() == [True, False, False, False]
    assert side.is_wrong.tolist() == [False, True, True, False]


def test_images_with_most_differences_come_first(split: Annotations, tmp_path: Path) -> None:
    before = shown(split, predictions(split, found(OBJECT, image=2)), 0.0)
    after = shown(split, predictions(split, found(OBJECT), found(FAR, HAT)), 0.0)
    made = difference(split, before, after)
    assert split.image_ids[made.images].tolist() == [1, 2]
    assert (made.gained.tolist(), made.lost.tolist()) == (
        [True, True, False, False],
        [False, False, True, False],
    )
    write_differences(tmp_path / "d.csv", split, made, None)
    table = pd.read_csv(tmp_path / "d.csv")
    assert table["change"].tolist() == ["gained", "gained", "lost"]
    assert table["name"].tolist() == ["cup", "hat", "cup"]
    difference_figure(split, tmp_path, made, ("before", "after"), 1, tmp_path / "d.png")
    text = (tmp_path / "d.svg").read_text()
    for said in ("before, image 1: 0 of 2 found", "after, image 1: 2 of 2 found", "missed: hat"):
        assert said in text
    assert "after finds 2 objects more and 1 less than before" in text and "image 2" not in text
    with Image.open(tmp_path / "d.png") as image:
        assert image.width > 600


def test_equal_runs_differ_nowhere(split: Annotations) -> None:
    side = shown(split, predictions(split, found(OBJECT)))
    assert len(difference(split, side, side).images) == 0
