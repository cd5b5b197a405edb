"""What mmdet's box head asks of a classification loss, and what every loss of this folder is given.

mmdet 3.3 reads three flags from the loss (models/roi_heads/bbox_heads/bbox_head.py):
`custom_cls_channels`: the loss sets the width of the classifier *and* turns logits into scores;
`custom_activation`: the loss reports its accuracy, and cascades use its scores; `custom_accuracy`: unused.
The scores have C + 1 columns, the background last: `multiclass_nms` drops that column.

N = RoIs of this process, C = foreground classes; label C = background.  Logits are in float32 here whatever
the autocast says, or in float64 if they come so.
"""

import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import InputError, MismatchedInput, MissingInput, UsageError, first_ten

CountSource = Sequence[int] | str | os.PathLike[str]


class BoxHeadLoss(nn.Module):
    """Base of the losses: the head contract for C sigmoid columns and a background column (C + 1).

    Args:
        num_classes: C.
        image_counts, instance_counts: per class, the training images that show it and its annotated objects:
            C whole numbers, or the path of a categories.parquet.  Only some losses need them.
        num_images: training images with at least one annotation.  Only some losses need it.
        loss_weight: factor on everything `forward` returns.

    Raises:
        UsageError: no class, or fewer images than none.
        InputError, MismatchedInput, MissingInput: see `resolve_counts`.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    num_extra_columns = 1  # beside the C classes

    def __init__(
        self,
        num_classes: int,
        image_counts: CountSource | None = None,
        instance_counts: CountSource | None = None,
        num_images: int | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 1 or (num_images is not None and num_images < 0):
            raise UsageError(
                f"{type(self).__name__}: num_classes is {num_classes}, num_images {num_images}",
                "one class or more, and no image or more",
            )
        self.num_classes = num_classes
        self.image_counts = _optional_counts(image_counts, "image_count", num_classes)
        self.instance_counts = _optional_counts(instance_counts, "instance_count", num_classes)
        self.num_images = num_images
        self.loss_weight = loss_weight

    def get_cls_channels(self, num_classes: int) -> int:
        """Width of the classifier, for a head of `num_classes`.

        Raises:
            MismatchedInput: the head has another number of classes than the loss.
        """
        if num_classes != self.num_classes:
            raise MismatchedInput(
                f"{type(self).__name__} is for {self.num_classes} classes, its box head for {num_classes}",
                "give loss_cls and bbox_head the same num_classes",
            )
        return num_classes + self.num_extra_columns

    def logits(self, cls_score: Tensor) -> Tensor:
        """The head's output in float32 (or float64); (N, columns) -> (N, columns).

        Raises:
            UsageError: the head has another width than `get_cls_channels` says.
        """
        columns = self.get_cls_channels(self.num_classes)
        if cls_score.shape[-1] != columns:
            raise UsageError(
                f"{type(self).__name__} for {self.num_classes} classes needs {columns} logits per RoI, "
                f"but the head gives {cls_score.shape[-1]}",
                "use it as loss_cls of an mmdet BBoxHead or a subclass, which asks get_cls_channels",
            )
        return cls_score if cls_score.dtype == torch.float64 else cls_score.float()

    def split_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, columns) -> class logits (N, C) and background logit (N,), positive where background wins."""
        return logits[:, : self.num_classes], logits[:, self.num_classes]

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores in [0, 1]: (N, columns) -> (N, C + 1), the background last."""
        return objectness_scores(*self.split_logits(self.logits(cls_score)))

    @torch.no_grad()
    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percent of foreground RoIs with the right best class, and of RoIs split rightly from background.

        Args:
            cls_score: (N, columns); labels: (N,) int64.

        Returns:
            Two scalars, `acc_classes` (0 without any foreground) and `acc_objectness`.
        """
        class_logits, background_logit = self.split_logits(self.logits(cls_score))
        is_background = labels == self.num_classes
        num_right = ((class_logits.argmax(dim=1) == labels) & ~is_background).sum()
        is_split = (background_logit > 0) == is_background
        return {
            "acc_classes": 100 * num_right / (~is_background).sum().clamp(min=1),
            "acc_objectness": 100 * is_split.float().mean(),
        }


