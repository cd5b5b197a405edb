"""How often each category occurs: in images, in annotations, in proposals (Sec. 3.2, the terms of eq. 4).

Crowd regions are no instances.  Empty boxes and boxes outside their image are: the category was seen there.

Shapes: I images, A annotations, C categories (ascending id), P distinct (image, category) pairs, N proposals.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.data.boxes import iou
from pipeline.errors import InputError, UsageError

RARE_IMAGES, COMMON_IMAGES = 10, 100  # LVIS: r up to 10 images, c up to 100, f above
MATCH_IOU = 0.5  # a proposal belongs to the box that it overlaps best, from here on


class Proposals(Protocol):
    """Class-agnostic boxes by image, as the proposal store gives them."""

    def of_image(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) float32 xyxy boxes and (N,) scores."""
        ...


@dataclass(frozen=True, eq=False)
class ImageCategories:
    """The distinct categories of each image, as CSR; the categories of image i are
    `labels[offsets[i]:offsets[i + 1]]`."""

    offsets: np.ndarray  # (I + 1,) int64
    labels: np.ndarray  # (P,) int64, 0-based positions of categories, ascending within an image

    @property
    def num_images(self) -> int:
        """I, images without categories included."""
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class CategoryFrequencies:
    """One row per category of the annotations, with or without instances."""

    annotations_digest: str
    num_images: int  # the images that f_image is a share of
    category_ids: np.ndarray  # (C,) int64, ascending
    names: list[str]
    frequency: list[str]  # r | c | f
    image_count: np.ndarray  # (C,) int64
    instance_count: np.ndarray  # (C,) int64
    proposal_count: np.ndarray | None  # (C,) int64
    f_image: np.ndarray  # (C,) float64
    f_instance: np.ndarray  # (C,) float64, sums to 1


def count_frequencies(
    annotations: Annotations,
    proposals: Proposals | None = None,
    denominator: Literal["annotated", "all"] = "annotated",
    instances: Literal["annotations", "proposals"] = "annotations",
) -> CategoryFrequencies:
    """Count every category and derive the two shares of eq. 4.

    Args:
        annotations: the split that will be trained on.
        proposals: boxes to count as well, or None.
        denominator: f_image over images with at least one (non-crowd) annotation, or over all.
        instances: what f_instance is a share of; `instance_count` is of the annotations in any case.

    Raises:
        InputError: there is no annotation to count.
        UsageError: proposals shall be counted, but there are none.
    """
    if instances == "proposals" and proposals is None:
        raise UsageError(
            "stats.instances is proposals, but no proposals are given",
            "run `2drcl proposals` first and name them with --proposals, or set stats.instances: annotations",
        )
    if annotations.is_crowd.all():
        raise InputError(f"{annotations.path} has no annotation that is not a crowd: nothing to count")
    num_categories = len(annotations.category_ids)
    pairs = categories_of_images(annotations)
    image_count = np.bincount(pairs.labels, minlength=num_categories)
    instance_count = np.bincount(annotations.labels[~annotations.is_crowd], minlength=num_categories)
    proposal_count = None if proposals is None else match_proposals(annotations, proposals)
    annotated = int((np.diff(pairs.offsets) > 0).sum())
    num_images = annotated if denominator == "annotated" else pairs.num_images
    counted = instance_count
    if instances == "proposals" and proposal_count is not None:
        # A category that no proposal finds would have f = 0, hence r = 1: the hardest to find would be
        # repeated least.  One proposal is the least that a category with instances counts for.
        counted = np.maximum(proposal_count, instance_count > 0)
    return CategoryFrequencies(
        annotations_digest=annotations.digest,
        num_images=num_images,
        category_ids=annotations.category_ids,
        names=list(annotations.category_names),
        frequency=annotations.frequency or frequency_letters(image_count),
        image_count=image_count,
        instance_count=instance_count,
        proposal_count=proposal_count,
        f_image=image_count / num_images,
        f_instance=counted / counted.sum(),
    )


def frequency_letters(image_count: np.ndarray) -> list[str]:
    """r, c or f for each category by LVIS's rule: at most 10 images, at most 100, more."""
    # Paper: 1-10, 11-100, >100 *instances*; here images, because LVIS, whose names these are, counts images.
    groups = np.searchsorted([RARE_IMAGES, COMMON_IMAGES], image_count, side="left")
    return ["rcf"[group] for group in groups]


def categories_of_images(annotations: Annotations) -> ImageCategories:
    """The distinct categories of every image, crowds left out; all images, in the file's order."""
    num_categories = len(annotations.category_ids)
    seen = ~annotations.is_crowd
    pairs = np.unique(annotations.box_images[seen] * num_categories + annotations.labels[seen])
    images, labels = np.divmod(pairs, num_categories)  # (P,) -> (P,), (P,)
    offsets = np.searchsorted(images, np.arange(len(annotations.image_ids) + 1))
    return ImageCategories(offsets=offsets, labels=labels)


def match_proposals(annotations: Annotations, proposals: Proposals) -> np.ndarray:
    """How many proposals belong to each category.

    A proposal belongs to the category of the box that it overlaps best, if their IoU is at least 0.5; of
    equal overlaps the first annotation counts.  Crowds and empty boxes take none.

    Returns:
        (C,) int64.
    """
    counts = np.zeros(len(annotations.category_ids), dtype=np.int64)
    targets = annotations.clipped_boxes.astype(np.float64)  # float32 areas would blur an IoU of exactly 0.5
    for index, image_id in enumerate(annotations.image_ids):
        rows = annotations.of_image(index)
        candidates = np.flatnonzero(annotations.trainable[rows]) + rows.start
        if not len(candidates):
            continue
        boxes, _ = proposals.of_image(int(image_id))
        if len(boxes):
            overlaps = iou(boxes.astype(np.float64), targets[candidates])  # (N, G)
            best = overlaps.argmax(axis=1)  # (N, G) -> (N,)
            matched = overlaps.max(axis=1) >= MATCH_IOU
            counts += np.bincount(annotations.labels[candidates[best[matched]]], minlength=len(counts))
    return counts
