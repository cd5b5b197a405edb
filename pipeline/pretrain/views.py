"""What one draw brings to a pre-training step: two views, paired boxes, masks, and targets for L_det.

Everything random is keyed by the draw.  Shapes: M boxes per image (8 in the paper), always M rows, with a
validity mask for images where fewer survive in both views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.annotations import Annotations
from pipeline.data.draws import Draw, generator, key_of
from pipeline.data.images import read_image
from pipeline.data.photometric_batch import coloured_canvases
from pipeline.data.photometric_draws import Photometric, PhotometricSettings, draw_photometric
from pipeline.data.targets import Target
from pipeline.data.views import Geometry, draw_geometry
from pipeline.pretrain.det_targets import det_target
from pipeline.pretrain.mask_draws import draw_mask
from pipeline.pretrain.settings import PretrainSettings, ViewSettings


class Proposals(Protocol):
    """Boxes of an image, best first (pipeline.proposals.store)."""

    def of_image(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, 4) float32 xyxy in stored pixels and (n,) scores."""
        ...


@dataclass(frozen=True)
class PairedBoxes:
    """The same M proposals in both views, each clipped to its view, and what SR masks of them."""

    query: np.ndarray  # (M, 4) float32 xyxy in pixels of the query view
    key: np.ndarray  # (M, 4) float32 xyxy in pixels of the key view
    valid: np.ndarray  # (M,) bool
    masks: np.ndarray  # (M, 4) int64 xyxy in pixels of the query view


@dataclass(frozen=True)
class PretrainSample:
    """One draw on the host: uint8 views and what belongs to them."""

    image_id: int
    canvas_wh: tuple[int, int]
    query: np.ndarray  # (h, w, 3) uint8
    key: np.ndarray
    photometric: tuple[Photometric, Photometric]
    homographies: tuple[np.ndarray, np.ndarray]  # (3, 3) each: stored pixels -> pixels of query and key
    boxes: PairedBoxes
    target: Target


@dataclass(frozen=True)
class PretrainBatch:
    """B draws on the device.  Views are normalised and zero-padded on the canvas (W, H)."""

    query: Tensor  # (B, 3, H, W)
    key: Tensor  # (B, 3, H, W)
    query_wh: Tensor  # (B, 2) float32
    key_wh: Tensor  # (B, 2) float32
    query_boxes: Tensor  # (B, M, 4)
    key_boxes: Tensor  # (B, M, 4)
    masks: Tensor  # (B, M, 4)
    valid: Tensor  # (B, M) bool
    image_ids: Tensor  # (B,) int64
    targets: list[Target]
    canvas_wh: tuple[int, int]


