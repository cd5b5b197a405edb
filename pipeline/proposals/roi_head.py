"""OLN's second stage: refine each box, and predict its overlap with an object instead of a class.

Kim et al. 2022, Sec. 3.2; official code mmdet/models/roi_heads/oln_roi_head.py and
bbox_heads/convfc_bbox_score_head.py.  Two shared layers, then a class-agnostic box code and one overlap.  The
final score is the geometric mean of the RPN's centerness and this overlap.

The official head also has a classification layer with loss weight 0; it is left out, as in `rpn_head`.  The
overlap takes the place of the class score in mmdet's interfaces.

Shapes: R RoIs of all images, P of them positive, n of one image, F width of the shared layers.
"""
# ruff: noqa: TID251  the heads are subclasses of mmdet's

from typing import Any

import torch

import pipeline.detectors.operators  # noqa: F401  answers for mmcv's operators: before mmdet.models

# isort: split
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import ConvFCBBoxHead, StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi, bbox_overlaps, scale_boxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.proposals.quality import fuse


@MODELS.register_module()
class OLNBBoxHead(ConvFCBBoxHead):
    """Two shared layers, a box code and an overlap.

    Args:
        loss_overlap: config of the loss between sigmoid(overlap) and the IoU of the RoI that goes in.
        normalize_by: "samples" divides both losses by all sampled RoIs, as released, though only positives
            carry a loss; "positives" by those.
        others: as ConvFCBBoxHead.
    """

    def __init__(self, *, loss_overlap: dict[str, Any], normalize_by: str, **others: Any) -> None:
        super().__init__(num_shared_fcs=2, with_cls=False, num_classes=1, reg_class_agnostic=True, **others)
        assert normalize_by in ("samples", "positives")
        self.normalize_by = normalize_by
        self.loss_overlap = MODELS.build(loss_overlap)
        self.fc_overlap = nn.Linear(self.fc_out_channels, 1)
        self.init_cfg += [{"type": "Normal", "std": 0.01, "override": {"name": "fc_overlap"}}]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features (R, C, 7, 7) -> overlap logits (R, 1), box codes (R, 4)."""
        x = x.flatten(1)  # (R, C, 7, 7) -> (R, 49 C)
        for layer in self.shared_fcs:
            x = self.relu(layer(x))
        return self.fc_overlap(x), self.fc_reg(x)

    def loss_and_target(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        rcnn_train_cfg: Any,
    ) -> dict[str, Any]:
        """Both losses, on the positive RoIs alone.

        Args:
            cls_score: (R, 1) overlap logits; bbox_pred: (R, 4) codes; image by image, positives first.

        Returns:
            {"loss_bbox": {"loss_bbox": scalar, "loss_overlap": scalar}}, nested as mmdet expects.
        """
        positive = torch.cat(
            [torch.arange(len(s.priors), device=rois.device) < len(s.pos_priors) for s in sampling_results]
        )  # (R,)
        priors = torch.cat([s.pos_priors for s in sampling_results])  # (P, 4)
        objects = torch.cat([s.pos_gt_bboxes for s in sampling_results])  # (P, 4)
        overlap = bbox_overlaps(priors, objects, is_aligned=True)  # (P,) of the box before its refinement
        code = self.bbox_coder.encode(priors, objects)
        count = max(len(priors if self.normalize_by == "positives" else rois), 1)
        predicted = cls_score[positive].squeeze(1).sigmoid()  # (P, 1) -> (P,)
        losses = {
            "loss_bbox": self.loss_bbox(bbox_pred[positive], code, avg_factor=count),
            "loss_overlap": self.loss_overlap(predicted, overlap, avg_factor=count),
        }
        return {"loss_bbox": losses}

    def _predict_by_feat_single(
        self,
        roi: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_meta: dict[str, Any],
        rescale: bool = False,
        rcnn_test_cfg: Any = None,
    ) -> InstanceData:
        """Refine, scale back and suppress the boxes of one image; `cls_score` (n,) is the final score."""
        boxes = self.bbox_coder.decode(roi[:, 1:], bbox_pred, max_shape=img_meta["img_shape"])
        if rescale:
            boxes = scale_boxes(boxes, [1 / s for s in img_meta["scale_factor"]])
        with_background = torch.stack([cls_score, torch.zeros_like(cls_score)], dim=1)  # (n,) -> (n, 2)
        kept, labels = multiclass_nms(
            boxes, with_background, rcnn_test_cfg.score_thr, rcnn_test_cfg.nms, rcnn_test_cfg.max_per_img
        )
        return InstanceData(bboxes=kept[:, :4], scores=kept[:, 4], labels=labels)


@MODELS.register_module()
class OLNRoIHead(StandardRoIHead):
    """StandardRoIHead whose predictions remember the score that the RPN gave them."""

    def predict_bbox(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Per image `bboxes` (n, 4), `scores` (n,) = sqrt(centerness * overlap), `labels` (n,) all 0."""
        counts = [len(found) for found in rpn_results_list]
        rois = bbox2roi([found.bboxes for found in rpn_results_list])  # (R, 5)
        if not len(rois):
            return empty_instances(batch_img_metas, rois.device, task_type="bbox")
        results = self._bbox_forward(x, rois)
        objectness = torch.cat([found.scores for found in rpn_results_list])  # (R,)
        scores = fuse(objectness, results["cls_score"].squeeze(1).sigmoid())  # (R, 1) -> (R,)
        return self.bbox_head.predict_by_feat(
            rois.split(counts),
            scores.split(counts),
            results["bbox_pred"].split(counts),
            batch_img_metas,
            rcnn_test_cfg=rcnn_test_cfg,
            rescale=rescale,
        )