def objectness_scores(class_logits: Tensor, background_logit: Tensor) -> Tensor:
    """p_c (1 - p_background), then p_background: (N, C), (N,) -> (N, C + 1)."""
    background = background_logit[:, None]  # (N) -> (N, 1)
    # sigmoid(-s) = 1 - sigmoid(s), without the cancellation
    scores = class_logits.sigmoid() * (-background).sigmoid()
    return torch.cat([scores, background.sigmoid()], dim=1)


def reduce_rois(
    losses: Tensor,
    label_weights: Tensor | None,
    avg_factor: float | Tensor | None,
    reduction: str | None,
) -> Tensor:
    """Weight the losses of the RoIs and reduce them as mmdet's heads ask.

    Args:
        losses: (N,), already summed over columns.
        label_weights: (N,) factors, or None for ones.
        avg_factor: what the sum is divided by; None for N.
        reduction: None or "mean": sum / avg_factor; "sum": the sum; "none": (N,) losses.

    Raises:
        UsageError: another reduction.
    """
    if reduction not in (None, "none", "mean", "sum"):
        raise UsageError(f"reduction_override must be none, mean or sum, but it is {reduction!r}")
    if label_weights is not None:
        losses = losses * label_weights.to(losses.dtype)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (max(len(losses), 1) if avg_factor is None else avg_factor)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, in every process; `values` itself where there is only one.

    A collective: every process calls it in the same order, whatever its batch holds.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def resolve_counts(source: CountSource, column: str, num_classes: int) -> Tensor:
    """Counts per class, from a list or from a categories.parquet.

    Args:
        source: C whole numbers, or the path of a parquet file with the columns category_id and `column`.
        column: "image_count" or "instance_count".
        num_classes: C.

    Returns:
        (C,) int64, in ascending order of category id.

    Raises:
        MissingInput: no such file.
        InputError: not a parquet file, the column is missing, or a count is not a whole number from 0 on.
        MismatchedInput: another number of classes.
    """
    is_path = isinstance(source, str | os.PathLike)
    values: list[Any] = _read_column(Path(source), column) if is_path else list(source)  # type: ignore[arg-type]
    place = f"{column} in {source}" if is_path else f"{column}s"
    bad: list[object] = [i for i, value in enumerate(values) if not _is_count(value)]
    if bad:
        raise InputError(f"{place}: no whole number from 0 on at the 0-based positions {first_ten(bad)}")
    if len(values) != num_classes:
        raise MismatchedInput(
            f"{place}: {len(values)} categories, but the detector has {num_classes}",
            "the counts must come from the training annotations: run `2drcl stats` on them",
        )
    return torch.tensor([int(v) for v in values], dtype=torch.int64)


def _is_count(value: Any) -> bool:
    return isinstance(value, Real) and float(value) >= 0 and float(value).is_integer()


def _optional_counts(source: CountSource | None, column: str, num_classes: int) -> Tensor | None:
    return None if source is None else resolve_counts(source, column, num_classes)


def _read_column(path: Path, column: str) -> list[Any]:
    import pyarrow
    import pyarrow.parquet  # here, not above: detectors with counts in their config need no pyarrow

    if not path.is_file():
        raise MissingInput(f"{path} does not exist", "run `2drcl stats` first, or check --stats")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as problem:
        raise InputError(f"{path} is not a readable parquet file: {problem}") from None
    missing = {"category_id", column} - set(table.column_names)
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(sorted(missing))}",
            "give the categories.parquet of `2drcl stats`",
        )
    return list(table.sort_by("category_id").column(column).to_pylist())
