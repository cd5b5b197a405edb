"""One pre-training step of 2DRCL (Fig. 1).  One query forward serves every term.

    C, P   = f(x), FPN(C)                                     query view, gradient
    C+, P+ = f_m(x+), FPN_m(C+)                               key view, momentum branch, no gradient
    HCL    = InfoNCE(h(GAP(C5)), h_m(GAP(C5+)), queue)        eq. 1
    LCL    = InfoNCE(h'(FCs(RoI(P, b))), h'_m(...), queue')   eq. 2
    AR     = || x - g(C5) ||^2                                eq. 5
    SR     = sum || C - f(M(g(C5))) ||^2                      eq. 6
    det    = the detector's own losses on P                   L_det of eq. 8

Shapes: B images on this process, M boxes per image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.engine.distributed import gather_rows, sum_over_processes, world_size
from pipeline.pretrain.contrast import at_least_float32, info_nce, unit_rows
from pipeline.pretrain.key_queue import KeyQueue
from pipeline.pretrain.momentum import average_parameters, momentum_copy, momentum_update
from pipeline.pretrain.objective import total_loss
from pipeline.pretrain.projection import ProjectionMLP
from pipeline.pretrain.reconstruction import (
    STRIDES,
    Generator,
    appearance_loss,
    apply_masks,
    halved_levels,
    map_size,
    reconstruct,
    semantic_loss,
    valid_area,
)
from pipeline.pretrain.settings import ContrastSettings, PretrainSettings
from pipeline.pretrain.views import PretrainBatch, PretrainSample


class EncoderLike(Protocol):
    """f, FPN and shared box layers (pipeline.detectors.two_stage.Encoder); `trunk` uses `backbone` alone."""

    backbone: nn.Module

    def trunk(self, images: Tensor, bf16: bool = False) -> tuple[Tensor, ...]: ...

    def pyramid(self, levels: Sequence[Tensor], bf16: bool = False) -> tuple[Tensor, ...]: ...

    def box_features(self, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Keys:
    """What a step enqueues once its gradient is taken: rows of all processes."""

    rows: Tensor
    image_ids: Tensor
    valid: Tensor


class Contrast(nn.Module):
    """Projector, predictor, their momentum copy and the queue of one of the two contrasts."""

    def __init__(self, width_in: int, queue: int, settings: ContrastSettings) -> None:
        super().__init__()
        self.settings = settings
        hidden, width = settings.hidden, settings.width
        self.projector = ProjectionMLP(width_in, hidden, width)
        self.predictor = ProjectionMLP(width, hidden, width) if settings.predictor else None
        self.key_projector = momentum_copy(self.projector)
        self.queue = KeyQueue(queue, width)

    def query(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(N, width_in) -> (N, D) unit-norm; the predictor is on the query side only."""
        projected = self.projector(rows, valid)
        if self.predictor is not None:
            projected = self.predictor(projected, valid)
        return unit_rows(projected)

    def key(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(N, width_in) -> (N, D) unit-norm, of the momentum branch.

        Batch norm takes the running statistics of earlier keys: those of this batch would be a signature that
        the queue's keys lack, and those of the queries belong to another encoder, which has moved on, so that
        beside its mean all keys would look alike.
        """
        keys = unit_rows(self.key_projector(rows, valid))
        if self.training:
            self.key_projector.track(rows, valid)
        return keys

    def loss(self, query: Tensor, key: Tensor, image_ids: Tensor, valid: Tensor) -> tuple[Tensor, Keys]:
        """Mean over the valid queries of all processes, times the number of processes (DDP divides by it)."""
        excluded = self.queue.excluded(image_ids, self.settings.mask_same_image)
        losses = info_nce(query, key, self.queue.keys, excluded, self.settings.temperature)
        count = sum_over_processes(valid.sum().to(losses.dtype)).clamp(min=1)
        mean = (losses * valid).sum() * world_size() / count
        return mean, Keys(gather_rows(key), gather_rows(image_ids), gather_rows(valid))

    def after_step(self, keys: Keys) -> None:
        """Move the momentum projector and enqueue this step's keys."""
        average_parameters(self.key_projector, self.projector, self.settings.momentum)
        self.queue.enqueue(keys.rows, keys.image_ids, keys.valid)

    def train(self, mode: bool = True) -> "Contrast":
        """The momentum projector stays in eval mode."""
        super().train(mode)
        self.key_projector.eval()
        return self


class TwoDRCL(nn.Module):
    """2DRCL around a detector.

    Args:
        detector: the detector with its initial weights; what no term reaches is frozen.
        settings: of the stage.
        queues: resolved lengths of the holistic and the local queue.
        to_batch: samples -> batch on the device.
    """

    def __init__(
        self,
        detector: Any,
        settings: PretrainSettings,
        queues: tuple[int, int],
        to_batch: Callable[[Sequence[PretrainSample]], PretrainBatch],
    ) -> None:
        super().__init__()
        self.detector, self.settings, self.to_batch = detector, settings, to_batch
        self.bf16 = settings.precision == "bf16"
        terms = settings.terms
        # what an ablation leaves out is not built or frozen: no parameter may wait for a gradient in vain
        _freeze_unreached(detector, terms)
        self.key_encoder = momentum_copy(detector.encoder) if {"hcl", "lcl"} & set(terms) else None
        self.holistic = Contrast(detector.c5_width, queues[0], settings.contrast) if "hcl" in terms else None
        self.local = Contrast(detector.box_width, queues[1], settings.contrast) if "lcl" in terms else None
        self.generator = Generator(detector.c5_width) if {"ar", "sr"} & set(terms) else None
        self._keys: list[tuple[Contrast, Keys]] = []

    def forward(self, samples: Sequence[PretrainSample]) -> dict[str, Tensor]:
        """Losses of this process's share of the batch: `loss` (eq. 8) and each term by its paper name."""
        batch = self.to_batch(samples)
        terms = self.terms(batch)
        return {"loss": total_loss(terms, self.settings.objective), **terms}

    def terms(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """The unweighted terms that are switched on."""
        encoder = self.detector.encoder
        levels = encoder.trunk(batch.query, self.bf16)
        needs_pyramid = {"lcl", "det"} & set(self.settings.terms)
        pyramid = encoder.pyramid(levels, self.bf16) if needs_pyramid else ()
        terms = self._contrasts(batch, levels, pyramid)
        if self.generator is not None:
            terms |= self._reconstructions(batch, levels, encoder)
        if "det" in self.settings.terms:
            losses = self.detector.detection_losses(
                pyramid, batch.targets, batch.canvas_wh, self.settings.mask_loss
            )
            terms["det"] = torch.stack(list(losses.values())).sum()
        return terms

    def _contrasts(
        self, batch: PretrainBatch, levels: Sequence[Tensor], pyramid: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Eq. 1 and eq. 2; remembers the keys for `after_step`."""
        self._keys = []
        terms: dict[str, Tensor] = {}
        if self.key_encoder is None:
            return terms
        with torch.no_grad():
            key_levels = self.key_encoder.trunk(batch.key, self.bf16)
        if self.holistic is not None:
            valid = torch.ones_like(batch.image_ids, dtype=torch.bool)
            query = self.holistic.query(pooled(levels[-1], batch.query_wh), valid)
            with torch.no_grad():
                key = self.holistic.key(pooled(key_levels[-1], batch.key_wh), valid)
            terms["hcl"], keys = self.holistic.loss(query, key, batch.image_ids, valid)
            self._keys.append((self.holistic, keys))
        if self.local is not None:
            terms["lcl"], keys = self._local_contrast(self.local, batch, pyramid, key_levels)
            self._keys.append((self.local, keys))
        return terms

    def _local_contrast(
        self, local: Contrast, batch: PretrainBatch, pyramid: Sequence[Tensor], key_levels: Sequence[Tensor]
    ) -> tuple[Tensor, Keys]:
        valid = batch.valid.flatten()  # (B, M) -> (B M,)
        image_ids = batch.image_ids.repeat_interleave(batch.valid.shape[1])
        query = local.query(self.detector.encoder.box_features(pyramid, batch.query_boxes), valid)
        assert self.key_encoder is not None
        with torch.no_grad():
            key_pyramid = self.key_encoder.pyramid(key_levels, self.bf16)
            key = local.key(self.key_encoder.box_features(key_pyramid, batch.key_boxes), valid)
        return local.loss(query, key, image_ids, valid)

    def _reconstructions(
        self, batch: PretrainBatch, levels: Sequence[Tensor], encoder: EncoderLike
    ) -> dict[str, Tensor]:
        """Eq. 5 and eq. 6, at full size or at the generator's own half size."""
        assert self.generator is not None
        is_half, terms = self.settings.reconstruction.scale == "half", {}
        image = F.avg_pool2d(batch.query, 2) if is_half else batch.query
        # an odd size leaves a last pixel that is half padding: not counted
        sizes, scale = ((batch.query_wh / 2).floor(), 0.5) if is_half else (batch.query_wh, 1.0)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            reconstruction = reconstruct(self.generator, levels[-1], sizes, map_size(image))
        if "ar" in self.settings.terms:
            terms["ar"] = appearance_loss(image, reconstruction, sizes)
        if "sr" in self.settings.terms:
            masked = apply_masks(reconstruction, batch.masks, batch.valid, scale)
            targets = halved_levels(levels, batch.query_wh) if is_half else levels
            detach = self.settings.reconstruction.detach_target
            terms["sr"] = semantic_loss(targets, encoder.trunk(masked, self.bf16), sizes, detach)
        return terms

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer: momentum encoder, then queues (a key is never its own negative)."""
        if self.key_encoder is not None:
            momentum_update(self.key_encoder, self.detector.encoder, self.settings.contrast.momentum)
        for contrast, keys in self._keys:
            contrast.after_step(keys)
        self._keys = []

    def train(self, mode: bool = True) -> "TwoDRCL":
        """The momentum encoder stays in eval mode."""
        super().train(mode)
        if self.key_encoder is not None:
            self.key_encoder.eval()
        return self


def _freeze_unreached(detector: Any, terms: Sequence[str]) -> None:
    """Without L_det only the encoder learns, and without LCL only its trunk."""
    if "det" in terms:
        return
    reached = detector.encoder if "lcl" in terms else detector.encoder.backbone
    kept = {id(parameter) for parameter in reached.parameters()}
    for parameter in detector.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def pooled(c5: Tensor, sizes_wh: Tensor) -> Tensor:
    """GAP over the part of C5 that sees the image: (B, C, h, w) -> (B, C), in float32 at least."""
    features = at_least_float32(c5)
    weights = valid_area(sizes_wh, map_size(c5), STRIDES[-1]).to(features.dtype)[:, None]
    return (features * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3)).clamp(min=1)
