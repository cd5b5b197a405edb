"""Equalization loss (Tan et al., CVPR 2020, arXiv 2003.05176); official: tztztztztz/eqlv2,
mmdet/models/losses/eql.py, and tztztztztz/eql.detectron2, projects/EQL/eql/fast_rcnn.py.

A binary loss per class, without a background column.  An object of another class does not push an infrequent
class down (that negative has weight 0); background RoIs push every class down, and a RoI always pulls
its own class up.  Infrequent: shown by fewer than a fraction lambda of the training images.

N = RoIs, C = foreground classes, K = columns; label C = background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.head_contract import BoxHeadLoss, CountSource, reduce_rois
from pipeline.finetune.row_losses import LEFT_OUT, MatrixOfRows, binary_losses


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


def eql_shifts(is_infrequent: Tensor, dtype: torch.dtype) -> Tensor:
    """What the logits of wrong classes are shifted by, LEFT_OUT or 0.

    Args:
        is_infrequent: (C,) bool.

    Returns:
        (2, C) of `dtype`: for a background RoI, and for an object.
    """
    of_object = LEFT_OUT * is_infrequent.to(dtype)
    return torch.stack([torch.zeros_like(of_object), of_object])  # 2 x (C) -> (2, C)


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

    def shifts(self, labels: Tensor, dtype: torch.dtype) -> MatrixOfRows:
        """Of this step: for (N,) labels, what gives the (n, C) shifts of some rows, in `dtype`."""
        of_kinds = eql_shifts(self.is_infrequent, dtype)
        kinds = (labels < self.num_classes).long()
        # whole rows are gathered: a choice per element takes seven times as long on a CPU
        return lambda rows: of_kinds.index_select(0, kinds[rows])  # (2, C) -> (n, C)

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
        shifts = self.shifts(labels, logits.dtype)
        losses = binary_losses(logits, labels, shifted=lambda rows: shifts(rows).add_(logits[rows]))
        return self.loss_weight * reduce_rois(losses, label_weights, avg_factor, reduction_override)
