"""The five error types: hand-made cases at every edge, and random splits against plain loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.error_types import GROUPS, TYPES, ErrorReport, error_types
from pipeline.data.annotations import read_annotations
from pipeline.errors import MismatchedInput
from pipeline.evaluation.predictions_file import read_predictions

CUP, HAT = 4, 8  # category ids
OBJECT = [100, 100, 100, 100]  # x, y, width, height


def truth(box: list[float], category: int = CUP, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def found(box: list[float], category: int = CUP, image: int = 1, score: float = 0.5) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def report(
    folder: Path,
    objects: list[dict[str, Any]],
    results: list[dict[str, Any]],
    letters: str | None = None,
    categories: tuple[int, ...] = (CUP, HAT),
    federated: dict[int, list[int]] | None = None,
    frequency: list[str] | None = None,
) -> ErrorReport:
    images: list[dict[str, Any]] = [
        {"id": i, "file_name": f"{i}.jpg", "width": 900, "height": 900} for i in (1, 2, 3)
    ]
    for image in images if federated is not None else []:
        image |= {
            "neg_category_ids": (federated or {}).get(image["id"], []),
            "not_exhaustive_category_ids": [],
        }
    kinds = [{"id": i, "name": str(i)} for i in categories]
    for kind, letter in zip(kinds, letters or "", strict=False):
        kind["frequency"] = letter
    content = {
        "images": images,
        "annotations": [{"id": n, **o} for n, o in enumerate(objects)],
        "categories": kinds,
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "predictions.json").write_text(json.dumps(results))
    annotations = read_annotations(folder / "annotations.json")
    return error_types(annotations, read_predictions(folder / "predictions.json", annotations), frequency)


@pytest.mark.parametrize(
    ("same", "other", "kind"),
    [
        ([100, 100, 100, 50], None, "correct"),  # IoU .5 exactly
        ([100, 100, 100, 49.99], None, "localization"),
        ([100, 100, 100, 10], None, "localization"),  # IoU .1 exactly
        ([100, 100, 100, 9.99], None, "background"),
        (None, [100, 100, 100, 50], "classification"),  # of the other class only
        (None, [100, 100, 100, 49.99], "other"),
        (None, [100, 100, 100, 10], "other"),
        (None, [100, 100, 100, 9.99], "background"),
        (None, None, "background"),
        ([100, 100, 100, 10], OBJECT, "localization"),  # same class first
        ([100, 100, 100, 50], OBJECT, "correct"),
        ([100, 100, 100, 9.99], [100, 100, 100, 10], "other"),  # right class, IoU < .1, another object >= .1
        ([100, 100, 100, 9.99], OBJECT, "other"),
        ([100, 100, 100, 9.99], [100, 100, 100, 9.99], "background"),
    ],
)
def test_edges(tmp_path: Path, same: list[float] | None, other: list[float] | None, kind: str) -> None:
    far = truth([700, 700, 50, 50])  # gives the class its N = 1 without touching the box
    objects = [truth(same)] if same else [far]
    objects += [truth(other, HAT)] if other else []
    group = report(tmp_path, objects, [found(OBJECT)]).groups["all"]
    expected = {"count": 1, "percent": 100.0, "pooled_percent": 100.0}
    assert group["n"] == 1
    assert {t: group[t] for t in TYPES} == {
        t: expected if t == kind else {"count": 0, "percent": 0.0, "pooled_percent": 0.0} for t in TYPES
    }


def test_images_do_not_see_each_other(tmp_path: Path) -> None:
    group = report(tmp_path, [truth(OBJECT, image=1)], [found(OBJECT, image=2)]).groups["all"]
    assert group["background"]["count"] == 1


def test_several_boxes_on_one_object_are_correct_and_duplicates(tmp_path: Path) -> None:
    objects = [truth(OBJECT), truth([700, 700, 50, 50]), truth([500, 100, 50, 50]), truth(OBJECT, HAT)]
    results = [
        found(OBJECT, score=0.2),
        found([100, 100, 100, 60], score=0.9),
        found(OBJECT, HAT, score=0.95),
    ]
    group = report(tmp_path, objects, results).groups["all"]
    assert group["correct"]["count"] == 3
    assert group["duplicates"] == {
        "count": 1,  # the hat's box claims the hat, not the cup below it
        "percent": 25.0,  # half of the cups, none of the hats
        "pooled_percent": pytest.approx(100 / 3),
    }
    assert group["missing"] == 1 and group["n"] == 3  # three cups, two boxes


def test_only_the_n_best_boxes_of_a_category_are_judged(tmp_path: Path) -> None:
    away = [[700.0, 10.0 * i, 5.0, 5.0] for i in range(3)]
    results = [
        found(away[0], score=0.5),
        found(OBJECT, score=0.5),
        found(OBJECT, score=0.9),
        found(away[1], score=0.1),
    ]
    made = report(tmp_path, [truth(OBJECT), truth(away[2])], results)
    assert made.table["score"].tolist() == [0.9, 0.5]
    assert made.table["type"].tolist() == ["correct", "background"]  # of equal scores the first in the file
    assert made.groups["all"]["missing"] == 0


def test_categories_without_objects_have_no_boxes(tmp_path: Path) -> None:
    made = report(tmp_path, [truth(OBJECT)], [found(OBJECT), found(OBJECT, HAT, score=0.9)])
    assert made.table["category_id"].tolist() == [CUP]
    assert made.groups["all"]["categories"] == 1


def test_percent_is_the_mean_over_categories(tmp_path: Path) -> None:
    boxes = [[20.0 * i, 10, 15, 15] for i in range(4)]
    objects = [truth(b) for b in boxes] + [truth([500, 500, 50, 50], HAT)]
    results = [found(b) for b in boxes] + [found([800, 500, 50, 50], HAT)]
    made = report(tmp_path, objects, results, letters="fr")
    assert made.groups["all"]["correct"] == {"count": 4, "percent": 50.0, "pooled_percent": 80.0}
    assert made.groups["f"]["correct"] == {"count": 4, "percent": 100.0, "pooled_percent": 100.0}
    assert made.groups["r"]["background"] == {"count": 1, "percent": 100.0, "pooled_percent": 100.0}
    assert made.groups["c"]["n"] == 0 and made.groups["c"]["correct"]["percent"] is None
    assert tuple(made.groups) == GROUPS
    again = report(tmp_path, objects, results, frequency=["f", "r"])
    assert again.groups == made.groups


def test_without_letters_r_c_f_are_null(tmp_path: Path) -> None:
    made = report(tmp_path, [truth(OBJECT)], [found(OBJECT)])
    for letter in "rcf":
        group = made.groups[letter]
        assert group["n"] == group["missing"] == group["ignored"] == group["categories"] == 0
        assert all(
            group[t] == {"count": 0, "percent": None, "pooled_percent": None} for t in (*TYPES, "duplicates")
        )
    assert made.groups["all"]["n"] == 1


def test_letters_must_belong_to_the_categories(tmp_path: Path) -> None:
    with pytest.raises(MismatchedInput, match="1 frequencies for 2 categories"):
        report(tmp_path, [truth(OBJECT)], [], frequency=["r"])


def test_federated_files_judge_only_checked_images(tmp_path: Path) -> None:
    objects = [truth(OBJECT, image=1), truth(OBJECT, HAT, image=2), truth([700, 700, 9, 9], image=1)]
    results = [
        found(OBJECT, image=2, score=0.9),  # nobody looked for cups in image 2: passed over
        found(OBJECT, image=3, score=0.8),  # no cup in image 3, and that was checked
        found(OBJECT, image=1, score=0.7),
    ]
    made = report(tmp_path, objects, results, federated={3: [CUP, 12345]})
    assert made.table["image_id"].tolist() == [3, 1]
    assert made.table["type"].tolist() == ["background", "correct"]
    everything = report(tmp_path, objects, results)  # the same as a COCO file: all images count
    assert everything.table["type"].tolist() == ["classification", "background"]


def test_crowds_are_no_objects_and_boxes_on_them_no_errors(tmp_path: Path) -> None:
    crowd = truth([300, 300, 300, 300], HAT, iscrowd=1)
    objects = [truth([100, 100, 100, 100]), truth([700, 700, 50, 50]), truth([800, 10, 50, 50]), crowd]
    results = [
        found([300, 300, 100, 100], score=0.9),  # inside the crowd: IoU 1 / 9, coverage 1
        found([100, 100, 100, 100], score=0.8),
        found([210, 300, 99, 100], score=0.7),  # 9 % of it on the crowd
        found([300, 300, 300, 300], HAT, score=0.9),  # N = 0: the only hats are a crowd
    ]
    made = report(tmp_path, objects, results)
    assert made.table["type"].tolist() == ["ignored", "correct", "background"]
    group = made.groups["all"]
    assert (group["n"], group["ignored"], group["missing"]) == (2, 1, 0)
    assert group["correct"]["percent"] == 50.0


def test_boxes_without_area_are_passed_over(tmp_path: Path) -> None:
    made = report(tmp_path, [truth(OBJECT)], [found([100, 100, 0, 50], score=0.9), found(OBJECT, score=0.1)])
    assert made.table["type"].tolist() == ["correct"]


def test_no_detections(tmp_path: Path) -> None:
    made = report(tmp_path, [truth(OBJECT)], [], letters="rc")
    assert made.groups["r"]["missing"] == 1 and made.groups["r"]["n"] == 0
    assert made.groups["all"]["correct"] == {"count": 0, "percent": None, "pooled_percent": None}
    assert len(made.table) == 0


def random_split(
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[int, ...], dict[int, list[int]]]:
    rng = np.random.default_rng(seed)
    categories = (2, 3, 5, 9)

    def box() -> list[int]:
        return [*(10 * rng.integers(0, 12, 2)).tolist(), *(10 * rng.integers(1, 10, 2)).tolist()]

    objects = [
        truth(box(), int(rng.choice(categories)), int(rng.integers(1, 4)), iscrowd=int(rng.random() < 0.1))
        for _ in range(30)
    ]
    results = []
    for _ in range(80):
        source = objects[int(rng.integers(30))]
        moved = (np.array(source["bbox"]) + 10 * rng.integers(-1, 2, 4)).clip(0).tolist()
        category = source["category_id"] if rng.random() < 0.6 else int(rng.choice(categories))
        results.append(
            found(
                moved if rng.random() < 0.8 else box(), category, source["image_id"], round(rng.random(), 1)
            )
        )
    return objects, results, categories, {1: [2], 2: [3, 5], 3: []}


def overlap(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU, and the share of `a` inside `b`."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(w, 0) * max(h, 0)
    return inside / max(a[2] * a[3] + b[2] * b[3] - inside, 1), inside / max(a[2] * a[3], 1)


def slow_types(
    objects: list[dict[str, Any]],
    results: list[dict[str, Any]],
    categories: tuple[int, ...],
    negative: dict[int, list[int]] | None,
) -> list[tuple[int, int, float, str]]:
    rows = []
    for c in categories:
        here = {o["image_id"] for o in objects if o["category_id"] == c}
        mine = [r for r in results if r["category_id"] == c and r["bbox"][2] * r["bbox"][3] > 0]
        if negative is not None:
            mine = [r for r in mine if r["image_id"] in here or c in negative[r["image_id"]]]
        n = sum(o["category_id"] == c and not o["iscrowd"] for o in objects)
        for r in sorted(mine, key=lambda r: -r["score"])[:n]:
            image = [o for o in objects if o["image_id"] == r["image_id"]]
            same = [
                overlap(r["bbox"], o["bbox"])[0] for o in image if o["category_id"] == c and not o["iscrowd"]
            ]
            other = [
                overlap(r["bbox"], o["bbox"])[0] for o in image if o["category_id"] != c and not o["iscrowd"]
            ]
            crowd = [overlap(r["bbox"], o["bbox"])[1] for o in image if o["iscrowd"]]
            best_same, best_other = max(same, default=0), max(other, default=0)
            if best_same >= 0.1:
                kind = "correct" if best_same >= 0.5 else "localization"
            elif best_same > 0:  # right class, too little of it
                kind = "other" if best_other >= 0.1 else "background"
            elif best_other >= 0.1:  # wrong class
                kind = "classification" if best_other >= 0.5 else "other"
            else:
                kind = "background"
            if kind == "background" and max(crowd, default=0) >= 0.1:
                kind = "ignored"
            rows.append((r["image_id"], c, r["score"], kind))
    return rows


@pytest.mark.parametrize("is_federated", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_types_equal_plain_loops(tmp_path: Path, seed: int, is_federated: bool) -> None:
    objects, results, categories, negative = random_split(seed)
    federated = negative if is_federated else None
    made = report(tmp_path, objects, results, "rrcf", categories, federated)
    slow = slow_types(objects, results, categories, federated)
    assert (
        list(made.table[["image_id", "category_id", "score", "type"]].itertuples(index=False, name=None))
        == slow
    )
    for name, members in zip(GROUPS, (categories, (2, 3), (5,), (9,)), strict=True):
        inside = [r for r in slow if r[1] in members and r[3] != "ignored"]
        assert made.groups[name]["n"] == len(inside)
        for kind in TYPES:
            shares = []
            for c in members:
                mine = [r[3] == kind for r in inside if r[1] == c]
                shares += [100 * sum(mine) / len(mine)] if mine else []
            assert made.groups[name][kind]["count"] == sum(r[3] == kind for r in inside)
            assert made.groups[name][kind]["percent"] == pytest.approx(np.mean(shares) if shares else None)


def test_perfect_predictions_are_all_correct(tmp_path: Path) -> None:
    objects, _, categories, _ = random_split(0)
    objects = [{**o, "iscrowd": 0} for o in objects]
    results = [found(o["bbox"], o["category_id"], o["image_id"]) for o in objects]
    for group in report(tmp_path, objects, results, "rrcf", categories).groups.values():
        assert (
            group["correct"]["percent"] == pytest.approx(100) and group["correct"]["count"] == group["n"] > 0
        )
        assert group["missing"] == 0


def test_shuffled_labels_are_never_correct(tmp_path: Path) -> None:
    boxes = [[100.0 * i, 100.0, 60.0, 60.0] for i in range(8)]
    objects = [truth(b, (CUP, HAT)[i % 2]) for i, b in enumerate(boxes)]
    results = [found(b, (HAT, CUP)[i % 2]) for i, b in enumerate(boxes)]
    group = report(tmp_path, objects, results).groups["all"]
    assert group["classification"]["count"] == group["n"] == 8 and group["correct"]["count"] == 0


def test_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    objects, results, categories, negative = random_split(1)
    rng = np.random.default_rng(0)
    for r, s in zip(results, rng.permutation(len(results)), strict=True):
        r["score"] = float(s)  # without ties
    first = report(tmp_path, objects, results, "rrcf", categories, negative)
    mixed = (
        [objects[i] for i in rng.permutation(len(objects))],
        [results[i] for i in rng.permutation(len(results))],
    )
    second = report(tmp_path, *mixed, "rrcf", categories, negative)
    assert first.groups == second.groups
    pd.testing.assert_frame_equal(first.table, second.table)


def test_report_is_plain_json_and_its_parts_add_up(tmp_path: Path) -> None:
    made = report(tmp_path, *random_split(2)[:2], "rrcf", (2, 3, 5, 9))
    plain = made.to_plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(made.table.columns) == ["image_id", "category_id", "score", "type", "iou_same", "iou_other"]
    for group in plain.values():
        assert sum(group[t]["count"] for t in TYPES) == group["n"]
        assert sum(group[t]["percent"] for t in TYPES) == pytest.approx(100)
        assert group["duplicates"]["count"] <= group["correct"]["count"]
    assert sum(plain[letter]["n"] for letter in "rcf") == plain["all"]["n"] > 0
