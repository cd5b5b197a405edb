"""The momentum encoder's update: key = m * key + (1 - m) * query (MoCo, eq. 2; builder.py).

Parameters average in their own float32, whatever precision the step computes in: 1 - m = 0.001 is below half
a unit in the last place of bf16.
"""

import copy

import torch
from torch import nn


def momentum_copy(query: nn.Module) -> nn.Module:
    """A frozen twin in eval mode.  Make it after the query has its initial weights."""
    key = copy.deepcopy(query)
    for parameter in key.parameters():
        parameter.requires_grad_(False)
    return key.eval()


@torch.no_grad()
def average_parameters(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """Move the parameters of `key` towards those of `query`, in place; buffers stay.

    Args:
        key, query: modules of the same architecture.
        momentum: share of the old value that stays, in [0, 1].
    """
    torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1.0 - momentum)


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """`average_parameters`, and the buffers of `query` as they are; arguments as there.

    An average of statistics over thousands of steps would describe the start for most of a short run.
    """
    average_parameters(key, query, momentum)
    for own, source in zip(key.buffers(), query.buffers(), strict=True):
        own.copy_(source)
