"""The epoch sampler: which images each step of each epoch trains on (Sec. 3.2).

Everything is a pure function of (seed, epoch): all processes draw the same without talking, and resuming
needs a position, not a generator's state.  An epoch draws an image about as often as its repeat factor says,
so the epochs of the dynamic scheme grow with alpha; their lengths are known before training starts.

Shapes: I images, C categories, E epochs, D draws of an epoch, S steps, B images in the global batch.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import UsageError
from pipeline.stats.frequencies import CategoryFrequencies, ImageCategories
from pipeline.stats.repeat_factors import alphas, image_factors, irfs_factors, repeat_factors, rfs_factors

Scheme = Literal["random", "rfs", "irfs", "drb"]
Rounding = Literal["stochastic", "ceil"]


@dataclass(frozen=True, eq=False)
class EpochSampler:
    """Draws and batches of every epoch; see `build_sampler`."""

    categories: ImageCategories
    category_factors: np.ndarray  # (E, C) float64, at least 1
    batch_size: int  # global: all processes together
    seed: int
    is_portrait: np.ndarray | None = None  # (I,) bool: batches keep to one orientation
    rounding: Rounding = "stochastic"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(f"batch_size {self.batch_size} must be at least 1, seed {self.seed} at least 0")
        shape, portrait = (self.categories.num_images,), self.is_portrait
        if portrait is not None and (portrait.shape != shape or portrait.dtype != bool):
            raise ValueError(f"is_portrait must be {shape} bool, but it is {portrait.shape} {portrait.dtype}")

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

    def draws(self, epoch: int) -> np.ndarray:
        """(D,) int64 positions of images in the order drawn."""
        return self._draws(epoch, self._generator(epoch))

    def steps(self, epoch: int) -> np.ndarray:
        """The global batches of one epoch.

        An incomplete batch would change the batch statistics and the size of the queues' updates: up to
        batch_size - 1 draws, the last of a shuffled order, are dropped instead.  With `is_portrait` at most
        one batch mixes the orientations, and the number of batches is the same as without.

        Returns:
            (S, B) int64 positions of images.

        Raises:
            UsageError: the epoch does not fill one batch.
        """
        generator = self._generator(epoch)
        draws = self._draws(epoch, generator)
        num_steps = self._num_steps(len(draws))
        if self.is_portrait is None:
            return draws[: num_steps * self.batch_size].reshape(num_steps, self.batch_size)  # (D) -> (S, B)
        order = _grouped(self.is_portrait[draws], self.batch_size)[: num_steps * self.batch_size]
        batches = draws[order].reshape(num_steps, self.batch_size)  # (S B) -> (S, B)
        return generator.permutation(batches)

    def lengths(self) -> np.ndarray:
        """(E,) int64 steps of every epoch.

        Raises:
            UsageError: an epoch does not fill one batch.
        """
        return self._lengths.copy()

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        totals = [int(self._copies(e, self._generator(e)).sum()) for e in range(self.epochs)]
        return np.array([self._num_steps(total) for total in totals], dtype=np.int64)

    def _planned(self, epoch: int) -> int:
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch {epoch} is not one of the {self.epochs} epochs planned")
        return epoch

    def _generator(self, epoch: int) -> np.random.Generator:
        key = np.array([self.seed, self._planned(epoch)], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _copies(self, epoch: int, generator: np.random.Generator) -> np.ndarray:
        """(I,) int64: how often each image is drawn; the first use of the epoch's generator."""
        factors = self.image_factors(epoch)
        if self.rounding == "ceil":
            return np.ceil(factors).astype(np.int64)
        whole = np.floor(factors)
        return (whole + (generator.random(len(factors)) < factors - whole)).astype(np.int64)

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


def _grouped(is_portrait: np.ndarray, batch_size: int) -> np.ndarray:
    """(D,) order of the draws in which whole batches of one orientation come first, then what is left over.

    What is left over of both keeps the order drawn, so that neither orientation is dropped more often.
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
    threshold: float,
    batch_size: int,
    seed: int,
    is_portrait: np.ndarray | None = None,
    rounding: Rounding = "stochastic",
    first_epoch: int = 0,
) -> EpochSampler:
    """The sampler of one training run.

    Args:
        scheme: random (each image once), rfs, irfs (both fixed), or drb (eq. 4, alpha = epoch / epochs).
        frequencies: of the split that is trained on.
        categories: of the images to draw from.
        epochs: E, at least 1.
        threshold: t > 0 (`resolve_threshold`).
        batch_size: images of one step on all processes together.
        seed: at least 0.
        is_portrait: (I,) bool to keep orientations apart, or None.
        rounding: stochastic (expected copies equal the factor) or ceil (mmengine's ClassBalancedDataset).
        first_epoch: T of the first epoch in alpha = T / T_max, 0 or 1.

    Raises:
        ValueError: a number is out of range.
    """
    factors = category_factors(scheme, frequencies, epochs, threshold, first_epoch)
    return EpochSampler(categories, factors, batch_size, seed, is_portrait, rounding)


def category_factors(
    scheme: Scheme, frequencies: CategoryFrequencies, epochs: int, threshold: float, first_epoch: int = 0
) -> np.ndarray:
    """(E, C) float64 factors of every category in every epoch; arguments as in `build_sampler`."""
    schedule = alphas(epochs, first_epoch)
    f_image, f_instance = frequencies.f_image, frequencies.f_instance
    if scheme == "drb":
        return repeat_factors(f_image, f_instance, schedule[:, None], threshold)  # (E,) -> (E, C)
    fixed = {
        "random": lambda: np.ones(len(f_image)),
        "rfs": lambda: rfs_factors(f_image, threshold),
        "irfs": lambda: irfs_factors(f_image, f_instance, threshold),
    }[scheme]()
    return np.tile(fixed, (epochs, 1))  # (C,) -> (E, C)


def expected_draws(
    factors: np.ndarray, categories: ImageCategories, rounding: Rounding = "stochastic"
) -> np.ndarray:
    """(E,) float64 mean number of draws of every epoch, for (E, C) category factors."""
    images = [image_factors(row, categories.offsets, categories.labels) for row in factors]
    return np.array([(np.ceil(r) if rounding == "ceil" else r).sum() for r in images])
