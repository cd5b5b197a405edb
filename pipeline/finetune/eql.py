"""Equalization loss (Tan et al., CVPR 2020, arXiv 2003.05176); official: tztztztztz/eqlv2,
mmdet/models/losses/eql.py, and tztztztztz/eql.detectron2, projects/EQL/eql/fast_rcnn.py.

A binary loss per class, without a background column.  An object of another class does not push an infrequent
class down (that negative has weight 0); background RoIs push every class down, and a RoI always pulls
its own class up.  Infrequent: shown by fewer than a fraction lambda of the training images.

N = RoIs, C = foreground classes, K = columns; label C = background.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois


def weighted_binary_losses(
    logits: Tensor, labels: Tensor, negative_weights: Tensor, positive_weights: Tensor | None = None
) -> Tensor:
    """Sum over columns of the weighted binary cross-entropy against the one-hot label.

    Args:
        logits: (N, K); labels: (N,) int64 from 0 on; a label that has no column is background: all negative.
        negative_weights: (K,) or (N, K) factors of the columns where the answer is no; at the label unused.
        positive_weights: (K,) factors of the column of the label, or None for ones.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    return attach_gradients(logits, *losses_and_gradients(logits, labels, negative_weights, positive_weights))


@torch.no_grad()
def losses_and_gradients(
    logits: Tensor, labels: Tensor, negative_weights: Tensor, positive_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`weighted_binary_losses` without a graph, and what autograd would find: (N,) and (N, K).

    The gradient is the probability minus the target, weighted: all that a backward pass has to keep.
    """
    column, has_column, own, positive = _own_column(logits, labels, positive_weights)
    elements = _softplus(logits).mul_(negative_weights)
    gradients = logits.sigmoid().mul_(negative_weights)
    # as if every column were negative; then the label's is put right, and no (N, K) target is made
    for values, at_label in ((elements, _softplus(-own)), (gradients, -(-own).sigmoid())):
        values.scatter_(1, column, torch.where(has_column, positive * at_label, values.gather(1, column)))
    return elements.sum(dim=1), gradients  # (N, K) -> (N)


def attach_gradients(logits: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
    """(N,) `losses` whose derivative by the (N, K) logits is known: the (N, K) `gradients`."""
    attached: Tensor = _Attach.apply(logits, losses, gradients)
    return attached


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return losses.view_as(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * outer[:, None], None, None  # (N) -> (N, 1)


def infrequent_classes(frequencies: Tensor, threshold: float, strict: bool = True) -> Tensor:
    """Which classes few images show.

    Args:
        frequencies: (C,) fraction of the training images that show the class.
        threshold: lambda of the paper.
        strict: below the threshold, as the official code; else at the threshold too.

    Returns:
        (C,) bool.
    """
    return frequencies < threshold if strict else frequencies <= threshold


def eql_negative_weights(labels: Tensor, is_infrequent: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for infrequent classes in the row of an object, else 1: (N,), (C,) bool -> (N, C) of `dtype`.

    At the label, whose weight is that of a positive, the value has no meaning.
    """
    is_object = (labels < len(is_infrequent))[:, None]  # (N) -> (N, 1)
    ones = torch.ones((), dtype=dtype, device=labels.device)
    return torch.where(is_object, (~is_infrequent).to(dtype), ones)  # (N, 1), (C) -> (N, C)


class EQLLoss(BoxHeadLoss):
    """EQL behind mmdet's head contract (C columns); a constant table, no state to save.

    The score is sigmoid(class); a background column of zeros follows, because `multiclass_nms` drops one.
    With bias 0 the loss starts at C ln 2 per RoI: give the classifier a prior of 0.001.

    Args:
        num_classes, instance_counts, loss_weight: see BoxHeadLoss.
        image_counts, num_images: required unless `freq` is given.
        lambda_: classes shown by a smaller fraction of the images are infrequent; the official value for LVIS
            v1 (109 images; 0.00177 for v0.5).  A data set of 909 images or fewer has no infrequent class.
        freq: C fractions of images that show the class, instead of image_counts / num_images.
        strict_less_than: False makes a class at exactly `lambda_` infrequent too.

    Raises:
        UsageError: neither `freq` nor both counts, a fraction outside [0, 1], or `lambda_` not positive.
        MismatchedInput: `freq` is for another number of classes.
    """

    num_extra_columns = 0
    is_infrequent: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        lambda_: float = 0.0011,
        freq: list[float] | None = None,
        strict_less_than: bool = True,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if not lambda_ > 0:
            raise UsageError(f"{type(self).__name__} needs lambda_ > 0, but got {lambda_}")
        frequencies = self._frequencies(freq)
        # Not in checkpoints: the settings give it, and another data set's must not be loaded over it.
        self.register_buffer(
            "is_infrequent", infrequent_classes(frequencies, lambda_, strict_less_than), persistent=False
        )

    def _frequencies(self, freq: list[float] | None) -> Tensor:
        """(C,) float64 fractions of images."""
        name = type(self).__name__
        if freq is None:
            if self.image_counts is None or not self.num_images:
                raise UsageError(
                    f"{name} needs image_counts and num_images, or freq",
                    "give the categories.parquet of `2drcl stats` and its number of annotated images",
                )
            return self.image_counts.double() / self.num_images
        frequencies = torch.tensor(freq, dtype=torch.float64)
        if len(frequencies) != self.num_classes:
            raise MismatchedInput(f"{name}: {len(frequencies)} freq for {self.num_classes} classes")
        if not ((frequencies >= 0) & (frequencies <= 1)).all():
            raise UsageError(f"{name}: freq are fractions of images, from 0 to 1", "divide by num_images")
        return frequencies

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) -> the same, and (N,) positive where no class reaches a score of one half."""
        return logits, -logits.amax(dim=1)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """sigmoid(class), then zeros for the background: (N, C) -> (N, C + 1)."""
        return F.pad(self.logits(cls_score).sigmoid(), (0, 1))

    def negative_weights(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Of this step: (N,) -> (N, C) of `dtype`."""
        return eql_negative_weights(labels, self.is_infrequent, dtype)

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
        losses = weighted_binary_losses(logits, labels, self.negative_weights(labels, logits.dtype))
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)


def _own_column(
    logits: Tensor, labels: Tensor, positive_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each RoI's label: index, whether it exists, logit and weight, (N, 1) each."""
    num_columns = logits.shape[1]
    # Background borrows the last column, to no effect: boolean indexing would wait for the GPU.
    column = labels.clamp(max=num_columns - 1)[:, None]  # (N) -> (N, 1)
    weight = logits.new_ones(()) if positive_weights is None else positive_weights[column]
    return column, (labels < num_columns)[:, None], logits.gather(1, column), weight


def _softplus(x: Tensor) -> Tensor:
    # the default threshold of 20 cuts off 2e-9, which float64 resolves
    return F.softplus(x, threshold=40)
