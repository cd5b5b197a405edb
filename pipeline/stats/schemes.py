"""From counts and settings to the factors of every epoch: random, RFS, IRFS and eq. 4 (`drb`), Sec. 3.2.

The only place where the settings meet the formulas of `repeat_factors`: tables, figures and sampler ask here,
so that they show and use the same numbers.

Shapes: C categories, E epochs.
"""

from typing import Literal

import numpy as np

from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.repeat_factors import (
    alphas,
    effective_frequency,
    factors_of_frequency,
    instance_aware_frequency,
)
from pipeline.stats.settings import StatsSettings, resolve_threshold

Scheme = Literal["random", "rfs", "irfs", "drb"]
SCHEMES: tuple[Scheme, ...] = ("random", "rfs", "irfs", "drb")


def alpha_schedule(epochs: int, settings: StatsSettings) -> np.ndarray:
    """(E,) the weight of the instance level in eq. 4.

    Raises:
        ValueError: no epochs.
    """
    return alphas(epochs, settings.first_epoch, settings.progress_max, settings.direction)


def category_scores(
    scheme: Scheme, frequencies: CategoryFrequencies, epochs: int, settings: StatsSettings
) -> np.ndarray:
    """(E, C) float64 score f of every category in every epoch; arguments as in `category_factors`."""
    f_image, f_instance = frequencies.f_image, frequencies.f_instance
    schedule = alpha_schedule(epochs, settings)
    if scheme == "drb":
        return effective_frequency(f_image, f_instance, schedule[:, None])  # (E,) -> (E, C)
    mean = settings.irfs_mean
    fixed = instance_aware_frequency(f_image, f_instance, mean) if scheme == "irfs" else f_image
    return np.tile(fixed, (epochs, 1))  # (C,) -> (E, C)


def category_factors(
    scheme: Scheme, frequencies: CategoryFrequencies, epochs: int, settings: StatsSettings
) -> np.ndarray:
    """The repeat factor of every category in every epoch.

    Args:
        scheme: random (each image once), rfs, irfs (both the same in all epochs), or drb (eq. 4).
        frequencies: of the split that is trained on.
        epochs: E, at least 1.
        settings: threshold, schedule of alpha, floor and cap.

    Returns:
        (E, C) float64, from `settings.floor` to `settings.max_factor`; 1 for `random`.

    Raises:
        ValueError: no epochs.
    """
    scores = category_scores(scheme, frequencies, epochs, settings)
    return np.ones_like(scores) if scheme == "random" else factors_of_scores(scores, frequencies, settings)


def factors_of_scores(
    scores: np.ndarray, frequencies: CategoryFrequencies, settings: StatsSettings
) -> np.ndarray:
    """float64 factors of any scores, of the same shape, with the threshold, floor and cap of the settings."""
    return factors_of_frequency(
        scores,
        resolve_threshold(settings.threshold, frequencies.num_images),
        floor=settings.floor,
        max_factor=settings.max_factor,
        root=settings.root,
    )


def factors_at_both_ends(frequencies: CategoryFrequencies, settings: StatsSettings) -> np.ndarray:
    """(2, C) factors of eq. 4 at alpha = 0 and at alpha = 1.

    In between a factor is monotonic, so a category falls as alpha rises exactly if its second is the smaller.
    """
    ends = np.array([[0.0], [1.0]])
    scores = effective_frequency(frequencies.f_image, frequencies.f_instance, ends)  # (2, 1) -> (2, C)
    return factors_of_scores(scores, frequencies, settings)


def falling_categories(frequencies: CategoryFrequencies, settings: StatsSettings) -> np.ndarray:
    """(F,) positions of the categories whose factor falls as alpha rises, by falling ratio.

    They have more boxes per image than the data set on average, so that f_in > f_im: eq. 4 takes from them.
    """
    first, last = factors_at_both_ends(frequencies, settings)
    falling = np.flatnonzero(last < first)
    return falling[np.argsort(last[falling] / first[falling], kind="stable")]
