"""Repeat factors: how many times an epoch draws an image (Sec. 3.2, eq. 4).

A category's score f is a share between 0 and 1; its repeat factor is r = max(1, sqrt(t / f)); an image takes
the largest factor of its categories.  The schemes differ in f alone:

    RFS     f = f_im                           the share of images that hold the category
    IRFS    f = sqrt(f_im * f_in)              geometric mean with the share of instances (arXiv 2305.08069)
    eq. 4   1/f = alpha/f_in + (1-alpha)/f_im  weighted harmonic mean: alpha = 0 is RFS, 1 instances only

Shapes: C categories, I images, P (image, category) pairs, E epochs.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Mean = Literal["geometric", "harmonic", "arithmetic"]
Direction = Literal["to-instances", "to-images"]


def effective_frequency(f_image: ArrayLike, f_instance: ArrayLike, alpha: float | np.ndarray) -> np.ndarray:
    """The combined score of eq. 4, f_im f_in / (alpha f_im + (1 - alpha) f_in).

    Despite its place beside f_im, alpha is the weight of the instance level.  The result is exactly f_im for
    alpha = 0 and exactly f_in for alpha = 1, and no intermediate under- or overflows: the equation is
    evaluated as low / (w + (1 - w) low / high), where w is the weight of the lower of the two shares.

    Args:
        f_image: (C,) share of images that hold each category, in [0, 1].
        f_instance: (C,) share of instances, in [0, 1].
        alpha: in [0, 1]; a scalar, or any shape that broadcasts against (C,), e.g. (E, 1).

    Returns:
        (C,) float64, or the broadcast shape (E, C); 0 where a share with a positive weight is 0.

    Raises:
        ValueError: shares or alpha outside [0, 1] or NaN, or two lengths.
    """
    image, instance = _shares(f_image, f_instance)
    weight = np.asarray(alpha, dtype=np.float64)
    if not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError(f"alpha must be in [0, 1], but it is {alpha}")
    low, high = np.minimum(image, instance), np.maximum(image, instance)
    weight_of_low = np.where(instance <= image, weight, 1 - weight)  # (C,) or (E, C)
    ratio = np.divide(low, high, out=np.ones_like(low), where=high > 0)
    mean = weight_of_low + (1 - weight_of_low) * ratio
    scaled = np.divide(low, mean, out=np.zeros_like(mean), where=mean > 0)
    return np.where(weight_of_low == 0, high, scaled)


def instance_aware_frequency(
    f_image: ArrayLike, f_instance: ArrayLike, mean: Mean = "geometric"
) -> np.ndarray:
    """(C,) float64 score of IRFS: a mean of both shares.

    Args:
        f_image, f_instance: (C,) shares in [0, 1].
        mean: geometric, the method's own; harmonic (eq. 4 at alpha = 1/2) and arithmetic are its ablations.

    Raises:
        ValueError: shares outside [0, 1] or NaN, or two lengths.
    """
    image, instance = _shares(f_image, f_instance)
    if mean == "harmonic":
        return effective_frequency(image, instance, 0.5)
    if mean == "arithmetic":
        return (image + instance) / 2
    return np.sqrt(image) * np.sqrt(instance)  # the product itself could underflow


def factors_of_frequency(
    frequency: ArrayLike,
    threshold: float,
    *,
    floor: float = 1.0,
    max_factor: float | None = None,
    root: bool = True,
) -> np.ndarray:
    """r = max(1, sqrt(t / f)); a category that is nowhere (f = 0) gets 1.

    Args:
        frequency: scores in [0, 1], any shape.
        threshold: t > 0: the categories below it are repeated.
        floor: the smallest factor, 1 in all papers; 0: frequent categories keep theirs, down to sqrt(t).
        max_factor: the largest factor, at least 1; None: no limit.
        root: False: t / f, as detectron2 can.

    Returns:
        float64 of the same shape, from `floor` to `max_factor`.

    Raises:
        ValueError: a score outside [0, 1] or NaN, t not positive and finite, floor or cap out of range.
    """
    if not 0 < threshold < np.inf:
        raise ValueError(f"threshold must be positive and finite, but it is {threshold}")
    if not 0 <= floor <= 1 or (max_factor is not None and not max_factor >= 1):
        raise ValueError(f"floor {floor} must be in [0, 1], and max_factor {max_factor} at least 1")
    f = _share(frequency, "frequency")
    ratio = np.divide(threshold, f, out=np.ones_like(f), where=f > 0)
    return np.clip(np.sqrt(ratio) if root else ratio, floor, max_factor)


def repeat_factors(
    f_image: ArrayLike,
    f_instance: ArrayLike,
    alpha: float | np.ndarray,
    threshold: float,
    *,
    floor: float = 1.0,
    max_factor: float | None = None,
    root: bool = True,
) -> np.ndarray:
    """The category factors of the paper: eq. 4, then r = max(1, sqrt(t / f)).

    Args:
        f_image, f_instance: (C,) shares in [0, 1].
        alpha: T / T_max in [0, 1]; a scalar, or (E, 1) for a whole schedule.
        threshold: t, 0.001 in the paper.
        floor, max_factor, root: as in `factors_of_frequency`; the defaults are the paper's.

    Returns:
        (C,) or (E, C) float64, at least `floor`; 1 where f = 0.

    Raises:
        ValueError: an argument is out of range.
    """
    f = effective_frequency(f_image, f_instance, alpha)
    return factors_of_frequency(f, threshold, floor=floor, max_factor=max_factor, root=root)


def rfs_factors(f_image: ArrayLike, threshold: float) -> np.ndarray:
    """(C,) category factors of repeat factor sampling (LVIS, arXiv 1908.03195); f = f_im."""
    return factors_of_frequency(f_image, threshold)


def irfs_factors(
    f_image: ArrayLike, f_instance: ArrayLike, threshold: float, mean: Mean = "geometric"
) -> np.ndarray:
    """(C,) category factors of instance-aware repeat factor sampling (arXiv 2305.08069)."""
    return factors_of_frequency(instance_aware_frequency(f_image, f_instance, mean), threshold)


def image_factors(category_factors: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The factor of each image: the largest of its categories' factors, 1 for an image without any.

    Args:
        category_factors: (C,).
        offsets: (I + 1,) where the categories of each image begin in `labels`; ascending from 0 to P.
        labels: (P,) positions of categories.

    Returns:
        (I,) float64, one factor per image always: a shorter list would shift every later image.

    Raises:
        ValueError: `offsets` does not partition `labels`.
    """
    sizes = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(labels) or (sizes < 0).any():
        raise ValueError(f"offsets must ascend from 0 to {len(labels)}")
    factors = np.ones(len(sizes))
    filled = sizes > 0  # reduceat gives an empty segment the value of its neighbour
    if filled.any():
        begins = offsets[:-1][filled]
        factors[filled] = np.maximum.reduceat(category_factors[labels], begins)  # (P,) -> (I,)
    return factors


