"""Counting categories in images, annotations and proposals, against slow loops."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError, SettingsError, UsageError
from pipeline.settings import build
from pipeline.stats.frequencies import (
    categories_of_images,
    count_frequencies,
    frequency_letters,
    match_proposals,
)
from pipeline.stats.settings import StatsSettings, resolve_threshold

WIDTH, HEIGHT = 100, 80


class ProposalBoxes:
    """Proposals held in a mapping from image id to (N, 4) boxes."""

    def __init__(self, boxes: dict[int, list[list[float]]]) -> None:
        self.boxes = boxes

    def of_image(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        boxes = np.array(self.boxes.get(image_id, []), dtype=np.float32).reshape(-1, 4)
        return boxes, np.linspace(1, 0, len(boxes), dtype=np.float32)


def annotations_of(folder: Path, records: list[dict], num_images: int, categories: list[dict]) -> Annotations:
    """Write and read a json with image ids 10, 20, ...; a record needs image_id and category_id."""
    images = [
        {"id": 10 * (i + 1), "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
        for i in range(num_images)
    ]
    content = {
        "images": images,
        "annotations": [{"id": i + 1, "bbox": [1, 1, 5, 5], **record} for i, record in enumerate(records)],
        "categories": categories,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_annotations(path)


def random_annotations(folder: Path, seed: int) -> tuple[Annotations, list[dict], np.random.Generator]:
    """Up to 12 images with crowds, empty boxes, empty images and unused categories; ids 3, 5, 7, ..."""
    rng = np.random.default_rng(seed)
    num_images, num_categories = int(rng.integers(2, 12)), int(rng.integers(1, 6))
    records = [
        {
            "image_id": 10 * int(rng.integers(1, num_images + 1)),
            "category_id": 3 + 2 * int(rng.integers(num_categories)),
            "bbox": [
                *rng.uniform(-10, 60, 2).tolist(),
                *(rng.uniform(0, 50, 2) * (rng.random() > 0.1)).tolist(),
            ],
            "iscrowd": int(rng.random() < 0.15),
        }
        for _ in range(int(rng.integers(1, 40)))
    ]
    records.append({"image_id": 10, "category_id": 3, "bbox": [5, 5, 20, 20]})
    categories = [{"id": 3 + 2 * c, "name": f"thing {c}"} for c in range(num_categories)]
    return annotations_of(folder, records, num_images, categories), records, rng


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def test_counts_equal_a_slow_loop_on_random_data(tmp_path: Path) -> None:
    for seed in range(25):
        annotations, records, _ = random_annotations(tmp_path, seed)
        kept = [r for r in records if not r.get("iscrowd")]
        ids = annotations.category_ids.tolist()
        images = [len({r["image_id"] for r in kept if r["category_id"] == c}) for c in ids]
        instances = [sum(r["category_id"] == c for r in kept) for c in ids]
        annotated = len({r["image_id"] for r in kept})
        found = count_frequencies(annotations)
        assert found.image_count.tolist() == images and found.instance_count.tolist() == instances
        assert found.num_images == annotated and found.proposal_count is None
        np.testing.assert_allclose(found.f_image, np.array(images) / annotated, rtol=1e-15)
        np.testing.assert_allclose(found.f_instance, np.array(instances) / len(kept), rtol=1e-15)
        every = count_frequencies(annotations, denominator="all")
        np.testing.assert_allclose(every.f_image, np.array(images) / len(annotations.image_ids), rtol=1e-15)


def test_categories_of_images_equal_sets_on_random_data(tmp_path: Path) -> None:
    for seed in range(25):
        annotations, records, _ = random_annotations(tmp_path, seed)
        found = categories_of_images(annotations)
        assert found.num_images == len(annotations.image_ids)
        for index, image_id in enumerate(annotations.image_ids.tolist()):
            labels = found.labels[found.offsets[index] : found.offsets[index + 1]]
            kept = [r for r in records if r["image_id"] == image_id and not r.get("iscrowd")]
            expected = sorted({r["category_id"] for r in kept})
            assert annotations.category_ids[labels].tolist() == expected


def test_crowds_are_not_counted_but_empty_and_outside_boxes_are(tmp_path: Path) -> None:
    records = [
        {"image_id": 10, "category_id": 1, "bbox": [3, 3, 0, 0]},
        {"image_id": 20, "category_id": 1, "bbox": [500, 500, 9, 9]},
        {"image_id": 30, "category_id": 1, "iscrowd": 1},
    ]
    found = count_frequencies(annotations_of(tmp_path, records, 4, [{"id": 1, "name": "cup"}]))
    assert found.image_count.tolist() == [2] and found.instance_count.tolist() == [2]
    assert found.num_images == 2 and found.f_image.tolist() == [1.0]


def test_category_without_instances_has_zeros_and_is_rare(tmp_path: Path) -> None:
    categories = [{"id": 4, "name": "unseen"}, {"id": 2, "name": "cup"}]
    found = count_frequencies(annotations_of(tmp_path, [{"image_id": 10, "category_id": 2}], 1, categories))
    assert found.category_ids.tolist() == [2, 4] and found.names == ["cup", "unseen"]
    assert found.f_image.tolist() == [1.0, 0.0] and found.f_instance.tolist() == [1.0, 0.0]
    assert found.frequency == ["r", "r"]


def test_letters_change_at_10_and_100_images() -> None:
    assert frequency_letters(np.array([0, 1, 10, 11, 100, 101, 5000])) == list("rrrccff")


def test_letters_of_the_file_win_over_counts(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cup", "frequency": "f"}, {"id": 2, "name": "pan", "frequency": "c"}]
    annotations = annotations_of(tmp_path, [{"image_id": 10, "category_id": 1}], 1, categories)
    assert count_frequencies(annotations).frequency == ["f", "c"]


@pytest.mark.parametrize("records", [[], [{"image_id": 10, "category_id": 1, "iscrowd": 1}]])
def test_nothing_to_count_is_an_input_error(tmp_path: Path, records: list[dict]) -> None:
    annotations = annotations_of(tmp_path, records, 2, [{"id": 1, "name": "cup"}])
    for denominator in ("annotated", "all"):
        with pytest.raises(InputError, match="nothing to count"):
            count_frequencies(annotations, denominator=denominator)


def test_matching_equals_a_slow_loop_on_random_data(tmp_path: Path) -> None:
    matched = 0
    for seed in range(15):
        annotations, _, rng = random_annotations(tmp_path, seed)
        boxes: dict[int, list[list[float]]] = {}
        for index, image_id in enumerate(annotations.image_ids.tolist()[:-1]):  # the last image has none
            near = annotations.clipped_boxes[annotations.of_image(index)] + rng.uniform(-3, 3, (1, 4))
            far = rng.uniform(0, 50, (3, 2))
            boxes[image_id] = near.tolist() + np.hstack([far, far + rng.uniform(1, 30, (3, 2))]).tolist()
        proposals = ProposalBoxes(boxes)
        expected = np.zeros(len(annotations.category_ids), dtype=int)
        for index, image_id in enumerate(annotations.image_ids.tolist()):
            for proposal in proposals.of_image(image_id)[0].astype(float):
                rows = range(len(annotations.boxes))[annotations.of_image(index)]
                overlaps = [
                    (slow_iou(proposal, annotations.clipped_boxes[row].astype(float)), -row)
                    for row in rows
                    if annotations.trainable[row]
                ]
                if overlaps and max(overlaps)[0] >= 0.5:
                    expected[annotations.labels[-max(overlaps)[1]]] += 1
        assert match_proposals(annotations, proposals).tolist() == expected.tolist()
        matched += expected.sum()
    assert matched > 50


def test_matching_takes_iou_of_exactly_one_half_and_clipped_boxes(tmp_path: Path) -> None:
    records = [
        {"image_id": 10, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"image_id": 10, "category_id": 2, "bbox": [-50, 40, 80, 20]},  # 30 x 20 of it inside
        {"image_id": 10, "category_id": 3, "bbox": [60, 60, 10, 10], "iscrowd": 1},
    ]
    annotations = annotations_of(tmp_path, records, 1, [{"id": c, "name": str(c)} for c in (1, 2, 3)])
    proposals = ProposalBoxes({10: [[0, 0, 5, 10], [0, 0, 4.9, 10], [0, 40, 30, 60], [60, 60, 70, 70]]})
    assert match_proposals(annotations, proposals).tolist() == [1, 1, 0]


def test_f_instance_of_proposals_counts_a_category_never_found_once(tmp_path: Path) -> None:
    records = [
        {"image_id": 10, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"image_id": 10, "category_id": 2, "bbox": [40, 40, 10, 10]},
    ]
    annotations = annotations_of(tmp_path, records, 1, [{"id": c, "name": str(c)} for c in (1, 2, 3)])
    found = count_frequencies(annotations, ProposalBoxes({10: [[0, 0, 10, 10]] * 3}), instances="proposals")
    assert found.proposal_count is not None and found.proposal_count.tolist() == [3, 0, 0]
    assert found.f_instance.tolist() == [0.75, 0.25, 0.0]
    assert found.instance_count.tolist() == [1, 1, 0]


def test_proposals_are_counted_without_changing_f_instance_by_default(tmp_path: Path) -> None:
    annotations = annotations_of(
        tmp_path, [{"image_id": 10, "category_id": 1}], 1, [{"id": 1, "name": "cup"}]
    )
    found = count_frequencies(annotations, ProposalBoxes({10: [[1, 1, 6, 6]]}))
    assert found.proposal_count is not None and found.proposal_count.tolist() == [1]
    assert found.f_instance.tolist() == [1.0]


def test_proposals_asked_for_but_missing_is_a_usage_error(tmp_path: Path) -> None:
    annotations = annotations_of(
        tmp_path, [{"image_id": 10, "category_id": 1}], 1, [{"id": 1, "name": "cup"}]
    )
    with pytest.raises(UsageError, match="no proposals") as caught:
        count_frequencies(annotations, instances="proposals")
    assert "2drcl proposals" in caught.value.hint


def test_auto_threshold_is_100_images() -> None:
    assert resolve_threshold("auto", 100_000) == pytest.approx(0.001)
    assert resolve_threshold("auto", 250) == 0.4
    assert resolve_threshold(0.02, 250) == 0.02
    with pytest.raises(ValueError, match="num_images"):
        resolve_threshold("auto", 0)


def test_settings_are_read_strictly() -> None:
    found = build(StatsSettings, {"threshold": 0.001, "rounding": "ceil", "first_epoch": 1}, "stats")
    assert (found.threshold, found.rounding, found.first_epoch) == (0.001, "ceil", 1)
    assert build(StatsSettings, None, "stats").threshold == "auto"
    for wrong in (
        {"threshold": 0},
        {"threshold": "some"},
        {"first_epoch": 2},
        {"instances": "boxes"},
        {"denominator": "every"},
        {"irfs_mean": "quadratic"},
        {"progress_max": 1.5},
        {"direction": "backwards"},
        {"floor": 2},
        {"max_factor": 0.5},
        {"root": 1},
        {"rounding": "floor"},
        {"length": "short"},
    ):
        with pytest.raises(SettingsError, match=f"stats.{next(iter(wrong))}"):
            build(StatsSettings, wrong, "stats")
