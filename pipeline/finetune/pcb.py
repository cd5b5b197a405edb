"""Pairwise class balance, PCB (He et al., CVPR 2022), with softmax cross-entropy as the base loss; official:
megvii-research/PCB, mmdet/models/losses/cross_entropy_pcb_loss.py.

While training, a confusion matrix Q is learnt: row y is the mean softmax over the classes of the RoIs
labelled y.  From a late epoch on, a RoI of class y is also pulled towards the classes that are taken for y:
its soft target is column y of Q, divided by its sum.  So whoever is suppressed by y gets something back.
The paper's head refines its answer in several passes; the later the pass, the stronger the pull.

N = RoIs, C = foreground classes; label and column C = background.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois, sum_over_processes
from pipeline.finetune.object_rows import ObjectRows, rows_with_objects
from pipeline.finetune.row_losses import attach_gradients, in_blocks


@torch.no_grad()
def sum_class_softmax(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Per class, the sum of the softmax over the classes of its RoIs, and their number.

    Args:
        logits: (N, C + 1); labels: (N,) int64 in 0..C, of which C is left out.

    Returns:
        (C, C + 1), sums in the first C columns and counts in the last, in the dtype of `logits`.
    """
    rows = rows_with_objects(labels, num_classes)
    if rows is None:
        classes = logits.clone()
    else:
        classes, labels = logits.index_select(0, rows), labels[rows]
    classes[:, num_classes] = -torch.inf
    shares = classes.softmax(dim=1)
    shares[:, num_classes] = 1  # summed, the number of RoIs
    # Where background RoIs are among them, they go to a row of their own.
    total = logits.new_zeros(num_classes + 1, num_classes + 1)
    return total.index_add_(0, labels, shares)[:-1]  # (N, C + 1) -> (C + 1, C + 1) -> (C, C + 1)


@torch.no_grad()
def update_confusion(confusion: Tensor, sums: Tensor, counts: Tensor, momentum: float) -> None:
    """Move, in place, the rows of the classes at hand towards their mean softmax; they sum to 1 again.

    Args:
        confusion: (C, C), rows of classes never seen are 0.
        sums: (C, C) and counts: (C,), see `sum_class_softmax`.
        momentum: share of the old row, in [0, 1).
    """
    is_present = counts > 0
    # Both shares are divided by the sum of the new row, which is known beforehand: two passes over C x C.
    row_sums = momentum * confusion.sum(dim=1) + (1 - momentum)  # (C, C) -> (C)
    kept = torch.where(is_present, momentum / row_sums, 1.0)
    added = torch.where(is_present, (1 - momentum) / (counts * row_sums), 0.0)
    confusion.mul_(kept[:, None]).add_(sums * added[:, None])  # (C) -> (C, 1)


