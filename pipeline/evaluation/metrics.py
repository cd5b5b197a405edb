"""The numbers of metrics.json: which evaluator runs, on what, and how its results are named.

Both protocols give precision (T, R, K, A): T = 10 IoU thresholds .5 to .95, R = 101 recalls, K categories by
ascending id, A = 4 areas (all, small < 32^2, medium, large > 96^2 pixels).  Every AP is a mean of it over the
categories that have ground truth, in percent; a group without any is None.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, MismatchedInput, first_ten
from pipeline.evaluation import coco_protocol, lvis_protocol
from pipeline.evaluation.predictions import Predictions, score_rank, to_rle
from pipeline.evaluation.settings import EvaluationSettings

CATEGORIES_AT_ONCE = (
    100  # evaluators hold every (image, category) pair: 24 million for LVIS, 1 GB per 1,000 images
)
DEFAULT_CAP = {"lvis": lvis_protocol.MAX_DETECTIONS, "coco": coco_protocol.MAX_DETECTIONS}
AREAS = {"s": 1, "m": 2, "l": 3}
IOU_50, IOU_75 = 0, 5


@dataclass(frozen=True)
class Scores:
    """`metrics` is metrics.json; `per_category` maps every category id to its AP, AP50 and AP75."""

    metrics: dict[str, float | None]
    per_category: dict[int, dict[str, float | None]]


def compute_metrics(
    annotations: Annotations, predictions: Predictions, protocol: str, frequency: list[str] | None = None
) -> dict[str, float | None]:
    """metrics.json by a protocol, "lvis" or "coco"; see `score`."""
    return score(annotations, predictions, EvaluationSettings(protocol=protocol), frequency).metrics


def default_protocol(annotations: Annotations) -> str:
    """lvis where the annotations carry LVIS's federated fields, else coco."""
    return "lvis" if annotations.is_lvis else "coco"


def score(
    annotations: Annotations,
    predictions: Predictions,
    settings: EvaluationSettings,
    frequency: list[str] | None = None,
) -> Scores:
    """Score predictions by an official protocol.

    Args:
        annotations: the split that was predicted; its file is read again.
        predictions: of that split.
        settings: protocol, cap and masks.
        frequency: r, c or f per category (C), e.g. of the training split; None: the annotations' own letters.

    Returns:
        bbox_AP, AP50, AP75, APs, APm, APl, with letters also APr, APc, APf, in percent and unrounded, and the
        same under segm_ where predictions and annotations have masks.

    Raises:
        MismatchedInput: LVIS protocol without federated fields, or letters of other categories.
        InputError: some annotations have masks and others none.
    """
    protocol = default_protocol(annotations) if settings.protocol == "auto" else settings.protocol
    if protocol == "lvis" and not annotations.is_lvis:
        raise MismatchedInput(
            f"{annotations.path} lacks neg_category_ids and not_exhaustive_category_ids",
            "use the coco protocol",
        )
    letters = annotations.frequency if frequency is None else frequency
    if letters is not None and len(letters) != len(annotations.category_ids):
        raise MismatchedInput(f"{len(letters)} frequencies for {len(annotations.category_ids)} categories")
    metrics: dict[str, float | None] = {}
    per_category: dict[int, dict[str, float | None]] = {int(c): {} for c in annotations.category_ids}
    cap = DEFAULT_CAP[protocol] if settings.max_detections == "auto" else settings.max_detections
    if protocol == "lvis":  # before anything else, so that boxes nobody can verify use up the cap too
        best = score_rank(predictions.images, predictions.scores) < cap
        predictions = predictions.take(np.flatnonzero(best))
    truth = _ground_truth(annotations)
    for kind in _kinds(annotations, predictions, settings):
        precision = _precision(annotations, truth, predictions, kind, protocol, cap)
        metrics.update(_summary(precision, kind, letters))
        for position, row in enumerate(per_category.values()):
            row.update(_averages(precision[:, :, position : position + 1], kind))
    return Scores(metrics, per_category)


