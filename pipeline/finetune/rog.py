"""Ranking loss of ROG (Zhang et al., Reconciling Object-Level and Global-Level Objectives for Long-Tail
Detection, ICCV 2023); official: EricZsy/ROG, mmdet/models/losses/gap_loss.py and
roi_heads/bbox_heads/rog_convfc_bbox_head.py.

Beside the usual loss per RoI, the logits of all RoIs and classes are ranked together: the object i of class m
should outrank every entry of the (N, C) matrix that is no object's own.  With the soft step H of
`pipeline.finetune.soft_counts`, P_m the objects of class m and s_i the logit of i in its own class:

    wrong_i = sum over wrong entries of H(s - s_i)
    rank_i  = wrong_i + sum over P_m of H(s_k - s_i)
    error_i = wrong_i / rank_i

averaged over P_m, then over the classes present.  The gradient is written by hand: -error_i at i and
H(s - s_i) / rank_i at each wrong entry, times the class weight and `lam`.

N = RoIs, C = foreground classes; label C = background.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.bce import BCELoss
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois, sum_over_processes
from pipeline.finetune.row_losses import attach_gradients
from pipeline.finetune.seesaw import SeesawLoss, count_labels
from pipeline.finetune.soft_counts import SoftCounts

BASES: dict[str, type[BoxHeadLoss]] = {"bce": BCELoss, "seesaw": SeesawLoss}


@torch.no_grad()
def rank_errors(
    class_logits: Tensor, labels: Tensor, class_weights: Tensor, delta: float, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Share of every object in the ranking error, and the hand-written gradient of their weighted sum.

    Args:
        class_logits: (N, C), N > 0; labels: (N,) int64 in 0..C.
        class_weights: (C,) factors on the gradient; the error itself is unweighted.
        delta: half the width of the step, >= 0.
        excluded: (N,) bool, RoIs whose entries rank nowhere; None: none.

    Returns:
        (N,) errors, 0 for background, that sum to the mean over the classes present; and (N, C).  Both in
        the dtype of `class_logits`.
    """
    num_classes = class_logits.shape[1]
    is_object = labels < num_classes if excluded is None else (labels < num_classes) & ~excluded
    column = labels.clamp(max=num_classes - 1)[:, None]  # (N) -> (N, 1)
    own = class_logits.gather(1, column)[:, 0].masked_fill(~is_object, 0)
    ignored = torch.zeros_like(class_logits, dtype=torch.bool).scatter_(1, column, is_object[:, None])
    if excluded is not None:
        ignored |= excluded[:, None]
    # (N, C) -> (N * C)
    wrong = SoftCounts(class_logits.reshape(-1), own, ignored.reshape(-1), delta)

    num_wrong = wrong.at_thresholds().clamp(min=0)
    objects = labels.masked_fill(~is_object, num_classes)
    counts = count_labels(objects, num_classes + 1)[:-1]
    rank = _ranks_in_class(own, objects, counts, delta) + num_wrong
    # A NaN anywhere stays one: 0 * NaN.  Background has no rank, and any will do.
    error = num_wrong / torch.where(is_object, rank, 1)
    share = is_object / (counts[column[:, 0]] * (counts > 0).sum()).clamp(min=1).double()
    weight = share * class_weights.double().index_select(0, column[:, 0])
    gradient = wrong.at_values(weight / torch.where(is_object, rank, 1)).reshape(class_logits.shape)
    gradient.scatter_add_(1, column, -(weight * error).to(gradient.dtype)[:, None])
    return (share * error).to(class_logits.dtype), gradient


def _ranks_in_class(own: Tensor, objects: Tensor, counts: Tensor, delta: float) -> Tensor:
    """Sum of H(s_k - s_i) over the objects k of i's class, i among them: (N,) float64.

    Classes are laid end to end, far enough apart that no step reaches the next one.  Then those of the
    classes above are counted too, and taken off.
    """
    own = own.double()
    distance = own.max() - own.min() + 4 * delta + 1
    line = own + objects * distance
    is_background = objects == len(counts)
    above = counts.double().flip(0).cumsum(0).flip(0)  # objects of a class and the following
    above = torch.nn.functional.pad(above[1:], (0, 2))  # (C - 1) -> (C + 1), of the following alone
    return SoftCounts(line, line, is_background, delta).at_thresholds() - above.index_select(0, objects)


