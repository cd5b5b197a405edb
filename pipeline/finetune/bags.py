"""Balanced group softmax, BAGS (Li et al., CVPR 2020); official: FishYuLi/BalancedGroupSoftmax, here in the
layout of its port tztztztztz/eqlv2, mmdet/models/losses/group_softmax.py.

Classes with about as many instances share a softmax of their own, so that no frequent class can push down a
rare one.  Each such group has a column "others" for every RoI that is none of its classes, the background
included; a last group of two columns tells objects from background.  The second stage of two: it trains the
classifier alone, on a frozen plain detector.

N = RoIs, C = foreground classes, G = groups, the last one {object, background}; label C = background.
Columns: group after group, each "others" first and then its classes: C + 1 + G in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois
from pipeline.finetune.step_draws import StepDraws, choose


@dataclass(frozen=True)
class GroupLayout:
    """Where the labels of the classifier's groups are."""

    sizes: tuple[int, ...]  # columns of each group, "others" included
    positions: Tensor  # (G, C + 1) int64: place of a label in a group; 0, "others", where it is not in it
    columns: Tensor  # (C + 1,) int64: column of each label


def group_layout(instance_counts: Tensor, bin_split: Sequence[int]) -> GroupLayout:
    """Groups of classes with fewer instances than the first split, the second, ..., and the rest.

    Args:
        instance_counts: (C,) int64.
        bin_split: ascending; a class with exactly as many instances belongs to the group above.
    """
    num_splits = len(bin_split)
    group = torch.bucketize(instance_counts, torch.tensor(bin_split), right=True)  # (C) -> (C)
    group = F.pad(group, (0, 1), value=num_splits + 1)  # (C) -> (C + 1): the background's own
    is_member = F.one_hot(group, num_splits + 2).T  # (C + 1) -> (G, C + 1)
    positions = is_member.cumsum(dim=1) * is_member
    sizes = is_member.sum(dim=1) + 1
    first = sizes.cumsum(dim=0) - sizes
    return GroupLayout(tuple(sizes.tolist()), positions, first[group] + positions.sum(dim=0))


@torch.no_grad()
def draw_members(group_labels: Tensor, is_used: Tensor, beta: float, orders: Tensor) -> Tensor:
    """Which RoIs each group learns from: its own, and at random up to `beta` times as many "others".

    Args:
        group_labels: (G, N) int64, places in the groups.
        is_used: (N,) bool: RoIs that take part at all.
        beta: a group without RoIs of its own learns nothing.
        orders: (G - 1, N) random orders of the RoIs, see `choose`; the last group uses every RoI.

    Returns:
        (G, N) bool.
    """
    is_own = (group_labels[:-1] > 0) & is_used
    is_other = (group_labels[:-1] == 0) & is_used
    num_others = (is_own.sum(dim=1).double() * beta).floor()  # (G - 1, N) -> (G - 1)
    members = is_own | choose(is_other, num_others, orders)
    return torch.cat([members, is_used[None]])  # (G - 1, N), (1, N) -> (G, N)


