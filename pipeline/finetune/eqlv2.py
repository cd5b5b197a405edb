"""Equalization loss v2 (Tan et al., CVPR 2021, arXiv 2012.08548); official: tztztztztz/eqlv2,
mmdet/models/losses/eqlv2.py.

A binary loss per column whose weights balance what a class has received so far: g_j is the sum of its
positive gradients over the sum of its negative ones, over the whole run.
  negatives weigh  n_j = sigmoid(gamma (g_j - mu)), little for classes that were mostly pushed down;
  positives weigh  q_j = 1 + alpha (1 - n_j), more for those.
The gradients of a step, |p - t| times its weight, are added after its loss.

N = RoIs, C = foreground classes; label and column C = background, always of weight 1.
"""

import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois, sum_over_processes
from pipeline.finetune.row_losses import attach_gradients, binary_losses_and_gradients


def balance_weights(ratio: Tensor, gamma: float, mu: float, alpha: float) -> tuple[Tensor, Tensor]:
    """n and q of each column, background last: (C,) ratios g -> (C + 1,), (C + 1,)."""
    negative = torch.cat([(gamma * (ratio - mu)).sigmoid(), ratio.new_ones(1)])
    return negative, 1 + alpha * (1 - negative)


@torch.no_grad()
def gradient_sums(gradients: Tensor, labels: Tensor, label_weights: Tensor | None = None) -> Tensor:
    """How much a batch pulls each class up and pushes it down.

    Args:
        gradients: (N, C + 1) of the loss, before any mean: negative at the label, nowhere else.
        labels: (N,) int64 in 0..C.
        label_weights: (N,) factors of the RoIs, or None for ones.

    Returns:
        (2, C): sums of the positives' gradients, and of the negatives', both from 0 on.
    """
    if label_weights is not None:
        gradients = gradients * label_weights.to(gradients.dtype)[:, None]  # (N) -> (N, 1)
    own = gradients.gather(1, labels[:, None])  # (N, C + 1) -> (N, 1)
    # in float64, because the order of additions on a GPU is not fixed: rounding hides it
    pulls = torch.zeros(gradients.shape[1], dtype=torch.float64, device=labels.device)
    pulls = pulls.index_add_(0, labels, own[:, 0].abs().double()).to(gradients.dtype)
    pushes = gradients.scatter_(1, labels[:, None], 0).sum(dim=0)  # (N, C + 1) -> (C + 1)
    gradients.scatter_(1, labels[:, None], own)  # as it was
    return torch.stack([pulls, pushes])[:, :-1]  # 2 x (C + 1) -> (2, C)


class EQLv2Loss(BoxHeadLoss):
    """EQL v2 behind mmdet's head contract (C + 1 columns); give the classifier a prior of 0.001.

    mmdet 3.3's EQLV2Loss has the same arithmetic but three defects in its head: processes keep gradients of
    their own (`synchronize=False` does so), prediction takes the softmax over C + 1 columns, background
    included (`mmdet_softmax_scores=True`), and the classifier starts at bias 0, where 1,204 columns cost 834
    instead of 8 (leave out the prior).  The official code synchronises, and needs a process group to run.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight: see BoxHeadLoss; no count is
            needed.
        gamma, mu, alpha: of the weights, see above.
        synchronize: sum the gradients over all processes.  True makes a training `forward` a collective:
            every process calls it once a step.
        mmdet_softmax_scores: predict as mmdet 3.3 does, which no sigmoid loss is trained for.

    Attributes:
        pos_grad, neg_grad: (C,) float32 buffers: sums over all steps; RoIs of label_weights 0 add nothing.
        pos_neg: (C,) float32 buffer: their ratio; 100 before the first step, so that all weights are 1.

    Raises:
        UsageError: gamma or alpha is negative.
    """

    pos_grad: Tensor
    neg_grad: Tensor
    pos_neg: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        synchronize: bool = True,
        mmdet_softmax_scores: bool = False,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if gamma < 0 or alpha < 0:
            raise UsageError(f"EQLv2Loss needs gamma, alpha >= 0, but got {gamma}, {alpha}")
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        self.synchronize = synchronize
        self.mmdet_softmax_scores = mmdet_softmax_scores
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.full((num_classes,), 100.0))

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """sigmoid(class) (1 - sigmoid(background)), then sigmoid(background): (N, C + 1) -> (N, C + 1)."""
        if self.mmdet_softmax_scores:
            return self.logits(cls_score).softmax(dim=1)
        return super().get_activation(cls_score)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of (N, C + 1) logits, then the step's gradients are added while training.

        `reduce_rois` explains the last three arguments.
        """
        logits = self.logits(cls_score)
        negative, positive = (
            w.to(logits.dtype) for w in balance_weights(self.pos_neg, self.gamma, self.mu, self.alpha)
        )
        losses, gradients = binary_losses_and_gradients(logits, labels, negative, positive)
        if self.training:
            self._collect(gradient_sums(gradients, labels, label_weights))
        losses = attach_gradients(logits, losses, gradients)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)

    @torch.no_grad()
    def _collect(self, step: Tensor) -> None:
        pos_grad, neg_grad = sum_over_processes(step) if self.synchronize else step  # (2, C) -> (C), (C)
        self.pos_grad += pos_grad
        self.neg_grad += neg_grad
        # in place: a buffer may be shared, and stays where it was registered
        self.pos_neg.copy_(self.pos_grad / (self.neg_grad + 1e-10))
