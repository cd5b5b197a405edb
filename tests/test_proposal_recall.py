"""Average recall of proposals against pycocotools itself, plain loops, and OLN's published numbers."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import MismatchedInput
from pipeline.evaluation.proposal_recall import (
    AREAS,
    AUC_BUDGETS,
    BUDGETS,
    ProposalRecall,
    object_areas,
    proposal_recall,
    recall_metrics,
)
from pipeline.evaluation.recall_matching import NEVER

SMALL_BUDGETS = (1, 2, 5, 10, 30, 100)
LETTERS = ("r", "r", "c", "f", "c")
CATEGORY_IDS = (2, 3, 5, 7, 11)
IOU_THRESHOLDS = [0.5 + 0.05 * n for n in range(10)]
Truth = list[dict[str, Any]]


def random_split(seed: int, jitter: int = 6) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Boxes on a grid: ties of IoU, equal boxes, IoUs at thresholds, crowds, empty boxes and images."""
    rng = np.random.default_rng(seed)
    images = [{"id": 90 - n, "file_name": f"{n}.jpg", "width": 200, "height": 200} for n in range(7)]
    truth: Truth = []
    proposals = []
    for n, image in enumerate(images):
        mine = [] if n == 2 else [grid_box(rng) for _ in range(int(rng.integers(1, 12)))]
        mine += mine[:3]  # twice there: a proposal overlaps both equally
        for box in mine:
            truth.append(
                {"image_id": image["id"], "bbox": box, "iscrowd": int(rng.random() < 0.15)}
                | {"category_id": int(rng.choice(CATEGORY_IDS)), "area": random_area(rng, box)}
            )
        near = [
            np.array(mine[int(rng.integers(len(mine)))]) + rng.integers(-jitter, jitter + 1, 4)
            if mine and rng.random() < 0.8
            else np.array(grid_box(rng))
            for _ in range(0 if n == 4 else 60)
        ]
        boxes = np.array(near, dtype=np.float64).reshape(-1, 4).clip(0)
        boxes[:, 2:] *= rng.random((len(boxes), 1)) > 0.05  # some are empty
        proposals.append(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    order = rng.permutation(len(truth))  # images mixed, as in real files
    truth = [{**truth[i], "id": 7 + number} for number, i in enumerate(order)]
    categories = [
        {"id": i, "name": f"c{i}", "frequency": f} for i, f in zip(CATEGORY_IDS, LETTERS, strict=True)
    ]
    content = {"images": images, "annotations": truth, "categories": categories}
    return content, [p.astype(np.float32) for p in proposals]


def grid_box(rng: np.random.Generator) -> list[float]:
    w, h = rng.choice([16, 32, 40, 96, 120], 2)
    return [float(rng.integers(0, 10) * 8), float(rng.integers(0, 10) * 8), float(w), float(h)]


def random_area(rng: np.random.Generator, box: list[float]) -> float:
    area = 0.7 * box[2] * box[3]
    return float(rng.choice([area, 32**2, 96**2, 0], p=[0.7, 0.1, 0.1, 0.1]))


def read(folder: Path, content: dict[str, Any]) -> Annotations:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


def official(content: dict[str, Any], proposals: list[np.ndarray], budgets: tuple[int, ...]) -> np.ndarray:
    """(T, areas, budgets) recall by pycocotools."""
    records = [
        {"image_id": image["id"], "category_id": CATEGORY_IDS[0], "score": 1 - rank / 1e4}
        | {"bbox": [float(v) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])]}
        for image, boxes in zip(content["images"], proposals, strict=True)
        for rank, b in enumerate(boxes.astype(np.float64))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(content))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(budgets)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"][:, 0]  # (T, 1, areas, budgets) -> (T, areas, budgets)


def overlap(box: np.ndarray, other: list[float], is_crowd: int) -> float:
    w = min(box[2], other[0] + other[2]) - max(box[0], other[0])
    h = min(box[3], other[1] + other[3]) - max(box[1], other[1])
    if w <= 0 or h <= 0:
        return 0.0
    mine = (box[2] - box[0]) * (box[3] - box[1])
    return float(w * h / (mine if is_crowd else mine + other[2] * other[3] - w * h))


def slow_recall(
    content: dict[str, Any],
    proposals: list[np.ndarray],
    budget: int,
    area: tuple[float, float],
    seen: set[int],
) -> dict[int, list[bool]]:
    """Annotation id -> found at each threshold, by the rules of the cross-category protocol."""
    found: dict[int, list[bool]] = {}
    for image, boxes in zip(content["images"], proposals, strict=True):
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        mine.sort(key=lambda a: a["category_id"])  # stable
        counting = [
            a
            for a in mine
            if not a["iscrowd"] and a["category_id"] not in seen and area[0] <= a["area"] <= area[1]
        ]
        ignored = [a for a in mine if a not in counting]
        charged = []
        at_first = take(boxes, counting, ignored, IOU_THRESHOLDS[0])
        for rank in range(len(boxes)):
            match = at_first.get(rank)
            if match is None or match["category_id"] not in seen:
                charged.append(rank)
        for a in counting:
            found[a["id"]] = []
        for threshold in IOU_THRESHOLDS:
            matches = take(boxes, counting, ignored, threshold)
            hit = [matches[rank]["id"] for rank in charged[:budget] if rank in matches]
            for a in counting:
                found[a["id"]].append(a["id"] in hit)
    return found


