"""COCO and LVIS v1 json as columns: checked once, here, so that no other module meets a broken box.

Shapes: I images, A annotations (sorted by image, file order within one), C categories (ascending id).
Boxes are xyxy float32 in pixels of the stored image.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import file_digest
from pipeline.data import annotation_records as fields
from pipeline.errors import InputError, MissingInput


@dataclass(frozen=True)
class Annotations:
    """One split.  `labels` and `box_images` are 0-based positions, never ids."""

    path: Path
    digest: str
    image_ids: np.ndarray  # (I,) int64
    file_names: list[str]  # relative to the image folder
    sizes_wh: np.ndarray  # (I, 2) int64
    category_ids: np.ndarray  # (C,) int64, ascending
    category_names: list[str]
    frequency: list[str] | None  # r | c | f per category, if the file says
    annotation_ids: np.ndarray  # (A,) int64
    box_images: np.ndarray  # (A,) int64, ascending
    labels: np.ndarray  # (A,) int64
    boxes: np.ndarray  # (A, 4) float32 xyxy, as annotated (not clipped)
    is_crowd: np.ndarray  # (A,) bool
    segmentations: list[Any]  # (A,) polygons, RLE or None, as in the file
    neg_category_ids: list[list[int]] | None  # per image, LVIS only
    not_exhaustive_category_ids: list[list[int]] | None  # per image, LVIS only

    @property
    def is_lvis(self) -> bool:
        """Whether the file carries LVIS's federated fields."""
        return self.neg_category_ids is not None

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(I + 1,) where the annotations of each image begin."""
        return np.searchsorted(self.box_images, np.arange(len(self.image_ids) + 1))

    @functools.cached_property
    def clipped_boxes(self) -> np.ndarray:
        """(A, 4) boxes clipped to their image."""
        limits = np.tile(self.sizes_wh[self.box_images], 2).astype(np.float32)
        return np.clip(self.boxes, 0, limits)

    def polygons(self, row: int) -> list[list[float]]:
        """Polygons [x, y, ...] of the annotation at position `row`; empty where its mask is none or RLE."""
        return fields.polygons(self.segmentations[row])

    @functools.cached_property
    def without_polygons(self) -> list[int]:
        """Ids of the trainable annotations without polygons."""
        return [
            int(self.annotation_ids[r]) for r in np.flatnonzero(self.trainable) if not self.polygons(int(r))
        ]

    @functools.cached_property
    def trainable(self) -> np.ndarray:
        """(A,) bool: not a crowd, and with an area inside the image."""
        wh = self.clipped_boxes[:, 2:] - self.clipped_boxes[:, :2]
        return (wh > 0).all(axis=1) & ~self.is_crowd

    def of_image(self, index: int) -> slice:
        """The annotations of the image at position `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def remarks(self) -> list[str]:
        """What was set right silently in the boxes, one sentence each, for the log."""
        partly = int((self.trainable & (self.clipped_boxes != self.boxes).any(axis=1)).sum())
        dropped = int((~self.trainable & ~self.is_crowd).sum())
        empty = int((np.diff(self.offsets) == 0).sum())
        unused = len(self.category_ids) - len(np.unique(self.labels[~self.is_crowd]))
        counted = [
            (partly, "boxes reach over the image border: clipped"),
            (dropped, "boxes are empty or outside their image: not trained on, still counted by stats"),
            (int(self.is_crowd.sum()), "crowd regions: not trained on, not counted"),
            (empty, "images have no annotation"),
            (unused, "categories have no instance"),
        ]
        return [f"{self.path.name}: {count} {text}" for count, text in counted if count]


def read_annotations(path: Path) -> Annotations:
    """Read and check a COCO or LVIS v1 json.

    Raises:
        MissingInput: no such file.
        InputError: not JSON, a key is missing, ids repeat or point nowhere, or a box is not four finite
            numbers with non-negative size; the message lists the first ten ids.
    """
    content = _load(path)
    images, categories, records = content["images"], content["categories"], content["annotations"]
    image_ids = fields.unique_ids(images, "image", path)
    category_ids = fields.unique_ids(categories, "category", path)
    if not len(image_ids) or not len(category_ids):
        raise InputError(
            f"{path} has {len(image_ids)} images and {len(category_ids)} categories: nothing to do"
        )
    categories = [categories[i] for i in np.argsort(category_ids)]
    category_ids = np.sort(category_ids)
    ids = fields.unique_ids(records, "annotation", path)
    box_images = fields.positions(records, "image_id", image_ids, path)
    labels = fields.positions(records, "category_id", category_ids, path)
    boxes = fields.boxes_xyxy(records, path)
    federated = fields.federated_ids(images, path)
    order = np.argsort(box_images, kind="stable")
    return Annotations(
        path=path,
        digest=file_digest(path),
        image_ids=image_ids,
        file_names=fields.file_names(images, path),
        sizes_wh=fields.sizes_wh(images, path),
        category_ids=category_ids,
        category_names=fields.category_names(categories, path),
        frequency=fields.frequency_letters(categories, path),
        annotation_ids=ids[order],
        box_images=box_images[order],
        labels=labels[order],
        boxes=boxes[order],
        is_crowd=fields.crowd_flags(records, path)[order],
        segmentations=[records[i].get("segmentation") for i in order],
        neg_category_ids=federated[0] if federated else None,
        not_exhaustive_category_ids=federated[1] if federated else None,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInput(
            f"annotations {path} do not exist", "check data: in params.yaml, or --annotations"
        ) from None
    except IsADirectoryError:
        raise InputError(f"annotations {path} is a folder, not a json file") from None
    except OSError as problem:
        raise InputError(f"annotations {path} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # also numbers of thousands of digits, endless nesting
        raise InputError(f"{path} is not valid JSON: {problem}", "is the download complete?") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}, not the images, annotations and categories "
            "of a COCO or LVIS file"
        )
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise InputError(f"{path} has no list `{key}`: it is not a COCO or LVIS annotation file")
    return content
