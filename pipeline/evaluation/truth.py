"""Ground truth as evaluators need it: boxes in the file's own float64, areas, crowds, masks on demand.

`Annotations` holds float32 boxes for training; an IoU that is .5 exactly must not depend on that, so the
records are read once more, typed, without what no evaluator asks for.

Shapes: I images, C categories, G objects in file order.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, first_ten
from pipeline.evaluation.mask_counts import is_damaged
from pipeline.evaluation.predictions import RLE, to_rle


class _Record(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool | int | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _File(msgspec.Struct):
    annotations: list[_Record]


@dataclass(frozen=True)
class Truth:
    """Objects of one split; `images` and `labels` are 0-based positions in `Annotations`."""

    images: np.ndarray  # (G,) int64
    labels: np.ndarray  # (G,) int64
    boxes_xywh: np.ndarray  # (G, 4) float64
    areas: np.ndarray  # (G,) float64 as annotated, else of the mask, else of the box
    is_crowd: np.ndarray  # (G,) bool
    records: list[_Record]
    sizes_wh: np.ndarray  # (I, 2) int64
    path: Path  # of the file, for messages

    def take(self, rows: np.ndarray) -> "Truth":
        """The objects at positions `rows`, in that order."""
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            boxes_xywh=self.boxes_xywh[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
            records=[self.records[row] for row in rows],
        )

    @functools.cached_property
    def masks(self) -> list[RLE]:
        """G run-length encoded masks.

        Raises:
            InputError: one is no mask, or does not fill its image; lists the first ten ids.
        """
        masks = [
            _mask(record, self.sizes_wh[image], self.path)
            for record, image in zip(self.records, self.images, strict=True)
        ]
        pixels = self.sizes_wh.astype(np.int64).prod(axis=1)[self.images]
        damaged = np.flatnonzero(is_damaged([mask["counts"] for mask in masks], pixels))
        if len(damaged):
            ids: list[object] = [self.records[row].id for row in damaged.tolist()]
            raise InputError(
                f"{self.path}: segmentation does not fill its image in annotations {first_ten(ids)}"
            )
        return masks


def read_truth(annotations: Annotations) -> Truth:
    """The objects of a file that `read_annotations` has checked.

    Raises:
        InputError: an object without an area has a segmentation that is no mask of its image.
    """
    records = msgspec.json.decode(annotations.path.read_bytes(), type=_File).annotations
    images = _positions([r.image_id for r in records], annotations.image_ids)
    sizes = annotations.sizes_wh
    return Truth(
        images=images,
        labels=_positions([r.category_id for r in records], annotations.category_ids),
        boxes_xywh=np.array([r.bbox for r in records], dtype=np.float64).reshape(-1, 4),
        areas=np.array(
            [_area(r, sizes[i], annotations.path) for r, i in zip(records, images, strict=True)],
            dtype=np.float64,
        ),
        is_crowd=np.array([bool(r.iscrowd) for r in records], dtype=bool),
        records=records,
        sizes_wh=sizes,
        path=annotations.path,
    )


def _positions(ids: list[int], known: np.ndarray) -> np.ndarray:
    order = np.argsort(known, kind="stable")
    return order[np.searchsorted(known[order], np.array(ids, dtype=np.int64))].astype(np.int64)


def _area(record: _Record, size_wh: np.ndarray, path: Path) -> float:
    if record.area is not None:
        return record.area
    if _segmentation(record):
        return float(coco_mask.area(_mask(record, size_wh, path)))
    return record.bbox[2] * record.bbox[3]


def _mask(record: _Record, size_wh: np.ndarray, path: Path) -> RLE:
    try:
        return to_rle(_segmentation(record), int(size_wh[1]), int(size_wh[0]))
    except ValueError as problem:
        raise InputError(f"{path}: segmentation of annotation {record.id}: {problem}") from None


def _segmentation(record: _Record) -> Any:
    return msgspec.json.decode(record.segmentation)
