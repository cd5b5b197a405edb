"""Binary cross-entropy with a background column: the baseline most long-tail papers call BCE.

Each of the C + 1 columns is a yes-no question of its own.  The background column answers "no object", so the
score of a class is p_c (1 - p_background).  As in BACL's representation stage (Tianhao-Qi/BACL,
mmdet/models/losses/bce.py); mmdet's CrossEntropyCustomLoss is another variant, without that column.

N = RoIs, C = foreground classes; label C = background.
"""

from torch import Tensor

from pipeline.finetune.head_contract import BoxHeadLoss, reduce_rois
from pipeline.finetune.row_losses import binary_losses


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
