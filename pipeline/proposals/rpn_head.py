"""OLN's RPN: every location says how central it lies in an object, not whether there is one.

Kim et al. 2022, Sec. 3.1; official code mmdet/models/dense_heads/oln_rpn_head.py.  A 3x3 convolution with
ReLU, features of unit length, and two 1x1 outputs: the box as distances to its sides, and the objectness,
trained towards the centerness of the anchor with an assigner and a sampler of its own.

The official head keeps a classification output with loss weight 0.  It is left out here: a parameter that
never gets a gradient stops distributed training.  Objectness takes its place in mmdet's interfaces.
Boxes without an area do not go on to the RoI head (released: they do, min_bbox_size is 0 there).

Shapes: B images, L levels of (H, W) locations with one anchor each, A anchors over all levels.
"""
# ruff: noqa: TID251  the head is a subclass of mmdet's

from collections.abc import Sequence
from typing import Any

import torch

import pipeline.detectors.operators  # noqa: F401  answers for mmcv's operators: before mmdet.models

# isort: split
from mmdet.models.dense_heads import RPNHead
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.models.utils import unmap
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import SettingsError
from pipeline.proposals.quality import centerness


@MODELS.register_module()
class OneAnchorRPNHead(RPNHead):
    """RPN with one anchor per location, on levels of any size; also of the class-agnostic Faster R-CNN."""

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        assert self.num_base_priors == 1, "one anchor per location"

    def _predict_by_feat_single(
        self,
        cls_score_list: list[Tensor],
        bbox_pred_list: list[Tensor],
        score_factor_list: list[None],
        mlvl_priors: list[Tensor],
        img_meta: dict[str, Any],
        cfg: Any,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceData:
        """Boxes and scores of one image: the best `nms_pre` of each level, then mmdet's post-processing.

        mmdet's own version fails on levels of 1x1, whose single score it squeezes to a scalar.
        """
        cfg = self.test_cfg if cfg is None else cfg
        levels: list[tuple[Tensor, ...]] = []
        for i, (logit, code, anchors) in enumerate(
            zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
        ):
            score = logit.flatten().sigmoid()  # (1, H, W) -> (HW,)
            score, best = score.sort(descending=True, stable=True)
            best = best[: cfg.nms_pre]
            code = code.flatten(1).T[best]  # (4, H, W) -> (HW, 4) -> (nms_pre, 4)
            levels.append((score[: cfg.nms_pre], code, anchors[best], torch.full_like(best, i)))
        scores, codes, priors, level_ids = (torch.cat(part) for part in zip(*levels, strict=True))
        boxes = self.bbox_coder.decode(priors, codes, max_shape=img_meta["img_shape"])
        found = InstanceData(bboxes=boxes, scores=scores, level_ids=level_ids)
        return self._bbox_post_process(found, cfg, rescale=rescale, with_nms=with_nms, img_meta=img_meta)


@MODELS.register_module()
class OLNRPNHead(OneAnchorRPNHead):
    """RPN whose objectness is a regressed centerness.

    Args:
        loss_objectness: config of the loss between sigmoid(objectness) and centerness.
        normalize_by: what the losses are divided by, see `loss_by_feat`.
        border_objects: whether objects that touch the left or top border have a box loss.
        others: as RPNHead; train_cfg also has `objectness_assigner` and `objectness_sampler`.
    """

    def __init__(
        self, *, loss_objectness: dict[str, Any], normalize_by: str, border_objects: bool, **others: Any
    ) -> None:
        super().__init__(**others)
        assert normalize_by in ("samples", "positives")
        self.normalize_by, self.border_objects = normalize_by, border_objects
        self.loss_objectness = MODELS.build(loss_objectness)
        if self.train_cfg:
            self.objectness_assigner = TASK_UTILS.build(self.train_cfg["objectness_assigner"])
            self.objectness_sampler = TASK_UTILS.build(self.train_cfg["objectness_sampler"])

    def _init_layers(self) -> None:
        self.rpn_conv = nn.Conv2d(self.in_channels, self.feat_channels, 3, padding=1)
        self.rpn_obj = nn.Conv2d(self.feat_channels, 1, 1)
        self.rpn_reg = nn.Conv2d(self.feat_channels, self.bbox_coder.encode_size, 1)

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One level: (B, C, H, W) -> objectness logits (B, 1, H, W), box code (B, 4, H, W)."""
        x = F.normalize(F.relu(self.rpn_conv(x)), dim=1)
        return self.rpn_obj(x), self.rpn_reg(x)

    def loss_by_feat(
        self,
        objectness: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: list[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        """Box loss on the positive anchors, objectness loss on the sampled ones.

        With `normalize_by` "samples" both sums are divided by the number of anchors the box sampler drew
        (256 B), as released; with "positives" each is divided by the number of anchors that carry it.

        Args:
            objectness: L x (B, 1, H, W) logits; bbox_preds: L x (B, 4, H, W) codes.

        Returns:
            scalars loss_rpn_bbox and loss_rpn_obj.
        """
        sizes = [level.shape[-2:] for level in objectness]
        anchors, valid = self.get_anchors(sizes, batch_img_metas, device=objectness[0].device)
        targets = self.get_targets(
            anchors, valid, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        # L x (B, HW, ...) -> (B, A, ...)
        box_target, box_weight, quality, quality_weight = (torch.cat(targets[i], dim=1) for i in (2, 3, 5, 6))
        if not self.border_objects:  # the released sanity check of distances, which looks at coordinates
            box_weight = box_weight * (box_target > 0).all(dim=2, keepdim=True)  # (B, A, 4)
        codes = _flatten(bbox_preds)  # (B, A, 4)
        boxes = self.bbox_coder.decode(torch.cat(anchors[0]).expand_as(codes), codes)
        predicted = _flatten(objectness).squeeze(2).sigmoid()  # (B, A, 1) -> (B, A)
        num_boxes = num_quality = targets[4]
        if self.normalize_by == "positives":
            num_boxes = box_weight[..., 0].sum().clamp(min=1)
            num_quality = quality_weight.sum().clamp(min=1)
        # (B, A, 4) -> (B A, 4): the losses know no batch
        flat = [t.reshape(-1, 4) for t in (boxes, box_target, box_weight)]
        return {
            "loss_rpn_bbox": self.loss_bbox(*flat, avg_factor=num_boxes),
            "loss_rpn_obj": self.loss_objectness(predicted, quality, quality_weight, avg_factor=num_quality),
        }

    def _get_targets_single(
        self,
        flat_anchors: Tensor,
        valid_flags: Tensor,
        gt_instances: InstanceData,
        img_meta: dict[str, Any],
        gt_instances_ignore: InstanceData | None = None,
        unmap_outputs: bool = True,
    ) -> tuple[Any, ...]:
        """mmdet's box targets of one image, and after them centerness (A,) and its weight (A,)."""
        border = self.train_cfg["allowed_border"]
        inside = anchor_inside_flags(flat_anchors, valid_flags, img_meta["img_shape"][:2], border)
        if not inside.any():
            raise SettingsError(
                f"no anchor lies inside an image of {tuple(img_meta['img_shape'][:2])} (height, width)",
                "lower proposals.anchor_scale, or set proposals.allowed_border to -1",
            )
        of_boxes = super()._get_targets_single(
            flat_anchors, valid_flags, gt_instances, img_meta, gt_instances_ignore, unmap_outputs
        )
        of_quality = self._objectness_targets(flat_anchors[inside], gt_instances, gt_instances_ignore)
        return (*of_boxes, *(unmap(t, len(flat_anchors), inside) for t in of_quality))

    def _objectness_targets(
        self, anchors: Tensor, gt_instances: InstanceData, ignored: InstanceData | None
    ) -> tuple[Tensor, Tensor]:
        """Centerness (N,) and weight (N,): 1 where sampled; sampled background has target 0."""
        priors = InstanceData(priors=anchors)
        assigned = self.objectness_assigner.assign(priors, gt_instances, ignored)
        sampled = self.objectness_sampler.sample(assigned, priors, gt_instances)
        target, weight = anchors.new_zeros(2, len(anchors))
        target[sampled.pos_inds] = centerness(sampled.pos_priors, sampled.pos_gt_bboxes)
        weight[sampled.pos_inds] = 1
        weight[sampled.neg_inds] = 1
        return target, weight


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """L x (B, C, H, W) -> (B, A, C), in the order of the anchors."""
    return torch.cat(
        [level.flatten(2).transpose(1, 2) for level in levels], dim=1
    )  # (B, C, HW) -> (B, HW, C)
