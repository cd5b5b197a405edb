"""The long tail of the sample: how many images each category gets, and which objects go into which image.

Train follows a Zipf-Mandelbrot law over ranks r = 1..C, in images that contain the category:

    n_r = max(rarest, head * I * ((r + shift) / (1 + shift)) ** -exponent)

Val deals all categories equally often.  Which category has which rank is shuffled by the seed, because in
LVIS ids say nothing about frequency either.

Shapes: I images, C categories, T objects to place in all images (slots).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.data.sample_shapes import RIMS, SHAPES, TEXTURES
from pipeline.errors import SettingsError
from pipeline.settings import setting

TRAIN, VAL = 0, 1  # first key of every random stream
MAX_CATEGORIES = 1203  # as many as LVIS v1
assert len(SHAPES) * len(TEXTURES) * len(RIMS) >= MAX_CATEGORIES


@dataclass(frozen=True)
class SampleSettings:
    """Size, tail and difficulty of the sample data set."""

    train_images: int = setting(240, "a small detector learns it on a CPU in minutes", low=1, high=100_000)
    val_images: int = setting(100, "enough for some 25 objects per category", low=1, high=100_000)
    width: int = setting(160, "pixels; of a landscape image", low=32, high=4096)
    height: int = setting(128, "pixels; of a landscape image", low=32, high=4096)
    portrait_fraction: float = setting(0.25, "share of images with both swapped", low=0, high=1)
    categories: int = setting(16, "shape and texture; beyond 160 also a rim", low=2, high=MAX_CATEGORIES)
    head_fraction: float = setting(0.8, "share of train images with the commonest category", low=0, high=1)
    rarest_images: int = setting(2, "train images of the rarest category", low=1, high=100_000)
    zipf_exponent: float | Literal["auto"] = setting(
        "auto", "auto: the one that ends at rarest_images", low=0, high=10
    )
    zipf_shift: float = setting(2.0, "Mandelbrot's shift of the rank: widens the head", low=0, high=1000)
    rare_fraction: float = setting(
        0.02, "r: at most this share of the train images (LVIS: 10 of 100,170)", low=0, high=1
    )
    common_fraction: float = setting(
        0.08, "c: at most this share of the train images (LVIS: 100 of 100,170)", low=0, high=1
    )
    val_instances: int = setting(6, "least val objects per category, or tail AP is noise", low=1, high=1000)
    objects_per_image: tuple[int, int] = setting((2, 6), "fewest and most", low=1, high=50)
    object_size_px: tuple[int, int] = setting(
        (16, 68), "longer side of the box; log-uniform", low=8, high=4096
    )
    min_visible: float = setting(0.35, "no object is covered more than this leaves", low=0.05, high=1)
    clutter: tuple[int, int] = setting((3, 8), "things of no category behind the objects", low=0, high=100)
    negatives_per_image: int = setting(
        8, "verified absent categories (LVIS: 9.4)", low=0, high=MAX_CATEGORIES
    )
    not_exhaustive_fraction: float = setting(
        0.1,
        "share of repeated categories of an image with one object left out of the LVIS files",
        low=0,
        high=1,
    )
    jpeg_quality: int = setting(90, "of Pillow", low=50, high=95)

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        for name in ("objects_per_image", "object_size_px", "clutter"):
            low, high = getattr(self, name)
            if low > high:
                raise SettingsError(f"{name} must be ascending, but it is {low}, {high}")
        if self.object_size_px[1] > min(self.width, self.height):
            raise SettingsError(
                f"object_size_px goes up to {self.object_size_px[1]}, more than the shorter side "
                f"of a {self.width} x {self.height} image",
                "lower it, or enlarge the images",
            )
        if self.rare_fraction > self.common_fraction:
            raise SettingsError(
                f"rare_fraction {self.rare_fraction} is above common_fraction {self.common_fraction}"
            )
        self._check_room("train_images", self.train_images, 1)
        self._check_room("val_images", self.val_images, self.val_instances)

    def _check_room(self, name: str, images: int, each: int) -> None:
        """Every category must fit in, even if every image holds the fewest objects."""
        needed = -(-self.categories * each // self.objects_per_image[0])
        if images < needed:
            raise SettingsError(
                f"{name} is {images}: too few for {each} object(s) of each of {self.categories} categories",
                f"{name}: {needed} is enough (objects_per_image starts at {self.objects_per_image[0]})",
            )


@dataclass(frozen=True)
class Assignment:
    """The objects to place, image by image, rarest category first."""

    labels: np.ndarray  # (T,) 0-based category
    offsets: np.ndarray  # (I + 1,) where the objects of each image begin

    def of_image(self, index: int) -> np.ndarray:
        """(n,) categories of the objects of the image at position `index`."""
        return self.labels[self.offsets[index] : self.offsets[index + 1]]


def stream(seed: int, *key: int) -> np.random.Generator:
    """The random numbers of one purpose; no other purpose or image can disturb them."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def tail(settings: SampleSettings) -> np.ndarray:
    """(C,) int64 wanted train images per rank, most frequent first (the law in the module docstring)."""
    images, count, shift = settings.train_images, settings.categories, settings.zipf_shift
    head = max(1.0, settings.head_fraction * images)
    rarest = min(settings.rarest_images, head)
    exponent = settings.zipf_exponent
    if exponent == "auto":
        exponent = math.log(head / rarest) / math.log((count + shift) / (1 + shift))
    ranks = np.arange(1, count + 1)
    wanted = head * ((ranks + shift) / (1 + shift)) ** -exponent
    return np.maximum(np.rint(wanted), rarest).astype(np.int64)


