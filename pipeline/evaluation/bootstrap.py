"""How far a number would move on other images like these: the bootstrap over images.

N times as many images are drawn, with replacement, as the split has; what each draw gives is one sample of
every metric.  The matches stay, since no image's depend on another's: a sample only weighs them anew.  The
draws follow from (seed, number of images, N), so that two runs on one split are compared draw by draw.

The categories stay too: the interval is about these categories on other images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

LEVEL = 95.0  # percent of the samples inside the interval
AT_ONCE = 50  # resamples: 0.8 GB at LVIS's size


def draws(num_images: int, num_samples: int, seed: int) -> np.ndarray:
    """(N, I) int16: how often each sample holds each image."""
    generator = np.random.default_rng([seed, num_images])
    share = np.full(num_images, 1 / max(1, num_images))
    return generator.multinomial(num_images, share, size=num_samples).astype(np.int16)


def bootstrap(
    weigh: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    num_images: int,
    num_samples: int,
    seed: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> dict[str, np.ndarray]:
    """Samples of every metric.

    Args:
        weigh: (B, I) weights -> {metric: (B,)}.
        num_images: of the split.
        num_samples: N.
        seed: of the draws.
        track: wraps the loop, for a progress bar.

    Returns:
        {metric: (N,) percent, NaN where the sample has no object of the group}.
    """
    weights = draws(num_images, num_samples, seed)
    parts = [weigh(weights[start : start + AT_ONCE]) for start in track(range(0, num_samples, AT_ONCE))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """Percentile interval of `LEVEL`; None where no sample has a value."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return None
    low, high = np.percentile(known, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float | None:
    """Two-sided: twice the smaller share of samples on one side of 0, both counting a tie.

    At least 2 / (N + 1): N samples cannot say less.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return None
    least = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (least + 1) / (len(known) + 1)))
