"""One of the two contrasts: projector, predictor, their momentum copy and the queue (Sec. 3.1).

    query = h'(h(features of x)), key = h_m(features of x+), both unit-norm
    loss  = InfoNCE(query, key, queue)         eq. 1 over images, eq. 2 over proposals

Shapes: N rows on this process, D width of the embedding.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.engine.distributed import gather_rows, sum_over_processes, world_size
from pipeline.pretrain.accumulation import in_order
from pipeline.pretrain.contrast import info_nce, unit_rows
from pipeline.pretrain.key_queue import KeyQueue
from pipeline.pretrain.measures import similarities
from pipeline.pretrain.momentum import average_parameters, momentum_copy
from pipeline.pretrain.projection import ProjectionMLP
from pipeline.pretrain.settings import ContrastSettings


@dataclass(frozen=True)
class Keys:
    """What this process brings to the queue once the gradient of its step is taken."""

    rows: Tensor
    image_ids: Tensor
    valid: Tensor


class Contrast(nn.Module):
    """Projector, predictor, their momentum copy and the queue of one of the two contrasts.

    Args:
        width_in: of the features.
        queue: number of keys.
        settings: of the contrasts.
        accumulate: losses that one optimizer step takes, each of a part of the batch.
        per_image: rows of each image.
    """

    def __init__(
        self, width_in: int, queue: int, settings: ContrastSettings, accumulate: int = 1, per_image: int = 1
    ) -> None:
        super().__init__()
        self.settings, self.accumulate, self.per_image = settings, accumulate, per_image
        self._pending: list[Keys] = []  # of the step's parts
        self.measures: dict[str, Tensor] = {}  # of the last loss
        hidden, width = settings.hidden, settings.width
        norm = settings.norm == "batch"
        self.projector = ProjectionMLP(width_in, hidden, width, norm=norm)
        self.predictor = ProjectionMLP(width, hidden, width, norm=norm) if settings.predictor else None
        self.key_projector = momentum_copy(self.projector)
        self.queue = KeyQueue(queue, width)

    def query(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(N, width_in) -> (N, D) unit-norm; the predictor is on the query side only."""
        projected = self.projector(rows, valid)
        if self.predictor is not None:
            projected = self.predictor(projected, valid)
        return unit_rows(projected)

    def key(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(N, width_in) -> (N, D) unit-norm, of the momentum branch.

        Batch norm takes the running statistics of earlier keys: those of this batch would be a signature that
        the queue's keys lack, and those of the queries belong to another encoder, which has moved on, so that
        beside its mean all keys would look alike.
        """
        keys = unit_rows(self.key_projector(rows, valid))
        if self.training:
            self.key_projector.track(rows, valid)
        return keys

    def loss(
        self, query: Tensor, key: Tensor, image_ids: Tensor, valid: Tensor, total: Tensor | None = None
    ) -> Tensor:
        """These queries' part of the mean over the valid queries of the step's parts on all processes, times
        the numbers of both, by which the loop and DDP divide.

        The keys wait for `after_step`: a key is never its own negative.

        Args:
            query, key: (N, D) unit-norm; the keys without a graph.
            image_ids: (N,) int64.
            valid: (N,) bool.
            total: () valid queries of this process in all parts of the step; None: `accumulate` times these.
        """
        excluded = self.queue.excluded(image_ids, self.settings.mask_same_image)
        losses = info_nce(query, key, self.queue.keys, excluded, self.settings.temperature)
        parts, total = (1, valid.sum()) if total is None else (self.accumulate, total)
        count = sum_over_processes(total.to(losses.dtype)).clamp(min=1)
        self._pending = [*self._pending, Keys(key, image_ids, valid)][-self.accumulate :]
        weights = valid * (world_size() * parts) / count
        self.measures = similarities(query, key, self.queue, weights)
        return (losses * weights).sum()

    def after_step(self, momentum: float) -> None:
        """Move the momentum projector and enqueue this step's keys, in the order of the images."""
        average_parameters(self.key_projector, self.projector, momentum)
        if self._pending:
            columns = zip(*((keys.rows, keys.image_ids, keys.valid) for keys in self._pending), strict=True)
            self.queue.enqueue(*(gather_rows(in_order(parts, self.per_image)) for parts in columns))
        self._pending = []

    def train(self, mode: bool = True) -> "Contrast":
        """The momentum projector stays in eval mode."""
        super().train(mode)
        self.key_projector.eval()
        return self
