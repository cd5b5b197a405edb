"""What one draw brings to supervised training: one view (multi-scale resize, flip) and its targets."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pipeline.data.annotations import Annotations
from pipeline.data.draws import Draw, generator, key_of
from pipeline.data.images import read_image
from pipeline.data.targets import Target, target_of
from pipeline.data.views import draw_geometry


@dataclass(frozen=True)
class ViewSample:
    """One draw on the host."""

    canvas_wh: tuple[int, int]
    image: np.ndarray  # (h, w, 3) uint8
    target: Target


class SingleViewDataset(Dataset[ViewSample]):
    """Draw -> ViewSample, in any worker process.

    Args:
        annotations: the split.
        images: its folder.
        short_sides, long_side: of the view, as in `draw_geometry`.
        flip: probability.
        seed: of every draw.
        with_polygons: carry polygons for mask losses.
        class_agnostic: every label becomes 0.
    """

    def __init__(
        self,
        annotations: Annotations,
        images: Path,
        short_sides: tuple[int, ...],
        long_side: int,
        *,
        flip: float,
        seed: int,
        with_polygons: bool = False,
        class_agnostic: bool = False,
    ) -> None:
        self.annotations, self.images = annotations, images
        self.short_sides, self.long_side, self.flip, self.seed = short_sides, long_side, flip, seed
        self.with_polygons, self.class_agnostic = with_polygons, class_agnostic

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, draw: Draw) -> ViewSample:
        width, height = (int(v) for v in self.annotations.sizes_wh[draw.image])
        random = generator(self.seed, draw, "view_query")
        geometry = draw_geometry((width, height), self.short_sides, self.long_side, random, flip=self.flip)
        pixels = read_image(self.images / self.annotations.file_names[draw.image], (width, height))
        key = key_of(self.seed, draw, "roi_samples")
        target = target_of(self.annotations, draw.image, geometry, key, self.with_polygons)
        if self.class_agnostic:
            target = replace(target, labels=np.zeros_like(target.labels))
        return ViewSample(draw.canvas_wh, geometry.apply(pixels), target)
