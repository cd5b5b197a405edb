"""Metrics against published numbers, the official packages run their own way, and plain loops."""

import copy
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError, MismatchedInput, UsageError
from pipeline.evaluation import official
from pipeline.evaluation.metrics import Scores, default_protocol, score
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.predictions_file import read_predictions
from pipeline.evaluation.settings import EvaluationSettings

DATA = Path(os.environ.get("TWODRCL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "eval"
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"AP": (0, 1e10), "APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}


def scored(
    folder: Path,
    content: dict[str, Any],
    results: list[dict[str, Any]],
    frequency: Any = None,
    **settings: Any,
) -> Scores:
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "predictions.json").write_text(json.dumps(results))
    annotations = read_annotations(folder / "annotations.json")
    predictions = read_predictions(folder / "predictions.json", annotations)
    return score(annotations, predictions, EvaluationSettings(**settings), frequency)


def compute_metrics(
    annotations: Annotations, predictions: Predictions, protocol: str
) -> dict[str, float | None]:
    return score(annotations, predictions, EvaluationSettings(protocol=protocol)).metrics


def precisions(scores: Scores) -> dict[str, float | None]:
    """The metrics that are no recall."""
    return {name: value for name, value in scores.metrics.items() if "_AR" not in name}


def rectangle(box: list[int]) -> list[list[int]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def random_lvis(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A small federated split with ties of score and of IoU, empty boxes, and 340 boxes in one image."""
    rng = np.random.default_rng(seed)
    categories = [
        {"id": i, "name": str(i), "frequency": f} for i, f in zip((2, 3, 5, 7, 11), "rrccf", strict=True)
    ]
    ids = [c["id"] for c in categories]
    images = [
        {
            "id": 50 - i,
            "file_name": f"{i}.jpg",
            "width": 160,
            "height": 160,
            "neg_category_ids": rng.choice(ids, 2, replace=False).tolist(),
            "not_exhaustive_category_ids": rng.choice(ids, 1).tolist(),
        }
        for i in range(8)
    ]

    def box() -> list[int]:
        w, h = rng.choice([8, 16, 32, 40, 96, 120], 2).tolist()
        return [
            int(rng.integers(0, (160 - w) // 8 + 1)) * 8,
            int(rng.integers(0, (160 - h) // 8 + 1)) * 8,
            w,
            h,
        ]

    truth: list[dict[str, Any]] = []
    for image in images[1:]:  # the first image stays without objects
        for _ in range(rng.integers(1, 7)):
            b = box()
            area = float(
                rng.choice([0.7 * b[2] * b[3], b[2] * b[3], 32**2, 96**2, 0], p=[0.4, 0.3, 0.1, 0.1, 0.1])
            )
            category = int(rng.choice(ids[:-1] if seed % 2 else ids))  # odd seeds: a category without objects
            truth.append({"id": len(truth) + 7, "image_id": image["id"], "category_id": category, "bbox": b})
            truth[-1] |= {"area": area, "segmentation": rectangle(b)}
    results: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        mine = [t for t in truth if t["image_id"] == image["id"]]
        for n in range(340 if i == 3 else 25):
            if mine and n % 2:
                source = mine[int(rng.integers(len(mine)))]
                b = np.clip(np.array(source["bbox"]) + rng.integers(-1, 2, 4) * 4, 0, None).tolist()
                category = source["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
            else:
                b, category = box(), int(rng.choice(ids))
            if rng.random() < 0.05:
                b[2] = 0
            results.append({"image_id": image["id"], "category_id": category, "bbox": b})
            crowded_out = i == 3 and n % 2  # in that image the cap cuts boxes on objects
            results[-1]["score"] = round(float(rng.random()) * (0.4 if crowded_out else 1), 1)
    return {"images": images, "annotations": truth, "categories": categories}, results


def overlap(a: list[float], b: list[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h) if w > 0 and h > 0 else 0.0


def allowed(content: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """300 best of each image, then those with an area, then those of verified categories."""
    kept = []
    for image in content["images"]:
        mine = [r for r in results if r["image_id"] == image["id"]]
        positive = {
            t["category_id"] for t in content["annotations"] if t["image_id"] == image["id"] and t["area"] > 0
        }
        for r in sorted(mine, key=lambda r: -r["score"])[:300]:
            verified = r["category_id"] in positive or r["category_id"] in image["neg_category_ids"]
            if r["bbox"][2] * r["bbox"][3] > 0 and verified:
                kept.append(r)
    return kept


def slow_ap(
    content: dict[str, Any],
    kept: list[dict[str, Any]],
    category: int,
    threshold: float,
    area: tuple[float, float],
) -> float | None:
    """AP of one category at one IoU by the LVIS rules, in plain loops; None without ground truth."""
    judged, num_truth = [], 0
    for image in sorted(content["images"], key=lambda i: i["id"]):
        here = [
            t
            for t in content["annotations"]
            if t["image_id"] == image["id"] and t["category_id"] == category and t["area"] > 0
        ]
        truth = [(t, False) for t in here if area[0] <= t["area"] <= area[1]]
        num_truth += len(truth)
        truth += [(t, True) for t in here if not area[0] <= t["area"] <= area[1]]
        taken: set[int] = set()
        mine = [r for r in kept if r["image_id"] == image["id"] and r["category_id"] == category]
        for r in sorted(mine, key=lambda r: -r["score"]):
            best, match = min(threshold, 1 - 1e-10), None
            for number, (t, ignored) in enumerate(truth):
                if match is not None and ignored and not truth[match][1]:
                    break
                found = overlap(r["bbox"], t["bbox"])
                if number not in taken and found >= best:
                    best, match = found, number
            if match is not None:
                taken.add(match)
                ignore = truth[match][1]
            else:
                size = r["bbox"][2] * r["bbox"][3]
                ignore = not area[0] <= size <= area[1] or category in image["not_exhaustive_category_ids"]
            if not ignore:
                judged.append((r["score"], match is not None))
    if num_truth == 0:
        return None
    true, precision, recall = 0, [], []
    for count, (_, is_true) in enumerate(sorted(judged, key=lambda j: -j[0]), start=1):
        true += is_true
        precision.append(true / count)
        recall.append(true / num_truth)
    return float(
        np.mean(
            [max((p for p, r in zip(precision, recall, strict=True) if r >= R), default=0) for R in RECALLS]
        )
    )


def slow_lvis(content: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float | None]:
    kept = allowed(content, results)
    table = {
        (c["id"], t, name): slow_ap(content, kept, c["id"], t, area)
        for c in content["categories"]
        for t in THRESHOLDS
        for name, area in AREAS.items()
    }

    def mean(name: str, thresholds: Any = THRESHOLDS, letters: str = "rcf") -> float | None:
        ids = [c["id"] for c in content["categories"] if c["frequency"] in letters]
        values = [table[i, t, name] for i in ids for t in thresholds]
        known = [v for v in values if v is not None]
        return 100 * float(np.mean(known)) if known else None

    found = {f"bbox_{name}": mean(name) for name in AREAS}
    found |= {"bbox_AP50": mean("AP", THRESHOLDS[:1]), "bbox_AP75": mean("AP", THRESHOLDS[5:6])}
    return found | {f"bbox_AP{letter}": mean("AP", letters=letter) for letter in "rcf"}


@pytest.mark.parametrize("seed", range(4))
def test_lvis_equals_plain_loops(tmp_path: Path, seed: int) -> None:
    content, results = random_lvis(seed)
    found = precisions(scored(tmp_path, content, results))
    assert found == pytest.approx(slow_lvis(content, results), abs=1e-9)
    assert sum(v is not None and 0 < v < 100 for v in found.values()) >= 7  # the comparison is not of zeros


def official_lvis(folder: Path, results: list[dict[str, Any]], kind: str, monkeypatch: Any) -> Any:
    """lvis-api as its README runs it: from paths, all categories at once."""
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(np, "float", float, raising=False)
    truth = LVIS(str(folder / "annotations.json"))
    evaluation = LVISEval(truth, LVISResults(truth, copy.deepcopy(results)), kind)
    evaluation.run()
    return evaluation


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_equals_the_official_package(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = with_masks(*random_lvis(0))
    found = scored(tmp_path, content, results)
    one_kind = [
        {k: v for k, v in r.items() if k != ("segmentation" if kind == "bbox" else "bbox")} for r in results
    ]
    official = official_lvis(tmp_path, one_kind, kind, monkeypatch)
    for name in (*NAMES, "APr", "APc", "APf"):
        assert found.metrics[f"{kind}_{name}"] == pytest.approx(100 * official.get_results()[name], abs=1e-10)
    for position, row in enumerate(found.per_category.values()):
        precision = official.eval["precision"][:, :, position, 0]
        assert row[f"{kind}_AP"] == pytest.approx(100 * precision.mean() if precision.max() > -1 else None)
    recalls = {f"{kind}_AR@300": "AR@300"} | {f"{kind}_AR{size}": f"AR{size}@300" for size in "sml"}
    for ours, theirs in recalls.items():
        assert found.metrics[ours] == pytest.approx(100 * official.get_results()[theirs], abs=1e-10)


@pytest.mark.parametrize("protocol", ["lvis", "lvis-fixed", "coco"])
@pytest.mark.parametrize("seed", [0, 3])
def test_engines_agree_on_every_number(
    tmp_path: Path, seed: int, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, results = with_masks(*random_lvis(seed))
    crowds = np.random.default_rng(seed).random(len(content["annotations"])) < 0.2
    for record, is_crowd in zip(content["annotations"], crowds.tolist(), strict=True):
        record["iscrowd"] = int(is_crowd and protocol == "coco")
    monkeypatch.setattr(official, "CATEGORIES_AT_ONCE", 2)  # three parts, the last of one category
    fast = scored(tmp_path, content, results, protocol=protocol)
    checked = scored(tmp_path, content, results, protocol=protocol, engine="official")
    assert fast.metrics == pytest.approx(checked.metrics, abs=1e-10)
    for category, row in fast.per_category.items():
        assert row == pytest.approx(checked.per_category[category], abs=1e-10)
    assert len(fast.metrics) > 20 and not checked.judgements


def test_lvis_fixed_has_no_cap_per_image(tmp_path: Path) -> None:
    content, results = random_lvis(0)  # 340 detections in one image
    plain = scored(tmp_path, content, results, protocol="lvis", max_detections=20).metrics
    fixed = scored(tmp_path, content, results, protocol="lvis-fixed").metrics
    uncapped = scored(tmp_path, content, results, protocol="lvis", max_detections=10_000).metrics
    assert fixed["bbox_AP"] == uncapped["bbox_AP"] != plain["bbox_AP"]
    few = scored(tmp_path, content, results, protocol="lvis-fixed", max_detections=5).metrics
    best: dict[int, list[dict[str, Any]]] = {}
    for r in sorted(results, key=lambda r: -r["score"]):
        best.setdefault(r["category_id"], []).append(r)
    kept = [r for of in best.values() for r in of[:5]]
    assert few["bbox_AP"] == scored(tmp_path, content, kept, protocol="lvis-fixed").metrics["bbox_AP"]


def test_coco_lt_groups_by_training_instances(tmp_path: Path) -> None:
    content, results = random_lvis(0)
    counts = np.array([19, 20, 399, 400, 8000])
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "predictions.json").write_text(json.dumps(results))
    annotations = read_annotations(tmp_path / "annotations.json")
    predictions = read_predictions(tmp_path / "predictions.json", annotations)
    settings = EvaluationSettings(protocol="coco-lt")
    found = score(annotations, predictions, settings, instance_counts=counts)
    plain = compute_metrics(annotations, predictions, "coco")
    assert {name: found.metrics[name] for name in plain} == plain
    ap = [row["bbox_AP"] for row in found.per_category.values()]
    assert found.metrics["bbox_AP1"] == ap[0] and found.metrics["bbox_AP3"] == ap[3]
    assert found.metrics["bbox_AP2"] == pytest.approx(np.mean(ap[1:3])) and found.metrics["bbox_AP4"] == ap[4]
    with pytest.raises(UsageError, match="training split"):
        score(annotations, predictions, settings)
    with pytest.raises(MismatchedInput, match="2 instance counts for 5"):
        score(annotations, predictions, settings, instance_counts=counts[:2])


def with_masks(
    content: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Give every detection the mask of its box, or of its left half, so that mask AP is not box AP."""
    masked = []
    for number, r in enumerate(results):
        x, y, w, h = r["bbox"]
        pixels = np.zeros((160, 160), dtype=np.uint8, order="F")
        pixels[y : y + h, x : x + (w if number % 3 else w // 2)] = 1
        rle = coco_mask.encode(pixels)
        masked.append({**r, "segmentation": {"size": [160, 160], "counts": rle["counts"].decode()}})
    return content, masked


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_equals_pycocotools_with_crowds_for_what_is_not_exhaustive(tmp_path: Path, kind: str) -> None:
    content, results = with_masks(*random_lvis(2))
    found = scored(tmp_path, content, results).metrics
    truth = [{**t, "iscrowd": 0} for t in content["annotations"] if t["area"] > 0]
    for image in content["images"]:
        for category in image["not_exhaustive_category_ids"]:
            whole = {"image_id": image["id"], "category_id": category, "iscrowd": 1, "area": 160 * 160}
            truth.append({**whole, "bbox": [0, 0, 160, 160], "segmentation": rectangle([0, 0, 160, 160])})
    for number, t in enumerate(truth, start=1):
        t["id"] = number
    kept = allowed(content, results)
    if kind == "segm":  # a box one pixel wide has lost its mask
        kept = [
            {k: v for k, v in r.items() if k != "bbox"} for r in kept if coco_mask.area(r["segmentation"])
        ]
    stats = official_coco({**content, "annotations": truth}, kept, kind, max_detections=300)
    valid = {f"{kind}_{name}": 100 * s for name, s in zip(NAMES, stats, strict=True)}
    assert {k: found[k] for k in valid} == pytest.approx(valid, abs=1e-10)


def official_coco(
    content: dict[str, Any], results: list[dict[str, Any]], kind: str, max_detections: int
) -> Any:
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 2]
    slices = [
        precision[..., 0],
        precision[0, ..., 0],
        precision[5, ..., 0],
        *(precision[..., a] for a in (1, 2, 3)),
    ]
    return [s[s > -1].mean() if s.max() > -1 else np.nan for s in slices]


PUBLISHED = [
    ("coco_fake100_bbox", "coco_fake100/instances_val2014_100.json", "coco_fake100/fakebbox100_results.json"),
    ("coco_fake100_segm", "coco_fake100/instances_val2014_100.json", "coco_fake100/fakesegm100_results.json"),
    ("tm4", "tm4/gts.json", "tm4/dets.json"),
]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no result files in {DATA}")
@pytest.mark.parametrize(("name", "truth", "results"), PUBLISHED)
def test_coco_equals_published_numbers(name: str, truth: str, results: str) -> None:
    expected = json.loads((DATA / "expected.json").read_text())[name]
    annotations = read_annotations(DATA / truth)
    predictions = read_predictions(DATA / results, annotations)
    found = score(annotations, predictions, EvaluationSettings())
    kind = "segm" if name.endswith("segm") else "bbox"
    for metric in NAMES:
        computed, published = (
            expected["computed_here_with_pycocotools"]["stats"][metric],
            expected["published"][metric],
        )
        assert found.metrics[f"{kind}_{metric}"] == pytest.approx(100 * computed, rel=1e-12)
        assert found.metrics[f"{kind}_{metric}"] == pytest.approx(
            100 * published, abs=0.051 if name == "tm4" else 1e-9
        )
    per_category = expected["computed_here_with_pycocotools"]["per_category_AP"]
    assert len(per_category) == len(found.per_category)
    for category, row in found.per_category.items():
        ap = per_category[str(category)]
        assert row[f"{kind}_AP"] == (None if ap == -1 else pytest.approx(100 * ap, rel=1e-12))
    assert any(k.startswith("segm") for k in found.metrics) == (kind == "segm")


def small_coco() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three classes of which the last has no object; detections of distinct scores."""
    rng = np.random.default_rng(5)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(6)]
    truth = [
        {
            "id": n,
            "image_id": n % 6,
            "category_id": 1 + n % 2,
            "bbox": [*rng.integers(0, 50, 2).tolist(), 30, 20 + n],
        }
        for n in range(14)
    ]
    results = [
        {
            **{k: t[k] for k in ("image_id", "category_id")},
            "bbox": (np.array(t["bbox"]) + rng.normal(0, 3, 4)).tolist(),
        }
        for t in truth
        for _ in range(3)
    ]
    for r, s in zip(results, rng.permutation(len(results)), strict=True):
        r["score"] = float(s) / 100
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 9)]
    return {"images": images, "annotations": truth, "categories": categories}, results


def test_coco_files_without_area_and_crowd_keys(tmp_path: Path) -> None:
    content, results = small_coco()
    full = copy.deepcopy(content)
    for number, t in enumerate(full["annotations"], start=1):
        t |= {"id": number, "iscrowd": 0, "area": t["bbox"][2] * t["bbox"][3]}
    expected = official_coco(full, results, "bbox", 100)
    found = scored(tmp_path, content, results).metrics  # ids from 0, no area, no iscrowd
    wanted = [None if np.isnan(s) else pytest.approx(100 * s) for s in expected]
    assert [found[f"bbox_{name}"] for name in NAMES] == wanted


def test_missing_area_is_that_of_the_mask(tmp_path: Path) -> None:
    content, results = small_coco()
    for t in content["annotations"]:
        x, y, _, _ = t["bbox"]
        t["segmentation"] = [[x, y, x + 10, y, x + 10, y + 10, x, y + 10]]
        t["bbox"] = [x, y, 40, 40]
    found = scored(tmp_path, content, results).metrics
    assert found["bbox_APm"] is None and found["bbox_APs"] is not None  # 100 pixels each, not 1,600
    for t in content["annotations"]:
        del t["segmentation"]
    found = scored(tmp_path, content, results).metrics
    assert found["bbox_APs"] is None and found["bbox_APm"] is not None


def test_letters_average_the_categories_of_their_group(tmp_path: Path) -> None:
    content, results = small_coco()
    plain = scored(tmp_path, content, results)
    assert set(precisions(plain)) == {f"bbox_{name}" for name in NAMES}
    found = scored(tmp_path, content, results, frequency=["f", "r", "c"])
    ap = {c: row["bbox_AP"] for c, row in found.per_category.items()}
    assert ap[1] is not None and ap[2] is not None and ap[9] is None
    assert found.metrics["bbox_APf"] == pytest.approx(ap[1])
    assert found.metrics["bbox_APr"] == pytest.approx(ap[2])
    assert found.metrics["bbox_APc"] is None  # no object of category 9: neither 0 nor -1 nor NaN
    assert found.metrics["bbox_AP"] == pytest.approx((ap[1] + ap[2]) / 2)
    for category, letter in zip(content["categories"], "frc", strict=True):
        category["frequency"] = letter
    assert scored(tmp_path, content, results).metrics == found.metrics
    assert scored(tmp_path, content, results, frequency=["c", "c", "c"]).metrics["bbox_APr"] is None
    with pytest.raises(MismatchedInput, match="2 frequencies for 3 categories"):
        scored(tmp_path, content, results, frequency=["c", "c"])


@pytest.mark.parametrize("protocol", ["lvis", "coco"])
def test_perfect_predictions_are_100(tmp_path: Path, protocol: str) -> None:
    content, _ = random_lvis(0)
    content["annotations"] = [t for t in content["annotations"] if t["area"] > 0]
    results = [{**t, "score": 0.5} for t in content["annotations"]]
    found = scored(tmp_path, content, results, protocol=protocol).metrics
    for name in ("AP", "AP50", "AP75", "APr", "APc", "APf"):
        assert found[f"bbox_{name}"] == pytest.approx(100) and found[f"segm_{name}"] == pytest.approx(100)


@pytest.mark.parametrize("protocol", ["lvis", "coco"])
def test_no_detections_are_zero_and_no_objects_are_none(tmp_path: Path, protocol: str) -> None:
    content, results = random_lvis(1)
    found = scored(tmp_path, content, [], protocol=protocol)
    assert found.metrics["bbox_AP"] == 0 and found.metrics["bbox_APr"] == 0
    assert found.metrics["bbox_APf"] is None and found.per_category[11] == dict.fromkeys(
        ("bbox_AP", "bbox_AP50", "bbox_AP75")
    )
    empty = scored(tmp_path, {**content, "annotations": []}, results, protocol=protocol)
    assert set(empty.metrics.values()) == {None}
    assert json.loads(json.dumps(found.metrics, allow_nan=False)) == found.metrics


@pytest.mark.parametrize("protocol", ["lvis", "coco"])
def test_order_of_the_files_does_not_matter(tmp_path: Path, protocol: str) -> None:
    content, results = random_lvis(2)
    rng = np.random.default_rng(0)
    for r, s in zip(results, rng.permutation(len(results)), strict=True):
        r["score"] = float(s)  # without ties
    shuffled = {key: [records[i] for i in rng.permutation(len(records))] for key, records in content.items()}
    again = [results[i] for i in rng.permutation(len(results))]
    first = scored(tmp_path, content, results, protocol=protocol)
    second = scored(tmp_path, shuffled, again, protocol=protocol)
    assert first.per_category == second.per_category
    assert first.metrics == second.metrics


def test_boxes_nobody_can_verify_change_nothing_in_lvis(tmp_path: Path) -> None:
    content, results = random_lvis(0)
    before = scored(tmp_path, content, results).metrics
    image = content["images"][5]
    seen = {t["category_id"] for t in content["annotations"] if t["image_id"] == image["id"]}
    unverified = next(
        c["id"] for c in content["categories"] if c["id"] not in seen | set(image["neg_category_ids"])
    )
    extra = {"image_id": image["id"], "category_id": unverified, "bbox": [0, 0, 50, 50], "score": 1.0}
    assert scored(tmp_path, content, [*results, extra]).metrics == before
    assert scored(tmp_path, content, [*results, extra], protocol="coco").metrics != before


def test_lvis_cap_is_per_image_and_comes_first(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a", "width": 99, "height": 99, "neg_category_ids": [5]}
    image["not_exhaustive_category_ids"] = []
    truth = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [5, 5, 20, 20]}
    categories = [{"id": i, "name": str(i)} for i in (2, 5, 6)]
    content = {"images": [image], "annotations": [truth], "categories": categories}
    right = {"image_id": 1, "category_id": 2, "bbox": [5, 5, 20, 20], "score": 0.1}
    other = [
        {**right, "category_id": 5, "score": 0.9},  # wrong
        {**right, "category_id": 6, "score": 0.9},  # unverified: deleted later, but takes its place
        {**right, "bbox": [5, 5, 0, 20], "score": 0.9},  # empty: likewise
    ]
    assert scored(tmp_path, content, [*other * 100, right]).metrics["bbox_AP"] == 0
    assert scored(tmp_path, content, [*(other * 100)[1:], right]).metrics["bbox_AP"] == pytest.approx(100)
    assert scored(tmp_path, content, [*other, right], max_detections=3).metrics["bbox_AP"] == 0
    assert scored(tmp_path, content, [*other, right], max_detections=4).metrics["bbox_AP"] == pytest.approx(
        100
    )


def test_coco_cap_is_per_image_and_category(tmp_path: Path) -> None:
    content, results = small_coco()
    capped = precisions(scored(tmp_path, content, results, max_detections=1))
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for r in sorted(results, key=lambda r: -r["score"]):
        first.setdefault((r["image_id"], r["category_id"]), r)
    assert capped == precisions(scored(tmp_path, content, list(first.values())))
    assert capped != precisions(scored(tmp_path, content, results))


def test_masks_are_scored_only_where_both_sides_have_them(tmp_path: Path) -> None:
    content, results = with_masks(*random_lvis(0))
    both = scored(tmp_path, content, results)
    assert both.metrics["segm_AP"] != both.metrics["bbox_AP"]
    assert set(both.per_category[2]) == {f"{k}_{n}" for k in ("bbox", "segm") for n in ("AP", "AP50", "AP75")}
    boxes = {k: v for k, v in both.metrics.items() if k.startswith("bbox")}
    assert scored(tmp_path, content, results, masks="never").metrics == boxes
    for t in content["annotations"][1:]:
        del t["segmentation"]
    with pytest.raises(InputError, match=r"without segmentation: 8, 9") as caught:
        scored(tmp_path, content, results)
    assert "masks: never" in caught.value.hint
    del content["annotations"][0]["segmentation"]
    assert scored(tmp_path, content, results).metrics == boxes


def test_protocol_is_the_files_unless_asked(tmp_path: Path) -> None:
    content, results = random_lvis(0)
    lvis = scored(tmp_path, content, results).metrics
    annotations = read_annotations(tmp_path / "annotations.json")
    predictions = read_predictions(tmp_path / "predictions.json", annotations)
    assert default_protocol(annotations) == "lvis"
    assert compute_metrics(annotations, predictions, "lvis") == lvis
    assert compute_metrics(annotations, predictions, "coco") != lvis
    for image in content["images"]:
        del image["neg_category_ids"]
    assert scored(tmp_path, content, results).metrics == compute_metrics(annotations, predictions, "coco")
    assert default_protocol(read_annotations(tmp_path / "annotations.json")) == "coco"
    with pytest.raises(MismatchedInput, match=r"lack neg_category_ids$"):
        scored(tmp_path, content, results, protocol="lvis")
    for image in content["images"]:
        del image["not_exhaustive_category_ids"]
    with pytest.raises(MismatchedInput, match="lack neg_category_ids and not_exhaustive_category_ids"):
        scored(tmp_path, content, results, protocol="lvis-fixed")


@pytest.mark.parametrize("engine", ["fast", "official"])
@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ({"size": [160, 160], "counts": "zz!!~~"}, r"does not fill its image in annotations {id}$"),
        ({"size": [80, 160], "counts": [12800]}, r"of annotation {id}: size \[80, 160\] is not the image's"),
        ([[1, 1]], r"of annotation {id}: not polygons"),
    ],
)
def test_a_damaged_mask_of_an_object_is_named(
    tmp_path: Path, segmentation: Any, says: str, engine: str
) -> None:
    content, results = with_masks(*random_lvis(1))
    content["annotations"][2]["segmentation"] = segmentation
    told = says.replace("{id}", str(content["annotations"][2]["id"]))
    with pytest.raises(InputError, match=rf"annotations\.json: segmentation {told}"):
        scored(tmp_path, content, results, engine=engine)


def test_numpy_logging_and_stdout_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "lvis"]:
        monkeypatch.delitem(sys.modules, name)  # its import configures the root logger
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.ERROR)
    content, results = random_lvis(0)
    for protocol in ("lvis", "coco"):
        scored(tmp_path, content, results, protocol=protocol, engine="official")
        assert not hasattr(np, "float")
    assert root.handlers == [] and root.level == logging.ERROR
    assert capsys.readouterr() == ("", "")


def test_numpy_is_left_alone_when_the_evaluator_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("evaluator")

    content, results = random_lvis(0)
    monkeypatch.setattr("lvis.eval.LVISEval.accumulate", fail)
    with pytest.raises(RuntimeError, match="evaluator"):
        scored(tmp_path, content, results, engine="official")
    assert not hasattr(np, "float")


def test_an_alias_that_others_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)
    scored(tmp_path, *random_lvis(0), engine="official")
    assert np.float is float  # type: ignore[attr-defined]  # noqa: NPY001
