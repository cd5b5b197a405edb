"""RoI head of LOCE's second stage (Feng et al., ICCV 2021); official: fcjian/LOCE,
mmdet/models/roi_heads/loce_roi_head.py.

In every step the RoI features of boxes around the objects go to a memory, and features that the memory kept
of weak classes join the RoIs of each image, with class and box loss.  The mean scores that the loss and the
draw go by are updated before the loss.  The mask head sees the RoIs of the batch only.

N = RoIs of the batch, S = rows drawn from the memory, C = foreground classes, F = shape of a RoI feature.
"""
# ruff: noqa: TID251  the head is a subclass of mmdet's

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor

from pipeline.detectors.registry import MODELS
from pipeline.finetune.feature_memory import FeatureMemory, SampledRows
from pipeline.finetune.heads.class_features import (
    ClassFeaturesRoIHead,
    boxes_around_objects,
    draws_of_images,
)
from pipeline.finetune.loce import UNGROUPED, EquilibriumLoss


def object_groups(
    sampling_results: Sequence[SamplingResult], drawn: SampledRows, num_classes: int
) -> tuple[Tensor, int]:
    """Which object each RoI speaks for, see `EquilibriumLoss.update_mean_score`.

    Args:
        sampling_results: of each image, RoIs of objects first.
        drawn: S rows; those of a class count as one object of the image that they were drawn for.  In the
            official code those of a process do, so that its state depends on the number of processes.
        num_classes: C.

    Returns:
        (N + S,) int64, and the number of groups.
    """
    groups, num_objects = [], 0
    for sampled in sampling_results:
        groups += [sampled.pos_assigned_gt_inds + num_objects, torch.full_like(sampled.neg_inds, UNGROUPED)]
        num_objects += sampled.num_gts
    of_drawn = num_objects + drawn.images * num_classes + drawn.labels
    return torch.cat([*groups, of_drawn]), num_objects + len(sampling_results) * num_classes


@MODELS.register_module()
class MemoryRoIHead(ClassFeaturesRoIHead):
    """StandardRoIHead with a memory of RoI features, for EquilibriumLoss.

    Every process calls `loss` once a step, whatever its batch holds: the memory and the mean scores are those
    of all processes.  Before training the official code shows `collect` 5 images of each class, in
    evaluation mode.

    Args:
        memory: settings of FeatureMemory, but for num_classes and feature_shape.
        others: as StandardRoIHead.

    Raises:
        UsageError: loss_cls is no EquilibriumLoss.
    """

    class_features: FeatureMemory

    def __init__(self, *, memory: Mapping[str, Any] | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._require(EquilibriumLoss)
        head = self.bbox_head
        shape = (head.in_channels, *head.roi_feat_size)
        self.class_features = FeatureMemory(head.num_classes, shape, **(memory or {}))

    @torch.no_grad()
    def collect(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> None:
        """Put the objects of a batch into the memory; see ClassFeaturesRoIHead."""
        around = boxes_around_objects(batch_data_samples)
        kept = self.class_features.storable(around.labels)
        rois, objects, labels = (part[kept] for part in around)
        targets = self.bbox_head.bbox_coder.encode(rois[:, 1:], objects)
        self.class_features.store(self.pooled(x, rois), labels, targets)

    def bbox_loss(
        self, x: tuple[Tensor, ...], sampling_results: list[SamplingResult]
    ) -> dict[str, dict[str, Tensor] | Tensor]:
        """Losses of the sampled RoIs and of rows from the memory.

        Returns:
            `loss_bbox`, the losses by name, and `bbox_feats`, (N, *F) of the RoIs alone.
        """
        head, loss_cls = self.bbox_head, self.bbox_head.loss_cls
        rois = bbox2roi([sampled.priors for sampled in sampling_results])
        pooled = self.pooled(x, rois)
        uniform, _ = draws_of_images(sampling_results, self.class_features.draws_per_image)
        drawn = self.class_features.sample(loss_cls.mean_score, uniform)
        cls_score, bbox_pred = head(torch.cat([pooled, drawn.features]))  # (N, *F), (S, *F) -> (N + S, ...)
        labels, label_weights, targets, target_weights = head.get_targets(sampling_results, self.train_cfg)
        labels = torch.cat([labels, drawn.labels])  # (N), (S) -> (N + S)
        label_weights = torch.cat([label_weights, label_weights.new_ones(len(drawn.labels))])
        targets = torch.cat([targets, drawn.box_targets])  # (N, 4), (S, 4) -> (N + S, 4)
        target_weights = torch.cat([target_weights, torch.ones_like(drawn.box_targets)])
        groups = object_groups(sampling_results, drawn, head.num_classes)
        loss_cls.update_mean_score(cls_score, labels, *groups)
        losses = head.loss(cls_score, bbox_pred, rois, labels, label_weights, targets, target_weights)
        return {"loss_bbox": losses, "bbox_feats": pooled}
