"""Memory-augmented feature sampling of LOCE (Feng et al., ICCV 2021); official: fcjian/LOCE,
mmdet/models/utils/mfs.py.

For every class the RoI features of its latest objects are kept, in a ring, and for every image some classes
are drawn, the lower their mean score the likelier, whose kept features join the RoIs of the batch.  So a rare
class is trained long after its object was seen.

R = rows stored at once, B = images of this process, C = foreground classes, Q = rows kept per class,
F = shape of a feature (256, 7, 7).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import MismatchedInput
from pipeline.finetune.weak_classes import draw_classes

SCORE_FLOOR = 1e-7  # added to a mean score before it is inverted, as in the official code


def ranks_in_class(labels: Tensor, num_classes: int) -> Tensor:
    """How many earlier rows have the same label: (R,) int64 in 0..C-1 -> (R,) int64."""
    order = labels.argsort(stable=True)
    sizes = torch.bincount(labels, minlength=num_classes)
    starts = sizes.cumsum(dim=0) - sizes
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks


def gather_rows_of_any_number(rows: Tensor) -> Tensor:
    """Rows of all processes, rank after rank: (R, W), R different on each -> (sum of R, W).

    Two collectives: every process calls it, with or without rows.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    number = torch.tensor([len(rows)], device=rows.device)
    numbers = [torch.empty_like(number) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, number)
    padded = rows.new_zeros(max(int(n) for n in numbers), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, numbers, strict=True)])


class SampledRows(NamedTuple):
    """Rows drawn from the memory."""

    features: Tensor  # (S, *F)
    labels: Tensor  # (S,) int64
    box_targets: Tensor  # (S, 4)
    images: Tensor  # (S,) int64 in 0..B-1, for which they were drawn


