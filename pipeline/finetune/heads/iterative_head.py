"""RoI head of PCB (He et al., CVPR 2022); official: megvii-research/PCB,
mmdet/models/roi_heads/iterative_roi_head.py and mmdet/models/utils/mlp.py.

The box head looks several times at a RoI.  After each pass its answer changes the feature for the next one:
    feature <- feature * g(boxes) + h(scores),
g giving a factor per place (7 x 7) and h a summand per channel, each a net of two layers.  Every pass pays
the class loss, the more the later, and the last one the box loss; its answer is the prediction.

N = RoIs of this process, C = foreground classes, K = columns of the classifier, F = shape of a RoI feature.
"""
# ruff: noqa: TID251  the head is a subclass of mmdet's

from collections.abc import Sequence
from typing import Any

from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from pipeline.detectors.registry import MODELS
from pipeline.errors import UsageError

NEW_LAYERS = ("roi_head.class_mlp", "roi_head.box_mlp")  # that no plain detector has


@MODELS.register_module()
class IterativeRoIHead(StandardRoIHead):
    """StandardRoIHead whose box head refines its answer in several passes, for PCBLoss or any other.

    Args:
        pass_weights: of the class loss, one number per pass.
        hidden_width: of both nets; the official number.
        others: as StandardRoIHead.

    Attributes:
        box_mlp: g, (N, 4 C) -> (N, 49); class_mlp: h, (N, K) -> (N, 256).

    Raises:
        UsageError: fewer than two passes, or another number than loss_cls is for (`n_iter`).
    """

    def __init__(
        self, *, pass_weights: Sequence[float] = (0.2, 0.2, 0.6), hidden_width: int = 512, **others: Any
    ) -> None:
        super().__init__(**others)
        head = self.bbox_head
        passes = getattr(head.loss_cls, "n_iter", len(pass_weights))
        if len(pass_weights) < 2 or len(pass_weights) != passes:
            raise UsageError(
                f"IterativeRoIHead has {len(pass_weights)} pass_weights, loss_cls is for {passes} passes",
                "give as many pass_weights as loss_cls has n_iter; for one pass take mmdet's StandardRoIHead",
            )
        self.pass_weights = tuple(pass_weights)
        self.class_mlp = _two_layers(head.fc_cls.out_features, hidden_width, head.in_channels)
        self.box_mlp = _two_layers(head.fc_reg.out_features, hidden_width, head.roi_feat_area)

    def refined(self, features: Tensor, cls_score: Tensor, bbox_pred: Tensor) -> Tensor:
        """What the next pass looks at: (N, *F), (N, K), (N, 4 C) -> (N, *F)."""
        factors = self.box_mlp(bbox_pred).unflatten(1, (1, *self.bbox_head.roi_feat_size))  # -> (N, 1, 7, 7)
        return features * factors + self.class_mlp(cls_score)[:, :, None, None]  # (N, 256) -> (N, 256, 1, 1)

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Any]:
        """The last pass's `cls_score` (N, K) and `bbox_pred` (N, 4 C), all pairs of them under `passes`, and
        `bbox_feats` (N, *F), those of the first pass."""
        pooled = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        features, passes = pooled, [self.bbox_head(pooled)]
        for _ in self.pass_weights[1:]:
            features = self.refined(features, *passes[-1])
            passes.append(self.bbox_head(features))
        cls_score, bbox_pred = passes[-1]
        return {"cls_score": cls_score, "bbox_pred": bbox_pred, "passes": passes, "bbox_feats": pooled}

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list[SamplingResult]) -> dict[str, Any]:
        """`_bbox_forward`'s results and `loss_bbox`, the losses by name.

        Accuracies are averaged over the passes with the weights of the class loss, as in the official code.
        """
        rois = bbox2roi([sampled.priors for sampled in sampling_results])
        results = self._bbox_forward(x, rois)
        targets = self.bbox_head.get_targets(sampling_results, self.train_cfg)
        losses: dict[str, Tensor] = {}
        last = len(self.pass_weights) - 1
        for number, weight in enumerate(self.pass_weights):
            cls_score, bbox_pred = results["passes"][number]
            self.bbox_head.loss_cls.iter_id = number
            found = self.bbox_head.loss(cls_score, bbox_pred if number == last else None, rois, *targets)
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + (value if name == "loss_bbox" else weight * value)
        return {**results, "loss_bbox": losses}


def _two_layers(num_inputs: int, hidden_width: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_inputs, hidden_width), nn.ReLU(), nn.Linear(hidden_width, num_outputs))
