"""predictions.json, the COCO results format: read, checked once, here, and written.

Every mistake that the official evaluators turn into a plausible or zero AP without a word (wrong ids, NaN
scores, negative sizes) is an error.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.artifacts import replacing
from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, MismatchedInput, MissingInput, first_ten
from pipeline.evaluation.mask_counts import is_damaged
from pipeline.evaluation.prediction_records import Mask, Record, encoded, read_columns
from pipeline.evaluation.predictions import RLE, Predictions, to_rle

LARGEST = 1e9  # pixels: no image is that large, and areas of such boxes lose what they are compared by


def read_predictions(path: Path, annotations: Annotations) -> Predictions:
    """Read and check a COCO results json: a list of {image_id, category_id, score, bbox, segmentation}.

    `bbox` (x, y, width, height in pixels) may be left out where there is a `segmentation` (RLE or polygons),
    and the other way round; an empty list is a valid result.

    Raises:
        MissingInput: no such file.
        MismatchedInput: an image or category that the annotations do not know.
        InputError: not a JSON list of records, a key is missing, a number is not finite, a size is negative,
            some records have masks and others none; lists the first ten positions in the file.
    """
    columns = read_columns(path)
    if columns is not None:
        images = _positions(columns.image_ids, annotations.image_ids, "image_id", path)
        labels = _positions(columns.category_ids, annotations.category_ids, "category_id", path)
        boxes = _checked(columns.boxes_xywh, path)
        masks = None if columns.masks is None else _whole(columns.masks, images, annotations, path)
        return Predictions(images, labels, boxes, columns.scores, masks)
    records = _load(path)
    image_ids = _whole_numbers(records, "image_id", path)
    category_ids = _whole_numbers(records, "category_id", path)
    images = _positions(image_ids, annotations.image_ids, "image_id", path)
    labels = _positions(category_ids, annotations.category_ids, "category_id", path)
    scores = _scores(records, path)
    masks = _masks(records, images, annotations, path)
    return Predictions(images, labels, _boxes(records, masks, path), scores, masks)


def write_predictions(path: Path, annotations: Annotations, predictions: Predictions) -> None:
    """Write the COCO results format, one record a line, every number in full precision."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(b"[")
        for number, line in enumerate(encoded(_records(annotations, predictions))):
            file.write((b",\n" if number else b"\n") + line)
        file.write(b"\n]\n")


def _records(annotations: Annotations, predictions: Predictions) -> Iterator[Record]:
    image_ids = annotations.image_ids[predictions.images].tolist()
    category_ids = annotations.category_ids[predictions.labels].tolist()
    columns = zip(image_ids, category_ids, predictions.boxes_xywh, predictions.scores.tolist(), strict=True)
    for row, (image_id, category_id, box, score) in enumerate(columns):
        mask = None if predictions.masks is None else Mask(**predictions.masks[row])
        yield Record(image_id, category_id, tuple(box.tolist()), score, mask)


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInput(f"predictions {path} do not exist", "check --predictions") from None
    except IsADirectoryError:
        raise InputError(f"predictions {path} is a folder, not a json file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} is not valid JSON: {problem}", "was the file written to its end?") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a list of detections") from None
    hint = "the COCO results format is a list of {image_id, category_id, bbox, score}"
    if not isinstance(content, list):
        raise InputError(f"{path} holds a {type(content).__name__}, not a list of detections", hint)
    _refuse([not isinstance(record, dict) for record in content], "is not a record with keys", path, hint)
    return content


def _refuse(bad: Any, what: str, path: Path, hint: str = "") -> None:
    """Raise InputError when any of (N,) `bad` holds, naming the first ten positions."""
    positions = np.flatnonzero(bad).tolist()
    if positions:
        raise InputError(f"{path}: {what} in detections {first_ten(positions)} (counted from 0)", hint)


def _whole_numbers(records: list[dict[str, Any]], key: str, path: Path) -> np.ndarray:
    _refuse([key not in r for r in records], f"{key} is missing", path)
    _refuse(
        [type(r[key]) is not int or abs(r[key]) >= 2**63 for r in records],
        f"{key} is not a whole number",
        path,
    )
    return np.array([r[key] for r in records], dtype=np.int64)


def _positions(ids: np.ndarray, known: np.ndarray, key: str, path: Path) -> np.ndarray:
    """(N,) position of each id in `known`."""
    order = np.argsort(known, kind="stable")
    found = order[np.searchsorted(known[order], ids).clip(max=len(known) - 1)]
    unknown = np.unique(ids[known[found] != ids]).tolist()
    if unknown:
        zero_based = key == "category_id" and ids.min() >= 0 and ids.max() < len(known)
        hint = f"the file names {len(known)} ids from {known.min()} to {known.max()}"
        hint += "; yours look like 0-based positions, write the ids instead" if zero_based else ""
        raise MismatchedInput(f"{path}: {key} {first_ten(unknown)} not in the annotations", hint)
    return found.astype(np.int64)


def _scores(records: list[dict[str, Any]], path: Path) -> np.ndarray:
    _refuse(["score" not in r for r in records], "score is missing", path)
    _refuse([type(r["score"]) not in (int, float) for r in records], "score is not a number", path)
    scores = np.array([_float(r["score"]) for r in records])
    _refuse(~np.isfinite(scores), "score is NaN or infinite", path)
    return scores


def _masks(
    records: list[dict[str, Any]], images: np.ndarray, annotations: Annotations, path: Path
) -> list[RLE] | None:
    absent = [not r.get("segmentation") for r in records]
    if all(absent):
        return None
    _refuse(absent, "segmentation is missing, others have one", path)
    masks = []
    for number, (record, image) in enumerate(zip(records, images, strict=True)):
        width, height = annotations.sizes_wh[image].tolist()
        try:
            masks.append(to_rle(record["segmentation"], height, width))
        except ValueError as problem:
            raise InputError(
                f"{path}: segmentation of detection {number} (counted from 0): {problem}"
            ) from None
    return _filling(masks, images, annotations, path)


def _whole(masks: list[Mask], images: np.ndarray, annotations: Annotations, path: Path) -> list[RLE]:
    """Compressed masks of their images' size."""
    sizes = np.array([mask.size for mask in masks])
    wrong = np.flatnonzero((sizes != annotations.sizes_wh[images, ::-1]).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        height_width = annotations.sizes_wh[images[row], ::-1].tolist()
        said = f"size {list(masks[row].size)} is not the image's height and width {height_width}"
        raise InputError(f"{path}: segmentation of detection {row} (counted from 0): {said}")
    rles: list[RLE] = [{"size": list(mask.size), "counts": mask.counts} for mask in masks]
    return _filling(rles, images, annotations, path)


def _filling(masks: list[RLE], images: np.ndarray, annotations: Annotations, path: Path) -> list[RLE]:
    pixels = annotations.sizes_wh.astype(np.int64).prod(axis=1)[images]
    hint = "its counts are cut off, or of an image of another size"
    damaged = is_damaged([mask["counts"] for mask in masks], pixels)
    _refuse(damaged, "segmentation does not fill its image", path, hint)
    return masks


def _boxes(records: list[dict[str, Any]], masks: list[RLE] | None, path: Path) -> np.ndarray:
    """(N, 4) float64 xywh; a record without a box gets the bounds of its mask, as pycocotools does."""
    boxes = [r.get("bbox") or None for r in records]
    if masks is not None:
        boxes = [coco_mask.toBbox(m).tolist() if b is None else b for b, m in zip(boxes, masks, strict=True)]
    _refuse([b is None for b in boxes], "bbox is missing", path)
    _refuse([not _is_quadruple(b) for b in boxes], "bbox is not four numbers", path)
    return _checked(np.array([_float(v) for b in boxes for v in b or ()]).reshape(-1, 4), path)


def _checked(xywh: np.ndarray, path: Path) -> np.ndarray:
    _refuse(~np.isfinite(xywh).all(axis=1), "bbox is NaN or infinite", path)
    too_far = (np.abs(xywh) > LARGEST).any(axis=1)
    _refuse(too_far, f"bbox has a number beyond {LARGEST:.0e} pixels", path)
    hint = "bbox is x, y, width, height, not x1, y1, x2, y2"
    _refuse((xywh[:, 2:] < 0).any(axis=1), "bbox has a negative size", path, hint)
    return xywh


def _float(number: float) -> float:
    """JSON's whole numbers may be larger than any float: those are infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _is_quadruple(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
