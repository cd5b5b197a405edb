"""A MMDetection two-stage detector in the parts that 2DRCL names: trunk, pyramid, box features, losses.

Shapes: B images, H x W canvas, C2..C5 backbone levels, P2..P6 pyramid levels, M boxes per image, F width of
the shared box layers.  Trunk and pyramid may run in bf16; boxes, heads and losses always run in float32,
because a bf16 coordinate is off by pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.structures.mask import PolygonMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pipeline.data.targets import Target
from pipeline.detectors.roi_pooling import pooled
from pipeline.detectors.sampling import set_draw_key
from pipeline.detectors.visible_masks import VisibleMasks


def _run(module: nn.Module, maps: Tensor) -> Tensor:
    found: Tensor = module(maps)
    return found


def _with_constant_weights(module: nn.Module, maps: Tensor) -> Tensor:
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    found: Tensor = functional_call(module, weights, (maps,))
    return found


class Trunk(nn.Module):
    """Backbone and neck."""

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.neck = neck

    def trunk(self, images: Tensor, bf16: bool = False) -> tuple[Tensor, ...]:
        """C2..C5 of (B, 3, H, W); in bf16 when asked for."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return tuple(self.backbone(images))

    def trunk_again(
        self, images: Tensor, bf16: bool = False, *, are_weights_constant: bool = False
    ) -> tuple[Tensor, ...]:
        """As `trunk` to the bit, of images that have a gradient; what stem and first stage leave for the
        backward pass is computed again there: two fifths of the memory for a sixtieth of a step's arithmetic.

        No norm of ours has statistics that move in a forward pass, so none moves twice.  Constant weights get
        no gradient from here; the images, and what they come from, get theirs.
        """
        run = _with_constant_weights if are_weights_constant else _run
        stages = [self.backbone.get_submodule(name) for name in self.backbone.res_layers]

        def first_stage(images: Tensor) -> Tensor:
            stem = run(self.backbone.norm1, run(self.backbone.conv1, images))
            return run(stages[0], self.backbone.maxpool(self.backbone.relu(stem)))

        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            levels = [checkpoint(first_stage, images, use_reentrant=False, preserve_rng_state=False)]
            for stage in stages[1:]:
                levels.append(run(stage, levels[-1]))
        return tuple(levels)

    def pyramid(self, levels: Sequence[Tensor], bf16: bool = False) -> tuple[Tensor, ...]:
        """P2..P6 in float32 from C2..C5."""
        with torch.autocast(levels[0].device.type, torch.bfloat16, enabled=bf16):
            pyramid = self.neck(tuple(levels))
        return tuple(p.float() for p in pyramid)


