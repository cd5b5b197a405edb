"""Checkpoints survive kills, damage and malice, and their bytes depend on their content alone."""

import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.engine.checkpoint import CheckpointFolder, load_tensors, save_tensors, state_digest
from pipeline.errors import EnvironmentProblem, InputError, MissingInput, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
DEAD = 4_194_304  # above the largest process number of Linux
FORKS = multiprocessing.get_context("forkserver")  # its server imports torch once, its children are clean
FORKS.set_forkserver_preload(["torch", "pipeline.engine.hooks"])


def state_of(step: int, rows: int = 50) -> dict[str, Any]:
    model = OrderedDict(weight=torch.full((rows, 10), float(step)), count=torch.tensor(step))
    return {"step": step, "model": model, "optimizer": {"state": {0: {"buffer": torch.ones(3) * step}}}}


def assert_is_of(step: int, state: dict[str, Any]) -> None:
    assert state["step"] == step
    assert torch.equal(state["model"]["weight"], torch.full_like(state["model"]["weight"], float(step)))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- the folder


def test_two_are_kept(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path / "deep" / "checkpoints")
    assert files.steps() == [] and files.newest() is None
    for step in (1, 9, 10, 1234567890):
        files.save(step, state_of(step))
        found = files.newest()
        assert found is not None and found[0] == step
        assert_is_of(step, found[1])
    assert files.steps() == [10, 1234567890]
    wanted = ["step-00000010.pth", "step-00000010.sha256", "step-1234567890.pth", "step-1234567890.sha256"]
    assert names(files.folder) == wanted


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path)
    files.save(3, state_of(3))
    files.save(3, state_of(3) | {"more": 1})
    assert files.steps() == [3] and files.newest()[1]["more"] == 1


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "digest gone":
        path.with_suffix(".sha256").unlink()
    elif how == "digest garbled":
        path.with_suffix(".sha256").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit", "digest gone", "digest garbled"])
def test_damaged_newest_gives_way_loudly(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = CheckpointFolder(tmp_path)
    for step in (4, 8):
        files.save(step, state_of(step))
    damage(tmp_path / "step-00000008.pth", how)
    with caplog.at_level(logging.WARNING):
        found = files.newest()
    assert found is not None and found[0] == 4
    assert_is_of(4, found[1])
    assert [r.message for r in caplog.records] == [
        f"checkpoint {tmp_path / 'step-00000008.pth'} is damaged: trying the one before"
    ]
    files.save(6, state_of(6))  # the run goes on from 4: the damaged future is gone, the good past is not
    assert files.steps() == [4, 6]
    damage(tmp_path / "step-00000006.pth", how)
    assert files.newest()[0] == 4


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path)
    for step in (4, 8):
        files.save(step, state_of(step))
        damage(tmp_path / f"step-{step:08d}.pth", "one bit")
    with pytest.raises(InputError, match=f"no checkpoint in {tmp_path} is readable") as caught:
        files.newest()
    assert caught.value.exit_code == 3 and caught.value.hint == "start over with --fresh"


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-3.pth.bak", "step-x.pth", "last.pth", "step-00000007.sha256"):
        (tmp_path / name).write_bytes(b"x")
    files = CheckpointFolder(tmp_path)
    assert files.steps() == [] and files.newest() is None
    files.save(1, state_of(1))
    assert (tmp_path / "last.pth").exists()


def test_leftovers_of_killed_saves_are_swept(tmp_path: Path) -> None:
    swept = [f".step-00000005.pth.{DEAD}.tmp", f".step-00000005.sha256.{DEAD}.tmp"]
    kept = [f".step-00000005.pth.{os.getppid()}.tmp", f".other.pth.{DEAD}.tmp"]
    for name in swept + kept:
        (tmp_path / name).write_bytes(b"x" * 100)
    CheckpointFolder(tmp_path).save(9, state_of(9))
    assert names(tmp_path) == sorted([*kept, "step-00000009.pth", "step-00000009.sha256"])


