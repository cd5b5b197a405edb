"""Effective class margins (Cho and Kraehenbuehl, ECCV 2022) for dense heads; the released code has them for
RoIs alone.

A margin and a weight per class as in `pipeline.finetune.ecm`, but inside the focal loss: nearly every anchor
is background, and without the focal factor those would drown the objects.  With q = sigmoid(2 s + delta) the
loss of a class is the focal loss of q, times w.  There is no background column, so the counts are those of
the classes alone: the 6.3 background RoIs per object are a statistic of RoI heads.  The classifier's bias
starts where q = 0.01 for every class.  Scores are sigmoid(s) times the centerness, without the margin.

The released loss divides by the number of rows and does not look at their weights: on a dense head that would
be all anchors, those of the padding included.  Here anchors weigh what the head says, and the divisor is the
head's number of positives.

N = anchors of this process, C = foreground classes; label C = background.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.ecm import column_weights, logit_shifts
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois
from pipeline.finetune.row_losses import row_losses


def focal_losses(
    logits: Tensor, labels: Tensor, gamma: float, alpha: float, weights: Tensor | None = None
) -> Tensor:
    """Sum over columns of the focal loss (Lin et al. 2017, eq. 5) against the one-hot label.

    Args:
        logits: (N, C); labels: (N,) int64, C for background: no column is its.
        gamma: power of the probability of the wrong answer.
        alpha: factor of the label's column; 1 - alpha of the others.
        weights: (C,) factors of the columns, or None for ones.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """

    def of_rows(rows: slice, out: Tensor) -> Tensor:
        return focal_rows(logits[rows], labels[rows], out, gamma, alpha, weights)

    return row_losses(logits, of_rows)


def focal_rows(
    logits: Tensor, labels: Tensor, out: Tensor, gamma: float, alpha: float, weights: Tensor | None = None
) -> Tensor:
    """`focal_losses` of a block of rows: fills `out`, (n, C), with the gradients and returns (n,) losses."""
    num_classes = logits.shape[1]
    # background borrows the last column, to no effect: boolean indexing would wait for the GPU
    column = labels.clamp(max=num_classes - 1)[:, None]  # (n) -> (n, 1)
    has_column = (labels < num_classes)[:, None]
    # as if every answer were no; then the label's, a no to -s, is put right, and no (n, C) target is made
    elements, gradients = _of_no(logits, gamma, 1 - alpha)
    of_yes, slope = _of_no(-logits.gather(1, column), gamma, alpha)
    for values, at_label in ((elements, of_yes), (gradients, -slope)):
        values.scatter_(1, column, torch.where(has_column, at_label, values.gather(1, column)))
    if weights is not None:
        elements.mul_(weights)
        gradients.mul_(weights)
    out.copy_(gradients)
    return elements.sum(dim=1)  # (n, C) -> (n)


def _of_no(logits: Tensor, gamma: float, factor: float) -> tuple[Tensor, Tensor]:
    """-p^gamma log(1 - p), and its derivative by the logit, both times `factor`; any shape."""
    p = logits.sigmoid()
    surprise = F.softplus(logits, threshold=40)  # -log(1 - p); the default threshold cuts off 2e-9
    scale = p.pow(gamma).mul_(factor)
    return scale * surprise, scale * (p + gamma * (1 - p) * surprise)


class DenseECMLoss(BoxHeadLoss):
    """ECM behind the contract of mmdet's anchor heads (C columns); constant tables, no state to save.

    Args:
        num_classes, image_counts, num_images, loss_weight: see BoxHeadLoss.
        instance_counts: required.
        gamma, alpha: see focal_losses.
        score_scale: of the logit in the score; 1 as on RoI heads.  `logit_scale` is the slope that the loss
            trains, with which the centerness matters less.
        logit_scale: of the logit in the loss, the 2 above.  1 has the same optimum, and the classifier learns
            at the pace of focal's; with 2 its answer moves four times as far in a step.
        use_sigmoid: what the heads read from the config to learn that there is no background column.

    Raises:
        UsageError: no instance_counts, a scale that is not positive, or a single class, which has no others
            to keep a margin from.
    """

    num_extra_columns = 0
    logit_shift: Tensor
    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        gamma: float = 2.0,
        alpha: float = 0.25,
        score_scale: float = 1.0,
        logit_scale: float = 2.0,
        use_sigmoid: bool = True,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if self.instance_counts is None:
            raise UsageError(
                "DenseECMLoss needs instance_counts", "give the categories.parquet of `2drcl stats`"
            )
        if num_classes < 2:
            raise UsageError("DenseECMLoss balances classes, but there is only one", "use focal")
        if not (score_scale > 0 and logit_scale > 0):
            raise UsageError(
                f"DenseECMLoss needs score_scale and logit_scale > 0, but got {score_scale}, {logit_scale}"
            )
        self.gamma, self.alpha, self.use_sigmoid = gamma, alpha, use_sigmoid
        self.score_scale, self.logit_scale = score_scale, logit_scale
        # a class without instances counts as one: its margin would be infinite
        counts = self.instance_counts.double().clamp(min=1)
        # Not in checkpoints: the settings give them, and another data set's must not be loaded over them.
        self.register_buffer("logit_shift", logit_shifts(counts), persistent=False)
        self.register_buffer("class_weight", column_weights(counts), persistent=False)

    def initial_bias(self, prior: float) -> Tensor:
        """(C,) bias that makes q = `prior`: the loss starts alike for all classes."""
        return (math.log(prior / (1 - prior)) - self.logit_shift) / self.logit_scale

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) -> the same, and (N,) positive where no class reaches a score of one half."""
        return logits, -logits.amax(dim=1)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """sigmoid(class): (N, C) -> (N, C); dense heads, unlike RoI heads, drop no background column."""
        return (self.score_scale * self.logits(cls_score)).sigmoid()

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of (N, C) logits; `reduce_rois` explains the last three arguments."""
        logits = self.logits(cls_score)
        shift, weight = self.logit_shift.to(logits.dtype), self.class_weight.to(logits.dtype)

        scale = self.logit_scale

        def of_rows(rows: slice, out: Tensor) -> Tensor:
            shifted = torch.add(shift, logits[rows], alpha=scale)  # (C), (n, C) -> (n, C)
            return focal_rows(shifted, labels[rows], out, self.gamma, self.alpha, weight) / scale

        # the logit's factor, times numbers that are few: (N,) instead of (N, C)
        losses = scale * row_losses(logits, of_rows)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)
