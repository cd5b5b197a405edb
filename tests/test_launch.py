"""The hold on a scratch folder, and stopping outside the steps."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.errors import Stopped, UsageError
from stages.launch import exclusive


def hold_and_fork(work: Path) -> None:
    """Hold the folder, with a loader process beside, until killed."""
    with exclusive(work, fresh=False):
        if os.fork() == 0:
            (work / "loader").write_text(str(os.getpid()))
            time.sleep(60)
        time.sleep(60)


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return int(path.read_text())


def test_a_killed_run_holds_nothing_even_while_its_loader_lives(tmp_path: Path) -> None:
    run = os.fork()
    if run == 0:
        hold_and_fork(tmp_path)
    loader = wait_for(tmp_path / "loader")
    with (
        pytest.raises(UsageError, match=f"another run is at work in {tmp_path}"),
        exclusive(tmp_path, fresh=True),
    ):
        pass
    assert (tmp_path / "loader").exists()  # refused before anything was thrown away
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    os.kill(loader, 0)  # it is still there
    with exclusive(tmp_path, fresh=True):
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    os.kill(loader, signal.SIGKILL)


def test_a_loader_does_not_give_the_hold_away(tmp_path: Path) -> None:
    with exclusive(tmp_path, fresh=False):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(UsageError), exclusive(tmp_path, fresh=False):
            pass
    with exclusive(tmp_path, fresh=False):
        pass


def test_sigterm_outside_the_steps_is_a_stop_and_not_a_death(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by a signal") as caught, exclusive(tmp_path, fresh=False):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.exit_code == 75 and caught.value.hint == "the same command continues from here"
    assert signal.getsignal(signal.SIGTERM) is before
    with exclusive(tmp_path, fresh=False):  # and the folder is free again
        pass
