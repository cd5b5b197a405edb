"""Losses that bring their derivative along: the one place where the losses are clever about time and memory.

All losses of this folder are sums over RoIs, L = sum_i u_i l_i, where l_i depends on row i of the logits
alone and u_i stands for weights and means.  So dL/ds_ij = u_i dl_i/ds_ij: the derivative of l_i is made
together with its value, from the same probabilities, and backward is one product with u.  Autograd on the
formulas would keep and walk several matrices more.  With p the sigmoids or the softmax of s, and y the label:

    binary    l = sum_{j != y} w_j log(1 + e^s_j) + q log(1 + e^-s_y)
              dl/ds_j = w_j p_j,  dl/ds_y = -q (1 - p_y)
    softmax   l = log sum_j e^s_j - s_y
              dl/ds_j = p_j - [j = y]

A CPU takes a block of rows at a time, whose intermediate numbers stay in its cache; a GPU takes all rows as
one block, and never waits for the host.  A graph may be walked twice, but has no second derivatives.

N = RoIs, n = those of a block, K = columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 18  # numbers per thread: a MiB of float32, as large as the cache of a core

LEFT_OUT = -1e30  # added to a logit: the loss of a no, and its derivative, are exactly 0; a NaN stays one

OfRows = Callable[[slice, Tensor], Tensor]
MatrixOfRows = Callable[[slice], Tensor]


def row_losses(logits: Tensor, of_rows: OfRows) -> Tensor:
    """Losses of the RoIs, computed block by block, with their derivative.

    Args:
        logits: (N, K).
        of_rows: given the rows of a block and an empty (n, K) matrix, fills the latter with the derivative of
            each row's loss by its logits and returns the (n,) losses.  Called without a graph, for each block
            once, in ascending order.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    return attach_gradients(logits, *in_blocks(logits, of_rows))


@torch.no_grad()
def in_blocks(logits: Tensor, of_rows: OfRows) -> tuple[Tensor, Tensor]:
    """`row_losses` without a graph: (N,) losses and (N, K) gradients."""
    num_rois, num_columns = logits.shape
    losses, gradients = logits.new_empty(num_rois), logits.new_empty(num_rois, num_columns)
    size = BLOCK * torch.get_num_threads() // max(1, num_columns)
    size = max(1, num_rois if logits.is_cuda else size)
    with torch.autocast(logits.device.type, enabled=False):  # which would take products in bfloat16
        for first in range(0, num_rois, size):
            rows = slice(first, first + size)
            losses[rows] = of_rows(rows, gradients[rows])
    return losses, gradients


