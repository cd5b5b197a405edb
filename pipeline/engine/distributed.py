"""Processes of one run: who am I, sums over all, rows of all.

Every function works without a process group, where there is one process.  gloo serves CPUs, so that
two-process runs behave and are tested like NCCL's.
"""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import UsageError

TIMEOUT = datetime.timedelta(minutes=5)  # a hung process becomes an error, not a hung night


@dataclass(frozen=True)
class Process:
    """This process among `world`; `device` is where its tensors live."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


def join(use_gpu: bool) -> Process:
    """Join the group that torchrun (or srun with torchrun's variables) started; alone, be the only one.

    Args:
        use_gpu: one CUDA device per process (NCCL); False means CPU (gloo).
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if use_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=TIMEOUT)
    return Process(rank, world, device)


def leave() -> None:
    """End the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, rank after rank, without gradient.

    Args:
        rows: (N, ...), N equal on all processes.

    Returns:
        (world * N, ...).
    """
    rows = rows.detach().contiguous()  # NCCL takes no other, and empty_like would copy the strides
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)  # world x (N, ...) -> (world * N, ...)


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes, without gradient."""
    total = value.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
    return total


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_with_gradient(value: Tensor) -> Tensor:
    """Sum over all processes whose gradient is summed likewise (for batch statistics)."""
    return value if world_size() == 1 else _SumWithGradient.apply(value)


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any process: the same answer everywhere."""
    if world_size() == 1:
        return flag
    vote = torch.tensor([float(flag)], device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


def is_same_everywhere(value: int, device: torch.device) -> bool:
    """Whether all processes hold the same whole number: the same answer everywhere."""
    if world_size() == 1:
        return True
    extremes = torch.tensor([value, -value], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return int(extremes.sum()) == 0  # largest minus smallest


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def share_of(batch_size: int, world: int, accumulate: int = 1) -> int:
    """Images of a global batch per process, in `accumulate` equal parts.

    Raises:
        UsageError: it does not divide.
    """
    if batch_size % world:
        raise UsageError(
            f"a global batch of {batch_size} does not divide among {world} processes",
            f"use a number that divides {batch_size}: the batch decides the result, processes do not",
        )
    if batch_size // world % accumulate:
        raise UsageError(
            f"accumulate: {accumulate} does not divide the {batch_size // world} images of a process",
            "set it to a number that does",
        )
    return batch_size // world
