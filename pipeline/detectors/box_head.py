"""mmdet's box head, whose classification loss is asked for in every step, whatever the batch holds; and
which heads a detector is trained with.

mmdet 3.3 leaves the loss out where a process has no RoI at all (models/roi_heads/bbox_heads/bbox_head.py,
`BBoxHead.loss`).  A loss that sums something over all processes would then wait for that process for ever,
and the terms of a step would be others on each process.

N = RoIs of this process, K = columns of the classifier.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from torch import Tensor

from pipeline.detectors.atss_head import ExactATSSHead
from pipeline.detectors.registry import MODELS, SCOPE


class LossInEveryStep:
    """To be mixed in before a class of mmdet's box heads."""

    loss_cls: Any

    def loss(
        self,
        cls_score: Tensor | None,
        bbox_pred: Tensor | None,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        *targets: Tensor,
        reduction_override: str | None = None,
    ) -> dict[str, Tensor]:
        """As mmdet's, and with the terms of `loss_cls` for (0, K) scores too; they come first, as always."""
        losses = super().loss(  # type: ignore[misc]
            cls_score, bbox_pred, rois, labels, label_weights, *targets, reduction_override=reduction_override
        )
        if cls_score is None or cls_score.numel() > 0:
            return losses
        found = self.loss_cls(
            cls_score, labels, label_weights, avg_factor=1.0, reduction_override=reduction_override
        )
        return {**(found if isinstance(found, dict) else {"loss_cls": found}), **losses}


@MODELS.register_module()
class EveryStepBBoxHead(LossInEveryStep, Shared2FCBBoxHead):
    """Shared2FCBBoxHead with its loss in every step; the same weights by the same names."""


def training_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """The same model config with our heads for mmdet's; published configs keep mmdet's own.

    A box head of another type is left as it is.
    """
    changed = copy.deepcopy(dict(model))
    head = changed["roi_head"]["bbox_head"] if "roi_head" in changed else changed["bbox_head"]
    if head["type"] in FOR_TRAINING:
        head["type"] = f"{SCOPE}.{FOR_TRAINING[head['type']].__name__}"
    return changed


FOR_TRAINING = {"Shared2FCBBoxHead": EveryStepBBoxHead, "ATSSHead": ExactATSSHead}
