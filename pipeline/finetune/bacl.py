"""Foreground classification balance loss of BACL (Qi et al., Balanced Classification: A Unified Framework for
Long-Tailed Object Detection, TMM 2024); official: Tianhao-Qi/BACL, mmdet/models/losses/fcbl.py.

A binary loss per column.  A running confusion matrix Q (row: true class, column: mean softmax over the
classes) tells which class is taken for which.  An object of class y gets, in column j, the margin
alpha ln(Q_yj / Q_jy): the harder the more y is taken for j.  Columns that already lie below the true class
and below a threshold are left out, so tail classes are spared most of their negatives.  The features it
hallucinates for weak classes are `pipeline.finetune.hallucination`.

N = RoIs, C = foreground classes; label and column C = background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois, sum_over_processes
from pipeline.finetune.object_rows import ObjectRows
from pipeline.finetune.pcb import sum_class_softmax
from pipeline.finetune.row_losses import LEFT_OUT, MatrixOfRows, binary_losses

CONFUSION_FLOOR = 1e-3  # Q below it counts as it; the official constant


def confusion_matrix(cm_numerator: Tensor, num_gt: Tensor) -> Tensor:
    """Q: (C, C) sums of softmax rows, (C,) RoIs of each class -> (C, C); 0 where a class was never seen."""
    return cm_numerator / num_gt.clamp(min=1)[:, None]


def confusion_margins(confusion: Tensor, alpha: float, classes: Tensor) -> Tensor:
    """alpha ln(Q_yj / Q_jy), and 0 for background, of some labels y.

    Args:
        confusion: (C, C); alpha: factor; classes: (L,) int64, the labels.

    Returns:
        (L + 1, C + 1), row: label, the background last; column: logit.
    """
    taken = confusion.index_select(0, classes).clamp_(min=CONFUSION_FLOOR)  # (C, C) -> (L, C)
    given = confusion.index_select(1, classes).clamp_(min=CONFUSION_FLOOR).T  # (C, C) -> (L, C)
    return F.pad((taken / given).log_().mul_(alpha), (0, 1, 0, 1))  # (L, C) -> (L + 1, C + 1)


@torch.no_grad()
def kept_columns(logits: Tensor, labels: Tensor, prob_thr: float) -> Tensor:
    """Which columns take part in the loss of a RoI.

    An object keeps background and the columns whose score p_j (1 - p_background) reaches its own class's or
    `prob_thr`; a background RoI keeps all.  As the factor is the same in a row, this is a bound on the logit.

    Args:
        logits: (N, C + 1), without margins; labels: (N,) int64 in 0..C; prob_thr: in (0, 1).

    Returns:
        (N, C + 1) factors 1 and 0, in the dtype of `logits`.
    """
    own = logits.gather(1, labels[:, None])  # (N, C + 1) -> (N, 1)
    not_background = (-logits[:, -1:]).sigmoid()
    enough = torch.logit((prob_thr / not_background).clamp(max=1))  # infinite where no score can reach it
    is_background = (labels == logits.shape[1] - 1)[:, None]  # (N) -> (N, 1)
    kept = logits.clone().ge_(torch.minimum(own, enough).masked_fill(is_background, -torch.inf))
    kept[:, -1] = 1
    return kept


class FCBLLoss(BoxHeadLoss):
    """FCBL behind mmdet's head contract (C + 1 columns).

    The matrix is updated after the loss, in training only.  Differences from the official code: it reduces
    over processes only on those that see an object, so that others wait for ever; here every process takes
    part in every step.  It ignores label_weights; here a RoI of weight 0 also stays out of the matrix.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight: see BoxHeadLoss; no count is
            needed.
        alpha: factor of the margins, >= 0; 0.85 is the official one for LVIS v1, 1 for v0.5.
        prob_thr: score from which a wrong column always takes part, in (0, 1).
        reweight: whether columns are left out from the start; the official schedule sets the attribute
            `reweight` before its first epoch.
        synchronize: sum the matrix over all processes; False keeps one per process.  True makes `forward` a
            collective: every process calls it once a step.

    Raises:
        UsageError: alpha or prob_thr is out of range.
    """

    cm_numerator: Tensor
    num_gt: Tensor
    is_reweighting: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        alpha: float = 0.85,
        prob_thr: float = 0.7,
        reweight: bool = False,
        synchronize: bool = True,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if not alpha >= 0 or not 0 < prob_thr < 1:
            raise UsageError(
                f"FCBLLoss needs alpha >= 0 and prob_thr between 0 and 1, but got {alpha} and {prob_thr}"
            )
        self.alpha, self.prob_thr, self.synchronize = alpha, prob_thr, synchronize
        self.register_buffer("cm_numerator", torch.zeros(num_classes, num_classes))
        self.register_buffer("num_gt", torch.zeros(num_classes))
        self.register_buffer("is_reweighting", torch.tensor(reweight))

    @property
    def reweight(self) -> bool:
        """Whether columns are left out.  Kept in a buffer: the official attribute is lost on a resume."""
        return bool(self.is_reweighting)

    @reweight.setter
    def reweight(self, value: bool) -> None:
        self.is_reweighting.fill_(value)

    def correct_ratio(self) -> Tensor:
        """Mean probability of the true class among the C classes: (C,), 0 for classes never seen."""
        return self.cm_numerator.diagonal() / self.num_gt.clamp(min=1)

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
        losses = binary_losses(logits, labels, shifted=self._shifts(logits, labels))
        if self.training:
            self._count(logits, labels, label_weights)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)

    @torch.no_grad()
    def _shifts(self, logits: Tensor, labels: Tensor) -> MatrixOfRows:
        """What gives the logits with the margins of the matrix as it is now, out of reach where left out."""
        objects = ObjectRows(labels, self.num_classes)
        confusion = confusion_matrix(self.cm_numerator, self.num_gt)
        margins = confusion_margins(confusion, self.alpha, objects.classes).to(logits.dtype)
        # Rows of background keep all columns.  The state decides on the device: asking it for a bool would
        # wait for the GPU.
        choosing = labels.where(self.is_reweighting, self.num_classes)

        def of_rows(rows: slice) -> Tensor:
            of_block = logits[rows]
            at, places = objects.within(rows, len(of_block))
            kept = kept_columns(
                of_block.index_select(0, at), choosing[rows].index_select(0, at), self.prob_thr
            )
            added = margins.index_select(0, places).add_(1 - kept, alpha=LEFT_OUT)  # (objects, C + 1)
            return of_block.index_add(0, at, added)  # added, so that a NaN stays one

        return of_rows

    @torch.no_grad()
    def _count(self, logits: Tensor, labels: Tensor, label_weights: Tensor | None) -> None:
        if label_weights is not None:
            labels = labels.masked_fill(label_weights == 0, self.num_classes)
        step = sum_class_softmax(logits, labels, self.num_classes).to(self.cm_numerator.dtype)
        step = sum_over_processes(step) if self.synchronize else step
        self.cm_numerator += step[:, :-1]
        self.num_gt += step[:, -1]
