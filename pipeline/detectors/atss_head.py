"""ATSSHead whose losses are the same on any number of processes, for training; the same weights by the same
names.

mmdet 3.3 (models/dense_heads/atss_head.py, `loss_by_feat`) goes level by level, and divides the box loss by
the mean over processes of the centerness of their positives, but by no less than 1: with few positives N
processes learn in smaller steps than one.  Here that 1 is for all processes together, the levels are one
batch, and the device is waited for once.

B images, A anchors of all levels, P positive anchors, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSHead
from torch import Tensor

from pipeline.detectors.registry import MODELS
from pipeline.engine.distributed import sum_over_processes, world_size

PRIOR = 0.01  # of every class at the start; mmdet's, and Lin et al. 2017


@MODELS.register_module()
class ExactATSSHead(ATSSHead):
    """A loss may give `initial_bias(prior)`, the (C,) bias of the classifier that makes `prior` of its own
    probability."""

    def init_weights(self) -> None:
        """As mmdet, and then what the loss says of the classifier's bias."""
        super().init_weights()
        initial_bias = getattr(self.loss_cls, "initial_bias", None)
        if initial_bias is not None:
            with torch.no_grad():
                self.atss_cls.bias.copy_(initial_bias(PRIOR))

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        centernesses: Sequence[Tensor],
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: list[Any] | None = None,
    ) -> dict[str, Tensor]:
        """As mmdet's, one scalar for each of its lists: loss_cls, loss_bbox, loss_centerness."""
        sizes = [maps.shape[-2:] for maps in bbox_preds]
        anchors, flags = self.get_anchors(sizes, batch_img_metas, device=bbox_preds[0].device)
        *found, num_positives = self.get_targets(
            anchors, flags, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        anchors, labels, weights, boxes = (
            torch.cat(of_levels, dim=1).flatten(0, 1) for of_levels in found[:4]
        )
        logits, deltas, centerness = map(_rows, (cls_scores, bbox_preds, centernesses))
        mean_positives = _mean_over_processes(deltas.new_tensor(float(num_positives)))
        is_object = (labels < self.num_classes).nonzero().squeeze(1)  # (B A,) -> (P,)
        objects = [rows[is_object] for rows in (anchors, boxes, deltas, centerness.squeeze(1))]
        return {
            "loss_cls": self.loss_cls(logits, labels, weights, avg_factor=mean_positives),
            **self._losses_of_objects(objects, mean_positives),
        }

    def _losses_of_objects(self, objects: Sequence[Tensor], mean_positives: Tensor) -> dict[str, Tensor]:
        """(P, 4) anchors, their objects' boxes and predicted deltas, (P,) logits -> losses; P may be 0."""
        anchors, boxes, deltas, centerness = objects
        targets = self.centerness_target(anchors, boxes)
        total = _mean_over_processes(targets.sum()).clamp(min=1 / world_size())
        decoded = self.bbox_coder.decode(anchors, deltas)
        return {
            "loss_bbox": self.loss_bbox(decoded, boxes, weight=targets, avg_factor=total),
            "loss_centerness": self.loss_centerness(centerness, targets, avg_factor=mean_positives),
        }


def _rows(levels: Sequence[Tensor]) -> Tensor:
    """Maps of all levels as rows of anchors: (B, K, h, w) each -> (B A, K)."""
    rows = [maps.permute(0, 2, 3, 1).flatten(1, 2) for maps in levels]  # (B, K, h, w) -> (B, h w, K)
    return torch.cat(rows, dim=1).flatten(0, 1)


def _mean_over_processes(value: Tensor) -> Tensor:
    """A collective: gradients are averaged over processes, so what divides a loss is too."""
    return sum_over_processes(value) / world_size()
