"""What an epoch holds in expectation: the instances of rare, common and frequent categories.

An image is drawn as a whole, so repeating its rare object repeats the frequent ones beside it: the share of
rare instances in a batch grows much less than the factors of the rare categories.

Shapes: I images, A annotations, C categories, E epochs, 3 groups in the order of `GROUPS`.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.stats.sampler import EpochSampler

GROUPS = ("r", "c", "f")


def instances_by_group(annotations: Annotations, frequency: Sequence[str]) -> np.ndarray:
    """(I, 3) int64 instances of every image by the group of their category; crowds are none.

    Args:
        annotations: the split that is drawn from.
        frequency: (C,) r, c or f.
    """
    group_of = np.array([GROUPS.index(letter) for letter in frequency])
    seen = ~annotations.is_crowd
    cells = annotations.box_images[seen] * len(GROUPS) + group_of[annotations.labels[seen]]
    counts = np.bincount(cells, minlength=len(annotations.image_ids) * len(GROUPS))
    return counts.reshape(-1, len(GROUPS))  # (I 3) -> (I, 3)


def group_shares(sampler: EpochSampler, instances: np.ndarray) -> np.ndarray:
    """(E, 3) float64 expected share of each group among the instances that an epoch shows; rows sum to 1.

    Args:
        sampler: of one scheme.
        instances: (I, 3) of `instances_by_group`, at least one in all.
    """
    expected = np.array([sampler.expected_copies(e) @ instances for e in range(sampler.epochs)])
    return expected / expected.sum(axis=1, keepdims=True)
