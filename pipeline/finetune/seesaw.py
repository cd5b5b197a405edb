"""Seesaw loss (Wang et al., CVPR 2021, arXiv 2008.10032), with mmdet 3.3's SeesawLoss as the reference.

Softmax over the C classes for foreground RoIs, where the logit of a wrong class j of a RoI labelled i is
shifted by log S_ij = log M_ij + log K_ij:
  mitigation    M_ij = min(1, n_j / n_i)^p: rare classes are pushed down less, n counted while training;
  compensation  K_ij = max(1, P_j / max(P_i, eps))^q: but more where they win wrongly.
Beside it a two-way softmax, foreground against background, for all RoIs.

N = RoIs, C = foreground classes; label C = background.  Columns 0..C-1: classes, C: object, C + 1: none.
"""

import math

import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.head_contract import (
    BoxHeadLoss,
    CountSource,
    reduce_rois,
    sum_over_processes,
)
from pipeline.finetune.object_rows import rows_with_objects
from pipeline.finetune.row_losses import attach_parts, softmax_losses_and_gradients


@torch.no_grad()
def seesaw_shift(
    class_logits: Tensor, labels: Tensor, num_samples: Tensor, p: float, q: float, eps: float
) -> Tensor:
    """log S, added to the class logits before the softmax; exactly 0 at the label; carries no gradient.

    Args:
        class_logits: (N, C); labels: (N,) int64 in 0..C-1.
        num_samples: (C,) RoIs seen so far per class; below 1 counts as 1.
        p, q: exponents of mitigation and compensation, >= 0; 0 switches one off.
        eps: floor of the label's probability, > 0.

    Returns:
        (N, C).
    """
    log_samples = num_samples.to(class_logits.dtype).clamp(min=1).log()
    mitigation = (log_samples - log_samples[labels][:, None]).clamp_(max=0).mul_(p)  # (C) - (N, 1) -> (N, C)
    log_probs = class_logits.log_softmax(dim=1)
    log_own = log_probs.gather(1, labels[:, None]).clamp(min=math.log(eps))  # (N, C) -> (N, 1)
    compensation = log_probs.sub_(log_own).clamp_(min=0).mul_(q)
    return mitigation.add_(compensation)


def count_labels(labels: Tensor, num_labels: int) -> Tensor:
    """(N,) int64 -> (num_labels,) float32 occurrences; unlike torch.bincount it never waits for the GPU."""
    ones = torch.ones(len(labels), device=labels.device)
    return torch.zeros(num_labels, device=labels.device).index_add(0, labels, ones)


class SeesawLoss(BoxHeadLoss):
    """Seesaw loss behind mmdet's head contract (C + 2 columns); returns a dict of two losses.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight: see BoxHeadLoss; no count is
            needed, the loss counts the sampled RoIs itself.
        p, q, eps: see `seesaw_shift`.
        synchronize: count over all processes.  mmdet counts per process, so that its ratios depend on the
            number of GPUs, and resuming gives every process the counts of the first; False does the same.
            True makes `forward` a collective: every process calls it once a step.
        layout: what a file says of the order of the columns; for people.

    Attributes:
        cum_samples: (C + 1,) float32 buffer: RoIs per label so far, this step included, background last.

    Raises:
        UsageError: p or q is negative, or eps not positive.
    """

    num_extra_columns = 2
    cum_samples: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 0.01,
        synchronize: bool = True,
        layout: str = "",
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if p < 0 or q < 0 or eps <= 0:
            raise UsageError(f"SeesawLoss needs p >= 0, q >= 0 and eps > 0, but got p={p}, q={q}, eps={eps}")
        self.p, self.q, self.eps = p, q, eps
        self.synchronize = synchronize
        self.register_buffer("cum_samples", torch.zeros(num_classes + 1))

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C + 2) -> class logits (N, C) and background against object logit (N,)."""
        return logits[:, :-2], logits[:, -1] - logits[:, -2]

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """softmax over classes x P(object), then P(background): (N, C + 2) -> (N, C + 1)."""
        class_logits, background_logit = self.split_logits(self.logits(cls_score))
        background = background_logit[:, None]  # (N) -> (N, 1)
        # a softmax of two is a sigmoid of the difference
        scores = class_logits.softmax(dim=1) * (-background).sigmoid()
        return torch.cat([scores, background.sigmoid()], dim=1)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> dict[str, Tensor]:
        """Count the labels, then `loss_cls_classes` (0 for background RoIs) and `loss_cls_objectness`.

        Both are divided by the same number of RoIs, background included.  `reduce_rois` explains the last
        three arguments; (N, C + 2) logits.
        """
        if self.training:
            self._count(labels)
        logits = self.logits(cls_score)
        is_background = (labels == self.num_classes).long()
        found = [
            self._class_losses_and_gradients(logits.detach()[:, :-2], labels),
            softmax_losses_and_gradients(logits.detach()[:, -2:], is_background),
        ]
        losses = attach_parts(logits, *zip(*found, strict=True))
        return {
            name: self.loss_weight * reduce_rois(values, label_weights, avg_factor, reduction_override)
            for name, values in zip(("loss_cls_classes", "loss_cls_objectness"), losses, strict=True)
        }

    @torch.no_grad()
    def _class_losses_and_gradients(self, class_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C), (N,) -> (N,) and (N, C), 0 for background."""
        rows = rows_with_objects(labels, self.num_classes)
        if rows is None:  # background borrows class 0, times 0
            is_object = labels < self.num_classes
            losses, gradients = self._shifted(class_logits, labels.where(is_object, 0))
            return losses.mul_(is_object), gradients.mul_(is_object[:, None])
        losses, gradients = self._shifted(class_logits.index_select(0, rows), labels[rows])
        # zero, unless a logit of background is no number, which shall show there too
        whole = 0 * class_logits.sum(dim=1)
        nothing = torch.zeros_like(class_logits)
        return whole.index_add_(0, rows, losses), nothing.index_copy_(0, rows, gradients)

    def _shifted(self, class_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of objects alone."""

        def shifted(rows: slice) -> Tensor:
            of_rows = class_logits[rows], targets[rows]
            shift = seesaw_shift(*of_rows, self.cum_samples[:-1], self.p, self.q, self.eps)
            return shift.add_(of_rows[0])

        return softmax_losses_and_gradients(class_logits, targets, shifted)

    @torch.no_grad()
    def _count(self, labels: Tensor) -> None:
        step = count_labels(labels, self.num_classes + 1)
        self.cum_samples += sum_over_processes(step) if self.synchronize else step
