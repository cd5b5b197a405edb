"""Equilibrium loss of LOCE (Feng et al., Exploring Classification Equilibrium in Long-Tailed Object
Detection, ICCV 2021); official: fcjian/LOCE, mmdet/models/losses/equilibrium_loss.py and
roi_heads/loce_roi_head.py.

The mean score m of a class, its running mean probability on its own objects, tells how well it is learnt.
The loss is softmax cross-entropy on s_j + ln m_j, in every column: a class that scores low is pushed down
less.  Scores at test time are the plain softmax.  The memory that feeds weak classes is
`pipeline.finetune.feature_memory`.

N = RoIs, C = foreground classes; label and column C = background.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois, sum_over_processes
from pipeline.finetune.row_losses import softmax_losses

INITIAL_SCORE = 0.01  # of every class before it is seen, and of the background for ever
UNGROUPED = -1  # group of a RoI that speaks for no object


def equilibrium_losses(logits: Tensor, labels: Tensor, mean_score: Tensor) -> Tensor:
    """Softmax cross-entropy on s + ln m.

    Args:
        logits: (N, C + 1); labels: (N,) int64 in 0..C.
        mean_score: (C + 1,) in (0, 1]; carries no gradient.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    margin = mean_score.detach().to(logits.dtype).clamp(min=torch.finfo(logits.dtype).tiny).log()
    return softmax_losses(logits, labels, lambda rows: logits[rows] + margin)


@torch.no_grad()
def object_scores(logits: Tensor, labels: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean probability of the own class over the RoIs of each object, summed over the objects of each class.

    Args:
        logits: (N, C + 1); labels: (N,) int64 in 0..C.
        groups: (N,) int64 in 0..num_groups-1, the object that a RoI belongs to; RoIs of one object share
            their label.  UNGROUPED where a RoI counts for none; background never counts.

    Returns:
        Sum of the objects' means and number of objects, each (C,) float64.
    """
    num_classes = logits.shape[1] - 1
    counted = ((groups != UNGROUPED) & (labels < num_classes)).double()
    groups = groups.masked_fill(groups == UNGROUPED, num_groups)  # a group more, for them
    size = counted.new_zeros(num_groups + 1).index_add(0, groups, counted)
    share = counted / size.index_select(0, groups).clamp(min=1)  # each object's shares sum to 1
    own = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0].double()  # (N, C + 1) -> (N,)
    rows = torch.stack([share * own, share], dim=1)  # 2 x (N) -> (N, 2)
    total = torch.zeros(num_classes + 1, 2, dtype=torch.float64, device=logits.device)
    total = total.index_add(0, labels, rows)[:-1]  # (N, 2) -> (C, 2)
    return total[:, 0], total[:, 1].round()


def updated_mean_score(mean_score: Tensor, sums: Tensor, counts: Tensor, momentum: float) -> Tensor:
    """m <- a^k m + (1 - a^k) mean of the k objects, as if one came after the other; background stays.

    Args:
        mean_score: (C + 1,); sums, counts: (C,), see `object_scores`; momentum: a in [0, 1].

    Returns:
        (C + 1,), in the dtype of `mean_score`.
    """
    kept = momentum**counts
    foreground = kept * mean_score[:-1] + (1 - kept) * sums / counts.clamp(min=1)
    return torch.cat([foreground.to(mean_score.dtype), mean_score[-1:]])  # (C) + (1) -> (C + 1)


class EquilibriumLoss(BoxHeadLoss):
    """Equilibrium loss behind mmdet's head contract (C + 1 softmax columns).

    `forward` reads the mean scores and leaves them alone: a RoI's label does not tell which object it belongs
    to.  The RoI head calls `update_mean_score` before it, once a step; a head that never does (mmdet's own)
    trains with constant mean scores.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight: see BoxHeadLoss; no count is
            needed.
        mean_score: C + 1 numbers in (0, 1] to start from, the background last; None: 0.01 each.
        momentum: a in [0, 1) of the running mean.

    Raises:
        UsageError: a mean score or the momentum is out of range.
        MismatchedInput: another number of mean scores than C + 1.
    """

    mean_score: Tensor  # the official one is no buffer: a resumed run forgets it

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        mean_score: Sequence[float] | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        scores = [INITIAL_SCORE] * (num_classes + 1) if mean_score is None else list(mean_score)
        if len(scores) != num_classes + 1:
            raise MismatchedInput(
                f"mean_score has {len(scores)} numbers, but {num_classes} classes and background need "
                f"{num_classes + 1}",
                "give one per class and one for background, or none at all",
            )
        if not all(0 < score <= 1 for score in scores) or not 0 <= momentum < 1:
            raise UsageError(
                "EquilibriumLoss needs mean scores above 0 and up to 1 and a momentum from 0 to below 1, "
                f"but got mean_score={scores}, momentum={momentum}"
            )
        self.momentum = momentum
        self.register_buffer("mean_score", torch.tensor(scores, dtype=torch.float32))

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C + 1) -> class logits (N, C) and background against the best class (N,)."""
        classes = logits[:, :-1]
        return classes, logits[:, -1] - classes.amax(dim=1)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Plain softmax, without the mean scores: (N, C + 1) -> (N, C + 1)."""
        return self.logits(cls_score).softmax(dim=1)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of (N, C + 1) logits; `reduce_rois` explains the last three arguments."""
        losses = equilibrium_losses(self.logits(cls_score), labels, self.mean_score)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)

    @torch.no_grad()
    def update_mean_score(self, cls_score: Tensor, labels: Tensor, groups: Tensor, num_groups: int) -> None:
        """Take in the step's objects of all processes: `object_scores`, then `updated_mean_score`.

        A collective: every process calls it once a step, whatever its batch holds.  RoIs from the memory
        count too; the official code makes one object of all those of a class.
        """
        step = torch.stack(object_scores(self.logits(cls_score), labels, groups, num_groups))
        sums, counts = sum_over_processes(step)  # 2 x (C) -> (2, C)
        self.mean_score.copy_(updated_mean_score(self.mean_score, sums, counts, self.momentum))
