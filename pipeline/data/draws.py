"""What is drawn, as a function of (seed, epoch, draw, purpose) alone.

A draw is one visit of one image.  Its augmentation, its RoI samples, its choice of boxes and its masks come
from generators keyed by the draw's numbers, so no worker, no process and no resume changes them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# What a generator is for.  The numbers are part of the reproducibility contract: append, never renumber.
PURPOSES = {
    "view_query": 0,
    "view_key": 1,
    "roi_samples": 2,
    "box_choice": 3,
    "masks": 4,
    "photo_query": 5,
    "photo_key": 6,
    "proposals": 7,
    "paste": 8,
}


@dataclass(frozen=True)
class Draw:
    """One visit of the image at position `image` (0-based) of the annotations, as number `index` of `epoch`.

    `canvas_wh` is the size that the whole global batch is padded to: it must not depend on the process.
    """

    epoch: int
    index: int
    image: int
    canvas_wh: tuple[int, int]


def generator(seed: int, draw: Draw, purpose: str) -> np.random.Generator:
    """The numpy generator of one purpose of one draw."""
    key = [seed, draw.epoch, draw.index, PURPOSES[purpose]]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def key_of(seed: int, draw: Draw, purpose: str) -> int:
    """A 62-bit key for generators that are not numpy's."""
    state = np.random.SeedSequence([seed, draw.epoch, draw.index, PURPOSES[purpose]]).generate_state(
        1, np.uint64
    )
    return int(state[0] >> np.uint64(2))


class Sampler(Protocol):
    """What decides which images an epoch draws (pipeline.stats.sampler)."""

    def steps(self, epoch: int) -> np.ndarray:
        """(S, batch) positions of images: the global batches of an epoch."""
        ...


class GlobalBatches:
    """Iterates over this process's share of the global batches, from any step on.

    Args:
        sampler: the order of every epoch.
        epoch_steps: number of steps of each epoch.
        canvas: positions of the images of a global batch -> (width, height) that holds them.
        start, stop: first and one past the last global step.
        rank, world: this process takes an equal, contiguous share of each batch.
    """

    def __init__(
        self,
        sampler: Sampler,
        epoch_steps: Sequence[int],
        canvas: Callable[[np.ndarray], tuple[int, int]],
        *,
        start: int,
        stop: int,
        rank: int,
        world: int,
    ) -> None:
        self.sampler, self.epoch_steps, self.canvas = sampler, epoch_steps, canvas
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        first = 0
        for epoch, count in enumerate(self.epoch_steps):
            begin, end = max(self.start - first, 0), min(self.stop - first, count)
            if begin < end:
                yield from self._of_epoch(epoch, begin, end)
            first += count

    def _of_epoch(self, epoch: int, begin: int, end: int) -> Iterator[list[Draw]]:
        steps = self.sampler.steps(epoch)
        batch = steps.shape[1]
        share = batch // self.world
        for step in range(begin, end):
            mine = range(self.rank * share, (self.rank + 1) * share)
            canvas = self.canvas(steps[step])
            yield [Draw(epoch, step * batch + i, int(steps[step, i]), canvas) for i in mine]


def images_of_step(sampler: Sampler, epoch_steps: Sequence[int], step: int) -> np.ndarray:
    """(batch,) positions of the images of a global step."""
    for epoch, count in enumerate(epoch_steps):
        if step < count:
            return np.asarray(sampler.steps(epoch)[step])
        step -= count
    raise IndexError(f"the run ends {step + 1} steps before")