def ranking(settings: SampleSettings, seed: int) -> np.ndarray:
    """(C,) categories from the most frequent to the rarest."""
    return stream(seed, TRAIN).permutation(settings.categories)


def assign(settings: SampleSettings, seed: int, split: int) -> Assignment:
    """Which categories each image of a split shows, and how often."""
    images = (settings.train_images, settings.val_images)[split]
    rng = stream(seed, split, 0)
    low, high = settings.objects_per_image
    slots = rng.integers(low, high, size=images, endpoint=True)
    by_rank = ranking(settings, seed)
    deal = _deal_tail if split == TRAIN else _deal_evenly
    image, rank = deal(tail(settings), slots, rng)
    order = np.lexsort((-rank, image))
    return Assignment(by_rank[rank[order]], np.searchsorted(image[order], np.arange(images + 1)))


def _deal_tail(
    wanted: np.ndarray, slots: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) image and (T,) rank of every object: first each category once in its images, then repeats.

    The rarest choose first, so that their counts are exact; the most frequent gets the images that are still
    empty, whatever its own count.
    """
    wanted, free = _shrink(wanted, int(slots.sum())), slots.copy()
    images, ranks = [], []
    for rank in range(len(wanted) - 1, 0, -1):
        room = np.flatnonzero(free > 0)
        chosen = rng.choice(room, size=min(int(wanted[rank]), len(room)), replace=False)
        free[chosen] -= 1
        images.append(chosen)
        ranks.append(np.full(len(chosen), rank))
    head = _head_images(int(wanted[0]), free, slots, rng)
    free[head] -= 1
    once = np.concatenate([*images, head]), np.concatenate([*ranks, np.zeros(len(head), dtype=np.int64)])
    again = _repeat(*once, free, rng)
    return np.concatenate([once[0], again[0]]), np.concatenate([once[1], again[1]])


def _shrink(wanted: np.ndarray, room: int) -> np.ndarray:
    """Counts (C,) in about the same proportions, none below 1, that sum to `room` at most."""
    fitting, scale = wanted, 1.0
    while fitting.sum() > room:
        scale *= 0.95
        fitting = np.maximum((wanted * scale).astype(np.int64), 1)
    return fitting


def _head_images(count: int, free: np.ndarray, slots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every image that is still empty, then random ones with room, until there are `count`."""
    empty = np.flatnonzero(free == slots)
    others = np.flatnonzero((free > 0) & (free < slots))
    extra = min(max(count - len(empty), 0), len(others))
    return np.concatenate([empty, rng.choice(others, size=extra, replace=False)])


def _repeat(
    image: np.ndarray, rank: np.ndarray, free: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the free slots of each image with categories that it already shows."""
    order = np.argsort(image, kind="stable")
    begin = np.searchsorted(image[order], np.arange(len(free) + 1))
    target = np.repeat(np.arange(len(free)), free)
    pick = begin[target] + rng.integers(0, np.diff(begin)[target])
    return target, rank[order][pick]


def _deal_evenly(
    wanted: np.ndarray, slots: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) image and (T,) rank: every category equally often (up to one), shuffled over all slots."""
    deck = np.resize(rng.permutation(len(wanted)), slots.sum())
    return np.repeat(np.arange(len(slots)), slots), rng.permutation(deck)


def frequency_letters(image_count: np.ndarray, settings: SampleSettings) -> list[str]:
    """LVIS' r, c, f from train images per category (C,), with cuts in proportion to the size of the set.

    LVIS v1 cuts at 10 and 100 of 100,170 train images; a set of a few hundred images would be all r and c.
    """
    rare = settings.rare_fraction * settings.train_images
    common = settings.common_fraction * settings.train_images
    return ["r" if n <= rare else "c" if n <= common else "f" for n in image_count.tolist()]
