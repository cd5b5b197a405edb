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
from pipeline.finetune.step_draws import StepDraws, coarse_uniform


def count_objects(labels: Tensor, is_infrequent: Tensor) -> Tensor:
    """RoIs of infrequent classes, and of all classes: (N,), (C,) bool -> (2,) float32."""
    num_classes = len(is_infrequent)
    is_object = labels < num_classes
    of_infrequent = is_infrequent[labels.clamp(max=num_classes - 1)] & is_object
    return torch.stack([of_infrequent.sum(), is_object.sum()]).float()  # (), () -> (2)


def droploss_shifts(labels: Tensor, is_infrequent: Tensor, ratio: Tensor, uniform: Tensor) -> Tensor:
    """LEFT_OUT for infrequent classes in the row of an object, and in a background row where dropped; else 0.

    Args:
        labels: (N,) int64; is_infrequent: (C,) bool.
        ratio: (), rho: the probability to keep a pair; NaN, in a batch without objects, drops nothing.
        uniform: (N, C) draws in [0, 1), of which those of background and infrequent classes count; their
            memory becomes the shifts'.

    Returns:
        (N, C); at the label, which is never left out, the value has no meaning.
    """
    # a pair is dropped where its draw exceeds a bound; NaN: as the official comparison has it
    of_background = torch.where(is_infrequent, ratio.nan_to_num(1), 1)
    of_object = torch.where(is_infrequent, -1, torch.ones_like(of_background))
    is_object = labels < len(is_infrequent)
    bounds = torch.stack([of_background, of_object]).index_select(0, is_object.long())  # (2, C) -> (N, C)
    return uniform.gt_(bounds).mul_(LEFT_OUT)


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
    def shifts(self, labels: Tensor, dtype: torch.dtype) -> MatrixOfRows:
        """Drawn for this step: what gives the (n, C) shifts of some rows, once, all rows in order."""
        counts = count_objects(labels, self.is_infrequent)
        num_infrequent, num_objects = sum_over_processes(counts) if self.synchronize else counts
        ratio, generator = num_infrequent / num_objects, self.draws.generator(labels.device)

        def of_rows(rows: slice) -> Tensor:
            of_row = labels[rows]
            uniform = coarse_uniform((len(of_row), self.num_classes), generator)
            return droploss_shifts(of_row, self.is_infrequent, ratio, uniform).to(dtype)

        return of_rows