def take(boxes: np.ndarray, counting: Truth, ignored: Truth, threshold: float) -> dict[int, dict[str, Any]]:
    """Rank of a proposal -> the object it takes."""
    taken: set[int] = set()
    matches = {}
    for rank, box in enumerate(boxes.astype(np.float64)):
        for group in (counting, ignored):
            best, best_overlap = None, threshold
            for a in group:
                if a["id"] in taken and not a["iscrowd"]:
                    continue
                if overlap(box, a["bbox"], a["iscrowd"]) >= best_overlap:
                    best, best_overlap = a, overlap(box, a["bbox"], a["iscrowd"])
            if best is not None:
                taken.add(best["id"])
                matches[rank] = best
                break
    return matches


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_pycocotools(tmp_path: Path, seed: int) -> None:
    content, proposals = random_split(seed, jitter=(0, 3, 8)[seed % 3])
    recall = proposal_recall(read(tmp_path, content), proposals)
    wanted = official(content, proposals, SMALL_BUDGETS)
    assert 0 < wanted[:, 0].mean() < 1
    for position, area in enumerate(AREAS):
        for level in range(10):
            found = recall.at(SMALL_BUDGETS, area, thresholds=slice(level, level + 1))
            numbers = [-100 if f is None else f for f in found]
            np.testing.assert_allclose(numbers, 100 * wanted[level, position], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seen", [(), (0,), (1, 3), (0, 1, 2, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_plain_loops_object_by_object(tmp_path: Path, seed: int, seen: tuple[int, ...]) -> None:
    content, proposals = random_split(seed + 50, jitter=(0, 3, 5, 8)[seed])
    annotations = read(tmp_path, content)
    recall = proposal_recall(annotations, proposals, np.isin(np.arange(5), seen))
    seen_ids = {CATEGORY_IDS[i] for i in seen}
    position = {int(number): row for row, number in enumerate(annotations.annotation_ids)}
    for area, limits in AREAS.items():
        for budget in (1, 4, 20):
            slow = slow_recall(content, proposals, budget, limits, seen_ids)
            rows = [position[number] for number in slow]
            assert sorted(rows) == np.flatnonzero(recall.counts[area]).tolist()
            found = (recall.ranks[area][:, rows] < budget).T
            np.testing.assert_array_equal(found, np.array(list(slow.values())).reshape(-1, 10))


def boxes_in_a_row(num: int) -> list[list[float]]:
    return [[20.0 * n, 10.0, 16.0, 16.0] for n in range(num)]


def split_of_boxes(boxes: list[list[float]], **changes: Any) -> dict[str, Any]:
    """One image; box n has category n modulo 5; `changes` are columns of the annotations."""
    truth = [
        {"id": n + 1, "image_id": 1, "category_id": CATEGORY_IDS[n % 5], "bbox": b, "area": b[2] * b[3]}
        for n, b in enumerate(boxes)
    ]
    for key, values in changes.items():
        truth = [{**t, key: v} for t, v in zip(truth, values, strict=True)]
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 400, "height": 100}],
        "annotations": truth,
        "categories": [{"id": i, "name": f"c{i}"} for i in CATEGORY_IDS],
    }


def corners(boxes: list[list[float]]) -> np.ndarray:
    return np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=np.float32).reshape(-1, 4)


def test_perfect_proposals_find_one_object_each(tmp_path: Path) -> None:
    boxes = boxes_in_a_row(20)
    annotations = read(tmp_path, split_of_boxes(boxes))
    metrics = recall_metrics(proposal_recall(annotations, [corners(boxes)]), annotations, LETTERS)
    assert metrics["AR@10"] == metrics["R50@10"] == 50
    assert metrics["AR@30"] == metrics["AR@1000"] == metrics["AR@1000_r"] == metrics["AR@30_s"] == 100
    assert metrics["AR@10_m"] is metrics["AR@10_l"] is None
    assert metrics["proposals_per_image"] == 20
    # ten of twenty at k = 10, from 0 at k = 1; all from 30 on; trapezoids over log_1000(k)
    x = np.log([1, 10, 30, 1000]) / np.log(1000)
    assert metrics["AUC"] == pytest.approx(25 * x[1] + 75 * (x[2] - x[1]) + 100 * (1 - x[2]))


