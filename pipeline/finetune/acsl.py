"""Adaptive class suppression loss, ACSL (Wang et al., CVPR 2021); official: CASIA-IVA-Lab/ACSL,
mmdet/models/losses/acsl.py.

A binary loss per column, of which only some elements count.  A foreground RoI suppresses only the classes
that the network mistakes it for (probability from 0.7 on), so that rare classes are left alone until they
disturb.  A background RoI always suppresses frequent classes, but the common ones only if it is among a
random tenth of the background, and the rare ones only among a hundredth (a comment in the official code
speaks of two thirds and one third; these are the numbers that it uses).  The second stage of two: it trains
the classifier alone, on a frozen plain detector.

N = RoIs, C = foreground classes; label and column C = background.  Frequency: 0 rare, 1 common, 2 frequent.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import InputError, MismatchedInput, UsageError, first_ten
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois
from pipeline.finetune.row_losses import LEFT_OUT, MatrixOfRows, binary_losses
from pipeline.finetune.step_draws import StepDraws, choose

LETTERS = "rcf"  # as LVIS annotations write the frequency
LEAST_IMAGES = (11, 101)  # of a common and of a frequent class: LVIS's definition
BACKGROUND_SHARES = (0.01, 0.1, 1.0)  # of the background RoIs that suppress rare, common, frequent classes


def frequency_of_images(image_counts: Tensor) -> Tensor:
    """LVIS's frequency groups from the images that show each class: (C,) int64 -> (C,) int64 in 0..2."""
    return torch.bucketize(image_counts, torch.tensor(LEAST_IMAGES), right=True)


@torch.no_grad()
def draw_suppressors(is_background: Tensor, orders: Tensor) -> Tensor:
    """Which background RoIs suppress the classes of each frequency.

    Args:
        is_background: (N,) bool.
        orders: (3, N) random orders of the RoIs, see `choose`.

    Returns:
        (3, N) bool; a share of fewer than one RoI is none.
    """
    num_background = is_background.sum().double()
    num_chosen = torch.stack([num_background * share for share in BACKGROUND_SHARES])  # 3 x () -> (3)
    return choose(is_background.expand_as(orders), num_chosen.floor(), orders)


@torch.no_grad()
def spared_columns(
    logits: Tensor, labels: Tensor, suppressors: Tensor, frequency: Tensor, score_thr: float
) -> MatrixOfRows:
    """Which columns each RoI leaves alone; carries no gradient.

    Args:
        logits: (N, C + 1); labels: (N,) int64.
        suppressors: (3, N) bool, see `draw_suppressors`.
        frequency: (C,) int64 in 0..2.
        score_thr: a foreground RoI suppresses every column, the background's too, from this probability on.

    Returns:
        What gives the (n, C + 1) factors of some rows, 1 and 0, in the dtype of `logits`; at the label, which
        is not suppressed, the value has no meaning.
    """
    is_background = labels == len(frequency)
    # A background RoI is one of eight kinds, an object the ninth, which spares nothing here: whole rows are
    # gathered, which is faster than columns.
    bits = torch.arange(len(suppressors), device=labels.device)
    kinds = torch.arange(1 << len(suppressors), device=labels.device)
    of_kinds = F.pad(1 - (kinds[:, None] >> frequency & 1), (0, 1, 0, 1)).to(logits.dtype)  # (9, C + 1)
    kind = (suppressors << bits[:, None]).sum(dim=0).where(is_background, len(kinds))  # (3, N) -> (N)
    log_odds = math.log(score_thr / (1 - score_thr))
    bound = torch.where(is_background, -torch.inf, log_odds).to(logits.dtype)[:, None]  # (N) -> (N, 1)

    def of_rows(rows: slice) -> Tensor:
        is_below = logits[rows].clone().lt_(bound[rows])
        return is_below.add_(of_kinds.index_select(0, kind[rows]))  # (9, C + 1) -> (n, C + 1)

    return of_rows


