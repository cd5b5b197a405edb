"""How many of many numbers lie above each of many thresholds, softly, without comparing every pair.

A pair counts H(v - t), H(x) = clamp(x / (2 delta) + 1/2, 0, 1).  H is linear between the edges t - delta and
t + delta of a threshold, so the values need only be counted and summed between neighbouring edges, all
thresholds at once.

M = values, T = thresholds, 2T + 1 intervals: below, between and above the edges.
"""

import torch
from torch import Tensor


class SoftCounts:
    """Sums of H(v - t) over M values v and T thresholds t.

    Args:
        values: (M,); thresholds: (T,), T > 0; both finite, and of one dtype.
        ignored: (M,) bool, values that count nowhere.
        delta: half the width of the step, >= 0; 0 makes it the jump at 0, with H(0) = 1.
    """

    def __init__(self, values: Tensor, thresholds: Tensor, ignored: Tensor, delta: float) -> None:
        self.slope = 0.5 / delta if delta > 0 else 0.0  # between two edges that coincide there is nothing
        self.thresholds = thresholds
        self.lower, self.upper = thresholds - delta, thresholds + delta
        self.edges = torch.cat([self.lower, self.upper]).sort().values  # 2 x (T) -> (2T)
        # Below every edge H is 0.  A NaN lands above all edges and makes all sums NaN, as it should.
        self.values = torch.where(ignored, self.edges[0] - 1, values)
        # (M) in 0..2T: the number of edges up to the value
        self.interval = torch.searchsorted(self.edges, self.values, right=True, out_int32=True)

    def at_thresholds(self) -> Tensor:
        """Sum over the values of H(v - t): (T,) float64."""
        values = self.values.double()
        counted = self._above(values.new_ones(1).expand_as(values))  # (M) -> (2T + 1)
        summed = self._above(values)
        low, high = self._first_interval(self.lower), self._first_interval(self.upper)
        between = counted[low] - counted[high]
        offset = 0.5 - self.slope * self.thresholds.double()
        rising = offset * between + self.slope * (summed[low] - summed[high])
        return counted[high] + rising.clamp(min=0)

    def at_values(self, weights: Tensor) -> Tensor:
        """Sum over the thresholds of weight H(v - t): (T,) float64 -> (M,) in the dtype of the values."""
        lower, upper = self._first_interval(self.lower), self._first_interval(self.upper)
        offset = weights * (0.5 - self.slope * self.thresholds.double())
        slope = weights * self.slope
        changes = torch.zeros(len(self.edges) + 1, 2, dtype=torch.float64, device=weights.device)
        changes.index_add_(0, lower, torch.stack([offset, slope], dim=1))  # 2 x (T) -> (T, 2)
        changes.index_add_(0, upper, torch.stack([weights - offset, -slope], dim=1))
        constants, slopes = changes.cumsum(dim=0).unbind(dim=1)  # line of every interval
        # From each interval's own edge on: a line through the origin would cancel in float32.
        edges = torch.cat([self.edges[:1], self.edges])  # (2T) -> (2T + 1)
        table = torch.stack([constants + slopes * edges.double(), slopes], dim=1).to(self.values.dtype)
        level, slope_here = table.index_select(0, self.interval).unbind(dim=1)  # (2T + 1, 2) -> 2 x (M)
        return level + slope_here * (self.values - edges.index_select(0, self.interval))

    def _first_interval(self, edges: Tensor) -> Tensor:
        """The first interval above some of the edges: (T,) -> (T,) int64 in 1..2T."""
        # A NaN is above the last one, where its own sums are NaN anyway.
        return (torch.searchsorted(self.edges, edges) + 1).clamp(max=len(self.edges))

    def _above(self, amounts: Tensor) -> Tensor:
        """Sum of the amounts of the values in each interval or a higher one: (M,) -> (2T + 1,)."""
        per_interval = amounts.new_zeros(len(self.edges) + 1).index_add_(0, self.interval, amounts)
        return per_interval.flip(0).cumsum(0).flip(0)