def ranking_class_weights(num_samples: Tensor, gamma: float) -> Tensor:
    """(1 / n)^gamma, scaled to a mean of 1: (C,) RoIs seen so far, below 1 counting as 1 -> (C,) float64."""
    weights = num_samples.double().clamp(min=1) ** -gamma
    return weights / weights.mean()


class GAPLoss(BoxHeadLoss):
    """The ranking loss behind mmdet's head contract, alone or on top of a loss per RoI.

    The reported number is the plain ranking error; `lam` and the class weights are in its gradient only.  It
    is a mean over classes, so that avg_factor and the size of label_weights do not change it; a RoI of weight
    0 is left out.  reduction "none" gives each object's share.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight: see BoxHeadLoss; no count is
            needed, the loss counts the sampled RoIs itself.
        gamma: exponent of the class weights, >= 0.
        lam: factor of the gradient, >= 0.
        delta_RS: half the width of the step, >= 0.
        base: the loss per RoI; it decides columns and scores, and `forward` returns a dict of its losses and
            `loss_rank`.  None: `forward` returns the ranking loss alone.
        synchronize: count over all processes.  The official code counts per process, and resuming gives every
            process the counts of the first; False does the same.  True makes `forward` a collective: every
            process calls it once a step.

    Raises:
        UsageError: a setting is out of range.
    """

    num_samples: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        gamma: float = 1.0,
        lam: float = 0.1,
        delta_RS: float = 0.5,
        base: Literal["bce", "seesaw"] | None = None,
        synchronize: bool = True,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if not all(value >= 0 for value in (gamma, lam, delta_RS)) or base not in (None, *BASES):
            raise UsageError(
                "GAPLoss needs gamma, lam and delta_RS >= 0 and a base of bce, seesaw or None, but got "
                f"gamma={gamma}, lam={lam}, delta_RS={delta_RS}, base={base!r}"
            )
        self.gamma, self.lam, self.delta, self.synchronize = gamma, lam, delta_RS, synchronize
        arguments: dict[str, Any] = {"synchronize": synchronize} if base == "seesaw" else {}
        self.base = BASES[base](num_classes, loss_weight=loss_weight, **arguments) if base else None
        self.num_extra_columns = self.base.num_extra_columns if self.base else 1
        self.register_buffer("num_samples", torch.zeros(num_classes + 1))

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The base's; alone, that of BCE."""
        return self.base.split_logits(logits) if self.base else super().split_logits(logits)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """The base's scores; alone, those of BCE: (N, columns) -> (N, C + 1)."""
        return self.base.get_activation(cls_score) if self.base else super().get_activation(cls_score)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Count the labels, then rank; (N, columns) logits.  0 with a graph where there is no object."""
        excluded = None if label_weights is None else label_weights == 0
        if self.training:
            self._count(labels, excluded)
        logits = self.logits(cls_score)
        shares = self.loss_weight * self._shares(logits, labels, excluded)
        rank = reduce_rois(shares, None, None, "none" if reduction_override == "none" else "sum")
        if self.base is None:
            return rank
        losses = self.base(logits, labels, label_weights, avg_factor, reduction_override)
        return {**(losses if isinstance(losses, dict) else {"loss_cls": losses}), "loss_rank": rank}

    def _shares(self, logits: Tensor, labels: Tensor, excluded: Tensor | None) -> Tensor:
        class_logits = logits[:, : self.num_classes]
        if not len(labels):
            return class_logits.sum(dim=1)  # (0, C) -> (0)
        weights = self.lam * ranking_class_weights(self.num_samples[:-1], self.gamma)
        found = rank_errors(class_logits, labels, weights, self.delta, excluded)
        return attach_gradients(class_logits, *found)

    @torch.no_grad()
    def _count(self, labels: Tensor, excluded: Tensor | None) -> None:
        kept = torch.ones_like(labels) if excluded is None else ~excluded
        step = torch.zeros_like(self.num_samples).index_add_(0, labels, kept.to(self.num_samples.dtype))
        self.num_samples += sum_over_processes(step) if self.synchronize else step
