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
from pipeline.finetune.row_losses import LEFT_OUT, MatrixOfRows
from pipeline.finetune.step_draws import LEVELS, StepDraws, draw_levels


def count_objects(labels: Tensor, is_infrequent: Tensor) -> Tensor:
    """RoIs of infrequent classes, and of all classes: (N,), (C,) bool -> (2,) float32."""
    num_classes = len(is_infrequent)
    is_object = labels < num_classes
    of_infrequent = is_infrequent[labels.clamp(max=num_classes - 1)] & is_object
    return torch.stack([of_infrequent.sum(), is_object.sum()]).float()  # (), () -> (2)


def droploss_bounds(is_infrequent: Tensor, ratio: Tensor) -> Tensor:
    """The draw from which on a pair of a RoI and a wrong class is dropped.

    Args:
        is_infrequent: (C,) bool.
        ratio: (), rho: the probability to keep a pair, in the unit of the draws; NaN, in a batch without
            objects, drops nothing, as the official comparison has it.

    Returns:
        (2, C): for a background RoI, and for an object.
    """
    always = torch.full_like(is_infrequent, torch.inf, dtype=torch.float32)
    return torch.stack(
        [
            torch.where(is_infrequent, ratio.nan_to_num(torch.inf), always),
            torch.where(is_infrequent, -always, always),
        ]
    )


def droploss_shifts(draws: Tensor, bounds: Tensor, is_object: Tensor) -> Tensor:
    """LEFT_OUT where a pair is dropped, else 0; at the label, which is never left out, without a meaning.

    Args:
        draws: (N, C), whose memory becomes the result's; bounds: (2, C), see `droploss_bounds`.
        is_object: (N,) int64, 1 for objects and 0 for background.

    Returns:
        (N, C).
    """
    return draws.gt_(bounds.index_select(0, is_object)).mul_(LEFT_OUT)  # (2, C) -> (N, C)


class DropLoss(EQLLoss):
    """DropLoss behind mmdet's head contract (C columns), scored as EQL.

    Args:
        num_classes, image_counts, instance_counts, num_images, loss_weight, freq: see EQLLoss.
        lambda_: as in EQLLoss; the official value is for LVIS v0.5 and covers 876 classes of v1.
        seed: of the draws, see StepDraws, whose step is the only state; they resolve rho to 2^-16.
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
    def shifts(self, labels: Tensor, dtype: torch.dtype) -> MatrixOfRows:
        """Drawn for this step: what gives the (n, C) shifts of some rows, once, all rows in order."""
        counts = count_objects(labels, self.is_infrequent)
        num_infrequent, num_objects = sum_over_processes(counts) if self.synchronize else counts
        ratio = num_infrequent / num_objects * LEVELS - 0.5  # between two levels
        bounds = droploss_bounds(self.is_infrequent, ratio)
        is_object, generator = (labels < self.num_classes).long(), self.draws.generator(labels.device)

        def of_rows(rows: slice) -> Tensor:
            of_row = is_object[rows]
            draws = draw_levels((len(of_row), self.num_classes), generator)
            return droploss_shifts(draws, bounds, of_row).to(dtype)

        return of_rows
