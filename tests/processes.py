"""Several processes of one gloo group, for tests that compare them with one.

One clean process imports what the work needs, which is most of the cost, and forks the others: the test's own
process cannot, its threads may have run already.
"""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_checkpoint import FORKS

SECONDS = 120  # for all of it


def together(world: int, work: Callable[[int, int], Any], folder: Path) -> list[Any]:
    """What `work(rank, world)` brings back from each of the processes: tensors and plain data.

    Args:
        world: number of processes.
        work: a function at the top level of a module.
        folder: empty.
    """
    process = FORKS.Process(target=_start, args=(world, work, folder))
    process.start()
    process.join(SECONDS)
    process.kill()
    assert process.exitcode == 0, "a process failed or waits for the others: see stderr"
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(world)]


def _start(world: int, work: Callable[[int, int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=_join, args=(rank, world, work, folder)) for rank in range(world)]
    for member in members:
        member.start()
    waiting = list(members)
    while waiting:
        waiting[0].join(0.05)
        if any(member.exitcode not in (None, 0) for member in members):
            for member in members:
                member.kill()
            sys.exit(1)
        waiting = [member for member in waiting if member.exitcode is None]


def _join(rank: int, world: int, work: Callable[[int, int], Any], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.save(work(rank, world), folder / f"{rank}.pth")
    dist.destroy_process_group()
