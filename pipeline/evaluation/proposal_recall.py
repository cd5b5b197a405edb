"""Average recall of class-agnostic proposals: whether they see the objects, and the tail, at all.

COCO's definition (pycocotools, `useCats=0`): AR@k is the recall of the k best proposals of each image,
matched one to one in score order, averaged over the IoU thresholds .5, .55, ..., .95.  Crowds are ignored;
all other objects count, however many an image has.  AUC is the area under AR over log_1000(k) (OLN,
compute_auc.py).  LVIS is not exhaustively annotated: recall of what is annotated is meaningful, precision is
not, and is not computed.

With a seen split (OLN's cross-category protocol) only objects of the other categories are to be found, and
proposals that find seen ones do not use up the budget (`recall_matching.ranks_of_objects`).

Shapes: I images, A annotations, C categories, T = 10 IoU thresholds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data.annotations import Annotations
from pipeline.errors import MismatchedInput
from pipeline.evaluation.predictions import to_rle
from pipeline.evaluation.recall_matching import NEVER, THRESHOLDS, Pairs, ranks_of_objects

BUDGETS = (10, 30, 100, 300, 1000)
AUC_BUDGETS = (10, 30, 50, 100, 300, 500, 1000)
AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}  # closed, square pixels
GROUPS = ("r", "c", "f")
IMAGES_AT_ONCE = 100  # bounds the memory; larger batches are no faster


@dataclass(frozen=True)
class ProposalRecall:
    """At which rank each object is found, in each area range; every recall is read off these.

    `ranks[area]` is (T, A) int32, 0 for an image's best proposal, NEVER where none finds the object;
    `counts[area]` is (A,) bool, the objects to be found; `num_proposals` is (I,) int64.
    """

    ranks: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    num_proposals: np.ndarray

    def at(
        self,
        budgets: Sequence[int],
        area: str = "all",
        group: np.ndarray | None = None,
        thresholds: slice = slice(None),
    ) -> list[float | None]:
        """Recall in percent, averaged over the thresholds, at each budget.

        Args:
            budgets: numbers of proposals per image, at least 1.
            area: a key of AREAS.
            group: (A,) bool, the objects to look at; None: all.
            thresholds: of THRESHOLDS.

        Returns:
            one number per budget; None everywhere without objects.
        """
        wanted = self.counts[area] if group is None else self.counts[area] & group
        if not wanted.any():
            return [None] * len(budgets)
        ranks = self.ranks[area][thresholds, wanted].ravel()  # (T', A') -> (T' * A')
        largest = max(budgets)
        num_found = np.bincount(np.minimum(ranks, largest), minlength=largest).cumsum()
        return [100 * int(num_found[budget - 1]) / len(ranks) for budget in budgets]


def proposal_recall(
    annotations: Annotations, boxes_per_image: Iterable[np.ndarray], seen: np.ndarray | None = None
) -> ProposalRecall:
    """Match the proposals of every image to its objects.

    Args:
        annotations: of I images.
        boxes_per_image: for each image in their order (n, 4) xyxy in pixels, best first.
        seen: (C,) bool, categories whose objects are not to be found and cost no budget.  (The official
            evaluator keeps 1,500 proposals, and then leaves out those on seen objects; here all are kept.)
    """
    order = np.lexsort((annotations.labels, annotations.box_images))  # pycocotools' order decides ties
    is_seen = np.zeros(len(order), dtype=bool) if seen is None else seen[annotations.labels]
    areas = object_areas(annotations)
    counts = {
        name: ~annotations.is_crowd & ~is_seen & (areas >= low) & (areas <= high)
        for name, (low, high) in AREAS.items()
    }
    ranks = {name: np.full((len(THRESHOLDS), len(order)), NEVER, dtype=np.int32) for name in AREAS}
    num_proposals = np.zeros(len(annotations.image_ids), dtype=np.int64)
    for objects, pairs in _batches(annotations, order, boxes_per_image, num_proposals):
        rows = order[objects]
        for name in AREAS:
            ranks[name][:, rows] = ranks_of_objects(
                pairs, counts[name][rows], annotations.is_crowd[rows], is_seen[rows]
            )
    return ProposalRecall(ranks, counts, num_proposals)


def recall_metrics(
    recall: ProposalRecall, annotations: Annotations, letters: Sequence[str] | None
) -> dict[str, float | None]:
    """metrics.json of proposals, in percent and unrounded; None for a group without objects.

    Args:
        recall: of these annotations.
        letters: r, c or f of each category (C), or None: no such groups.

    Returns:
        AR@k, and R50@k at IoU .5 alone, for k of BUDGETS; AR@k_s, _m, _l by area; AR@k_r, _c, _f by
        frequency; AUC, in which AR@1 is taken as 0 as in OLN's script; proposals_per_image, a plain mean.

    Raises:
        MismatchedInput: letters of other categories.
    """
    named = {"AR@{}": recall.at(BUDGETS), "R50@{}": recall.at(BUDGETS, thresholds=slice(1))}
    named |= {f"AR@{{}}_{area}": recall.at(BUDGETS, area) for area in AREAS if area != "all"}
    for letter, group in groups(annotations, letters).items():
        named[f"AR@{{}}_{letter}"] = recall.at(BUDGETS, group=group)
    metrics = {
        name.format(budget): value
        for name, values in named.items()
        for budget, value in zip(BUDGETS, values, strict=True)
    }
    return metrics | {"AUC": _auc(recall), "proposals_per_image": float(recall.num_proposals.mean())}


def groups(annotations: Annotations, letters: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Frequency letter -> (A,) bool, the objects of its categories; nothing without letters.

    Raises:
        MismatchedInput: letters of other categories.
    """
    if letters is None:
        return {}
    if len(letters) != len(annotations.category_ids):
        raise MismatchedInput(f"{len(letters)} frequencies for {len(annotations.category_ids)} categories")
    of_object = np.array(letters)[annotations.labels]
    return {letter: of_object == letter for letter in GROUPS}