def _kinds(
    annotations: Annotations, predictions: Predictions, settings: EvaluationSettings
) -> tuple[str, ...]:
    """What can be scored: boxes always, masks where both sides have them."""
    if settings.masks == "never" or not predictions.has_masks:
        return ("bbox",)
    has_mask = np.array([bool(s) for s in annotations.segmentations], dtype=bool)
    if not has_mask.any():
        return ("bbox",)
    if not has_mask.all():
        without: list[object] = annotations.annotation_ids[~has_mask].tolist()
        raise InputError(
            f"{annotations.path}: annotations without segmentation: {first_ten(without)}",
            "complete them, or score boxes only with masks: never",
        )
    return ("bbox", "segm")


def _precision(
    annotations: Annotations,
    truth: dict[str, Any],
    predictions: Predictions,
    kind: str,
    protocol: str,
    cap: int,
) -> np.ndarray:
    """(T, R, K, A) of all categories, computed a hundred at a time: no category's AP depends on another's."""
    parts = []
    for start in range(0, len(annotations.category_ids), CATEGORIES_AT_ONCE):
        category_ids = annotations.category_ids[start : start + CATEGORIES_AT_ONCE].tolist()
        wanted = set(category_ids)
        part = {
            "images": truth["images"],
            "categories": [{"id": i} for i in category_ids],
            "annotations": [dict(a) for a in truth["annotations"] if a["category_id"] in wanted],
        }
        inside = (predictions.labels >= start) & (predictions.labels < start + len(category_ids))
        detections = _detections(annotations, predictions, np.flatnonzero(inside), kind)
        if protocol == "lvis":
            parts.append(lvis_protocol.precision(part, detections, kind))
        else:
            parts.append(coco_protocol.precision(part, detections, kind, cap))
    return np.concatenate(parts, axis=2)  # K / 100 x (T, R, 100, A) -> (T, R, K, A)


def _ground_truth(annotations: Annotations) -> dict[str, Any]:
    """The file's records as evaluators want them: numbered from 1, with `area` and `iscrowd`.

    Read again because the columns hold float32 boxes and no areas.
    """
    content = json.loads(annotations.path.read_bytes())
    images = {image["id"]: image for image in content["images"]}
    for number, record in enumerate(content["annotations"], start=1):
        record["id"] = number
        record["iscrowd"] = record.get("iscrowd") or 0
        if record.get("area") is None:
            record["area"] = _area(record, images[record["image_id"]])
    return content


def _area(record: dict[str, Any], image: dict[str, Any]) -> float:
    """Square pixels of the mask, or of the box where there is none."""
    if not record.get("segmentation"):
        return record["bbox"][2] * record["bbox"][3]
    return float(coco_mask.area(to_rle(record["segmentation"], image["height"], image["width"])))


def _detections(
    annotations: Annotations, predictions: Predictions, rows: np.ndarray, kind: str
) -> list[dict[str, Any]]:
    """Evaluator records with a box or a mask, never both: `area` is that of what is scored."""
    records = []
    for number, row in enumerate(rows.tolist(), start=1):
        record = {
            "id": number,
            "image_id": int(annotations.image_ids[predictions.images[row]]),
            "category_id": int(annotations.category_ids[predictions.labels[row]]),
            "score": float(predictions.scores[row]),
        }
        if predictions.masks is not None and kind == "segm":
            mask = predictions.masks[row]
            record |= {"segmentation": mask, "area": float(coco_mask.area(mask))}
        else:
            box = predictions.boxes_xywh[row].tolist()
            record |= {"bbox": box, "area": box[2] * box[3]}
        records.append(record)
    return records


def _summary(precision: np.ndarray, kind: str, letters: list[str] | None) -> dict[str, float | None]:
    named = _averages(precision, kind)
    named |= {f"{kind}_AP{name}": _percent(precision[:, :, :, area]) for name, area in AREAS.items()}
    if letters is not None:
        of = np.array(letters)
        named |= {f"{kind}_AP{letter}": _percent(precision[:, :, of == letter, 0]) for letter in "rcf"}
    return named


def _averages(precision: np.ndarray, kind: str) -> dict[str, float | None]:
    return {
        f"{kind}_AP": _percent(precision[:, :, :, 0]),
        f"{kind}_AP50": _percent(precision[IOU_50, :, :, 0]),
        f"{kind}_AP75": _percent(precision[IOU_75, :, :, 0]),
    }


def _percent(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else None
