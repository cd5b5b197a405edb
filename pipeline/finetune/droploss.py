"""DropLoss (Hsieh et al., AAAI 2021, arXiv 2104.06402); official: timy90022/DropLoss,
projects/DropLoss/droploss/fast_rcnn.py.

EQL (see eql.py) whose background RoIs spare infrequent classes too, but only some of the time: each pair of a
background RoI and an infrequent class is dropped at random, and kept with probability rho, the share of
infrequent classes among the objects of the batch.  Where rare objects are absent, background hardly
suppresses them.

N = RoIs, C = foreground classes; label C = background.
"""

import torch
from torch import Tensor

from pipeline.finetune.eql import EQLLoss
from pipeline.finetune.head_contract import CountSource, sum_over_processes
from pipeline.finetune.step_draws import StepDraws


def count_objects(labels: Tensor, is_infrequent: Tensor) -> Tensor:
    """RoIs of infrequent classes, and of all classes: (N,), (C,) bool -> (2,) float32."""
    num_classes = len(is_infrequent)
    is_object = labels < num_classes
    of_infrequent = is_infrequent[labels.clamp(max=num_classes - 1)] & is_object
    return torch.stack([of_infrequent.sum(), is_object.sum()]).float()  # (), () -> (2)


def dropped_pairs(uniform: Tensor, ratio: Tensor) -> Tensor:
    """Which pairs a draw drops, if they are of background and an infrequent class.

    Args:
        uniform: (N, C) draws in [0, 1).
        ratio: (), rho: the probability to keep a pair; NaN, in a batch without objects, drops nothing.

    Returns:
        (N, C) bool.
    """
    return uniform > ratio  # a comparison with NaN is false, as the official code has it


def droploss_negative_weights(
    labels: Tensor, is_infrequent: Tensor, is_dropped: Tensor, dtype: torch.dtype
) -> Tensor:
    """0 for infrequent classes in the row of an object, and in a background row where dropped; else 1.

    Args:
        labels: (N,) int64; is_infrequent: (C,) bool.
        is_dropped: (N, C) bool, see `dropped_pairs`; counts in background rows at infrequent classes only.
        dtype: of the weights.

    Returns:
        (N, C); at the label, whose weight is that of a positive, the value has no meaning.
    """
    is_object = (labels < len(is_infrequent))[:, None]  # (N) -> (N, 1)
    return (~((is_dropped | is_object) & is_infrequent)).to(dtype)


class DropLoss(EQLLoss):
    """DropLoss behind mmdet's head contract (C columns), scored as EQL.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight, freq: see EQLLoss.
        lambda_: as in EQLLoss; the official value is for LVIS v0.5 and covers 876 classes of v1.
        seed: of the draws, see StepDraws, whose step is the only state.
        synchronize: take rho from the objects of all processes.  The official code takes each process's own,
            so that it depends on the number of GPUs; False does the same.  True makes `forward` a collective:
            every process calls it once a step.

    Raises:
        UsageError, MismatchedInput: see EQLLoss.
    """

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
        lambda_: float = 0.00177,
        freq: list[float] | None = None,
        seed: int = 0,
        synchronize: bool = True,
    ) -> None:
        super().__init__(
            num_classes, image_counts, instance_counts, num_images, loss_weight, lambda_=lambda_, freq=freq
        )
        self.synchronize = synchronize
        self.draws = StepDraws(seed)

    @torch.no_grad()
    def negative_weights(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Drawn for this step: (N,) -> (N, C) of `dtype`."""
        counts = count_objects(labels, self.is_infrequent)
        num_infrequent, num_objects = sum_over_processes(counts) if self.synchronize else counts
        shape, device = (len(labels), self.num_classes), labels.device
        uniform = torch.rand(shape, generator=self.draws.generator(device), device=device)
        is_dropped = dropped_pairs(uniform, num_infrequent / num_objects)
        return droploss_negative_weights(labels, self.is_infrequent, is_dropped, dtype)
