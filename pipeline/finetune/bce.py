"""Binary cross-entropy with a background column: the baseline most long-tail papers call BCE.

Each of the C + 1 columns is a yes-no question of its own.  The background column answers "no object", so the
score of a class is p_c (1 - p_background).  As in BACL's representation stage (Tianhao-Qi/BACL,
mmdet/models/losses/bce.py); mmdet's CrossEntropyCustomLoss is another variant, without that column.

N = RoIs, C = foreground classes; label C = background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.finetune.eql import attach_gradients
from pipeline.finetune.head_contract import BoxHeadLoss, reduce_rois


def binary_losses(logits: Tensor, labels: Tensor, column_weights: Tensor | None = None) -> Tensor:
    """Sum over columns of the binary cross-entropy against the one-hot label.

    Args:
        logits: (N, K); labels: (N,) int64 in 0..K-1.
        column_weights: (K,) or (N, K) factors on the elements, or None for ones; they get no gradient.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    return attach_gradients(logits, *losses_and_gradients(logits, labels, column_weights))


@torch.no_grad()
def losses_and_gradients(
    logits: Tensor, labels: Tensor, column_weights: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`binary_losses` without a graph, and what autograd would find: (N,) and (N, K).

    The gradient is the probability minus the target, weighted: all that a backward pass has to keep.  It is
    written to `out` if given, which may be `logits`.
    """
    column = labels[:, None]  # (N) -> (N, 1)
    own = logits.gather(1, column)
    # As if every answer were no; then the label's is put right, and no (N, K) target is made.
    elements = _softplus(logits).scatter_(1, column, _softplus(-own))
    gradients = torch.sigmoid(logits, out=out).scatter_(1, column, -(-own).sigmoid())
    if column_weights is None:
        return elements.sum(dim=1), gradients  # (N, K) -> (N)
    return elements.mul_(column_weights).sum(dim=1), gradients.mul_(column_weights)


def _softplus(x: Tensor) -> Tensor:
    # -log(1 - sigmoid(x)).  The default threshold of 20 cuts off 2e-9, which float64 resolves.
    return F.softplus(x, threshold=40)


class BCELoss(BoxHeadLoss):
    """`binary_losses` behind mmdet's head contract; needs no counts and has no state.

    With bias 0 the loss starts at (C + 1) ln 2 per RoI: give the classifier a prior of 0.001.
    """

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of (N, C + 1) logits; `reduce_rois` explains the last three arguments."""
        losses = binary_losses(self.logits(cls_score), labels)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)
