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
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.pretrain.accumulation import Part
from pipeline.pretrain.contrast import at_least_float32
from pipeline.pretrain.contrast_branch import Contrast
from pipeline.pretrain.measures import feature_norms
from pipeline.pretrain.momentum import momentum_copy, momentum_update
from pipeline.pretrain.objective import total_loss
from pipeline.pretrain.reconstruction import (
    STRIDES,
    Generator,
    Painting,
    appearance_loss,
    halved_levels,
    map_size,
    paint,
    semantic_loss,
    valid_area,
)
from pipeline.pretrain.settings import PretrainSettings
from pipeline.pretrain.views import PretrainBatch, PretrainSample


class EncoderLike(Protocol):
    """f, FPN and box layers (pipeline.detectors.two_stage.Encoder); the trunks use `backbone` alone."""

    backbone: nn.Module

    def trunk(self, images: Tensor, bf16: bool = False) -> tuple[Tensor, ...]: ...

    def trunk_again(
        self, images: Tensor, bf16: bool = False, *, are_weights_constant: bool = False
    ) -> tuple[Tensor, ...]: ...

    def pyramid(self, levels: Sequence[Tensor], bf16: bool = False) -> tuple[Tensor, ...]: ...

    def box_features(self, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor: ...


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
        self.momentum = settings.contrast.momentum  # of the step that comes; see momentum_schedule
        terms = settings.terms
        # what an ablation leaves out is not built or frozen: no parameter may wait for a gradient in vain
        _freeze_unreached(detector, terms)
        self.key_encoder = momentum_copy(detector.encoder) if {"hcl", "lcl"} & set(terms) else None
        contrast, parts = settings.contrast, settings.accumulate
        self.holistic = Contrast(detector.c5_width, queues[0], contrast, parts) if "hcl" in terms else None
        self.local = (
            Contrast(detector.box_width, queues[1], contrast, parts, contrast.boxes)
            if "lcl" in terms
            else None
        )
        self._measures: dict[str, Tensor] = {}  # of the last forward
        self.generator = Generator(detector.c5_width) if {"ar", "sr"} & set(terms) else None

    def forward(self, samples: Sequence[PretrainSample] | Part) -> dict[str, Tensor]:
        """Of this process's share of the batch, or a part of it: `loss` (eq. 8), terms, measures."""
        if isinstance(samples, Part):
            batch = self.to_batch(samples.samples)
            terms = self.terms(batch, torch.full((), samples.boxes, device=batch.query.device))
        else:
            terms = self.terms(self.to_batch(samples))
        return {"loss": total_loss(terms, self.settings.objective), **terms, **self._measures}

    def terms(self, batch: PretrainBatch, boxes: Tensor | None = None) -> dict[str, Tensor]:
        """The unweighted terms that are switched on; `boxes` is `total` of `Contrast.loss`."""
        encoder = self.detector.encoder
        levels = encoder.trunk(batch.query, self.bf16)
        self._measures = feature_norms(levels)
        needs_pyramid = {"lcl", "det"} & set(self.settings.terms)
        pyramid = encoder.pyramid(levels, self.bf16) if needs_pyramid else ()
        terms = self._contrasts(batch, levels, pyramid, boxes)
        for name, contrast in (("hcl", self.holistic), ("lcl", self.local)):
            if contrast is not None:
                self._measures |= {f"{name}_{key}": value for key, value in contrast.measures.items()}
        if self.generator is not None:
            terms |= self._reconstructions(batch, levels, encoder)
        if "det" in self.settings.terms:
            losses = self.detector.detection_losses(
                pyramid, batch.targets, batch.canvas_wh, self.settings.mask_loss
            )
            terms["det"] = torch.stack(list(losses.values())).sum()
        return terms

    def _contrasts(
        self,
        batch: PretrainBatch,
        levels: Sequence[Tensor],
        pyramid: Sequence[Tensor],
        boxes: Tensor | None,
    ) -> dict[str, Tensor]:
        """Eq. 1 and eq. 2."""
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
            terms["hcl"] = self.holistic.loss(query, key, batch.image_ids, valid)
        if self.local is not None:
            terms["lcl"] = self._local_contrast(self.local, batch, pyramid, key_levels, boxes)
        return terms

    def _local_contrast(
        self,
        local: Contrast,
        batch: PretrainBatch,
        pyramid: Sequence[Tensor],
        key_levels: Sequence[Tensor],
        boxes: Tensor | None,
    ) -> Tensor:
        valid = batch.valid.flatten()  # (B, M) -> (B M,)
        image_ids = batch.image_ids.repeat_interleave(batch.valid.shape[1])
        query = local.query(self.detector.encoder.box_features(pyramid, batch.query_boxes), valid)
        assert self.key_encoder is not None
        with torch.no_grad():
            key_pyramid = self.key_encoder.pyramid(key_levels, self.bf16)
            key = local.key(self.key_encoder.box_features(key_pyramid, batch.key_boxes), valid)
        return local.loss(query, key, image_ids, valid, boxes)

    def _reconstructions(
        self, batch: PretrainBatch, levels: Sequence[Tensor], encoder: EncoderLike
    ) -> dict[str, Tensor]:
        """Eq. 5 and eq. 6, at full size or at the generator's own half size."""
        painting, terms = self.paint(batch, levels[-1]), {}
        if "ar" in self.settings.terms:
            terms["ar"] = appearance_loss(painting.image, painting.reconstruction, painting.sizes_wh)
        if "sr" in self.settings.terms:
            settings = self.settings.reconstruction
            targets = halved_levels(levels, batch.query_wh) if settings.scale == "half" else levels
            # Paper: names no gradient.  Trained here, f learns to see x as the blur that g paints first
            is_frozen = settings.second_pass == "frozen"
            terms["sr"] = semantic_loss(
                targets,
                encoder.trunk_again(painting.masked, self.bf16, are_weights_constant=is_frozen),
                painting.sizes_wh,
                settings.detach_target,
                settings.levels,
            )
        return terms

    def paint(self, batch: PretrainBatch, c5: Tensor) -> Painting:
        """What AR and SR compare with what: g(C5), whole and masked, beside the image at its size."""
        assert self.generator is not None
        is_half = self.settings.reconstruction.scale == "half"
        with torch.autocast(c5.device.type, torch.bfloat16, enabled=self.bf16):
            return paint(
                self.generator, c5, batch.query, batch.query_wh, batch.masks, batch.valid, is_half=is_half
            )

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer: momentum encoder, then queues (a key is never its own negative)."""
        if self.key_encoder is not None:
            momentum_update(self.key_encoder, self.detector.encoder, self.momentum)
        for contrast in (self.holistic, self.local):
            if contrast is not None:
                contrast.after_step(self.momentum)

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