class Encoder(Trunk):
    """Backbone, neck and shared box layers: what the query branch shares with its detector, and what the
    momentum branch copies."""

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, roi_extractor: nn.Module, shared_fcs: nn.ModuleList
    ) -> None:
        super().__init__(backbone, neck)
        self.roi_extractor, self.shared_fcs = roi_extractor, shared_fcs

    def box_features(self, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """RoIAlign and the shared layers: (B, M, 4) xyxy -> (B * M, F)."""
        extractor = self.roi_extractor
        rois = bbox2roi(list(boxes))
        features = pooled(extractor, pyramid[: extractor.num_inputs], rois).flatten(1)  # -> (B M, 256 7 7)
        for layer in self.shared_fcs:
            features = torch.relu(layer(features))
        return features


class TwoStageModel(nn.Module):
    """The detector with its encoder in view and its losses as one named mapping."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    @property
    def encoder(self) -> Encoder:
        """The encoder, sharing every parameter with the detector."""
        detector, head = self.detector, self.detector.roi_head
        return Encoder(detector.backbone, detector.neck, head.bbox_roi_extractor, head.bbox_head.shared_fcs)

    @property
    def box_width(self) -> int:
        """F, the width of the shared box layers."""
        return int(self.detector.roi_head.bbox_head.shared_fcs[-1].out_features)

    @property
    def c5_width(self) -> int:
        """Channels of C5."""
        return int(self.detector.neck.in_channels[-1])

    @property
    def loss_cls(self) -> nn.Module:
        """The classification loss, which may have a state."""
        loss: nn.Module = self.detector.roi_head.bbox_head.loss_cls
        return loss

    def predict(self, pyramid: Sequence[Tensor], samples: list[DetDataSample]) -> list[InstanceData]:
        """Detections on float32 P2..P6, in stored pixels."""
        proposals = self.detector.rpn_head.predict(tuple(pyramid), samples, rescale=False)
        return list(self.detector.roi_head.predict(tuple(pyramid), proposals, samples, rescale=True))

    def detection_losses(
        self,
        pyramid: Sequence[Tensor],
        targets: Sequence[Target],
        canvas_wh: tuple[int, int],
        with_mask: bool,
    ) -> dict[str, Tensor]:
        """MMDetection's own losses (RPN and RoI heads) on P2..P6, summed by part.

        Args:
            pyramid: float32 P2..P6 of the query view.
            targets: ground truth of each image.
            canvas_wh: size of the canvas.
            with_mask: include the mask loss (the detector must have a mask head, the targets polygons).

        Returns:
            scalars loss_rpn_cls, loss_rpn_bbox, loss_cls..., loss_bbox[, loss_mask].
        """
        device = pyramid[0].device
        samples = [data_sample(t, canvas_wh, device, with_mask) for t in targets]
        class_agnostic = [data_sample(t, canvas_wh, device, False, agnostic=True) for t in targets]
        proposal_config = self.detector.train_cfg.rpn_proposal
        losses, proposals = self.detector.rpn_head.loss_and_predict(
            tuple(pyramid), class_agnostic, proposal_cfg=proposal_config
        )
        losses = dict(losses) | self._roi_losses(tuple(pyramid), proposals, samples, with_mask)
        return {name: as_scalar(value) for name, value in losses.items() if "loss" in name}

    def _roi_losses(
        self, pyramid: tuple[Tensor, ...], proposals: list[Any], samples: list[Any], with_mask: bool
    ) -> dict[str, Any]:
        head = self.detector.roi_head
        if with_mask or not head.with_mask:
            return head.loss(pyramid, proposals, samples)
        mask_head, head.mask_head = head.mask_head, None  # mmdet decides by its presence
        try:
            return head.loss(pyramid, proposals, samples)
        finally:
            head.mask_head = mask_head


def as_scalar(value: Tensor | Sequence[Tensor]) -> Tensor:
    """mmdet's dense heads return one loss per level."""
    return value.mean() if isinstance(value, Tensor) else torch.stack([v.mean() for v in value]).sum()


def data_sample(
    target: Target, canvas_wh: tuple[int, int], device: torch.device, with_mask: bool, agnostic: bool = False
) -> DetDataSample:
    """MMDetection's form of one target; `agnostic` sets all labels to 0, as its RPN expects."""
    width, height = target.size_wh
    labels = torch.from_numpy(target.labels).to(device)
    instances = InstanceData(
        bboxes=torch.from_numpy(target.boxes).to(device),
        labels=torch.zeros_like(labels) if agnostic else labels,
    )
    if with_mask:
        assert target.polygons is not None, "a mask loss needs targets made with polygons"
        instances.masks = (
            PolygonMasks(target.polygons, height, width)
            if target.hidden is None
            else VisibleMasks(target.polygons, target.hidden, height, width)
        )
    set_draw_key(instances, target.key)
    shapes = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    canvas = (canvas_wh[1], canvas_wh[0])
    sample = DetDataSample(metainfo={**shapes, "pad_shape": canvas, "batch_input_shape": canvas})
    sample.gt_instances = instances
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4, device=device), labels=torch.zeros(0, dtype=torch.int64, device=device)
    )
    return sample
