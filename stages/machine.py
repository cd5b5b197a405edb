"""Where a command runs: GPUs or CPU processes.  Never changes the result, only the time."""

import os
from dataclasses import dataclass
from typing import Any

from pipeline.errors import EnvironmentProblem, UsageError


@dataclass(frozen=True)
class Machine:
    """What was asked for.

    Args:
        gpus: number of GPUs; 0 is the CPU; None: the largest visible count that divides the batch.
        procs: number of CPU processes when there is no GPU.
        workers: loader processes per process; None: 2 with a GPU, 0 without.
        save_every: seconds between checkpoints; what a kill can cost.
    """

    gpus: int | None = None
    procs: int = 1
    workers: int | None = None
    save_every: float = 120.0

    def check(self) -> None:
        """Refuse what this machine does not have, before anything starts.

        Raises:
            UsageError: GPUs and CPU processes at once.
            EnvironmentProblem: more GPUs than there are.
        """
        if self.procs > 1 and self.gpus:
            raise UsageError("--gpus and --procs exclude each other", "--procs N is for CPU processes")
        visible = visible_gpus() if self.gpus else 0
        if self.gpus and self.gpus > visible:
            raise EnvironmentProblem(
                f"--gpus {self.gpus}, but this machine shows {visible} GPU{'s' if visible != 1 else ''}",
                f"use --gpus {visible}" if visible else "use --gpus 0 for the CPU, or run `2drcl doctor`",
            )

    def processes(self, batch_size: int, accumulate: int = 1) -> tuple[int, bool]:
        """How many processes to start, and whether each has a GPU, for a batch computed in parts.

        Raises:
            UsageError: the batch does not divide.
        """
        from pipeline.engine.distributed import share_of

        joined = int(os.environ.get("WORLD_SIZE", 1))
        gpus = self.gpus
        if gpus is None:
            visible = visible_gpus() if self.procs == 1 else 0
            gpus = max((n for n in range(1, visible + 1) if batch_size % (n * accumulate) == 0), default=0)
        if joined > 1:
            share_of(batch_size, joined, accumulate)
            return joined, gpus > 0
        world = gpus if gpus else self.procs
        share_of(batch_size, world, accumulate)
        return world, gpus > 0

    def one_device(self) -> Any:
        """The torch device of work that one process does: the first GPU, or the CPU."""
        import torch

        use_gpu = self.gpus != 0 and self.procs == 1 and visible_gpus() > 0
        return torch.device("cuda" if use_gpu else "cpu")

    def loader_workers(self, use_gpu: bool) -> int:
        """Loader processes per process."""
        return self.workers if self.workers is not None else (2 if use_gpu else 0)


def visible_gpus() -> int:
    """Number of CUDA devices."""
    import torch

    return torch.cuda.device_count()


def in_group() -> bool:
    """Whether torchrun or srun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_first() -> bool:
    """Whether this process publishes and talks."""
    return int(os.environ.get("RANK", 0)) == 0
