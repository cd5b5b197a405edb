"""Rows of boxes as somebody's file has them, before their images are known.

Shapes: N boxes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a file."""

    keys: np.ndarray | list[Any]  # (N,) int64 ids of images, or N ids and names
    numbers: np.ndarray  # (N, 4) float64 xywh if `has_sizes`, else xyxy
    has_sizes: bool
    scores: np.ndarray  # (N,) float64

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float64 xyxy; a sum beyond float64 is infinite."""
        if not self.has_sizes:
            return self.numbers
        corner, size = self.numbers[:, :2], self.numbers[:, 2:]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.concatenate([corner, corner + size], axis=1)  # 2 x (N, 2) -> (N, 4)
