"""Projection and prediction networks: 256 - BN - ReLU - 256 (A.1), with batch statistics over all processes.

A process sees few images (two in the paper), and batch norm over two rows maps every channel to +-1 whatever
it was.  So the statistics are summed over processes, on CPU too, where nn.SyncBatchNorm refuses; and rows of
boxes that do not exist are left out of them.

Shapes: N rows on this process, D channels.
"""

import torch
from torch import Tensor, nn

from pipeline.engine.distributed import sum_with_gradient
from pipeline.pretrain.contrast import at_least_float32


class MaskedBatchNorm(nn.Module):
    """Batch norm of (N, D) rows over the valid rows of all processes; running statistics in eval mode."""

    running_mean: Tensor
    running_var: Tensor
    num_tracked: Tensor  # (1,) float32: steps that the running statistics have seen

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_tracked", torch.zeros(1))

    def forward(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(N, D) rows and (N,) bool -> (N, D); invalid rows are normalised too, but do not count."""
        if not self.training:
            return self._affine(rows, self.running_mean, self.running_var)
        mean, variance, count = self._statistics(rows.double(), valid)
        self._remember(mean.detach(), variance.detach(), count.detach())
        return self._affine(rows, mean.to(rows.dtype), variance.to(rows.dtype))

    @torch.no_grad()
    def track(self, rows: Tensor, valid: Tensor) -> None:
        """Let (N, D) rows into the running statistics; for a norm that is used in eval mode."""
        self._remember(*self._statistics(rows.double(), valid))

    def _statistics(self, rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (D,), biased variance (D,) and count (1,) of the valid rows of all processes.

        In float64: one sum of squares serves all processes, but in float32 it loses a small variance beside a
        large mean, which is what the pooled features of untrained networks have.
        """
        weights = valid.to(rows.dtype)[:, None]
        local = torch.cat([weights.sum(0), (rows * weights).sum(0), (rows.square() * weights).sum(0)])
        count, total, squares = sum_with_gradient(local).split([1, rows.shape[1], rows.shape[1]])
        mean = total / count.clamp(min=1)
        return mean, (squares / count.clamp(min=1) - mean.square()).clamp(min=0), count

    def _affine(self, rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (rows - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running statistics, with the unbiased variance; a single row has none, so it changes nothing.

        A plain average at first: pooled features vary by 1e-3, and keys normalised by what is left of the
        initial 1 would all be alike for a hundred steps.
        """
        self.num_tracked += count > 1
        share = torch.where(count > 1, (1 / self.num_tracked).clamp(min=self.momentum), 0.0)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share.to(self.running_mean.dtype))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share.to(self.running_var.dtype))


class ProjectionMLP(nn.Module):
    """Linear - batch norm - ReLU - Linear (A.1: "2-layer MLPs", hidden and output width 256).

    Args:
        width_in: C5's channels (HCL), the box head's width (LCL), or 256 (predictors).
        hidden, width_out: 256 in the paper.
        norm: whether the hidden layer has batch norm.
    """

    def __init__(self, width_in: int, hidden: int = 256, width_out: int = 256, *, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(width_in, hidden, bias=not norm)  # the norm's bias makes another one useless
        self.norm = MaskedBatchNorm(hidden) if norm else None
        self.last = nn.Linear(hidden, width_out)

    def forward(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(N, width_in) and (N,) bool -> (N, width_out), in float32 at least."""
        with torch.autocast(rows.device.type, enabled=False):
            hidden = self.first(at_least_float32(rows))
            if self.norm is not None:
                hidden = self.norm(hidden, valid)
            return self.last(torch.relu(hidden))

    def track(self, rows: Tensor, valid: Tensor) -> None:
        """Let (N, width_in) rows into the running statistics of the hidden layer, if it has any."""
        if self.norm is None:
            return
        with torch.autocast(rows.device.type, enabled=False):
            self.norm.track(self.first(at_least_float32(rows)), valid)