def alphas(
    epochs: int,
    first_epoch: int = 0,
    progress_max: float = 1.0,
    direction: Direction = "to-instances",
) -> np.ndarray:
    """(E,) alpha of every epoch, the weight of the instance level: 0, 1/E, ... by default.

    Args:
        epochs: E = T_max, at least 1.
        first_epoch: T of the first epoch, 0 or 1.
        progress_max: T / T_max stays here once it is reached.
        direction: to-instances is alpha = T / T_max; to-images is 1 - T / T_max, the way of the authors'
            early code (LT-pretrain, MultiViewDataset), whose t weighs the image level and stops at 0.5.

    Raises:
        ValueError: no epochs.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, but it is {epochs}")
    # Paper: alpha = T / T_max, T "the current epoch"; here 0-based, so that pre-training starts as RFS.
    progress = np.minimum((np.arange(epochs) + first_epoch) / epochs, progress_max)
    return progress if direction == "to-instances" else 1 - progress


def _shares(f_image: ArrayLike, f_instance: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    image, instance = _share(f_image, "f_image"), _share(f_instance, "f_instance")
    if image.shape != instance.shape:
        raise ValueError(f"f_image has shape {image.shape}, but f_instance has {instance.shape}")
    return image, instance


def _share(values: ArrayLike, name: str) -> np.ndarray:
    shares = np.asarray(values, dtype=np.float64)
    inside = (shares >= 0) & (shares <= 1)  # False for NaN
    if not inside.all():
        raise ValueError(f"{name} must be shares in [0, 1], but it holds {shares[~inside].flat[0]}")
    return shares
