"""What shows whether pre-training learns, beside its losses: written to history.jsonl with every step.

On the device, read by the loop together with the losses: similarities of the contrasts and norms of the
features.  On the host, functions of the step alone: the age of the queues and the share of rare boxes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.annotations import Annotations
from pipeline.data.draws import Sampler
from pipeline.pretrain.key_queue import EMPTY, KeyQueue


@torch.no_grad()
def similarities(query: Tensor, key: Tensor, queue: KeyQueue, weights: Tensor) -> dict[str, Tensor]:
    """Mean cosine of queries with their own keys, and with all keys in the queue.

    The queue's keys of a query's own image are counted too; an empty queue gives 0.

    Args:
        query, key: (Q, D) unit-norm.
        queue: as it was for these queries.
        weights: (Q,) share of each query in the mean.
    """
    mean_key = queue.keys.sum(dim=0) / (queue.image_ids != EMPTY).sum().clamp(min=1)  # (K, D) -> (D,)
    return {
        "positive": ((query * key).sum(dim=1) * weights).sum(),
        "negative": (query @ mean_key.to(query.dtype) * weights).sum(),
    }


@torch.no_grad()
def feature_norms(levels: Sequence[Tensor]) -> dict[str, Tensor]:
    """norm_c2 to norm_c5: mean length of the feature vectors of a level, cells of the padding included, in
    float32 at least.

    Args:
        levels: C2..C5, (B, C, h, w) each.
    """
    return {
        f"norm_c{number}": torch.linalg.vector_norm(
            level, dim=1, dtype=torch.promote_types(level.dtype, torch.float32)
        ).mean()
        for number, level in enumerate(levels, start=2)
    }


def queue_age(step: int, size: int, per_step: int) -> float:
    """Mean age, in steps, of the keys that step `step` (0-based) meets in a queue; 0 while it is empty.

    Args:
        step: optimizer steps that have enqueued keys.
        size: slots of the queue.
        per_step: keys of a global batch.
    """
    filled = min(size, step * per_step)
    whole, rest = divmod(filled, per_step)  # the youngest batch is 1 step old; the oldest may be half gone
    total = per_step * whole * (whole + 1) / 2 + rest * (whole + 1)
    return total / filled if filled else 0.0


class RareShare:
    """Share of the annotated boxes of a step's images that are of rare categories.

    Args:
        annotations: of the split.
        frequency: (C,) r, c or f of each category.
        sampler: of the run.
        epoch_steps: steps of each epoch.
    """

    def __init__(
        self, annotations: Annotations, frequency: Sequence[str], sampler: Sampler, epoch_steps: Sequence[int]
    ) -> None:
        self.sampler, self.starts = sampler, np.concatenate([[0], np.cumsum(epoch_steps)])
        images, rare = len(annotations.image_ids), np.array(frequency) == "r"
        self.boxes = np.bincount(annotations.box_images, minlength=images)
        is_rare = rare[annotations.labels]
        self.rare = np.bincount(annotations.box_images[is_rare], minlength=images)
        self._epoch, self._steps = -1, np.zeros((0, 0), dtype=np.int64)

    def of_step(self, step: int) -> float:
        """Of the global batch of a 0-based step; 0 without any box."""
        epoch = int(np.searchsorted(self.starts, step, side="right")) - 1
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self.sampler.steps(epoch)
        drawn = self._steps[step - self.starts[epoch]]
        return float(self.rare[drawn].sum() / max(1, self.boxes[drawn].sum()))