def acsl_losses(logits: Tensor, labels: Tensor, spared: MatrixOfRows) -> Tensor:
    """Binary cross-entropy: a yes at the label, a no at the other columns that are not spared.

    Args:
        logits: (N, K); labels: (N,) int64 in 0..K-1.
        spared: gives the (n, K) factors 1 and 0 of some rows, see `spared_columns`.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    return binary_losses(
        logits, labels, shifted=lambda rows: torch.add(logits[rows], spared(rows), alpha=LEFT_OUT)
    )


class ACSLLoss(BoxHeadLoss):
    """ACSL behind mmdet's head contract (C + 1 columns); draws background RoIs anew in every step.

    RoIs of label weight 0 are not drawn.  Scores are plain sigmoids, without a factor for the background.

    Args:
        num_classes, instance_counts, num_images, loss_weight: see BoxHeadLoss (the official code ignores its
            loss_weight).
        image_counts: give the frequency of each class by LVIS's definition, if `frequency` does not.
        score_thr: see `spared_columns`; in (0, 1).
        frequency: C letters r, c or f, as the annotations have them.
        background_column: of the classifier; None: the last one.  Official checkpoints have it at 0, before
            the classes.
        seed: of the draws, see StepDraws, whose step is the only state.
        named_frequency: `frequency` by the name that says for whom it is: frequency_of_category_1_to_C, with
            the number for C.

    Raises:
        UsageError: neither image_counts nor frequency, or a setting is out of its range.
        InputError, MismatchedInput: the frequency is not r, c or f for every class.
    """

    frequency: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        score_thr: float = 0.7,
        frequency: Sequence[str] | None = None,
        background_column: int | None = None,
        seed: int = 0,
        **named_frequency: Sequence[str],
    ) -> None:
        super().__init__(num_classes, image_counts, instance_counts, num_images, loss_weight)
        if not 0 < score_thr < 1:
            raise UsageError(f"ACSLLoss needs score_thr between 0 and 1, but got {score_thr}")
        self.score_thr = score_thr
        self.background_column = num_classes if background_column is None else background_column
        if not 0 <= self.background_column <= num_classes:
            raise UsageError(
                f"ACSLLoss needs background_column between 0 and {num_classes}, but got {background_column}"
            )
        # Not in checkpoints: the settings give it, and another data set's must not be loaded over it.
        letters = self._letters(frequency, named_frequency)
        self.register_buffer("frequency", self._frequency(letters), persistent=False)
        self.draws = StepDraws(seed)

    def logits(self, cls_score: Tensor) -> Tensor:
        """The head's output in float32 (or float64), the background moved last; (N, C + 1) -> (N, C + 1)."""
        logits, at = super().logits(cls_score), self.background_column
        if at == self.num_classes:
            return logits
        return torch.cat([logits[:, :at], logits[:, at + 1 :], logits[:, at : at + 1]], dim=1)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Plain sigmoids, the background last: (N, C + 1) -> (N, C + 1)."""
        return self.logits(cls_score).sigmoid()

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
        is_background = labels == self.num_classes
        if label_weights is not None:
            is_background = is_background & (label_weights > 0)
        orders = self.draws.orders(len(BACKGROUND_SHARES), len(labels), labels.device)
        suppressors = draw_suppressors(is_background, orders)
        spared = spared_columns(logits, labels, suppressors, self.frequency, self.score_thr)
        losses = acsl_losses(logits, labels, spared)
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)

    def _letters(
        self, frequency: Sequence[str] | None, named: dict[str, Sequence[str]]
    ) -> Sequence[str] | None:
        """The one that is given.

        Raises:
            UsageError: another name, or both.
        """
        name = f"frequency_of_category_1_to_{self.num_classes}"
        unknown = sorted(set(named) - {name})
        if unknown or (named and frequency is not None):
            raise UsageError(
                f"ACSLLoss for {self.num_classes} classes has no argument {', '.join(unknown)}"
                if unknown
                else f"ACSLLoss got both frequency and {name}",
                f"give the letters r, c, f of the classes as frequency or as {name}",
            )
        return named.get(name, frequency)

    def _frequency(self, letters: Sequence[str] | None) -> Tensor:
        if letters is None:
            if self.image_counts is None:
                raise UsageError(
                    "ACSLLoss needs image_counts or frequency", "give the categories.parquet of `2drcl stats`"
                )
            return frequency_of_images(self.image_counts)
        bad: list[object] = [i for i, letter in enumerate(letters) if letter not in tuple(LETTERS)]
        if bad:
            raise InputError(f"frequency: neither r, c nor f at the 0-based positions {first_ten(bad)}")
        if len(letters) != self.num_classes:
            raise MismatchedInput(
                f"frequency: {len(letters)} letters, but the detector has {self.num_classes} classes",
                "give one letter per class, in ascending order of category id",
            )
        return torch.tensor([LETTERS.index(letter) for letter in letters], dtype=torch.int64)
