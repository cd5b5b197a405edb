"""Costs of errors: each kind by hand, AP50 as the official evaluators have it, all of it by plain loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_error_types import CUP, HAT, OBJECT, found, overlap, random_split, truth
from test_metrics import compute_metrics

from pipeline.analysis.tide import KINDS, MAIN, SPECIAL, TideReport, tide
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.predictions_file import read_predictions

Split = tuple[Annotations, Predictions]


def written(
    folder: Path,
    objects: list[dict[str, Any]],
    results: list[dict[str, Any]],
    categories: tuple[int, ...] = (CUP, HAT),
    negative: dict[int, list[int]] | None = None,
    open_ended: dict[int, list[int]] | None = None,
) -> Split:
    images: list[dict[str, Any]] = [
        {"id": i, "file_name": f"{i}.jpg", "width": 900, "height": 900} for i in (3, 1, 2)
    ]
    for image in images if negative is not None else []:
        image["neg_category_ids"] = (negative or {}).get(image["id"], [])
        image["not_exhaustive_category_ids"] = (open_ended or {}).get(image["id"], [])
    kinds = [{"id": c, "name": str(c), "frequency": "rcf"[i % 3]} for i, c in enumerate(categories)]
    annotations = [{"id": n, "area": o["bbox"][2] * o["bbox"][3], **o} for n, o in enumerate(objects, 1)]
    content = {"images": images, "annotations": annotations, "categories": kinds}
    (folder / "a.json").write_text(json.dumps(content))
    (folder / "p.json").write_text(json.dumps(results))
    split = read_annotations(folder / "a.json")
    return split, read_predictions(folder / "p.json", split)


def hand_made(folder: Path, *results: dict[str, Any]) -> TideReport:
    """A cup at OBJECT and a hat far away, that a box has found; what do further boxes cost?"""
    hat = [500, 500, 100, 100]
    return tide(*written(folder, [truth(OBJECT), truth(hat, HAT)], [found(hat, HAT, score=0.8), *results]))


@pytest.mark.parametrize(
    ("kind", "box", "category", "gain"),
    [
        ("loc", [100, 100, 100, 30], CUP, 50),  # IoU .3 with the cup: mended, the cup is found
        ("cls", OBJECT, HAT, 50 + 25),  # the cup is called a hat, with a better score than the true hat
        ("bkg", [700, 700, 50, 50], HAT, 25),
        ("both", [100, 100, 100, 30], HAT, 25),
        ("dupe", [500, 500, 100, 90], HAT, 0),  # below the box that found the hat
    ],
)
def test_each_kind_costs_what_mending_it_gains(
    tmp_path: Path, kind: str, box: list[float], category: int, gain: float
) -> None:
    made = hand_made(tmp_path, found(box, category, score=0.5 if kind == "dupe" else 0.9))
    group = made.groups["all"]
    assert made.counts["all"][kind] == 1
    assert sum(made.counts["all"][k] for k in KINDS) == made.counts["all"]["fp"] == 1
    assert group[kind] == pytest.approx(gain, abs=0.01)
    assert [k for k in KINDS if group[k]] == ([kind] if gain else [])


def test_a_missed_object_is_one_that_nothing_could_take(tmp_path: Path) -> None:
    alone = hand_made(tmp_path)
    assert alone.counts["all"]["miss"] == alone.counts["all"]["fn"] == 1
    assert alone.groups["all"]["miss"] == alone.groups["all"]["fn"] == pytest.approx(50)
    near = hand_made(tmp_path, found([100, 100, 100, 30], CUP))
    assert (near.counts["all"]["miss"], near.counts["all"]["fn"]) == (0, 1)
    assert near.groups["all"]["miss"] == 0 and near.groups["all"]["fn"] == pytest.approx(50)


def test_an_object_is_given_to_one_box_only(tmp_path: Path) -> None:
    boxes = [found([100, 100, 100, 30], CUP, score=s) for s in (0.9, 0.7, 0.95)]
    made = hand_made(tmp_path, *boxes)
    assert made.counts["all"]["loc"] == 3
    assert made.groups["all"]["loc"] == pytest.approx(50)  # the other two are taken out
    done = hand_made(tmp_path, found(OBJECT, score=0.3), *boxes)
    assert done.groups["all"]["loc"] == pytest.approx(
        50 - 50 / 4
    )  # the cup is found: all three are taken out


def test_what_cannot_be_verified_costs_nothing(tmp_path: Path) -> None:
    objects = [truth(OBJECT, image=1), truth(OBJECT, HAT, image=2)]
    right = [found(OBJECT, image=1, score=0.1), found(OBJECT, HAT, image=2, score=0.1)]
    wrong = [
        found([500, 500, 50, 50], image=2, score=0.9),  # nobody looked for cups there
        found([500, 500, 50, 50], image=1, score=0.9),  # not every cup of image 1 is annotated
    ]
    made = tide(*written(tmp_path, objects, right + wrong, negative={}, open_ended={1: [CUP]}))
    assert made.groups["all"]["ap50"] == pytest.approx(100) and made.counts["all"]["fp"] == 0
    made = tide(*written(tmp_path, objects, right + wrong, negative={2: [CUP]}, open_ended={}))
    assert made.counts["all"]["bkg"] == 2


def test_a_box_on_a_crowd_of_its_class_costs_nothing(tmp_path: Path) -> None:
    objects = [truth(OBJECT), truth([400, 400, 400, 400], iscrowd=1)]
    results = [found(OBJECT, score=0.5), *(found([500, 500 + i, 50, 50], score=0.9) for i in range(3))]
    made = tide(*written(tmp_path, objects, results))
    assert made.groups["all"]["ap50"] == pytest.approx(100) and made.counts["all"]["fp"] == 0


def test_nothing_found(tmp_path: Path) -> None:
    made = tide(*written(tmp_path, [truth(OBJECT)], []))
    assert made.groups["all"] | {"ap50": 0} == {
        "ap50": 0,
        **dict.fromkeys(KINDS, 0),
        "miss": 100,
        "fp": 0,
        "fn": 100,
    }
    assert made.groups["c"] == dict.fromkeys(("ap50", *MAIN, *SPECIAL))  # no hats at all


def test_nothing_to_find(tmp_path: Path) -> None:
    made = tide(*written(tmp_path, [], [found(OBJECT, CUP, score=0.8)]))
    assert made.groups["all"] == dict.fromkeys(("ap50", *MAIN, *SPECIAL))


@pytest.mark.parametrize("protocol", ["lvis", "coco"])
@pytest.mark.parametrize("seed", range(3))
def test_ap50_is_the_official_one(tmp_path: Path, seed: int, protocol: str) -> None:
    objects, results, categories, negative = random_split(seed)
    if protocol == "lvis":
        objects = [{**o, "iscrowd": 0} for o in objects]
    federated = negative if protocol == "lvis" else None
    split = written(tmp_path, objects, results, categories, federated, {1: [2], 3: [5]})
    made, official = tide(*split), compute_metrics(*split, protocol)
    assert made.groups["all"]["ap50"] == pytest.approx(official["bbox_AP50"], abs=1e-9)


def slow_ap(rows: list[tuple[float, bool]], num: int) -> float:
    """101-point AP of (score, right), in any order."""
    if num == 0:
        return 1.0
    ordered = sorted(rows, key=lambda r: -r[0])
    points = []
    for k in range(1, len(ordered) + 1):
        right = sum(r[1] for r in ordered[:k])
        points.append((right / num, right / k))
    return float(
        np.mean([max((p for r, p in points if r >= at), default=0) for at in np.linspace(0, 1, 101)])
    )


def slow_tide(  # noqa: C901  plain loops, on purpose
    objects: list[dict[str, Any]], results: list[dict[str, Any]]
) -> dict[str, float]:
    """TIDE on a COCO-style split without crowds, by loops over everything; scores are all different."""
    taken: dict[int, int] = {}
    order = sorted(range(len(results)), key=lambda i: -results[i]["score"])

    def pairs(i: int, same: bool) -> list[tuple[float, int]]:
        r = results[i]
        return [
            (overlap(r["bbox"], o["bbox"])[0], g)
            for g, o in enumerate(objects)
            if o["image_id"] == r["image_id"] and (o["category_id"] == r["category_id"]) == same
        ]

    for i in order:
        free = [(v, g) for v, g in pairs(i, True) if v >= 0.5 and g not in taken]
        if free:
            taken[max(free)[1]] = i
    kinds: dict[int, str] = {}
    wants: dict[int, int] = {}
    for i in order:
        if i in taken.values():
            continue
        same = max(pairs(i, True), key=lambda p: (p[0], -p[1]), default=(0.0, -1))
        other = max(pairs(i, False), key=lambda p: (p[0], -p[1]), default=(0.0, -1))
        if 0.1 <= same[0] < 0.5:
            kinds[i], wants[i] = "loc", same[1]
        elif other[0] >= 0.5:
            kinds[i], wants[i] = "cls", other[1]
        elif same[0] >= 0.5:
            kinds[i] = "dupe"
        else:
            kinds[i] = "bkg" if max(same[0], other[0]) < 0.1 else "both"
    takers = {g: next(i for i in order if wants.get(i) == g) for g in set(wants.values()) - set(taken)}

    def mean_ap(oracle: str) -> float:
        aps = []
        for c in sorted({o["category_id"] for o in objects}):
            rows = []
            for i, r in enumerate(results):
                category, right = r["category_id"], i in taken.values()
                if oracle == "fp" and i in kinds:
                    continue
                if kinds.get(i) == oracle:
                    if i not in takers.values():
                        continue
                    category, right = objects[wants[i]]["category_id"], True
                if category == c:
                    rows.append((r["score"], right))
            mine = [g for g, o in enumerate(objects) if o["category_id"] == c]
            if oracle == "fn":
                mine = [g for g in mine if g in taken]
            if oracle == "miss":
                mine = [g for g in mine if g in taken or g in wants.values()]
            aps.append(100 * slow_ap(rows, len(mine)))
        return float(np.mean(aps))

    plain = mean_ap("none")
    return {"ap50": plain, **{kind: mean_ap(kind) - plain for kind in (*MAIN, *SPECIAL)}}


@pytest.mark.parametrize("seed", range(4))
def test_every_cost_equals_plain_loops(tmp_path: Path, seed: int) -> None:
    objects, results, categories, _ = random_split(seed)
    objects = [{**o, "iscrowd": 0} for o in objects]
    rng = np.random.default_rng(seed)
    results = [r for r in results if r["bbox"][2] * r["bbox"][3] > 0]
    for r, s in zip(results, rng.permutation(len(results)), strict=True):
        r["score"] = (float(s) + 1) / 100
    made = tide(*written(tmp_path, objects, results, categories))
    assert made.groups["all"] == pytest.approx(slow_tide(objects, results))
    assert sum(v > 0 for k, v in made.counts["all"].items() if k in MAIN) >= 4  # the split is no easy one
