"""Joining the processes that srun started, by giving its variables the names that torchrun uses.

    srun --ntasks=16 --ntasks-per-node=8 --gpus-per-task=1 2drcl pretrain --gpus 8

Only a step of srun counts: in a batch script itself SLURM_NTASKS is set, but there is one process.
"""

import re
from collections.abc import Mapping

FIRST_PORT, PORTS = 20_000, 10_000  # below Linux's ephemeral ports


def as_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of this process, as far as they are not set.

    Args:
        environment: of the process.

    Returns:
        nothing, unless srun started this process as one of several; nothing inside torchrun.
    """
    count = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if count < 2 or "RANK" in environment:
        return {}
    number = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": _device(environment),
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(FIRST_PORT + number % PORTS),
    }
    return {name: value for name, value in found.items() if name not in environment}


def _device(environment: Mapping[str, str]) -> str:
    """Which GPU of those that this process sees: with --gpus-per-task=1 it sees one, number 0."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return "0" if len(visible) == 1 and visible[0] else environment["SLURM_LOCALID"]


def first_host(nodes: str) -> str:
    """The first name of SLURM's list: `gpu[003-005,9],login` -> `gpu003`."""
    prefix, bracket, rest = nodes.partition("[")
    if not bracket or "," in prefix:
        return nodes.split(",")[0]
    inner, _, suffix = rest.partition("]")
    return prefix + re.split("[-,]", inner)[0] + suffix.split(",")[0]