class FeatureMemory(nn.Module):
    """The latest Q features of every class with their box targets, in the host's memory.

    LVIS needs 1203 x 80 x 256 x 7 x 7 x 4 bytes = 4.8 GB.  So the rows are no buffers, which would move to
    the GPU with the module, but they are part of `state_dict`, filled ones only.  The official memory is lost
    on a resume, and it is one per process; here all processes keep the same rows, so that the checkpoint of
    one serves all.

    Args:
        num_classes: C.
        feature_shape: F.
        queue_size: Q, the latest rows that are kept of every class.
        sampled_num_classes, sampled_num_features: classes drawn for an image, and rows of each.  The official
            code draws 8 classes for a process, which has 2 images.
        synchronize: store the rows of all processes.  False stores a process's own, as the official code
            does; a resumed run then gives every process the rows of the first.  True makes `store` a
            collective: every process calls it once a step.
    """

    def __init__(
        self,
        num_classes: int,
        feature_shape: Sequence[int] = (256, 7, 7),
        queue_size: int = 80,
        sampled_num_classes: int = 4,
        sampled_num_features: int = 4,
        synchronize: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.queue_size, self.synchronize = num_classes, queue_size, synchronize
        self.sampled_num_classes, self.sampled_num_features = sampled_num_classes, sampled_num_features
        self.feature_shape = tuple(feature_shape)
        self.features = torch.zeros(num_classes, queue_size, math.prod(feature_shape))  # (C, Q, F)
        self.box_targets = torch.zeros(num_classes, queue_size, 4)
        self.num_filled = torch.zeros(num_classes, dtype=torch.int64)  # rows 0..n-1 of a class hold something
        self.pointers = torch.zeros(num_classes, dtype=torch.int64)  # where the next row of a class goes

    @torch.no_grad()
    def store(self, features: Tensor, labels: Tensor, box_targets: Tensor) -> None:
        """Append rows; the oldest ones of their class go.  Of one class at most Q at once, the first ones.

        Args:
            features: (R, *F); labels: (R,) int64, 0..C-1 or else left out; box_targets: (R, 4).
        """
        labels = labels.to(torch.float32)  # exact up to 2^24
        # (R, *F) -> (R, F), 2 more blocks -> (R, F + 4 + 1)
        rows = torch.cat([features.flatten(1).float(), box_targets.float(), labels[:, None]], dim=1)
        rows = rows[self.storable(rows[:, -1])]
        if self.synchronize:
            rows = gather_rows_of_any_number(rows)
            rows = rows[self.storable(rows[:, -1])]
        rows = rows.cpu()
        labels = rows[:, -1].long()
        slots = (self.pointers[labels] + ranks_in_class(labels, self.num_classes)) % self.queue_size
        self.features[labels, slots] = rows[:, :-5]
        self.box_targets[labels, slots] = rows[:, -5:-1]
        new = torch.bincount(labels, minlength=self.num_classes)
        self.pointers = (self.pointers + new) % self.queue_size
        self.num_filled = (self.num_filled + new).clamp(max=self.queue_size)

    def storable(self, labels: Tensor) -> Tensor:
        """Positions of the rows that `store` would keep: those with a class, the first Q of each.

        (R,) -> (up to R,) int64 on the same device.  Who computes the features of these only spares memory.
        """
        classes = labels.long().cpu()
        kept = ((classes >= 0) & (classes < self.num_classes)).nonzero()[:, 0]
        kept = kept[ranks_in_class(classes[kept], self.num_classes) < self.queue_size]
        return kept.to(labels.device)

    @property
    def draws_per_image(self) -> tuple[int, int]:
        """Shape of the numbers that `sample` needs for an image: K classes, each with its rows."""
        return self.sampled_num_classes, 1 + self.sampled_num_features

    @torch.no_grad()
    def sample(self, mean_score: Tensor, uniform: Tensor) -> SampledRows:
        """Draw weak classes, and rows of each, all with replacement; none of a class without rows.

        Args:
            mean_score: (C + 1,), see `pipeline.finetune.loce`; background has no part in it.
            uniform: (B, *draws_per_image) numbers in [0, 1), on the CPU.

        Returns:
            On the device of `mean_score`; S is up to B x `sampled_num_classes` x `sampled_num_features`.
        """
        choice, place = uniform[..., 0], uniform[..., 1:]
        classes = draw_classes(1 / (mean_score[:-1].double().cpu() + SCORE_FLOOR), choice.flatten())
        classes = classes.reshape(*choice.shape, 1)  # (B K) -> (B, K, 1)
        # below n: the largest float32 number below 1 is 1 - 2^-24
        slots = (place * self.num_filled[classes]).long()
        labels = classes.expand_as(slots)
        images = torch.arange(len(slots))[:, None, None].expand_as(slots)  # (B) -> (B, K, 4)
        has_rows = self.num_filled[labels] > 0
        labels, slots, images = labels[has_rows], slots[has_rows], images[has_rows]  # (B, K, 4) -> (S)
        features = self.features[labels, slots].reshape(-1, *self.feature_shape)  # (S, F) -> (S, *F)
        found = (features, labels, self.box_targets[labels, slots], images)
        return SampledRows(*(part.to(mean_score.device) for part in found))

    def get_extra_state(self) -> dict[str, Tensor]:
        """The filled rows and where to go on, as part of the state dict."""
        is_filled = self._is_filled()
        return {
            "features": self.features[is_filled],  # (C, Q, F) -> (rows, F)
            "box_targets": self.box_targets[is_filled],
            "num_filled": self.num_filled.clone(),
            "pointers": self.pointers.clone(),
        }

    def set_extra_state(self, state: Any) -> None:
        """Restore the rows.

        Raises:
            MismatchedInput: they are those of another number of classes, or features of another shape.
        """
        found = (len(state["num_filled"]), state["features"].shape[1])
        wanted = (self.num_classes, self.features.shape[2])
        if found != wanted or int(state["num_filled"].max()) > self.queue_size:
            raise MismatchedInput(
                f"the checkpoint's feature memory is for (classes, numbers per feature) {found}, "
                f"this one for {wanted} and {self.queue_size} rows per class",
                "resume with the settings of the run",
            )
        self.num_filled, self.pointers = state["num_filled"].clone(), state["pointers"].clone()
        is_filled = self._is_filled()
        self.features[is_filled] = state["features"]
        self.box_targets[is_filled] = state["box_targets"]

    def _is_filled(self) -> Tensor:
        """(C, Q) bool."""
        return torch.arange(self.queue_size) < self.num_filled[:, None]