def attach_gradients(logits: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
    """(N,) `losses` whose derivative by the (N, K) logits is known: the (N, K) `gradients`."""
    return attach_parts(logits, [losses], [gradients])[0]


def attach_parts(logits: Tensor, losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Several losses of a RoI, each of some columns: (N,) each; side by side the derivatives are (N, K)."""
    attached: tuple[Tensor, ...] = _Attach.apply(logits, len(losses), *losses, *gradients)
    return attached


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, num_parts: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*values[num_parts:])
        return tuple(losses.view_as(losses) for losses in values[:num_parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor, ...] = ctx.saved_tensors
        widths = [part.shape[1] for part in gradients]
        whole = gradients[0].new_empty(len(outer[0]), sum(widths))
        for of_part, part, factor in zip(whole.split(widths, dim=1), gradients, outer, strict=True):
            torch.mul(part, factor[:, None], out=of_part)  # (N) -> (N, 1)
        return whole, None, *[None] * (2 * len(gradients))


def binary_losses(
    logits: Tensor,
    labels: Tensor,
    negative_weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
    shifted: MatrixOfRows | None = None,
) -> Tensor:
    """Sum over columns of the weighted binary cross-entropy against the one-hot label.

    Args:
        logits: (N, K); labels: (N,) int64 from 0 on; a label that has no column is background: all negative.
        negative_weights, positive_weights: (K,) factors of a column where the answer is no, and where it is
            yes, or None for ones; without a gradient.
        shifted: gives what the logits of a block of rows become where the answer is no, (n, K); the
            derivative is by its values.  What LEFT_OUT is added to counts no more.  None: they stay.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    found = binary_losses_and_gradients(logits, labels, negative_weights, positive_weights, shifted)
    return attach_gradients(logits, *found)


@torch.no_grad()
def binary_losses_and_gradients(
    logits: Tensor,
    labels: Tensor,
    negative_weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
    shifted: MatrixOfRows | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`binary_losses` without a graph, and its derivative: (N,) and (N, K).

    `own`: (N, 1), what the logit of the label becomes; None: it stays.
    """
    if negative_weights is not None:
        negative_weights = negative_weights.to(logits.dtype)
    num_columns = logits.shape[1]
    # Background borrows the last column, to no effect: boolean indexing would wait for the GPU.
    column, has_column = labels.clamp(max=num_columns - 1)[:, None], (labels < num_columns)[:, None]
    borrowed = logits.gather(1, column)  # (N, K) -> (N, 1)
    own = borrowed.clone() if own is None else own

    def no_elsewhere(rows: slice, out: Tensor) -> Tensor:
        x = logits[rows]
        if shifted is not None:
            x = shifted(rows)
            borrowed[rows] = x.gather(1, column[rows])
        losses = _sum_softplus(x, torch.sigmoid(x, out=out), column[rows], negative_weights)
        if negative_weights is not None:
            out.mul_(negative_weights)
        return losses

    losses, gradients = in_blocks(logits, no_elsewhere)
    # at the label: a yes to s is a no to -s; for background, what it has borrowed
    own = torch.where(has_column, -own, borrowed)
    sign = torch.where(has_column, -1, own.new_ones(()))
    weight = torch.where(
        has_column,
        1 if positive_weights is None else positive_weights[column],
        own.new_ones(()) if negative_weights is None else negative_weights[column],
    )
    gradients.scatter_(1, column, sign * weight * own.sigmoid())
    losses += (weight * F.softplus(own, threshold=40))[:, 0]
    return losses, gradients


def _sum_softplus(x: Tensor, p: Tensor, column: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of w log(1 + e^x), p = sigmoid(x), over all columns but one in each row: (n, K), (n, 1) -> (n,)."""
    if x.is_cuda:
        elements = F.softplus(x, threshold=40).scatter_(1, column, 0)  # 20, the default, cuts off 2e-9
        return elements.sum(dim=1) if weights is None else elements @ weights
    # log(1 + e^x) = max(x, 0) - log(1 - a), a = min(p, 1 - p): no exponential, which is slow on a CPU
    above = x.clamp(min=0).scatter_(1, column, 0)
    a = 1 - p
    torch.minimum(a, p, out=a).scatter_(1, column, 0)
    if weights is not None:
        return above @ weights - a.neg_().log1p_() @ weights
    # a logarithm of four columns together, which is slow too: 1 - (1 - a)(1 - b) = a + b - ab
    whole = a.shape[1] - a.shape[1] % 4
    first, second, third, fourth = a[:, :whole].chunk(4, dim=1)
    four = _either(_either(first, second), _either(third, fourth))
    logs = four.neg_().log1p_().sum(dim=1) + a[:, whole:].neg().log1p_().sum(dim=1)
    return above.sum(dim=1) - logs


def _either(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b).addcmul_(a, b, value=-1)


def softmax_losses(logits: Tensor, labels: Tensor, shifted: MatrixOfRows | None = None) -> Tensor:
    """Softmax cross-entropy; its derivative passes by the shift.

    Args:
        logits: (N, K); labels: (N,) int64 in 0..K-1.
        shifted: see `binary_losses_and_gradients`.

    Returns:
        (N,) losses, in the dtype of `logits`.
    """
    return attach_gradients(logits, *softmax_losses_and_gradients(logits, labels, shifted))


@torch.no_grad()
def softmax_losses_and_gradients(
    logits: Tensor, labels: Tensor, shifted: MatrixOfRows | None = None
) -> tuple[Tensor, Tensor]:
    """`softmax_losses` without a graph, and its derivative: (N,) and (N, K)."""
    column = labels[:, None]  # (N) -> (N, 1)

    def of_rows(rows: slice, out: Tensor) -> Tensor:
        of_rows = logits[rows] if shifted is None else shifted(rows)
        missing = of_rows.amax(dim=1) - of_rows.gather(1, column[rows])[:, 0]
        # log sum exp(s) = s - log p(s) for every s; the largest p is at least 1 / K: its log is exact
        return missing - torch.softmax(of_rows, dim=1, out=out).amax(dim=1).log()

    losses, gradients = in_blocks(logits, of_rows)
    gradients.scatter_add_(1, column, gradients.new_full((), -1).expand_as(column))
    return losses, gradients
