"""RoI head of BACL's second stage (Qi et al., TMM 2024); official: Tianhao-Qi/BACL,
mmdet/models/roi_heads/fhm_roi_head.py and bbox_heads/fhm_convfc_bbox_head.py.

In every step the classifier's inputs of boxes around the objects update a Gaussian per class, and features
drawn from those of weak classes are classified beside the RoIs of the batch, for the class loss alone.  The
loss counts them in its confusion matrix too, which is what the draw goes by.

N = RoIs of the batch, S = features drawn, F = shape of a RoI feature, D = width of the classifier's input.
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
from pipeline.finetune.bacl import FCBLLoss
from pipeline.finetune.hallucination import FeatureHallucination
from pipeline.finetune.heads.class_features import (
    ClassFeaturesRoIHead,
    boxes_around_objects,
    draws_of_images,
)


@MODELS.register_module()
class HallucinationRoIHead(ClassFeaturesRoIHead):
    """StandardRoIHead that hallucinates features of weak classes, for FCBLLoss.

    The box head is one with shared layers alone (Shared2FCBBoxHead).  Every process calls `loss` once a step,
    whatever its batch holds: the Gaussians are those of all processes.

    Args:
        hallucination: settings of FeatureHallucination, but for num_classes and feature_width.
        others: as StandardRoIHead.

    Raises:
        UsageError: loss_cls is no FCBLLoss.
    """

    class_features: FeatureHallucination

    def __init__(self, *, hallucination: Mapping[str, Any] | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._require(FCBLLoss)
        head = self.bbox_head
        self.class_features = FeatureHallucination(
            head.num_classes, head.cls_last_dim, **(hallucination or {})
        )

    @torch.no_grad()
    def collect(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> None:
        """Update the Gaussians with the objects of a batch; see ClassFeaturesRoIHead."""
        around = boxes_around_objects(batch_data_samples)
        self.class_features.collect(self._classifier_input(self.pooled(x, around.rois)), around.labels)

    def _classifier_input(self, pooled: Tensor) -> Tensor:
        """What fc_cls sees: (R, *F) -> (R, D)."""
        features = pooled.flatten(1)  # (R, 256, 7, 7) -> (R, 12544)
        for layer in self.bbox_head.shared_fcs:
            features = torch.relu(layer(features))
        return features

    def bbox_loss(
        self, x: tuple[Tensor, ...], sampling_results: list[SamplingResult]
    ) -> dict[str, dict[str, Tensor] | Tensor]:
        """Class losses of the sampled RoIs and of hallucinated features, box loss of the RoIs.

        Returns:
            `loss_bbox`, the losses by name, and `bbox_feats`, (N, *F).
        """
        head = self.bbox_head
        rois = bbox2roi([sampled.priors for sampled in sampling_results])
        results = self._bbox_forward(x, rois)
        labels, label_weights, *box_targets = head.get_targets(sampling_results, self.train_cfg)
        kept = self.class_features
        drawn = draws_of_images(sampling_results, kept.draws_per_image, kept.noise_per_image)
        features, drawn_labels, drawn_weights = kept.sample(head.loss_cls.correct_ratio(), *drawn)
        cls_score = torch.cat([results["cls_score"], head.fc_cls(features)])  # (N, K), (S, K) -> (N + S, K)
        all_labels = torch.cat([labels, drawn_labels])  # (N), (S) -> (N + S)
        all_weights = torch.cat([label_weights, drawn_weights])
        # mmdet's head leaves out the loss of what is None
        losses = head.loss(cls_score, None, rois, all_labels, all_weights, None, None)
        losses |= head.loss(None, results["bbox_pred"], rois, labels, label_weights, *box_targets)
        return {"loss_bbox": losses, "bbox_feats": results["bbox_feats"]}