class PretrainDataset(Dataset[PretrainSample]):
    """Draw -> PretrainSample, in any worker process."""

    def __init__(
        self,
        annotations: Annotations,
        images: Path,
        proposals: Proposals,
        settings: PretrainSettings,
        seed: int,
    ) -> None:
        self.annotations, self.images, self.proposals = annotations, images, proposals
        self.settings, self.seed = settings, seed

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, draw: Draw) -> PretrainSample:
        width, height = (int(side) for side in self.annotations.sizes_wh[draw.image])
        pixels = read_image(self.images / self.annotations.file_names[draw.image], (width, height))
        candidates = self._candidates(draw.image)
        query = self._geometry((width, height), candidates, draw, "view_query")
        key = self._geometry((width, height), candidates, draw, "view_key")
        photometric = self.settings.views.photometric
        of_query = query_photometric(self.settings.views)
        return PretrainSample(
            image_id=int(self.annotations.image_ids[draw.image]),
            canvas_wh=draw.canvas_wh,
            query=query.apply(pixels),
            key=key.apply(pixels),
            photometric=(
                draw_photometric(of_query, False, generator(self.seed, draw, "photo_query")),
                draw_photometric(photometric, True, generator(self.seed, draw, "photo_key")),
            ),
            homographies=(query.homography, key.homography),
            boxes=self._paired_boxes(candidates, query, key, draw),
            target=det_target(
                self.settings.det_targets,
                self.annotations,
                draw.image,
                query,
                key_of(self.seed, draw, "roi_samples"),
                candidates,
                with_polygons=self.settings.mask_loss,
            ),
        )

    def _candidates(self, image: int) -> np.ndarray:
        boxes, _ = self.proposals.of_image(int(self.annotations.image_ids[image]))
        return np.asarray(boxes[: self.settings.contrast.candidates])

    def _geometry(self, source_wh: tuple[int, int], boxes: np.ndarray, draw: Draw, purpose: str) -> Geometry:
        views = self.settings.views
        return draw_geometry(
            source_wh,
            views.short_sides,
            views.long_side,
            generator(self.seed, draw, purpose),
            crop=views.crop,
            flip=views.flip,
            keep=boxes,
        )

    def _paired_boxes(self, boxes: np.ndarray, query: Geometry, key: Geometry, draw: Draw) -> PairedBoxes:
        """Up to M proposals, uniformly among those that both views show (A.1: "randomly select 8")."""
        settings, count = self.settings.contrast, self.settings.contrast.boxes
        query_boxes, query_visible = query.map_boxes(boxes)
        key_boxes, key_visible = key.map_boxes(boxes)
        seen = np.minimum(query_visible, key_visible) >= settings.min_visible
        sides = np.minimum(_short_side(query_boxes), _short_side(key_boxes))
        survivors = np.flatnonzero(seen & (sides >= settings.min_side))
        if settings.choose == "uniform":
            survivors = generator(self.seed, draw, "box_choice").permutation(survivors)
        chosen, masking = survivors[:count], self.settings.reconstruction
        places = generator(self.seed, draw, "masks")
        masks = [
            draw_mask(box, masking.mask_fraction, places, masking.mask_shape) for box in query_boxes[chosen]
        ]
        return PairedBoxes(
            query=_padded(query_boxes[chosen], count),
            key=_padded(key_boxes[chosen], count),
            valid=np.arange(count) < len(chosen),
            masks=_padded(np.array(masks, dtype=np.int64).reshape(-1, 4), count),  # (0,) -> (0, 4)
        )


def query_photometric(views: ViewSettings) -> PhotometricSettings:
    """Colours of the query view, which L_det and AR see too; the key view always has `photometric`."""
    colours = views.photometric
    if views.query_colours == "same":
        return colours
    jitter = colours.jitter if views.query_colours == "mild" else 0.0
    b, c, s, h = (0.5 * strength for strength in colours.strength)
    solarize = (0.0, colours.solarize[1])
    return PhotometricSettings(jitter, strength=(b, c, s, h), grayscale=0.0, blur=0.0, solarize=solarize)


def _short_side(boxes: np.ndarray) -> np.ndarray:
    return np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def _padded(boxes: np.ndarray, count: int) -> np.ndarray:
    """(n, 4) -> (count, 4): a harmless unit box where there is none, so that shapes never change."""
    padded = np.tile(np.array([0, 0, 1, 1], dtype=boxes.dtype), (count, 1))
    padded[: len(boxes)] = boxes
    return padded


def to_batch(samples: Sequence[PretrainSample], device: torch.device) -> PretrainBatch:
    """Move samples to the device, change their colours there, and pad them to their common canvas."""
    canvas = samples[0].canvas_wh
    return PretrainBatch(
        query=coloured_canvases(
            [s.query for s in samples], [s.photometric[0] for s in samples], canvas, device
        ),
        key=coloured_canvases([s.key for s in samples], [s.photometric[1] for s in samples], canvas, device),
        query_wh=_sizes([s.query for s in samples], device),
        key_wh=_sizes([s.key for s in samples], device),
        query_boxes=_stack([s.boxes.query for s in samples], device),
        key_boxes=_stack([s.boxes.key for s in samples], device),
        masks=_stack([s.boxes.masks for s in samples], device),
        valid=_stack([s.boxes.valid for s in samples], device),
        image_ids=torch.tensor([s.image_id for s in samples], device=device),
        targets=[s.target for s in samples],
        canvas_wh=canvas,
    )


def _sizes(images: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.tensor([[i.shape[1], i.shape[0]] for i in images], dtype=torch.float32, device=device)


def _stack(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(device, non_blocking=True)
