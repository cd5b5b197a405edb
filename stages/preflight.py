"""What loader processes take of a machine, looked at before the first step and not found out after hours.

Measured, a loader costs the process that it works for up to four open files, and 16 KiB of semaphores in
/dev/shm; images take neither (`pipeline.data.handover`).
"""

import os
import resource
import shutil
from pathlib import Path

from pipeline.errors import EnvironmentProblem
from stages.console import warn

FILES_PER_LOADER = 4
OTHER_FILES = 128  # libraries, memory-mapped proposals, logs, sockets
SHARED_PER_LOADER = 32 * 2**10
SHARED_PER_GPU = 64 * 2**20  # NCCL's buffers between the GPUs of a machine, where they have no other way
SHM = Path("/dev/shm")


def check(processes: int, loaders: int, *, use_gpu: bool, shared: Path = SHM) -> None:
    """Refuse a run that would end for want of open files or shared memory; warn of one that would be slow.

    Args:
        processes: of this run on this machine.
        loaders: of each of them.
        use_gpu: one GPU for each process.
        shared: where shared memory lies.

    Raises:
        EnvironmentProblem: naming what there is and what is needed.
    """
    _check_files(loaders)
    _check_shared(processes, loaders, use_gpu, shared)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if loaders and processes * loaders > cores:
        warn(
            f"{processes * loaders} loader processes ({processes} x {loaders}) on {cores} cores wait for "
            f"each other: --workers {max(1, cores // processes)} is as fast"
        )


def _check_files(loaders: int) -> None:
    """Raise the soft limit as far as the hard one allows; loaders and trainers inherit it."""
    needed = OTHER_FILES + FILES_PER_LOADER * loaders
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise EnvironmentProblem(
            f"{loaders} loader processes need {needed} open files, and `ulimit -Hn` allows {hard}",
            "raise the limit, or use fewer --workers",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_shared(processes: int, loaders: int, use_gpu: bool, shared: Path) -> None:
    if not shared.is_dir():
        return
    free, needed = shutil.disk_usage(shared).free, processes * loaders * SHARED_PER_LOADER
    if free < needed:
        raise EnvironmentProblem(
            f"{processes * loaders} loader processes need {needed / 2**20:.1f} MiB in {shared}, "
            f"which has {free / 2**20:.1f} MiB free",
            "remove what fills it, give the container more (docker: --shm-size 8g), or use --workers 0",
        )
    wanted = processes * SHARED_PER_GPU
    if use_gpu and processes > 1 and free < wanted:
        warn(
            f"{shared} has {free / 2**20:.0f} MiB free, and NCCL may want {wanted >> 20}: "
            "give the container more (docker: --shm-size 8g) if the processes do not start"
        )