@torch.no_grad()
def mixed_targets(confusion: Tensor, strength: float | Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """What a RoI of some labels shall answer: (1 - a) label + a t, t being column y of Q divided by its sum.

    (1 - a) CE + a KL of a RoI is the cross-entropy with that target less a times the entropy of t.

    Args:
        confusion: (C, C); a column of zeros has no target.
        strength: a, a number or ().
        classes: (L,) int64, the labels.

    Returns:
        (L + 1, C + 1), the targets of the labels, the background's, itself, last; and (L + 1,), a times
        entropy.
    """
    tiny = torch.finfo(confusion.dtype).tiny
    pulled = confusion.index_select(1, classes)  # (C, C) -> (C, L)
    pulled /= pulled.sum(dim=0).clamp(min=tiny)
    entropies = -torch.linalg.vecdot(pulled, pulled.clamp(min=tiny).log_(), dim=0)  # (C, L) -> (L)
    # transposed when it is whole: a transposed copy into a part of a matrix is slow
    targets = F.pad(pulled.mul_(strength), (0, 1, 0, 1)).T.contiguous()  # (C, L) -> (L + 1, C + 1)
    targets[-1, -1] = strength
    own = F.pad(classes, (0, 1), value=len(confusion))[:, None]  # (L) -> (L + 1, 1)
    targets.scatter_add_(1, own, (1 - strength) * targets.new_ones(own.shape))
    return targets, strength * F.pad(entropies, (0, 1))  # (L) -> (L + 1)


@torch.no_grad()
def soft_target_losses(
    logits: Tensor, labels: Tensor, objects: ObjectRows, targets: Tensor, entropies: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, of objects with the target of their label and less its entropy, and its gradient.

    Args:
        logits: (N, K); labels: (N,) int64; objects: the RoIs that have a target.
        targets: (L + 1, K), which need not sum to 1; entropies: (L + 1,).

    Returns:
        (N,) losses and (N, K): probability times the target's sum, minus the target.
    """
    sums, column = targets.sum(dim=1), labels[:, None]  # (L + 1, K) -> (L + 1); (N) -> (N, 1)

    def of_rows(rows: slice, out: Tensor) -> Tensor:
        of_block, own = logits[rows], column[rows]
        largest = of_block.amax(dim=1)
        # -log p = gap - log of the largest p, which is at least 1 / K
        of_largest = -torch.softmax(of_block, dim=1, out=out).amax(dim=1).log()
        losses = largest - of_block.gather(1, own)[:, 0] + of_largest
        at, places = objects.within(rows, len(of_block))
        wanted, total = targets.index_select(0, places), sums.index_select(0, places)
        slopes = out.index_select(0, at).mul_(total[:, None]).sub_(wanted)  # (n, K) -> (objects, K)
        gaps = largest.index_select(0, at)[:, None] - of_block.index_select(0, at)
        pull = gaps.mul_(wanted).sum(dim=1) + total * of_largest.index_select(0, at)
        out.scatter_add_(1, own, out.new_full((), -1).expand_as(own)).index_copy_(0, at, slopes)
        return losses.index_copy_(0, at, pull - entropies.index_select(0, places))

    return in_blocks(logits, of_rows)


class PCBLoss(BoxHeadLoss):
    """Softmax cross-entropy with pairwise class balance behind mmdet's head contract (C + 1 columns).

    Foreground RoIs pay (1 - a) CE + a KL, background RoIs CE, with a = alpha iter_id / (n_iter - 1).  The
    pull waits until every class that has instances was seen; the official code waits for every class, so
    that one without instances switches it off for good: leave out instance_counts to have that.

    In training mode `forward` is a collective, whatever the batch holds.  The official code skips it on a
    process without foreground, where the others wait forever; where it does not hang, the numbers are these.

    Args:
        num_classes, image_counts, num_images, loss_weight: see BoxHeadLoss.
        instance_counts: tell which classes never come; None: all do.
        momentum: of Q, in [0, 1).
        start_epoch: first epoch with the pull; the official one belongs to a schedule of 24.
        alpha: strength of the pull in the last pass, in [0, 1]; official: 0.4.
        n_iter: passes of the box head over the same RoIs; 1 is a plain head.

    Attributes:
        epoch: whoever trains sets it at the start of every epoch, counting from 1 as the official hook does.
        iter_id: pass of the next call, 0..n_iter-1; the last one unless an iterative head sets it.
        confusion: (C, C) buffer, Q; num_inst_cnt: (C,) buffer, RoIs seen per class; both over all processes.
            RoIs of label weight 0 add nothing.

    Raises:
        UsageError: a setting is out of its range.
    """

    confusion: Tensor
    num_inst_cnt: Tensor
    is_awaited: Tensor
    _epoch: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        momentum: float = 0.99,
        start_epoch: int = 17,
        alpha: float = 0.4,
        n_iter: int = 3,
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if not (0 <= momentum < 1 and 0 <= alpha <= 1 and n_iter >= 1):
            raise UsageError(
                "PCBLoss needs momentum in [0, 1), alpha in [0, 1] and n_iter >= 1, "
                f"but got momentum={momentum}, alpha={alpha}, n_iter={n_iter}"
            )
        self.momentum, self.start_epoch, self.alpha, self.n_iter = momentum, start_epoch, alpha, n_iter
        self.iter_id = n_iter - 1
        comes = torch.ones(num_classes) if self.instance_counts is None else self.instance_counts
        self.register_buffer("is_awaited", comes > 0, persistent=False)
        self.register_buffer("confusion", torch.zeros(num_classes, num_classes))
        self.register_buffer("num_inst_cnt", torch.zeros(num_classes))
        self.register_buffer("_epoch", torch.zeros((), dtype=torch.int64))
        self._epoch_now = 0  # the same number: reading the buffer would wait for the GPU

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1; 0 before the first; part of the checkpoint."""
        return self._epoch_now

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch_now = int(epoch)
        self._epoch.fill_(self._epoch_now)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        self._epoch_now = int(self._epoch)

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C + 1) -> class logits (N, C) and background against any object (N,)."""
        class_logits, background_logit = super().split_logits(logits)
        return class_logits, background_logit - class_logits.logsumexp(dim=1)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """softmax over all columns, the background last: (N, C + 1) -> (N, C + 1)."""
        return self.logits(cls_score).softmax(dim=1)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Learn Q from the RoIs, then the loss of (N, C + 1) logits.

        `reduce_rois` explains the last three arguments (the official code divides KL by N whatever they are).
        """
        logits = self.logits(cls_score)
        if self.training:
            is_used = None if label_weights is None else label_weights > 0
            self._learn(logits, labels if is_used is None else labels.where(is_used, self.num_classes))
        strength = self._strength()
        if strength > 0:
            is_ready = ((self.num_inst_cnt > 0) | ~self.is_awaited).all()
            objects, confusion = ObjectRows(labels, self.num_classes), self.confusion.to(logits.dtype)
            tables = mixed_targets(confusion, strength * is_ready, objects.classes)
            losses = attach_gradients(logits, *soft_target_losses(logits, labels, objects, *tables))
        else:
            losses = F.cross_entropy(logits, labels, reduction="none")
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)

    def _strength(self) -> float:
        if self.epoch < self.start_epoch:
            return 0.0
        return self.alpha * self.iter_id / (self.n_iter - 1) if self.n_iter > 1 else self.alpha

    @torch.no_grad()
    def _learn(self, logits: Tensor, labels: Tensor) -> None:
        total = sum_over_processes(sum_class_softmax(logits, labels, self.num_classes))
        update_confusion(self.confusion, total[:, :-1], total[:, -1], self.momentum)
        self.num_inst_cnt += total[:, -1]
