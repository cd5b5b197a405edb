"""The hold on a scratch folder, and stopping outside the steps."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine import signals
from pipeline.errors import Stopped, UsageError
from stages.launch import _forwarding, exclusive


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
        pytest.raises(UsageError, match=f"another run is at work in {tmp_path}: process {run} on "),
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


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_warned_of(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This machine has no such disk; other failures of it pass as they are."""

    def refuse(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("stages.launch.fcntl.flock", refuse)
    with contextlib.ExitStack() as stack:
        if code == errno.EIO:
            stack.enter_context(pytest.raises(OSError))
        stack.enter_context(exclusive(tmp_path, fresh=False))
    assert ("knows no locks" in capsys.readouterr().err) == (code == errno.ENOLCK)


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


# --- signals to a command with several processes


@pytest.fixture
def deaf() -> Iterator["subprocess.Popen[str]"]:
    """A process that hears SIGINT and goes on."""
    hears = "import signal; signal.signal(2, lambda *_: print('heard', flush=True)); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hears}\nimport time\nwhile True: time.sleep(1)"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "1\n"
        yield child
        child.kill()


def test_the_first_signal_is_passed_on_and_a_second_one_kills(deaf: "subprocess.Popen[str]") -> None:
    with _forwarding(deaf) as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher that passes it on twice
        assert deaf.stdout.readline() == "heard\n" and deaf.poll() is None
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        assert deaf.wait(10) == -signal.SIGKILL
    assert received == [signal.SIGINT] * 3


def test_processes_that_do_not_end_in_time_are_killed(
    deaf: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "GRACE_S", 0.3)
    with _forwarding(deaf):
        assert deaf.stdout.read(0) == "" and deaf.poll() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert deaf.wait(10) == -signal.SIGKILL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_ctrl_c_outside_the_steps_is_a_stop_with_130(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught, exclusive(tmp_path, fresh=False):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except Exception:  # as around a decoder
            pytest.fail("a signal was taken for a damaged file")
    assert caught.value.exit_code == 130
