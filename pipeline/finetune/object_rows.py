"""Which RoIs are of objects, and of which classes: where that is cheap to know, losses work on these alone.

On a CPU three of four RoIs, background, are saved, and of 1,203 classes those that a batch does not show.  A
GPU would have to wait for their number: there all RoIs and all classes are taken, and background is a class
more.

N = RoIs, n = those of a block, C = foreground classes, L = classes taken; label C = background.
"""

from bisect import bisect_left

import torch
from torch import Tensor


def rows_with_objects(labels: Tensor, num_classes: int) -> Tensor | None:
    """Positions of the RoIs of objects, where it is cheap to know them; None: work on all rows.

    Args:
        labels: (N,) int64; num_classes: C.

    Returns:
        (objects,) int64 ascending, or None.
    """
    return (labels < num_classes).nonzero()[:, 0] if labels.device.type == "cpu" else None


class ObjectRows:
    """The RoIs to work on, block by block, and where each finds its class in tables of L + 1 rows.

    The last row of such a table is the background's.

    Args:
        labels: (N,) int64 in 0..C; num_classes: C.

    Attributes:
        classes: (L,) int64, ascending: the rows of the tables but for the last one.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        rows = rows_with_objects(labels, num_classes)
        self._rows = rows
        if rows is None:
            self.classes, self._places = torch.arange(num_classes, device=labels.device), labels
            return
        self.classes, self._places = labels[rows].unique(return_inverse=True)
        self._positions: list[int] = rows.tolist()

    def within(self, block: slice, num_rows: int) -> tuple[Tensor, Tensor]:
        """Positions in a block of `num_rows` rows, and rows of the tables: (objects,) int64 each."""
        if self._rows is None:
            return torch.arange(num_rows, device=self._places.device), self._places[block]
        first = bisect_left(self._positions, block.start)
        last = bisect_left(self._positions, block.start + num_rows)
        return self._rows[first:last] - block.start, self._places[first:last]
