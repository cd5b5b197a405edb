"""What each kind of error costs in AP50, in the manner of TIDE (Bolya et al., ECCV 2020); our own code.

Unlike Fig. 2 this looks at all detections, matches them one-to-one, and asks of each kind how much AP50 an
oracle would win that mends this kind alone.  The numbers do not add up to 100 - AP50.  A detection that is
matched to no object is, in this order,

    loc    .1 <= IoU < .5 with an object of its class     mended: it takes that object
    cls    IoU >= .5 with an object of another class      mended: it takes that object, in its class
    dupe   IoU >= .5 with an object of its class, which another has     mended: taken out
    bkg    IoU < .1 with every object                     mended: taken out
    both   the rest: wrong class and wrong place          mended: taken out

A mended detection whose object is matched already, or is given to one with a better score, is taken out too.
`miss` are the objects that no detection is matched to and no loc or cls could take; mended: not counted.
Beside them `fp`, every unmatched detection taken out, and `fn`, every unmatched object not counted.

As in AP here, and unlike the authors' program: only what is verified takes part (LVIS), an unmatched box is
ignored in images where its category is not exhaustively annotated, or on a crowd region of it; the mean is
over categories with objects; edges are closed below.

Shapes: D detections that take part, G objects without crowds, C categories.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.analysis.error_decisions import LOOSE, TIGHT
from pipeline.analysis.error_types import GROUPS, is_verified
from pipeline.analysis.tide_matching import NOBODY, Matched, match
from pipeline.data.annotations import Annotations
from pipeline.evaluation.predictions import Predictions, score_rank

MAIN = ("cls", "loc", "both", "dupe", "bkg", "miss")
SPECIAL = ("fp", "fn")
KINDS = MAIN[:-1]  # of detections
CAPS = {True: 300, False: 100}  # detections of an image (LVIS), or of an image and category (COCO)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class TideReport:
    """`groups`: all, r, c, f -> {"ap50", the eight dAP, in percent; None without objects}; `counts`: the
    same groups -> errors of each kind."""

    groups: dict[str, dict[str, float | None]]
    counts: dict[str, dict[str, int]]


def tide(
    annotations: Annotations, predictions: Predictions, frequency: list[str] | None = None
) -> TideReport:
    """The cost of each kind of error in AP50, over all categories and over those of each group.

    Args:
        annotations: the split that was predicted.
        predictions: of that split.
        frequency: r, c or f per category (C); None: the annotations' own; with neither, r, c, f are empty.

    Returns:
        dAP50 in percentage points: AP50 with the oracle less AP50.
    """
    letters = frequency or annotations.frequency or [""] * len(annotations.category_ids)
    chosen = predictions.take(_taking_part(annotations, predictions))
    found = match(annotations, chosen)
    kinds = _kinds(found)
    fixes = _fixes(annotations, chosen, found, kinds)
    by_oracle = {
        name: _ap50(annotations, chosen, found, fix) for name, fix in {"ap50": _NOTHING, **fixes}.items()
    }
    groups, counts = {}, {}
    for group in GROUPS:
        members = np.array([group in ("all", letter) for letter in letters])
        groups[group] = _summary(by_oracle, members)
        counts[group] = _counts(annotations, chosen, found, kinds, members)
    return TideReport(groups, counts)


@dataclass(frozen=True)
class _Fix:
    """What an oracle changes: detections taken out, detections that take an object, objects not counted."""

    out: np.ndarray | None = None  # (D,) bool
    taken: np.ndarray | None = None  # (D,) position of the object that it takes, or NOBODY
    uncounted: np.ndarray | None = None  # (G,) bool


_NOTHING = _Fix()


def _taking_part(annotations: Annotations, predictions: Predictions) -> np.ndarray:
    """(D,) rows of the detections that the protocol looks at; the cap of LVIS precedes everything."""
    cap = CAPS[annotations.is_lvis]
    labels = 0 if annotations.is_lvis else predictions.labels
    of = predictions.images * len(annotations.category_ids) + labels
    inside = score_rank(of, predictions.scores) < cap
    without_area = predictions.is_empty_box & annotations.is_lvis  # COCO's evaluator counts them
    rows = np.flatnonzero(inside & ~without_area & is_verified(annotations, predictions))
    by_id = annotations.image_ids[predictions.images[rows]]  # breaks ties of scores, as in the evaluators
    return rows[np.argsort(by_id, kind="stable")]


def _kinds(found: Matched) -> np.ndarray:
    """(D,) the kind of each unmatched detection, "" of the others."""
    unmatched = (found.object_of == NOBODY) & ~found.is_ignored
    kinds = np.select(
        [
            (found.iou_same >= LOOSE) & (found.iou_same < TIGHT),
            found.iou_other >= TIGHT,
            found.iou_same >= TIGHT,
            np.maximum(found.iou_same, found.iou_other) < LOOSE,
        ],
        ["loc", "cls", "dupe", "bkg"],
        default="both",
    )
    return np.where(unmatched, kinds, "")


def _fixes(
    annotations: Annotations, chosen: Predictions, found: Matched, kinds: np.ndarray
) -> dict[str, _Fix]:
    """The oracles of TIDE by name."""
    wanted = np.where(kinds == "loc", found.best_same, np.where(kinds == "cls", found.best_other, NOBODY))
    is_taken = np.zeros(len(annotations.labels), dtype=bool)
    is_taken[found.object_of[found.object_of != NOBODY]] = True
    takes = _first_takers(wanted, chosen.scores, is_taken)
    fixes = {}
    for kind in KINDS:
        here = kinds == kind
        taken = np.where(here & takes, wanted, NOBODY)
        fixes[kind] = _Fix(out=here & ~takes, taken=taken)
    could_be = np.zeros_like(is_taken)
    could_be[wanted[wanted != NOBODY]] = True
    fixes["miss"] = _Fix(uncounted=~is_taken & ~could_be)
    fixes["fp"] = _Fix(out=kinds != "")
    fixes["fn"] = _Fix(uncounted=~is_taken)
    return fixes


def _first_takers(wanted: np.ndarray, scores: np.ndarray, is_taken: np.ndarray) -> np.ndarray:
    """(D,) bool: the object it wants is free, and no detection with a better score wants it."""
    rows = np.flatnonzero(wanted != NOBODY)
    rows = rows[~is_taken[wanted[rows]]]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    _, first = np.unique(wanted[rows], return_index=True)
    takes = np.zeros(len(wanted), dtype=bool)
    takes[rows[first]] = True
    return takes


def _ap50(annotations: Annotations, chosen: Predictions, found: Matched, fix: _Fix) -> np.ndarray:
    """(C,) AP50 in percent after a fix, NaN without objects."""
    is_right = found.object_of != NOBODY
    stays = ~found.is_ignored
    labels = chosen.labels
    if fix.taken is not None:
        given = fix.taken != NOBODY
        is_right = is_right | given
        labels = labels.copy()
        labels[given] = annotations.labels[fix.taken[given]]
    if fix.out is not None:
        stays = stays & ~fix.out
    counted = ~annotations.is_crowd
    if fix.uncounted is not None:
        counted = counted & ~fix.uncounted
    num_categories = len(annotations.category_ids)
    objects = np.bincount(annotations.labels[counted], minlength=num_categories)
    exists = np.bincount(annotations.labels[~annotations.is_crowd], minlength=num_categories) > 0
    rows = np.flatnonzero(stays)
    rows = rows[np.lexsort((-chosen.scores[rows], labels[rows]))]
    ends = np.searchsorted(labels[rows], np.arange(num_categories + 1))
    ap = np.full(num_categories, np.nan)
    for c in np.flatnonzero(exists):
        ap[c] = _average_precision(is_right[rows[ends[c] : ends[c + 1]]], int(objects[c]))
    return 100 * ap


def _average_precision(is_right: np.ndarray, num_objects: int) -> float:
    """101-point AP of one category's detections, best first; with no object left to find, all are found."""
    if num_objects == 0:
        return 1.0
    right = np.cumsum(is_right)
    if not len(right):
        return 0.0
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / num_objects, RECALLS, side="left")
    return float(np.append(precision, 0)[at].mean())


def _summary(by_oracle: dict[str, np.ndarray], members: np.ndarray) -> dict[str, float | None]:
    means = {
        name: float(np.nanmean(ap[members])) if (~np.isnan(ap[members])).any() else None
        for name, ap in by_oracle.items()
    }
    plain = means.pop("ap50")
    return {
        "ap50": plain,
        **{k: None if plain is None or v is None else v - plain for k, v in means.items()},
    }


def _counts(
    annotations: Annotations, chosen: Predictions, found: Matched, kinds: np.ndarray, members: np.ndarray
) -> dict[str, int]:
    inside = members[chosen.labels]
    counts = {kind: int((inside & (kinds == kind)).sum()) for kind in KINDS}
    objects = np.flatnonzero(~annotations.is_crowd & members[annotations.labels])
    unmatched = np.setdiff1d(objects, found.object_of)
    could = np.union1d(found.best_same[kinds == "loc"], found.best_other[kinds == "cls"])
    return {
        **counts,
        "miss": len(np.setdiff1d(unmatched, could)),
        "fp": sum(counts.values()),
        "fn": len(unmatched),
    }