def test_seen_objects_neither_count_nor_use_up_the_budget(tmp_path: Path) -> None:
    boxes = boxes_in_a_row(20)  # categories 0, 1, 2, 3, 4, 0, ...
    annotations = read(tmp_path, split_of_boxes(boxes))
    seen = np.array([True, True, True, True, False])
    recall = proposal_recall(annotations, [corners(boxes)], seen)
    assert recall.at((1, 2, 3, 4)) == [25, 50, 75, 100]  # objects 4, 9, 14, 19 at ranks 0, 1, 2, 3
    background = [[5.0, 60.0, 20.0, 20.0]] * 2  # finds nothing: costs two of the budget
    recall = proposal_recall(annotations, [corners(background + boxes)], seen)
    assert recall.at((1, 2, 3, 6)) == [0, 0, 25, 100]


def test_a_crowd_of_a_seen_category_costs_nothing_however_many_lie_in_it(tmp_path: Path) -> None:
    boxes = [[0.0, 0.0, 300.0, 50.0], [350.0, 60.0, 16.0, 16.0]]
    content = split_of_boxes(boxes, iscrowd=[1, 0])
    inside = corners([[10.0 * n, 5.0, 20.0, 20.0] for n in range(8)])
    proposals = [np.concatenate([inside, corners(boxes[1:])])]
    annotations = read(tmp_path, content)
    assert proposal_recall(annotations, proposals, np.arange(5) == 0).at((1,)) == [100]
    assert proposal_recall(annotations, proposals).at((1, 8, 9)) == [0, 0, 100]


def test_of_equal_overlaps_the_later_object_by_category_then_file_is_taken(tmp_path: Path) -> None:
    boxes = [[0.0, 0.0, 20.0, 20.0], [8.0, 0.0, 20.0, 20.0], [4.0, 4.0, 20.0, 12.0]]
    between = [corners([[4.0, 0.0, 20.0, 20.0]])]  # overlaps the first two by two thirds
    for categories, taken in (((3, 3, 11), 1), ((5, 3, 11), 0), ((3, 5, 2), 1)):
        content = split_of_boxes(boxes, category_id=categories, iscrowd=[0, 0, 1])
        ranks = proposal_recall(read(tmp_path, content), between).ranks["all"]
        assert (ranks[:4, taken] == 0).all() and (ranks[:4, 1 - taken] == NEVER).all()


def test_auc_of_the_published_recalls(tmp_path: Path) -> None:
    published = (18.0, 26.5, 29.6, 33.4, 39.0, 41.5, 45.0)  # at AUC_BUDGETS, in OLN's compute_auc.py
    num_found = np.array([10 * p for p in published]).round().astype(int)
    ranks = np.full((10, 1000), NEVER, dtype=np.int32)
    for budget, found in zip(AUC_BUDGETS[::-1], num_found[::-1], strict=True):
        ranks[:, :found] = budget - 1
    counts = np.ones(1000, dtype=bool)
    recall = ProposalRecall(
        dict.fromkeys(AREAS, ranks), dict.fromkeys(AREAS, counts), np.array([1000], dtype=np.int64)
    )
    annotations = read(tmp_path, split_of_boxes(boxes_in_a_row(1)))
    metrics = recall_metrics(recall, annotations, None)
    assert [metrics[f"AR@{k}"] for k in BUDGETS] == pytest.approx([18.0, 26.5, 33.4, 39.0, 45.0])
    assert metrics["AUC"] == pytest.approx(24.847333, abs=1e-6)
    assert not [name for name in metrics if name.endswith(("_r", "_c", "_f"))]


def test_nothing_to_find_is_null_and_no_proposals_are_zero(tmp_path: Path) -> None:
    empty = read(tmp_path, split_of_boxes([]))
    metrics = recall_metrics(proposal_recall(empty, [corners(boxes_in_a_row(2))]), empty, LETTERS)
    assert {v for k, v in metrics.items() if k != "proposals_per_image"} == {None}
    crowd = read(tmp_path, split_of_boxes(boxes_in_a_row(1), iscrowd=[1]))
    assert proposal_recall(crowd, [corners(boxes_in_a_row(1))]).at((10,)) == [None]
    some = read(tmp_path, split_of_boxes(boxes_in_a_row(3)))
    metrics = recall_metrics(proposal_recall(some, [corners([])]), some, None)
    assert metrics["AR@1000"] == metrics["AUC"] == metrics["proposals_per_image"] == 0


def test_letters_of_other_categories_are_refused(tmp_path: Path) -> None:
    annotations = read(tmp_path, split_of_boxes(boxes_in_a_row(3)))
    recall = proposal_recall(annotations, [corners([])])
    with pytest.raises(MismatchedInput, match="2 frequencies for 5 categories"):
        recall_metrics(recall, annotations, ["r", "c"])


def test_areas_are_the_files_else_of_the_mask_else_of_the_box(tmp_path: Path) -> None:
    content = split_of_boxes(boxes_in_a_row(3))
    first, second, third = content["annotations"]
    first["area"] = 0.5
    second |= {"area": None, "segmentation": [[20, 10, 28, 10, 28, 26, 20, 26]]}
    del third["area"]
    assert object_areas(read(tmp_path, content)).tolist() == [0.5, 128, 256]
