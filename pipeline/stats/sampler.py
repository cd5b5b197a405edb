"""The epoch sampler: which images each step of each epoch trains on (Sec. 3.2).

Everything is a pure function of (seed, epoch): all processes draw the same without talking, and resuming
needs a position, not a generator's state.  An epoch draws an image about as often as its repeat factor says,
so the epochs of the dynamic scheme grow with alpha; their lengths are known before training starts.

An image without categories has the factor 1 in every scheme, also where the floor is 0: so it is in mmengine,
detectron2 and the authors' early code, as far as they have not filtered it out before.

Shapes: I images, C categories, E epochs, D draws of an epoch, S steps, B images in the global batch.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import UsageError
from pipeline.stats.frequencies import CategoryFrequencies, ImageCategories
from pipeline.stats.repeat_factors import image_factors
from pipeline.stats.schemes import Scheme, category_factors
from pipeline.stats.settings import StatsSettings

Rounding = Literal["stochastic", "ceil"]
Length = Literal["growing", "fixed", "images"]


@dataclass(frozen=True, eq=False)
class EpochSampler:
    """Draws and batches of every epoch; see `build_sampler`."""

    categories: ImageCategories
    category_factors: np.ndarray  # (E, C) float64, positive
    batch_size: int  # global: all processes together
    seed: int
    is_portrait: np.ndarray | None = None  # (I,) bool: batches keep to one orientation
    rounding: Rounding = "stochastic"
    length: Length = "growing"  # otherwise `rounding` must be stochastic

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(f"batch_size {self.batch_size} must be at least 1, seed {self.seed} at least 0")
        shape, portrait = (self.categories.num_images,), self.is_portrait
        if portrait is not None and (portrait.shape != shape or portrait.dtype != bool):
            raise ValueError(f"is_portrait must be {shape} bool, but it is {portrait.shape} {portrait.dtype}")
        if self.rounding == "ceil" and self.length != "growing":
            raise ValueError(f"factors that are rounded up do not sum to a length that is {self.length}")

    @property
    def epochs(self) -> int:
        """E."""
        return len(self.category_factors)

    @property
    def all_ones(self) -> bool:
        """Whether no image is ever repeated: rebalancing is without effect on this data."""
        present = np.unique(self.categories.labels)
        return bool((self.category_factors[:, present] == 1).all())

    def image_factors(self, epoch: int) -> np.ndarray:
        """(I,) float64 repeat factors of one epoch."""
        factors = self.category_factors[self._planned(epoch)]
        return image_factors(factors, self.categories.offsets, self.categories.labels)

    def expected_copies(self, epoch: int) -> np.ndarray:
        """(I,) float64 mean number of times that one epoch draws each image."""
        factors = self.image_factors(epoch)
        if self.length != "growing":
            return factors * (self._fixed_draws / factors.sum())
        return np.ceil(factors) if self.rounding == "ceil" else factors

    def expected_draws(self) -> np.ndarray:
        """(E,) float64 mean number of draws of every epoch."""
        return np.array([self.expected_copies(epoch).sum() for epoch in range(self.epochs)])

    def draws(self, epoch: int) -> np.ndarray:
        """(D,) int64 positions of images in the order drawn."""
        return self._draws(epoch, self._generator(epoch))

    def steps(self, epoch: int) -> np.ndarray:
        """The global batches of one epoch; a run that resumes in its middle takes the rows that are left.

        An incomplete batch would change the batch statistics and the size of the queues' updates: up to
        batch_size - 1 draws, the last of a shuffled order, are dropped instead.  `is_portrait` changes how
        the others are batched, not which they are: at most one batch mixes the orientations.

        Returns:
            (S, B) int64 positions of images.

        Raises:
            UsageError: the epoch does not fill one batch.
        """
        generator = self._generator(epoch)
        draws = self._draws(epoch, generator)
        num_steps = self._num_steps(len(draws))
        kept = draws[: num_steps * self.batch_size]
        if self.is_portrait is None:
            return kept.reshape(num_steps, self.batch_size)  # (S B) -> (S, B)
        order = _grouped(self.is_portrait[kept], self.batch_size)
        return generator.permutation(kept[order].reshape(num_steps, self.batch_size))  # (S B) -> (S, B)

    def lengths(self) -> np.ndarray:
        """(E,) int64 steps of every epoch.

        Raises:
            UsageError: an epoch does not fill one batch.
        """
        return self._lengths.copy()

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        if self.length != "growing":
            return np.full(self.epochs, self._num_steps(self._fixed_draws), dtype=np.int64)
        totals = [int(self._copies(e, self._generator(e)).sum()) for e in range(self.epochs)]
        return np.array([self._num_steps(total) for total in totals], dtype=np.int64)

    @functools.cached_property
    def _fixed_draws(self) -> int:
        """D of all epochs where they do not grow."""
        images = self.categories.num_images
        return images if self.length == "images" else round(self.image_factors(0).sum())

    def _planned(self, epoch: int) -> int:
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch {epoch} is not one of the {self.epochs} epochs planned")
        return epoch

    def _generator(self, epoch: int) -> np.random.Generator:
        key = np.array([self.seed, self._planned(epoch)], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _copies(self, epoch: int, generator: np.random.Generator) -> np.ndarray:
        """(I,) int64: how often each image is drawn; the first use of the epoch's generator."""
        expected = self.expected_copies(epoch)
        if self.length != "growing":
            return _systematic(expected, self._fixed_draws, generator)
        whole = np.floor(expected)
        return (whole + (generator.random(len(expected)) < expected - whole)).astype(np.int64)

    def _draws(self, epoch: int, generator: np.random.Generator) -> np.ndarray:
        copies = self._copies(epoch, generator)
        return generator.permutation(np.repeat(np.arange(len(copies)), copies))  # (I,) -> (D,)

    def _num_steps(self, num_draws: int) -> int:
        if num_draws < self.batch_size:
            raise UsageError(
                f"an epoch of {num_draws} draws does not fill one batch of {self.batch_size} images",
                f"lower the batch size to at most {num_draws}, or train on more images",
            )
        return num_draws // self.batch_size


