"""Which of the paper's five error types a detection is: one table, with the cases that A.1 leaves open.

A.1: correct, right class and IoU > .5; localization, right class and .1 < IoU < .5; background, IoU < .1 with
any object; classification, wrong class and IoU > .5; other, wrong class and .1 < IoU < .5.  Left open, and
decided here:

    IoU of exactly .1 or .5           lower edges are closed, as in COCO
    both classes overlap              the same class first
    right class, IoU < .1             `other` if it overlaps another object by .1 or more, else `background`
    several boxes on one object       all correct (A.1 knows no one-to-one matching), counted besides
    a background box on a crowd       `ignored`: nobody can say

A detection is judged by three facts: how it overlaps objects of its class (`same`: none, below .1, below .5,
.5 or more), those of other classes (`other`: below .1, below .5, .5 or more), and whether at least .1 of it
lies on a crowd region.
"""

import numpy as np

TYPES = ("correct", "localization", "background", "classification", "other")
LOOSE, TIGHT = 0.1, 0.5
SAME = ("none", "touch", "loose", "tight")
OTHER = ("touch", "loose", "tight")  # with other classes, no overlap and one below .1 are alike

# (same, other) -> the type; where that is background, a crowd makes it ignored
DECISIONS = {
    ("none", "touch"): "background",
    ("none", "loose"): "other",
    ("none", "tight"): "classification",
    ("touch", "touch"): "background",
    ("touch", "loose"): "other",
    ("touch", "tight"): "other",
    ("loose", "touch"): "localization",
    ("loose", "loose"): "localization",
    ("loose", "tight"): "localization",
    ("tight", "touch"): "correct",
    ("tight", "loose"): "correct",
    ("tight", "tight"): "correct",
}
ON_CROWD = {"background": "ignored"}
_KINDS = np.array([[DECISIONS[s, o] for o in OTHER] for s in SAME])  # (4, 3)


def decide(iou_same: np.ndarray, iou_other: np.ndarray, on_crowd: np.ndarray) -> np.ndarray:
    """Look detections up in the table.

    Args:
        iou_same: (D,) largest IoU with an object of the detection's class, 0 without any.
        iou_other: (D,) the same with objects of other classes.
        on_crowd: (D,) largest share of the detection inside one crowd region.

    Returns:
        (D,) words: one of TYPES, or "ignored".
    """
    same = (iou_same > 0).astype(int) + (iou_same >= LOOSE) + (iou_same >= TIGHT)
    other = (iou_other >= LOOSE).astype(int) + (iou_other >= TIGHT)
    kinds = _KINDS[same, other]
    for kind, instead in ON_CROWD.items():
        kinds = np.where((kinds == kind) & (on_crowd >= LOOSE), instead, kinds)
    return kinds