def object_areas(annotations: Annotations) -> np.ndarray:
    """(A,) float64 square pixels: the file's `area`, else that of the mask, else that of the box."""
    areas = annotations.areas.copy()
    for row in np.flatnonzero(np.isnan(areas)).tolist():
        areas[row] = _mask_or_box_area(annotations, row)
    return areas


def _mask_or_box_area(annotations: Annotations, row: int) -> float:
    segmentation = annotations.segmentations[row]
    if not segmentation:
        return float(_xywh(annotations.boxes[row])[0, 2:].prod())
    width, height = annotations.sizes_wh[annotations.box_images[row]].tolist()
    return float(coco_mask.area(to_rle(segmentation, height, width)))


def _auc(recall: ProposalRecall) -> float | None:
    found = recall.at(AUC_BUDGETS)
    if found[0] is None:
        return None
    log_budgets = np.log([1, *AUC_BUDGETS]) / np.log(1000)
    return float(np.trapezoid([0.0, *(float(v or 0) for v in found)], log_budgets))


def _batches(
    annotations: Annotations,
    order: np.ndarray,
    boxes_per_image: Iterable[np.ndarray],
    num_proposals: np.ndarray,
) -> Iterator[tuple[slice, Pairs]]:
    """Objects as a slice of `order`, and their pairs, of a batch of images; fills `num_proposals` (I,)."""
    truth_xywh = _xywh(annotations.boxes[order])
    is_crowd = annotations.is_crowd[order].astype(np.uint8)
    parts: list[Pairs] = []
    first_object = first_proposal = 0
    for image, boxes in zip(range(len(num_proposals)), boxes_per_image, strict=True):
        num_proposals[image] = len(boxes)
        objects = annotations.of_image(image)
        shift = (objects.start - first_object, first_proposal)
        parts.append(_pairs(_xywh(boxes), truth_xywh[objects], is_crowd[objects], shift))
        first_proposal += len(boxes)
        if len(parts) == IMAGES_AT_ONCE or image + 1 == len(num_proposals):
            yield slice(first_object, objects.stop), _concatenated(parts)
            parts, first_object, first_proposal = [], objects.stop, 0


def _pairs(
    proposals_xywh: np.ndarray, truth_xywh: np.ndarray, is_crowd: np.ndarray, shift: tuple[int, int]
) -> Pairs:
    """The pairs of one image; `shift` is what to add to the numbers of its objects and its proposals."""
    if not len(proposals_xywh) or not len(truth_xywh):
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, none, none.astype(np.float64))
    # pycocotools' own: a proposal on a crowd counts by the share of the *proposal* that is covered
    overlaps = coco_mask.iou(proposals_xywh, truth_xywh, is_crowd).T  # (D, A) -> (A, D)
    objects, ranks = np.nonzero(overlaps >= THRESHOLDS[0])
    return Pairs(objects + shift[0], ranks + shift[1], ranks, overlaps[objects, ranks])


def _concatenated(parts: list[Pairs]) -> Pairs:
    return Pairs(
        np.concatenate([p.objects for p in parts]),
        np.concatenate([p.proposals for p in parts]),
        np.concatenate([p.ranks for p in parts]),
        np.concatenate([p.overlaps for p in parts]),
    )


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy -> (N, 4) float64 x, y, width, height."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
