"""How many of many numbers lie above each of many thresholds, softly, without comparing every pair.

A pair counts H(v - t), H(x) = clamp(x / (2 delta) + 1/2, 0, 1).  H is linear between the edges t - delta and
t + delta of a threshold, so the values need only be counted and summed between neighbouring edges, all
thresholds at once.

M = values, T = thresholds, 2T + 1 intervals: below, between and above the edges.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CELLS = 1 << 18
BLOCK = 1 << 18  # values that a CPU takes at a time: what it makes of them stays in its cache


def intervals(values: Tensor, edges: Tensor) -> Tensor:
    """The number of edges up to each value, as torch.searchsorted, in a tenth of its time for many values.

    A binary search per value branches at random a dozen times.  Here the value's cell in an even grid tells,
    unless there is an edge in it, which is rare.

    Args:
        values: (M,); a NaN lies above all edges.
        edges: (E,) ascending, E > 0.

    Returns:
        (M,) int32 in 0..E.
    """
    if values.is_cuda or len(values) < CELLS:  # fast on a GPU, where the grid would make the host wait
        return torch.searchsorted(edges, values, right=True, out_int32=True)
    num_in_cell = torch.bincount(_cells(edges, edges), minlength=CELLS + 2)
    up_to = num_in_cell.cumsum(dim=0).masked_fill_(num_in_cell > 0, -1).int()
    return torch.cat([_intervals(block, edges, up_to) for block in values.split(BLOCK)])


def _intervals(values: Tensor, edges: Tensor, up_to: Tensor) -> Tensor:
    """`up_to`: (CELLS + 2,) the number of edges up to the values of a cell, -1 where it differs."""
    found = up_to.index_select(0, _cells(values, edges))  # (CELLS + 2) -> (M)
    unsure = (found < 0).nonzero()[:, 0]
    searched = torch.searchsorted(edges, values.index_select(0, unsure), right=True, out_int32=True)
    return found.index_copy_(0, unsure, searched)


def _cells(values: Tensor, edges: Tensor) -> Tensor:
    """0 below all edges, 1 to CELLS among them, CELLS + 1 above; rounding keeps their order."""
    scale = (CELLS - 1) / (edges[-1] - edges[0]).clamp(min=torch.finfo(edges.dtype).tiny)
    places = (values - edges[0]).mul_(scale).add_(1)
    return places.clamp_(0, CELLS + 1).nan_to_num_(CELLS + 1).int()


def _counted_on_cpu(interval: Tensor, values: Tensor, number: int) -> Tensor:
    """(M,), (M,) -> (2, number): how many values are in each interval, and their sum."""
    return torch.stack([torch.bincount(interval, minlength=number), torch.bincount(interval, values, number)])


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
        self.interval = intervals(self.values, self.edges)

    def at_thresholds(self) -> Tensor:
        """Sum over the values of H(v - t): (T,) float64."""
        counted, summed = self._above()
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
        dtype = self.values.dtype
        levels, slopes = (constants + slopes * edges.double()).to(dtype), slopes.to(dtype)
        found = torch.empty_like(self.values)
        for block, values, interval in self._blocks(found):
            torch.index_select(levels, 0, interval, out=block)  # (2T + 1) -> (M)
            block.addcmul_(slopes.index_select(0, interval), values - edges.index_select(0, interval))
        return found

    def _blocks(self, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Parts of others, values and intervals."""
        size = len(self.values) if self.values.is_cuda else BLOCK
        return zip(*(numbers.split(size) for numbers in (*others, self.values, self.interval)), strict=True)

    def _first_interval(self, edges: Tensor) -> Tensor:
        """The first interval above some of the edges: (T,) -> (T,) int64 in 1..2T."""
        # A NaN is above the last one, where its own sums are NaN anyway.
        return (torch.searchsorted(self.edges, edges) + 1).clamp(max=len(self.edges))

    def _above(self) -> Tensor:
        """Number and sum of the values in each interval or a higher one: (2, 2T + 1) float64."""
        number = len(self.edges) + 1
        total = torch.zeros(2, number, dtype=torch.float64, device=self.edges.device)
        for values, interval in self._blocks():
            of_values = values.double()
            if values.is_cuda:  # bincount would make the host wait
                total[0].index_add_(0, interval, torch.ones_like(of_values))
                total[1].index_add_(0, interval, of_values)
            else:
                total += _counted_on_cpu(interval, of_values, number)
        return total.flip(1).cumsum(1).flip(1)
