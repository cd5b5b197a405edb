"""What one draw brings to training with copy-paste: a jittered view, and objects of a random image on it.

That image is decoded too, but it is not counted as drawn: runs are compared by what the sampler draws.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pipeline.data.annotations import Annotations
from pipeline.data.copy_paste import Layer, choose, layer_of, paste
from pipeline.data.draws import Draw, generator, key_of
from pipeline.data.images import read_image
from pipeline.data.jitter import draw_jittered
from pipeline.data.single_view import ViewSample
from pipeline.data.targets import Target, refuse_without_polygons


class PastedViewDataset(Dataset[ViewSample]):
    """Draw -> ViewSample of a whole square, in any worker process.

    Args:
        annotations: the split.
        images: its folder.
        side: of the square, in pixels.
        scales, most: as in `pipeline.data.copy_paste_settings.CopyPasteSettings`.
        flip: probability, of either image.
        seed: of every draw.
        with_polygons: carry polygons for mask losses.
    """

    def __init__(
        self,
        annotations: Annotations,
        images: Path,
        side: int,
        scales: tuple[float, float],
        most: int,
        *,
        flip: float,
        seed: int,
        with_polygons: bool = False,
    ) -> None:
        self.annotations, self.images = annotations, images
        self.side, self.scales, self.most, self.flip, self.seed = side, scales, most, flip, seed
        self.with_polygons = with_polygons

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, draw: Draw) -> ViewSample:
        if self.with_polygons:
            refuse_without_polygons(self.annotations)
        layer = paste(
            self._view(draw.image, generator(self.seed, draw, "view_query")),
            self._pasted(generator(self.seed, draw, "paste")),
            self.side,
        )
        key, size_wh = key_of(self.seed, draw, "roi_samples"), (self.side, self.side)
        masks = (layer.polygons, layer.hidden) if self.with_polygons else (None, None)
        return ViewSample(
            draw.canvas_wh, layer.image, Target(layer.boxes, layer.labels, size_wh, key, *masks)
        )

    @cached_property
    def _sources(self) -> np.ndarray:
        """Positions of the images that have something to copy; all of them where none has."""
        found = np.unique(self.annotations.box_images[self.annotations.trainable])
        return found if len(found) else np.arange(len(self))

    def _pasted(self, random: np.random.Generator) -> Layer:
        """Some objects of an image drawn among all that have objects."""
        source = int(self._sources[random.integers(len(self._sources))])
        return choose(self._view(source, random), self.most, random)

    def _view(self, image: int, random: np.random.Generator) -> Layer:
        width, height = (int(v) for v in self.annotations.sizes_wh[image])
        pixels = read_image(self.images / self.annotations.file_names[image], (width, height))
        geometry = draw_jittered((width, height), self.side, self.scales, random, flip=self.flip)
        return layer_of(self.annotations, image, geometry, pixels)