def group_losses(logits: Tensor, group_labels: Tensor, group_weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Softmax cross-entropy of every group, averaged over its members and summed over groups.

    Args:
        logits: (N, C + 1 + G); group_labels: (G, N) int64, places in the groups.
        group_weights: (G, N) bool or numbers: the members of each group; a group without any costs 0.
        sizes: columns of each group.

    Returns:
        (N,) share of each RoI: their sum is the loss.
    """
    shares = logits.new_zeros(len(logits))
    columns = logits.split(list(sizes), dim=1)  # (N, C + 1 + G) -> G x (N, size)
    for part, label, weight in zip(columns, group_labels, group_weights.to(logits.dtype), strict=True):
        losses = F.cross_entropy(part, label, reduction="none")
        shares = shares + losses * (weight / weight.sum().clamp(min=1))
    return shares


class GroupSoftmaxLoss(BoxHeadLoss):
    """BAGS behind mmdet's head contract (C + 1 + G columns); draws the "others" anew in every step.

    The groups are averaged each over its own members, as the official code does, which ignores label weights
    and `avg_factor`.  Here both count: a RoI of label weight 0 takes no part, and with `avg_factor` = the
    number of all others, as mmdet's heads give it, the loss is the official one.

    Args:
        num_classes, image_counts, num_images, loss_weight: see BoxHeadLoss.
        instance_counts: required.
        beta: "others" per RoI of a group's own classes, at most; > 0.
        bin_split: bounds of the groups in instances, ascending.
        seed: of the draws, see StepDraws, whose step is the only state.
        group_cls_ids: what a file of groups says: the labels of each group, the background alone in the last
            one.  They must be those that follow from the counts; None: not known.
        num_columns: the same of the classifier's width.
        layout: what it says of the order of the columns; for people.

    Raises:
        UsageError: no instance_counts, beta is not positive, or bin_split not ascending.
        MismatchedInput: other groups or columns than those of the counts.
    """

    positions: Tensor
    columns: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        beta: float = 8,
        bin_split: Sequence[int] = (10, 100, 1000),
        seed: int = 0,
        group_cls_ids: Sequence[Sequence[int]] | None = None,
        num_columns: int | None = None,
        layout: str = "",
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if self.instance_counts is None:
            raise UsageError(
                "GroupSoftmaxLoss needs instance_counts", "give the categories.parquet of `2drcl stats`"
            )
        if not beta > 0:
            raise UsageError(f"GroupSoftmaxLoss needs beta > 0, but got {beta}")
        if not bin_split or list(bin_split) != sorted(set(bin_split)):
            raise UsageError(f"GroupSoftmaxLoss needs an ascending bin_split, but got {list(bin_split)}")
        self.beta = beta
        groups = group_layout(self.instance_counts, bin_split)
        self.sizes = groups.sizes
        self.num_extra_columns = 1 + len(groups.sizes)
        self._refuse_other_groups(groups, group_cls_ids, num_columns)
        # Not in checkpoints: the settings give them, and another data set's must not be loaded over them.
        self.register_buffer("positions", groups.positions, persistent=False)
        self.register_buffer("columns", groups.columns, persistent=False)
        self.draws = StepDraws(seed)

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C + 1 + G) -> log probabilities within the groups (N, C), background against object (N,)."""
        log_probs = self._log_probs(logits)
        return log_probs[:, self.columns[:-1]], logits[:, -1] - logits[:, -2]

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """softmax in the group x P(object), then P(background): (N, C + 1 + G) -> (N, C + 1)."""
        log_probs = self._log_probs(self.logits(cls_score))
        scores = log_probs[:, self.columns]  # (N, C + 1 + G) -> (N, C + 1)
        scores[:, :-1] += log_probs[:, -2:-1]
        return scores.exp()

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of (N, C + 1 + G) logits; `reduce_rois` explains the last three arguments."""
        logits = self.logits(cls_score)
        group_labels = self.positions[:, labels]  # (G, C + 1), (N) -> (G, N)
        is_used = torch.ones_like(labels, dtype=torch.bool) if label_weights is None else label_weights > 0
        orders = self.draws.orders(len(self.sizes) - 1, len(labels), labels.device)
        members = draw_members(group_labels, is_used, self.beta, orders)
        num_used = is_used.sum().clamp(min=1)
        losses = num_used * group_losses(logits, group_labels, members, self.sizes)
        factor = num_used if avg_factor is None else avg_factor
        return self.loss_weight * reduce_rois(losses, label_weights, factor, reduction_override)

    def _refuse_other_groups(
        self, groups: GroupLayout, group_cls_ids: Sequence[Sequence[int]] | None, num_columns: int | None
    ) -> None:
        own = [row.nonzero().flatten().tolist() for row in groups.positions]
        if group_cls_ids is not None and [sorted(ids) for ids in group_cls_ids] != own:
            raise MismatchedInput(
                f"group_cls_ids {[list(ids) for ids in group_cls_ids]}, but the instance_counts make {own}",
                "leave group_cls_ids out, or give the counts and the bin_split that they were made from",
            )
        if num_columns not in (None, sum(groups.sizes)):
            raise MismatchedInput(
                f"num_columns {num_columns}, but the instance_counts make {sum(groups.sizes)}",
                "leave num_columns out",
            )

    def _log_probs(self, logits: Tensor) -> Tensor:
        """log softmax within each group: (N, C + 1 + G) -> (N, C + 1 + G)."""
        return torch.cat([part.log_softmax(dim=1) for part in logits.split(list(self.sizes), dim=1)], dim=1)