def test_disk_full_while_saving_keeps_the_old_ones(tmp_path: Path) -> None:
    files = CheckpointFolder(tmp_path)
    files.save(4, state_of(4))
    before = names(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(EnvironmentProblem, match=r"step-00000008\.pth grew larger") as caught:
            files.save(8, state_of(8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 4
    assert files.newest()[0] == 4 and set(names(tmp_path)) - set(before) <= {"step-00000008.sha256"}


# --- kills


FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir")


def save_and_die(folder: Path, steps: list[int], operation: int) -> None:
    """Save steps, and be killed before the n-th file operation of the last save."""
    files = CheckpointFolder(folder)
    for step in steps[:-1]:
        files.save(step, state_of(step))
    left = operation

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in FILE_OPERATIONS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    files.save(steps[-1], state_of(steps[-1]))


def save_and_die_everywhere(folder: Path, steps: list[int]) -> None:
    """`save_and_die` before the first, the second, ... file operation, in forks, until one survives."""
    for operation in range(100):
        child = os.fork()
        if child == 0:
            save_and_die(folder / str(operation), steps, operation)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        if status == 0:
            return


def save_forever(folder: Path) -> None:
    """Save one step after the other, each large enough to be caught in the middle of its writing."""
    files = CheckpointFolder(folder)
    for step in range(1, 10**6):
        files.save(step, state_of(step, rows=20_000))
        (folder / "saved").write_text(str(step))


def exit_code(process: Any) -> int | None:
    process.join(300)  # a busy machine has taken more than a minute
    return process.exitcode


@pytest.mark.parametrize("steps", [[1], [1, 2, 3]])
def test_kill_before_every_file_operation_of_a_save(steps: list[int], tmp_path: Path) -> None:
    process = FORKS.Process(target=save_and_die_everywhere, args=(tmp_path, steps))
    process.start()
    assert exit_code(process) == 0
    outcomes = []
    for folder in sorted(tmp_path.iterdir(), key=lambda p: int(p.name)):
        files = CheckpointFolder(folder)
        found = files.newest()  # never an error, not even during the first save of all
        outcomes.append(found[0] if found else 0)
        if found:
            assert_is_of(found[0], found[1])
        files.save(9, state_of(9))
        assert not [n for n in names(folder) if n.endswith(".tmp")]
        assert files.newest()[0] == 9
    assert len(outcomes) > 6
    assert outcomes == sorted(outcomes) and set(outcomes) == {steps[-1], steps[-1] - 1}


@pytest.mark.parametrize("seed", range(int(os.environ.get("TWODRCL_KILLS", "3"))))  # `make soak`: twenty
def test_kill_in_the_middle_of_saving(seed: int, tmp_path: Path) -> None:
    process = FORKS.Process(target=save_forever, args=(tmp_path,))
    process.start()
    told = tmp_path / "saved"
    while not (told.exists() and told.read_text()):
        process.join(0.005)
        assert process.exitcode is None
    process.join(random.Random(seed).uniform(0, 0.15))
    process.kill()
    assert exit_code(process) == -signal.SIGKILL
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None and found[0] >= int(told.read_text() or 1)
    assert_is_of(found[0], found[1])


# --- files of tensors


class Payload:
    """Touches a file when it is unpickled carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_unexecuted(zipped: bool, tmp_path: Path) -> None:
    target, file = tmp_path / "pwned", tmp_path / "step-00000001.pth"
    content = {"step": 1, "model": {"weight": Payload(target)}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="only tensors and plain data are read") as caught:
        load_tensors(file)
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="not a readable file of weights"):
        load_tensors(file)
    torch.save(content, file)
    file.with_suffix(".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="only tensors and plain data are read"):
        CheckpointFolder(tmp_path).newest()
    assert not target.exists()
    assert "weights_only" not in caught.value.message and "\n" not in caught.value.message
    torch.load(file, weights_only=False)  # the payload does work
    assert target.exists()


def test_load_refuses_what_is_no_file_of_weights(tmp_path: Path) -> None:
    for missing in (tmp_path / "a.pth", Path(__file__) / "a.pth"):
        with pytest.raises(MissingInput, match="do not exist"):
            load_tensors(missing)
    with pytest.raises(UsageError, match="is a folder") as caught:
        load_tensors(tmp_path)
    assert caught.value.hint == f"name the file, e.g. {tmp_path / 'detector.pth'}"
    file = tmp_path / "a.pth"
    for content in (
        b"",
        b"<html>404</html>",
        b"PK\x03\x04",
        pickle.dumps([1, 2]),
        random.Random(0).randbytes(300),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"{file} "):
            load_tensors(file)
    torch.save([torch.ones(1)], file)
    with pytest.raises(InputError, match="holds a list, not a mapping"):
        load_tensors(file)


def test_damaged_files_raise_input_errors_and_nothing_else(tmp_path: Path) -> None:
    chance, file = random.Random(0), tmp_path / "a.pth"
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state_of(3, rows=2), buffer, _use_new_zipfile_serialization=zipped)
        whole, refused = buffer.getvalue(), 0
        for trial in range(300):
            content = bytearray(whole)
            for _ in range(chance.choice((1, 1, 3, 20))):
                content[chance.randrange(len(content))] = chance.randrange(256)
            file.write_bytes(content if trial % 3 else content[: chance.randrange(len(content))])
            try:
                load_tensors(file)
            except InputError as problem:
                refused += 1
                assert "\n" not in problem.message
        assert refused > 100


def test_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    content = {"step": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    first, second = tmp_path / "a.pth", tmp_path / "other" / "longer-name.pth"
    save_tensors(first, content)
    save_tensors(second, content)
    assert first.read_bytes() == second.read_bytes()
    save_tensors(second, load_tensors(first))
    assert first.read_bytes() == second.read_bytes()
    save_tensors(second, content | {"step": 2})
    assert first.read_bytes() != second.read_bytes()
    assert names(tmp_path / "other") == ["longer-name.pth"]


def test_state_digest_is_of_names_types_shapes_and_values() -> None:
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False]), "n": torch.empty(0)}
    digest = state_digest(state)
    again = {
        "a": state["a"].clone(),
        "n": torch.empty(0),
        "b": torch.arange(6.0).reshape(3, 2).T.reshape(2, 3),
    }
    again["b"] = state["b"].T.contiguous().T  # other strides, equal values
    assert state_digest(again) == digest == state_digest(state | {"epoch": 3})
    others = [
        state | {"b": state["b"] + 1},
        state | {"b": state["b"].reshape(3, 2)},
        state | {"b": state["b"].int()},
        state | {"n": torch.empty(0, 2)},
        {"c" if k == "b" else k: v for k, v in state.items()},
        {k: v for k, v in state.items() if k != "a"},
    ]
    assert len({digest, *map(state_digest, others)}) == 7
    zeros = {"z": torch.zeros(2, dtype=torch.float32)}
    assert state_digest(zeros) != state_digest({"z": torch.zeros(2, dtype=torch.int32)})
