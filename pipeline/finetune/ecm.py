"""Effective class-margin loss (Cho and Kraehenbuehl, ECCV 2022); official: janghyuncho/ECM-Loss,
mmdet/models/losses/effective_class_margin_loss.py and ecm_utils.py.

A binary loss per column whose margins come from the class counts.  With n the objects of a column and m all
others, the paper's margins are gamma+ ~ m^(1/4), gamma- ~ n^(1/4), and its surrogate probability
w+ e^s / (w+ e^s + w- e^-s), w = 1 / gamma, is just sigmoid(2 s + delta), delta = ln(n / m) / 4.
Scores at test time use plain sigmoid(s): the margin is for training only.

N = RoIs, C = foreground classes; label and column C = background.  The counts are INSTANCES, not images (the
official file of 1,203 "image counts" holds instance counts).
"""

import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois
from pipeline.finetune.row_losses import attach_gradients, binary_losses_and_gradients


def column_counts(instance_counts: Tensor, fg_bg_ratio: float) -> Tensor:
    """Append the background as `fg_bg_ratio` times all objects: (C,) -> (C + 1,) float64.

    A class without instances counts as one: its margin would be infinite.
    """
    foreground = instance_counts.double().clamp(min=1)
    return torch.cat([foreground, fg_bg_ratio * foreground.sum().reshape(1)])  # () -> (1)


def logit_shifts(counts: Tensor) -> Tensor:
    """delta = ln(n / m) / 4 of each column: (C + 1,) -> (C + 1,)."""
    return (counts / (counts.sum() - counts)).log() / 4


def column_weights(counts: Tensor) -> Tensor:
    """a ln(1 + 1 / a), a = m / n (Theorem 2): (C + 1,) -> (C + 1,), between 0 and 1.

    Computed in the precision of `counts`; log1p keeps it exact for rare classes, where 1 / a is tiny.
    """
    ratio = (counts.sum() - counts) / counts
    return ratio * (1 / ratio).log1p()


def official_float32_column_weights(counts: Tensor) -> Tensor:
    """The table of the released code, rounding error included: (C + 1,) -> (C + 1,) float32.

    1 + 1 / a loses most digits of 1 / a in float32: on LVIS v1 classes with one instance weigh 1.1101 instead
    of 1.0000, and 560 classes exceed 1.
    """
    counts = counts.float()
    ratio = (counts.sum() - counts) / counts
    return ratio * ((1 + ratio) / ratio).log()


class ECMLoss(BoxHeadLoss):
    """ECM loss behind mmdet's head contract (C + 1 columns); constant tables, no state to save.

    Args:
        num_classes, image_counts, num_images, loss_weight: see BoxHeadLoss.
        instance_counts: required.
        fg_bg_ratio: background RoIs per foreground RoI; the official value, measured for Mask R-CNN.
        official_float32_weights: reproduce the rounding error of the released table.
        toy_instance_counts: another name of instance_counts.

    Raises:
        UsageError: no instance_counts or both of them, and not the same, or fg_bg_ratio is not positive.
    """

    logit_shift: Tensor
    detection_cls_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        fg_bg_ratio: float = 6.3313,
        official_float32_weights: bool = False,
        toy_instance_counts: CountSource | None = None,
    ) -> None:
        if toy_instance_counts is not None:
            if instance_counts is not None and instance_counts != toy_instance_counts:
                raise UsageError("ECMLoss got instance_counts and toy_instance_counts", "give one of them")
            instance_counts = toy_instance_counts
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if self.instance_counts is None:
            raise UsageError("ECMLoss needs instance_counts", "give the categories.parquet of `2drcl stats`")
        if not fg_bg_ratio > 0:
            raise UsageError(f"ECMLoss needs fg_bg_ratio > 0, but got {fg_bg_ratio}")
        counts = column_counts(self.instance_counts, fg_bg_ratio)
        weights = official_float32_column_weights if official_float32_weights else column_weights
        # Not in checkpoints: the settings give them, and another data set's must not be loaded over them.
        self.register_buffer("logit_shift", logit_shifts(counts), persistent=False)
        self.register_buffer("detection_cls_weight", weights(counts).double(), persistent=False)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of (N, C + 1) logits; `reduce_rois` explains the last three arguments."""
        logits = self.logits(cls_score)
        shift, weight = self.logit_shift.to(logits.dtype), self.detection_cls_weight.to(logits.dtype)
        own = torch.add(shift[labels], logits.detach().gather(1, labels[:, None])[:, 0], alpha=2)
        losses, gradients = binary_losses_and_gradients(
            logits,
            labels,
            weight,
            weight,
            shifted=lambda rows: torch.add(shift, logits[rows], alpha=2),  # (C + 1), (n, C + 1) -> (n, C + 1)
            own=own[:, None],
        )
        # the 2 of the logit, times numbers that are few: (N,) instead of (N, C + 1)
        losses = 2 * attach_gradients(logits, losses / 2, gradients)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)
