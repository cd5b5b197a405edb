"""`--engine official`: pycocotools and lvis-api themselves score, so that anyone can check the fast engine.

They hold an entry for every (image, category) pair, 24 million for LVIS, so they get a hundred categories at
a time: no category's AP depends on another's.

Shapes: T = 10 IoU thresholds, R = 101 recalls, K categories by ascending id, A = 4 sizes.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations
from pipeline.evaluation import coco_protocol, lvis_protocol
from pipeline.evaluation.predictions import Predictions, to_rle
from pipeline.evaluation.protocols import FEDERATED
from pipeline.evaluation.scores import CategoryScores

CATEGORIES_AT_ONCE = 100  # 1 GB per 1,000 images


def category_scores(
    annotations: Annotations, predictions: Predictions, protocol: str, kind: str, limits: Sequence[int]
) -> CategoryScores:
    """AP and recall of all categories.

    Args:
        annotations: the split; its file is read again.
        predictions: what the protocol's cap has left.
        protocol: see `protocols`; lvis-fixed is lvis-api without its own cap.
        kind: "bbox" or "segm".
        limits: detections per image and category that recall is about; the last one is that of AP.
    """
    truth = _ground_truth(annotations)
    precision, recall = [], []
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
        if protocol in FEDERATED:
            found = lvis_protocol.evaluate(part, detections, kind)
        else:
            found = coco_protocol.evaluate(part, detections, kind, limits)
        precision.append(found[0])
        recall.append(found[1])
    return _joined(np.concatenate(precision, axis=2), np.concatenate(recall, axis=1), limits)


def _joined(precision: np.ndarray, recall: np.ndarray, limits: Sequence[int]) -> CategoryScores:
    """(T, R, K, A) and (T, K, A, limits), -1 without objects -> means over R, NaN without."""
    averages = np.where(precision[:, 0] > -1, precision.mean(axis=1), np.nan)  # (T, K, A)
    recall = np.where(recall > -1, recall, np.nan)
    return CategoryScores(
        precision=averages.transpose(2, 0, 1)[None],
        recall=recall[..., -1].transpose(2, 0, 1)[None],
        recall_at={limit: recall[None, :, :, 0, place] for place, limit in enumerate(limits[:-1])},
    )


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
