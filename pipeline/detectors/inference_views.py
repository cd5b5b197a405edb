"""Images as a detector sees them at test time: decoded, resized, in batches that fill one canvas."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.annotations import Annotations
from pipeline.data.handover import Handover
from pipeline.data.images import read_image
from pipeline.data.loading import TIMEOUT_S, belong_to_the_trainer
from pipeline.data.photometric import normalise, on_canvas, to_float
from pipeline.data.views import Geometry, limit_wh, resized_wh
from pipeline.errors import TwoDRCLError

DIVISOR = 32  # sides of a canvas


@dataclass(frozen=True)
class View:
    """One image as a detector sees it: `batch` (1, 3, height, width) is the canvas, normalised, whose upper
    left `view_wh` the view fills."""

    batch: Tensor
    view_wh: tuple[int, int]
    stored_wh: tuple[int, int]


def view_of(
    annotations: Annotations, images: Path, test_wh: tuple[int, int], position: int, device: torch.device
) -> View:
    """Decode and prepare the image at `position`, as `detect` does.

    Raises:
        MissingInput, InputError: as `detect`.
    """
    pixels = TestViews(annotations, images, test_wh)._view(position)
    view_wh = (pixels.shape[1], pixels.shape[0])
    width, height = (int(side) for side in annotations.sizes_wh[position])
    batch = on_canvas([normalise(to_float(pixels, device))], padded_wh(view_wh))
    return View(batch, view_wh, (width, height))


def batches_of_one_canvas(
    sizes_wh: np.ndarray, positions: Iterable[int], test_wh: tuple[int, int], batch: int
) -> list[list[int]]:
    """Batches of at most `batch` images, as full as can be; each image's canvas is what it has alone.

    Args:
        sizes_wh: (I, 2) stored sizes.
        positions: of the images to divide; canvases in the order of their first image.
        test_wh: as for `detect`.
        batch: largest number of images.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position in positions:
        groups.setdefault(_canvas_wh(sizes_wh[position], test_wh), []).append(int(position))
    return [group[i : i + batch] for group in groups.values() for i in range(0, len(group), batch)]


def runs_of_one_canvas(
    sizes_wh: np.ndarray, order: Iterable[int], test_wh: tuple[int, int], batch: int
) -> list[list[int]]:
    """Runs of consecutive images that fill one canvas, at most `batch` long."""
    runs: list[list[int]] = []
    canvas = None
    for position in order:
        before, canvas = canvas, _canvas_wh(sizes_wh[position], test_wh)
        if canvas != before or len(runs[-1]) == batch:
            runs.append([])
        runs[-1].append(int(position))
    return runs


class TestViews(Dataset[Any]):
    """Positions of a batch -> uint8 views (h, w, 3), or the user's error: DataLoader would bury it in a
    worker's traceback."""

    def __init__(self, annotations: Annotations, images: Path, test_wh: tuple[int, int]) -> None:
        # no more of the annotations than is needed: it is copied to the workers
        self.paths = [images / name for name in annotations.file_names]
        self.sizes_wh, self.test_wh = annotations.sizes_wh, test_wh

    def __getitem__(self, positions: Sequence[int]) -> list[np.ndarray] | TwoDRCLError:
        try:
            return [self._view(position) for position in positions]
        except TwoDRCLError as problem:
            return problem

    def _view(self, position: int) -> np.ndarray:
        width, height = (int(side) for side in self.sizes_wh[position])
        geometry = _test_geometry(self.sizes_wh[position], self.test_wh)
        return geometry.apply(read_image(self.paths[position], (width, height)))


def loader_of(
    views: TestViews, batches: Sequence[Sequence[int]], workers: int, handover: Handover
) -> DataLoader[Any]:
    """What `views` has for each batch, in their order, for `handover` to unpack."""
    return DataLoader(
        views,
        batch_size=None,  # one index is a whole batch
        sampler=batches,
        num_workers=workers,
        collate_fn=handover.packed,
        timeout=TIMEOUT_S if workers else 0,
        worker_init_fn=belong_to_the_trainer,
        generator=torch.Generator(),  # the loader draws its workers' seeds; not from the global one
    )


def _canvas_wh(size_wh: np.ndarray, test_wh: tuple[int, int]) -> tuple[int, int]:
    return padded_wh(_test_geometry(size_wh, test_wh).size_wh)


def padded_wh(size_wh: tuple[int, int]) -> tuple[int, int]:
    width, height = size_wh
    return -(-width // DIVISOR) * DIVISOR, -(-height // DIVISOR) * DIVISOR


def _test_geometry(size_wh: np.ndarray, test_wh: tuple[int, int]) -> Geometry:
    wh = (int(size_wh[0]), int(size_wh[1]))
    long, short = test_wh
    return Geometry((0, 0, *wh), resized_wh(wh, short, limit_wh(wh, (short,), long)), flip=False)
