"""Binary cross-entropy with a background column: the baseline most long-tail papers call BCE.

Each of the C + 1 columns is a yes-no question of its own.  The background column answers "no object", so the
score of a class is p_c (1 - p_background).  As in BACL's representation stage (Tianhao-Qi/BACL,
mmdet/models/losses/bce.py); mmdet's CrossEntropyCustomLoss is another variant, without that column.

N = RoIs, C = foreground classes; label C = background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.finetune.head_contract import BoxHeadLoss, reduce_rois


def binary_losses(logits: Tensor, labels: Tensor, column_weights: Tensor | None = None) -> Tensor:
    """Sum over columns of the binary cross-entropy against the one-hot label.

    Args:
        logits: (N, K); labels: (N,) int64 in 0..K-1.
        column_weights: (K,) or (N, K) factors on the elements, or None for ones.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    is_label = F.one_hot(labels, logits.shape[1]).bool()  # (N) -> (N, K)
    # -log p where the answer is yes, -log (1 - p) where it is no; the sign keeps both exact near 0
    elements = -F.logsigmoid(torch.where(is_label, logits, -logits))
    if column_weights is not None:
        elements = elements * column_weights
    return elements.sum(dim=1)  # (N, K) -> (N)


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
