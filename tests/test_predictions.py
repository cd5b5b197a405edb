"""Reading and writing COCO results: exact numbers, and a clear refusal of everything else."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError, MismatchedInput, MissingInput
from pipeline.evaluation.predictions import Predictions, score_rank
from pipeline.evaluation.predictions_file import read_predictions, write_predictions

GOOD = {"image_id": 30, "category_id": 5, "bbox": [1.1, 2.2, 3.3, 4.4], "score": 0.1}


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    content = {
        "images": [
            {"id": 30, "file_name": "a.jpg", "width": 40, "height": 20},
            {"id": 10, "file_name": "b.jpg", "width": 40, "height": 20},
        ],
        "annotations": [],
        "categories": [{"id": 5, "name": "cup"}, {"id": 2, "name": "hat"}],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


def read(tmp_path: Path, annotations: Annotations, content: object) -> Predictions:
    path = tmp_path / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_predictions(path, annotations)


def test_ids_become_positions_and_numbers_stay_exact(tmp_path: Path, annotations: Annotations) -> None:
    second = {"image_id": 10, "category_id": 2, "bbox": [258.15, 41.29, 348.26, 243.78], "score": 1 / 3}
    predictions = read(tmp_path, annotations, [GOOD, second])
    assert predictions.images.tolist() == [0, 1]  # image ids 30, 10 in file order
    assert predictions.labels.tolist() == [1, 0]  # category ids 2, 5 ascending
    assert predictions.boxes_xywh.tolist() == [GOOD["bbox"], second["bbox"]]
    assert predictions.boxes[1].tolist() == [258.15, 41.29, 258.15 + 348.26, 41.29 + 243.78]
    assert predictions.scores.tolist() == [0.1, 1 / 3]
    assert predictions.masks is None and not predictions.has_masks


def test_writing_and_reading_is_the_identity(tmp_path: Path, annotations: Annotations) -> None:
    generator = np.random.default_rng(0)
    pixels = np.asfortranarray(generator.random((20, 40, 7)) > 0.5, dtype=np.uint8)
    masks = [{"size": [20, 40], "counts": m["counts"].decode()} for m in coco_mask.encode(pixels)]
    written = Predictions.from_xyxy(
        images=generator.integers(0, 2, 7),
        labels=generator.integers(0, 2, 7),
        boxes=np.sort(generator.random((7, 2, 2)), axis=1).reshape(7, 4).astype(np.float32) * 20,
        scores=generator.random(7).astype(np.float32),
        masks=masks,
    )
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_predictions(first, annotations, written)
    found = read_predictions(first, annotations)
    write_predictions(second, annotations, found)
    assert first.read_bytes() == second.read_bytes()
    for name in ("images", "labels", "boxes_xywh", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
    assert found.masks == masks
    assert {len(r) for r in json.loads(first.read_text())} == {5}


def test_an_empty_list_is_a_result(tmp_path: Path, annotations: Annotations) -> None:
    predictions = read(tmp_path, annotations, [])
    assert len(predictions) == 0 and predictions.boxes.shape == (0, 4)
    assert predictions.remarks(annotations) == ["no detections: every AP is 0"]
    write_predictions(tmp_path / "again.json", annotations, predictions)
    assert json.loads((tmp_path / "again.json").read_text()) == []


def test_masks_in_three_spellings_are_one_mask(tmp_path: Path, annotations: Annotations) -> None:
    pixels = np.zeros((20, 40), dtype=np.uint8, order="F")
    pixels[4:8, 10:30] = 1
    packed = coco_mask.encode(pixels)
    runs = [10 * 20 + 4] + [4, 16] * 19 + [4, 12 + 10 * 20]
    spellings = [
        {"size": [20, 40], "counts": packed["counts"].decode()},
        {"size": [20, 40], "counts": runs},
        [[10, 4, 30, 4, 30, 8, 10, 8]],
    ]
    records = [{"image_id": 30, "category_id": 5, "score": 0.5, "segmentation": s} for s in spellings]
    predictions = read(tmp_path, annotations, records)
    assert predictions.masks is not None
    for mask in predictions.masks:
        np.testing.assert_array_equal(coco_mask.decode(mask), pixels)
    assert predictions.boxes_xywh.tolist() == [[10, 4, 20, 4]] * 3  # bounds of the mask: no bbox in the file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": None}, "image_id is not a whole number in detections 1"),
        ({"image_id": 30.0}, "image_id is not a whole number"),
        ({"image_id": 2**70}, "image_id is not a whole number"),
        ({"category_id": True}, "category_id is not a whole number"),
        ({"score": "high"}, "score is not a number"),
        ({"score": float("nan")}, "score is NaN or infinite"),
        ({"score": float("inf")}, "score is NaN or infinite"),
        ({"bbox": [1, 2, 3]}, "bbox is not four numbers"),
        ({"bbox": [1, 2, 3, 4, 5]}, "bbox is not four numbers"),
        ({"bbox": [1, 2, 3, None]}, "bbox is not four numbers"),
        ({"bbox": "1 2 3 4"}, "bbox is not four numbers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "bbox is NaN or infinite"),
        ({"score": 10**400}, "score is NaN or infinite in detections 1"),
        ({"bbox": [1, 2, 10**400, 4]}, "bbox is NaN or infinite"),
        ({"bbox": [1, 2, 1e300, 1e300]}, "bbox has a number beyond 1e\\+09 pixels"),
        ({"bbox": [9, 2, -3, 4]}, "bbox has a negative size"),
        ({"bbox": []}, "bbox is missing"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "segmentation is missing, others have one in detections 0"),
    ],
)
def test_broken_records_are_refused_by_position(
    tmp_path: Path, annotations: Annotations, change: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, annotations, [GOOD, {**GOOD, **change}])


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox"])
def test_missing_keys_are_refused(tmp_path: Path, annotations: Annotations, key: str) -> None:
    broken = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(InputError, match=rf"{key} is missing in detections 1 "):
        read(tmp_path, annotations, [GOOD, broken])


def test_only_the_first_ten_offenders_are_listed(tmp_path: Path, annotations: Annotations) -> None:
    with pytest.raises(InputError, match=r"detections 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more \(counted"):
        read(tmp_path, annotations, [{**GOOD, "score": None}] * 12)


def test_negative_sizes_hint_at_the_box_format(tmp_path: Path, annotations: Annotations) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, annotations, [{**GOOD, "bbox": [1, 2, -3, 4]}])
    assert "width, height, not x1, y1, x2, y2" in caught.value.hint


def test_unknown_ids_are_another_data_set(tmp_path: Path, annotations: Annotations) -> None:
    with pytest.raises(MismatchedInput, match="image_id 31 not in the annotations") as caught:
        read(tmp_path, annotations, [GOOD, {**GOOD, "image_id": 31}])
    assert "0-based" not in caught.value.hint
    with pytest.raises(MismatchedInput, match="category_id 0, 1 not in the annotations") as caught:
        read(tmp_path, annotations, [{**GOOD, "category_id": c} for c in (0, 1, 1)])
    assert "0-based positions" in caught.value.hint
    with pytest.raises(MismatchedInput, match="category_id 7 not") as caught:
        read(tmp_path, annotations, [{**GOOD, "category_id": 7}])
    assert "2 ids from 2 to 5" in caught.value.hint and "0-based" not in caught.value.hint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[{", "not valid JSON"),
        ('{"annotations": []}', "holds a dict, not a list"),
        ("[1, 2]", "is not a record with keys in detections 0, 1"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, annotations: Annotations, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(tmp_path, annotations, content)


def test_missing_file_and_folder(tmp_path: Path, annotations: Annotations) -> None:
    with pytest.raises(MissingInput, match="do not exist"):
        read_predictions(tmp_path / "nowhere.json", annotations)
    with pytest.raises(InputError, match="is a folder"):
        read_predictions(tmp_path, annotations)


@pytest.mark.parametrize("counts", ["zz!!~~", "P", "", [10, 5], [800, 1]])
def test_masks_that_do_not_fill_their_image_are_refused(
    tmp_path: Path, annotations: Annotations, counts: object
) -> None:
    records = [{**GOOD, "segmentation": {"size": [20, 40], "counts": c}} for c in ([800], counts)]
    with pytest.raises(InputError, match=r"does not fill its image in detections 1 "):
        read(tmp_path, annotations, records)


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        (
            {"size": [40, 20], "counts": "1"},
            r"size \[40, 20\] is not the image's height and width \[20, 40\]",
        ),
        ({"counts": "1"}, "not polygons"),
        ({"size": [20, 40], "counts": 3}, "not polygons"),
        ("mask.png", "not polygons"),
        ([["a", "b"]], "not polygons"),
    ],
)
def test_broken_masks_are_refused(
    tmp_path: Path, annotations: Annotations, segmentation: object, says: str
) -> None:
    with pytest.raises(InputError, match=f"segmentation of detection 0 .*{says}"):
        read(tmp_path, annotations, [{**GOOD, "segmentation": segmentation}])


def test_empty_boxes_stay_and_are_counted(tmp_path: Path, annotations: Annotations) -> None:
    records = [GOOD, {**GOOD, "bbox": [1, 1, 0, 5]}, {**GOOD, "bbox": [1, 1, 5, 0]}]
    predictions = read(tmp_path, annotations, records)
    assert predictions.is_empty_box.tolist() == [False, True, True]
    assert [r[:20] for r in predictions.remarks(annotations)] == ["2 boxes have no area"]


def test_corner_boxes_are_noticed(tmp_path: Path, annotations: Annotations) -> None:
    corners = [{**GOOD, "bbox": [20 + i, 8, 35 + i, 18]} for i in range(5)]
    sizes = [{**GOOD, "bbox": [20 + i, 8, 15, 10]} for i in range(5)]
    assert "look like x1, y1, x2, y2" in read(tmp_path, annotations, corners).remarks(annotations)[0]
    assert read(tmp_path, annotations, sizes).remarks(annotations) == []


def test_score_rank_equals_a_slow_count() -> None:
    generator = np.random.default_rng(1)
    groups, scores = generator.integers(0, 4, 60), generator.integers(0, 5, 60) / 5
    slow = [
        sum(
            groups[j] == groups[i] and (scores[j] > scores[i] or (scores[j] == scores[i] and j < i))
            for j in range(60)
        )
        for i in range(60)
    ]
    assert score_rank(groups, scores).tolist() == slow
    assert score_rank(groups[:0], scores[:0]).tolist() == []


def test_take_keeps_rows_together(tmp_path: Path, annotations: Annotations) -> None:
    rle = {"size": [20, 40], "counts": [10, 5, 785]}
    records = [{**GOOD, "score": s, "segmentation": rle} for s in (0.1, 0.2, 0.3)]
    taken = read(tmp_path, annotations, records).take(np.array([2, 0]))
    assert taken.scores.tolist() == [0.3, 0.1]
    assert taken.masks is not None and len(taken.masks) == 2
