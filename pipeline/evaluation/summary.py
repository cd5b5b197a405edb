"""The names of metrics.json and the means that they stand for.

Shapes: B weightings of the images (one, or the resamples of a bootstrap), A sizes, T IoU thresholds,
K categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.scores import CategoryScores

SIZES = {"s": 1, "m": 2, "l": 3}
IOU_50, IOU_75 = 0, 5
BINS = (0, 20, 400, 8000)  # COCO-LT, SimCal: training instances from which AP1..AP4 begin


@dataclass(frozen=True)
class Groups:
    """Sets of categories with a mean of their own: {name: (K,) bool}, e.g. r, c, f, or 1, 2, 3, 4."""

    of: Mapping[str, np.ndarray]


def frequency_groups(letters: Sequence[str] | None) -> Groups:
    """APr, APc, APf; nothing without letters."""
    if letters is None:
        return Groups({})
    return Groups({letter: np.array(letters) == letter for letter in "rcf"})


def instance_bins(counts: np.ndarray) -> Groups:
    """AP1 to AP4 of COCO-LT, by the instances of the training split."""
    places = np.searchsorted(BINS, counts, side="right")
    return Groups({str(number): places == number for number in range(1, len(BINS) + 1)})


def summarize(
    scores: CategoryScores, kind: str, groups: Sequence[Groups], cap: int | None
) -> dict[str, np.ndarray]:
    """Every number by its name, (B,) percent, NaN for an empty group.

    Args:
        scores: of boxes or masks.
        kind: "bbox" or "segm", the prefix.
        groups: sets of categories beside all.
        cap: the protocol's limit in the name of the recall: AR@100; None: plain AR.
    """
    everything = scores.precision[:, 0]  # (B, T, K)
    named = {
        "AP": everything,
        "AP50": everything[:, IOU_50 : IOU_50 + 1],
        "AP75": everything[:, IOU_75 : IOU_75 + 1],
        **{f"AP{letter}": scores.precision[:, size] for letter, size in SIZES.items()},
        **{f"AR@{limit}": values for limit, values in scores.recall_at.items()},
        "AR" if cap is None else f"AR@{cap}": scores.recall[:, 0],
        **{f"AR{letter}": scores.recall[:, size] for letter, size in SIZES.items()},
    }
    for sets in groups:
        named |= {f"AP{name}": everything[:, :, members] for name, members in sets.of.items()}
        named |= {f"AR{name}": scores.recall[:, 0][:, :, members] for name, members in sets.of.items()}
    return {f"{kind}_{name}": percent(values) for name, values in named.items()}


def percent(values: np.ndarray) -> np.ndarray:
    """(B, T, K) fractions, NaN without objects -> (B,) means of the others in percent, NaN without any."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=(1, 2))
    count = known.sum(axis=(1, 2))
    return np.divide(100 * total, count, out=np.full(len(values), np.nan), where=count > 0)


def plain(value: float) -> float | None:
    """json has no NaN: an empty group is null."""
    return None if np.isnan(value) else float(value)
