"""The numbers of metrics.json: what is scored, by which protocol, with which engine.

predictions -> capped -> cases (protocols) -> judgement (overlaps, matching) -> scores -> summary
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, MismatchedInput, UsageError, first_ten
from pipeline.evaluation import official
from pipeline.evaluation.judgement import Judgement, judge
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.protocols import CAPS, FEDERATED, capped, cases
from pipeline.evaluation.scores import CategoryScores, category_scores
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.summary import (
    IOU_50,
    IOU_75,
    Groups,
    frequency_groups,
    instance_bins,
    percent,
    plain,
    summarize,
)
from pipeline.evaluation.truth import Truth, read_truth

LIMITS = {"coco": (1, 10), "coco-lt": (1, 10), "lvis": (), "lvis-fixed": ()}  # of AR, beside the cap


class _Image(msgspec.Struct, gc=False):
    neg_category_ids: msgspec.Raw | UnsetType = UNSET
    not_exhaustive_category_ids: msgspec.Raw | UnsetType = UNSET


class _File(msgspec.Struct):
    images: list[_Image]


@dataclass(frozen=True)
class Scores:
    """`metrics` is metrics.json; `per_category` maps every category id to its AP, AP50 and AP75."""

    metrics: dict[str, float | None]
    per_category: dict[int, dict[str, float | None]]
    judgements: Mapping[str, Judgement]  # by kind; empty with the official engine
    protocol: str
    cap: int
    groups: tuple[Groups, ...]

    def weigh(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(B, I) weights of the images -> {metric: (B,) percent}."""
        found: dict[str, np.ndarray] = {}
        for kind, judgement in self.judgements.items():
            scores = category_scores(judgement, _limits(self.protocol, self.cap), weights)
            found |= summarize(scores, kind, self.groups, _named_cap(self.protocol, self.cap))
        return found


def default_protocol(annotations: Annotations) -> str:
    """lvis where the annotations carry LVIS's federated fields, else coco."""
    return "lvis" if annotations.is_lvis else "coco"


def score(
    annotations: Annotations,
    predictions: Predictions,
    settings: EvaluationSettings,
    frequency: list[str] | None = None,
    instance_counts: np.ndarray | None = None,
) -> Scores:
    """Score predictions.

    Args:
        annotations: the split that was predicted; its file is read again.
        predictions: of that split.
        settings: protocol, cap, masks, engine.
        frequency: r, c or f per category (C), e.g. of the training split; None: the annotations' own letters.
        instance_counts: (C,) instances in the training split, for coco-lt.

    Returns:
        bbox_AP, AP50, AP75, APs, APm, APl, with letters also APr, APc, APf, with coco-lt AP1 to AP4, average
        recall likewise (AR@100 is at most 100 detections), in percent and unrounded, and the same under segm_
        where predictions and annotations have masks.

    Raises:
        MismatchedInput: LVIS protocol without federated fields, letters or counts of other categories.
        InputError: some annotations have masks and others none, or damaged ones.
        UsageError: coco-lt without counts.
    """
    protocol = default_protocol(annotations) if settings.protocol == "auto" else settings.protocol
    letters = annotations.frequency if frequency is None else frequency
    _check(annotations, protocol, letters, instance_counts)
    groups = _groups(protocol, letters, instance_counts)
    cap = CAPS[protocol] if settings.max_detections == "auto" else settings.max_detections
    predictions = capped(predictions, protocol, cap)
    truth = read_truth(annotations)
    metrics: dict[str, float | None] = {}
    per_category: dict[int, dict[str, float | None]] = {int(c): {} for c in annotations.category_ids}
    judgements: dict[str, Judgement] = {}
    for kind in _kinds(annotations, truth, predictions, settings):
        limits = _limits(protocol, cap)
        if settings.engine == "official":
            scores = official.category_scores(annotations, predictions, protocol, kind, (*limits, cap))
        else:
            judged = cases(annotations, truth, predictions, protocol, kind)
            judgements[kind] = judge(judged, annotations.image_ids, len(per_category), kind)
            scores = category_scores(judgements[kind], limits)
        named = summarize(scores, kind, groups, _named_cap(protocol, cap))
        metrics |= {name: plain(values[0]) for name, values in named.items()}
        for position, row in enumerate(per_category.values()):
            row |= _of_category(scores, position, kind)
    return Scores(metrics, per_category, judgements, protocol, cap, groups)


def _check(
    annotations: Annotations, protocol: str, letters: Sequence[str] | None, counts: np.ndarray | None
) -> None:
    num_categories = len(annotations.category_ids)
    if protocol in FEDERATED and (absent := _absent_fields(annotations)):
        raise MismatchedInput(
            f"the images of {annotations.path} lack {' and '.join(absent)}", "use the coco protocol"
        )
    if letters is not None and len(letters) != num_categories:
        raise MismatchedInput(f"{len(letters)} frequencies for {num_categories} categories")
    if protocol != "coco-lt":
        return
    if counts is None:
        raise UsageError(
            "protocol coco-lt groups categories by the instances of the training split",
            "give its stats folder with --stats",
        )
    if len(counts) != num_categories:
        raise MismatchedInput(f"{len(counts)} instance counts for {num_categories} categories")


def _absent_fields(annotations: Annotations) -> list[str]:
    """LVIS's fields that the images do not have.

    Raises:
        InputError: some images have them, others not.
    """
    if annotations.is_lvis:
        return []
    images = msgspec.json.decode(annotations.path.read_bytes(), type=_File).images
    return [name for name in _Image.__struct_fields__ if any(getattr(i, name) is UNSET for i in images)]


def _groups(protocol: str, letters: Sequence[str] | None, counts: np.ndarray | None) -> tuple[Groups, ...]:
    by_frequency = frequency_groups(letters)
    if protocol != "coco-lt" or counts is None:
        return (by_frequency,)
    return by_frequency, instance_bins(counts)


def _limits(protocol: str, cap: int) -> tuple[int, ...]:
    return tuple(limit for limit in LIMITS[protocol] if limit < cap)


def _named_cap(protocol: str, cap: int) -> int | None:
    """The cap of lvis-fixed is per category, which AR@10000 would not say."""
    return None if protocol == "lvis-fixed" else cap


def _kinds(
    annotations: Annotations, truth: Truth, predictions: Predictions, settings: EvaluationSettings
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
    _ = truth.masks  # official evaluators score damaged ones, or stop: they are refused for every engine
    return ("bbox", "segm")


def _of_category(scores: CategoryScores, position: int, kind: str) -> dict[str, float | None]:
    """AP, AP50, AP75 of one category."""
    mine = scores.precision[:, 0, :, position : position + 1]  # (1, T, 1)
    at = {"AP": slice(None), "AP50": slice(IOU_50, IOU_50 + 1), "AP75": slice(IOU_75, IOU_75 + 1)}
    return {f"{kind}_{name}": plain(percent(mine[:, where])[0]) for name, where in at.items()}
