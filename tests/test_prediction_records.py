"""The fast reader of predictions gives what the slow one gives, or leaves the file to it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_metrics import random_lvis, with_masks

from pipeline.data.annotations import read_annotations
from pipeline.errors import InputError
from pipeline.evaluation import predictions_file as module
from pipeline.evaluation.prediction_records import read_columns
from pipeline.evaluation.predictions_file import read_predictions, write_predictions

GOOD = {"image_id": 50, "category_id": 2, "bbox": [1, 2.5, 3, 1e-3], "score": 0.1}


def test_both_readers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = random_lvis(0)
    (tmp_path / "a.json").write_text(json.dumps(content))
    extra = {"id": 1, "area": 3.5, "iscrowd": 0, "note": {"a": [1]}}  # keys that nobody asks for
    (tmp_path / "p.json").write_text(json.dumps([{**extra, **r} for r in results], indent=1))
    annotations = read_annotations(tmp_path / "a.json")
    monkeypatch.setattr("pipeline.evaluation.prediction_records.AT_ONCE", 7)
    assert read_columns(tmp_path / "p.json") is not None
    fast = read_predictions(tmp_path / "p.json", annotations)
    monkeypatch.setattr(module, "read_columns", lambda path: None)
    slow = read_predictions(tmp_path / "p.json", annotations)
    for name in ("images", "labels", "boxes_xywh", "scores"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
    write_predictions(tmp_path / "again.json", annotations, fast)
    again = read_predictions(tmp_path / "again.json", annotations)
    np.testing.assert_array_equal(again.boxes_xywh, slow.boxes_xywh)
    np.testing.assert_array_equal(again.scores, slow.scores)


def test_both_readers_agree_on_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = with_masks(*random_lvis(0))
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "p.json").write_text(json.dumps(results))
    annotations = read_annotations(tmp_path / "a.json")
    fast = read_predictions(tmp_path / "p.json", annotations)
    write_predictions(tmp_path / "again.json", annotations, fast)
    again = read_predictions(tmp_path / "again.json", annotations)
    wrong = {**results[3], "segmentation": {**results[3]["segmentation"], "size": [160, 159]}}
    (tmp_path / "wrong.json").write_text(json.dumps([*results[:3], wrong]))
    said = []
    for reader in (read_columns, lambda path: None):
        monkeypatch.setattr(module, "read_columns", reader)
        with pytest.raises(InputError) as caught:
            read_predictions(tmp_path / "wrong.json", annotations)
        said.append(caught.value.message)
    assert said[0] == said[1] and "detection 3 " in said[0] and "[160, 159]" in said[0]
    slow = read_predictions(tmp_path / "p.json", annotations)
    assert fast.masks == slow.masks == again.masks and fast.masks is not None


def test_nothing_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(" [ ] ")
    columns = read_columns(tmp_path / "p.json")
    assert columns is not None and columns.boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"score": None}, {"score": "0.5"}, {"score": True}, {"score": float("nan")}, {"score": 10**400},
        {"image_id": "50"}, {"image_id": 2**70}, {"category_id": 1.5}, {"bbox": None}, {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, float("inf")]}, {"bbox": [1, 2, 3, "4"]}, {"segmentation": [[0, 0, 5, 0, 5, 5]]},
    ],
)  # fmt: skip
def test_other_records_are_left_to_the_slow_reader(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "p.json").write_text(json.dumps([GOOD, {**GOOD, **change}]))
    assert read_columns(tmp_path / "p.json") is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[{}]", "[{", '{"a": [1]}', "\x00", "[null]"])
def test_other_files_are_left_to_the_slow_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    assert read_columns(tmp_path / "p.json") is None
    assert read_columns(tmp_path / "absent.json") is None


def test_negative_sizes_are_refused_by_either(tmp_path: Path) -> None:
    content, _ = random_lvis(0)
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "p.json").write_text(json.dumps([GOOD, {**GOOD, "bbox": [1, 2, -3, 4]}]))
    with pytest.raises(InputError, match="negative size in detections 1"):
        read_predictions(tmp_path / "p.json", read_annotations(tmp_path / "a.json"))
