"""srun's variables become torchrun's, in a step of several processes and nowhere else."""

import pytest

from stages.slurm import as_torchrun, first_host

STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def test_a_step_of_srun() -> None:
    assert as_torchrun(STEP) == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": "24569",
    }


def test_every_process_finds_the_same_meeting_point() -> None:
    places = {
        (found["MASTER_ADDR"], found["MASTER_PORT"], found["WORLD_SIZE"])
        for rank in range(16)
        for found in [as_torchrun({**STEP, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 8)})]
    }
    assert len(places) == 1
    other = as_torchrun({**STEP, "SLURM_STEP_ID": "3"})["MASTER_PORT"]
    assert other != as_torchrun(STEP)["MASTER_PORT"]  # two steps of a job may run at once


@pytest.mark.parametrize(("visible", "wanted"), [("0", "0"), ("5", "0"), ("0,1,2,3", "1"), ("", "1")])
def test_a_process_that_sees_one_gpu_takes_that(visible: str, wanted: str) -> None:
    assert as_torchrun({**STEP, "CUDA_VISIBLE_DEVICES": visible})["LOCAL_RANK"] == wanted


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # the batch script itself
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "RANK": "0", "WORLD_SIZE": "2"},  # srun started torchrun, one for each node
    ],
)
def test_elsewhere_nothing_changes(environment: dict[str, str]) -> None:
    assert as_torchrun(environment) == {}


def test_what_is_set_by_hand_stays() -> None:
    found = as_torchrun({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "555"})
    assert "MASTER_ADDR" not in found and "MASTER_PORT" not in found and found["RANK"] == "9"


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ("gpu7", "gpu7"),
        ("gpu[003-005,9]", "gpu003"),
        ("gpu[12,14]", "gpu12"),
        ("login,gpu[1-2]", "login"),
        ("rack[1-2]-ib,other", "rack1-ib"),
        ("a,b", "a"),
    ],
)
def test_the_first_host(nodes: str, wanted: str) -> None:
    assert first_host(nodes) == wanted