def _systematic(expected: np.ndarray, num_draws: int, generator: np.random.Generator) -> np.ndarray:
    """(I,) int64 copies that sum to `num_draws`, each the floor of its mean or one more, with that mean.

    Systematic resampling: the means lie end to end on a line, and every integer distance from one random
    offset draws the image that it hits.  In random order, lest neighbours in the file exclude each other.
    """
    order = generator.permutation(len(expected))
    ends = np.floor(np.cumsum(expected[order]) + generator.random())
    ends = np.minimum(ends, num_draws)  # the sum of the means is num_draws only up to rounding
    ends[-1] = num_draws
    copies = np.empty(len(expected), dtype=np.int64)
    copies[order] = np.diff(ends, prepend=0)
    return copies


def _grouped(is_portrait: np.ndarray, batch_size: int) -> np.ndarray:
    """(S B,) order of the draws in which whole batches of one orientation come first.

    What is left over of both, nothing or one batch, comes last, in the order drawn.
    """
    groups = [np.flatnonzero(~is_portrait), np.flatnonzero(is_portrait)]
    whole = [len(group) // batch_size * batch_size for group in groups]
    left_over = np.sort(np.concatenate([group[n:] for group, n in zip(groups, whole, strict=True)]))
    return np.concatenate([groups[0][: whole[0]], groups[1][: whole[1]], left_over])


def build_sampler(
    scheme: Scheme,
    frequencies: CategoryFrequencies,
    categories: ImageCategories,
    epochs: int,
    settings: StatsSettings,
    batch_size: int,
    seed: int,
    is_portrait: np.ndarray | None = None,
) -> EpochSampler:
    """The sampler of one training run.

    Args:
        scheme: random (each image once), rfs, irfs (both fixed), or drb (eq. 4, alpha = epoch / epochs).
        frequencies: of the split that is trained on.
        categories: of the images to draw from.
        epochs: E, at least 1.
        settings: the factors, their rounding and the length of the epochs.
        batch_size: images of one step on all processes together.
        seed: at least 0.
        is_portrait: (I,) bool to keep orientations apart, or None.

    Raises:
        ValueError: a number is out of range.
    """
    factors = category_factors(scheme, frequencies, epochs, settings)
    return EpochSampler(
        categories, factors, batch_size, seed, is_portrait, settings.rounding, settings.length
    )
