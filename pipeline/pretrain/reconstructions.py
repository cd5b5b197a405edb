"""The same few training images reconstructed at some moments of a run, so that people can see g learn.

    x, then g(f(x)) at the start and after some epochs, and of the last one M(g(f(x))), which SR encodes again

Nothing of the run changes by it: no random stream, no statistics, no mode of a module, no collective.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts import replacing
from pipeline.data.photometric import pixels_of
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.pretrain.views import PretrainSample

IMAGES = 4
MOMENTS = 6  # at most
LONGEST_SIDE = 192  # of a stored picture, pixels


def moments(epochs: int) -> list[int]:
    """Finished epochs after which to look, 0 and the last among them."""
    return sorted({round(i * epochs / (MOMENTS - 1)) for i in range(MOMENTS)})


class Reconstructions(Hook):
    """Keeps what the first process reconstructs, a file per moment.

    Comes before `Checkpoints`: what it sees before training are the initial weights, also of a run that goes
    on, and when a checkpoint is written, its moments are there.

    Args:
        folder: of the files.
        draw: makes the images, as they are drawn for training; asked once, if at all.
    """

    def __init__(self, folder: Path, draw: Callable[[], Sequence[PretrainSample]]) -> None:
        self.folder, self._draw = folder, draw

    @cached_property
    def samples(self) -> Sequence[PretrainSample]:
        """The images."""
        return self._draw()[:IMAGES]

    def before_train(self, trainer: Trainer) -> None:
        self._look(trainer, 0)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        ends = trainer.schedule.ends
        if trainer.step in ends and ends.index(trainer.step) + 1 in moments(len(ends)):
            self._look(trainer, ends.index(trainer.step) + 1)

    def _look(self, trainer: Trainer, epoch: int) -> None:
        path = self.folder / f"epoch-{epoch:04d}.npz"
        if not trainer.process.is_first or path.exists():
            return
        seen: dict[str, np.ndarray] = {}
        with torch.no_grad(), evaluating(trainer.model):
            for number, sample in enumerate(self.samples):
                seen |= {f"{name}-{number}": pixels for name, pixels in _seen(trainer.model, sample).items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **seen)  # type: ignore[arg-type]


def _seen(model: Any, sample: PretrainSample) -> dict[str, np.ndarray]:
    """The view, its reconstruction, and that under SR's masks: (h, w, 3) uint8 each."""
    batch = model.to_batch([sample])  # alone: the memory of one image, whatever the run's batch
    painting = model.paint(batch, model.detector.encoder.trunk(batch.query, model.bf16)[-1])
    views = {"view": painting.image, "reconstruction": painting.reconstruction}
    if "sr" in model.settings.terms:
        views["masked"] = painting.masked
    return {name: _small(view[0], painting.sizes_wh[0]) for name, view in views.items()}


def _small(view: Tensor, size_wh: Tensor) -> np.ndarray:
    pixels = (255 * pixels_of(view, size_wh)).round().astype(np.uint8)
    scale = LONGEST_SIDE / max(pixels.shape)
    if scale < 1:
        wh = [max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0])]
        pixels = np.asarray(cv2.resize(pixels, wh, interpolation=cv2.INTER_AREA))
    return pixels


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and then in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
