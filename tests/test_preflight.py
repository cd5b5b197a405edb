"""Too few open files, too little shared memory, too many loaders: said before the first step."""

import json
import os
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from test_checkpoint import FORKS, exit_code
from test_loop import Toy, toy_trainer

from pipeline.data.annotations import read_annotations
from pipeline.data.settings import Split
from pipeline.engine.hooks import Checkpoints
from pipeline.errors import EnvironmentProblem
from stages import evaluate, preflight
from stages.common import Order
from stages.machine import Machine
from stages.params import Params

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets every disk have that many bytes free."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, size))


def with_limits(soft: int, hard: int, loaders: int) -> None:
    """In a process of its own: a hard limit cannot be raised again.  Ends with the soft limit, or 4."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        preflight.check(1, loaders, use_gpu=False)
    except EnvironmentProblem as problem:
        assert (
            f"need {128 + 4 * loaders} open files" in problem.message and f"allows {hard}" in problem.message
        )
        os._exit(problem.exit_code)
    os._exit(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)


@pytest.mark.parametrize(("soft", "hard", "code"), [(200, 300, 100), (130, 300, 60), (130, 150, 4)])
def test_open_files(soft: int, hard: int, code: int) -> None:
    """Enough; raised to the 160 that eight loaders need; refused."""
    process = FORKS.Process(target=with_limits, args=(soft, hard, 8))
    process.start()
    assert exit_code(process) == code


def test_shared_memory(
    tmp_path: Path, free: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    free(300 * 2**10)
    with pytest.raises(
        EnvironmentProblem, match=r"16 loader processes need 0\.5 MiB in .* 0\.3 MiB"
    ) as caught:
        preflight.check(2, 8, use_gpu=False, shared=tmp_path)
    assert caught.value.exit_code == 4 and "--shm-size" in caught.value.hint
    preflight.check(2, 0, use_gpu=False, shared=tmp_path)
    preflight.check(2, 8, use_gpu=False, shared=tmp_path / "none")  # no such folder on other systems
    capsys.readouterr()
    free(64 * 2**20)  # docker's
    preflight.check(8, 0, use_gpu=True, shared=tmp_path)
    assert "NCCL may want 512" in capsys.readouterr().err


def test_more_loaders_than_cores_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    preflight.check(2, 4, use_gpu=False)
    assert capsys.readouterr().err == ""
    preflight.check(2, 6, use_gpu=False)
    assert (
        "12 loader processes (2 x 6) on 8 cores" in (said := capsys.readouterr().err)
        and "--workers 4" in said
    )


def test_evaluation_has_loaders_too(tmp_path: Path, free: Callable[[int], None]) -> None:
    """Refused before the detector is looked for."""
    image = {"id": 1, "file_name": "1.png", "width": 8, "height": 8}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "1.png").touch()
    split = Split(tmp_path / "val.json", tmp_path)
    order = Order(Params({}, 0), tmp_path / "out", Machine(gpus=0, workers=8))
    free(100 * 2**10)
    with pytest.raises(EnvironmentProblem, match="8 loader processes need"):
        evaluate._detect(order, read_annotations(split.annotations), split, tmp_path / "detector.pth")


def test_room_for_checkpoints_is_looked_for_before_the_first_step(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    trained, rest = 8, 8 + 1 + 8  # numbers of the toy: its layer; slow copy, gain and ring
    needed = 3 * 4 * (2 * trained + rest)  # two kept and one being written; momentum of the layer
    assert sum(p.numel() for p in Toy().parameters()) + 8 == trained + rest
    free(needed - 1)
    with pytest.raises(EnvironmentProblem, match="checkpoints of this run need") as caught:
        toy_trainer(Checkpoints(tmp_path)).train()
    assert caught.value.exit_code == 4 and not list(tmp_path.iterdir())
    free(needed)
    toy_trainer(Checkpoints(tmp_path)).train()
    free(needed // 3)  # a finished run is there: it and the one before it need no room of their own
    toy_trainer(Checkpoints(tmp_path)).train()
