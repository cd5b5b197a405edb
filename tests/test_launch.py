"""The hold on a scratch folder, and stopping outside the steps."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import Stopped, UsageError
from stages.launch import _first_error, _forwarding, exclusive


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


def test_a_process_that_hangs_is_named_by_its_silence(tmp_path: Path) -> None:
    message = "step 3: another process of the run died or hangs: Timed out waiting"
    report = {"message": message, "hint": "go on", "exit_code": 4, "time": 1.0}
    (tmp_path / "error-0.json").write_text(json.dumps(report))
    error = _first_error(tmp_path, 1, tmp_path / "log", 2, [])
    assert (error.message, error.exit_code) == (message, 4)
    assert error.hint == "go on; no word from process 1"


def test_a_process_that_was_killed_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = "Root Cause (first observed failure):\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)"
    log.write_text(said)
    error = _first_error(tmp_path, 1, log, 2, [])
    assert (error.message, error.exit_code) == ("process 1 of the run died of signal 9", 4)
    log.write_text(log.read_text().replace("-9", "1"))  # it raised
    assert "died; torchrun ended with code 1" in _first_error(tmp_path, 1, log, 2, []).message


# --- signals to a command with several processes


def report(folder: Path, rank: int, message: str, code: int) -> None:
    content = {"message": message, "hint": "go on", "exit_code": code, "time": float(rank)}
    (folder / f"error-{rank}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_signal_that_came_first_decides_the_exit_code(number: int, code: int, tmp_path: Path) -> None:
    """torchrun may follow SIGINT with SIGTERM, so the processes' own codes do not tell."""
    signals = [number, signal.SIGTERM, signal.SIGINT]
    error = _first_error(tmp_path, 1, tmp_path / "log", 2, signals)
    assert (error.message, error.exit_code) == ("stopped by a signal before a step was finished", code)
    report(tmp_path, 0, "step 3: another process of the run died or hangs: Connection closed", 4)
    assert _first_error(tmp_path, 1, tmp_path / "log", 2, signals).exit_code == code
    report(tmp_path, 1, "stopped by a signal after step 4 of 9", 75)
    error = _first_error(tmp_path, 1, tmp_path / "log", 2, signals)
    assert (error.message, error.exit_code) == ("stopped by a signal after step 4 of 9", code)
    report(tmp_path, 1, "step 4: loss is not finite", 5)
    assert _first_error(tmp_path, 1, tmp_path / "log", 2, signals).exit_code == 5


def test_the_first_signal_is_passed_on_and_a_second_one_kills() -> None:
    ignores = (
        "import signal, time; signal.signal(2, lambda *_: print('heard', flush=True)); print(1, flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", f"{ignores}\nwhile True: time.sleep(1)"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "1\n"
    with _forwarding(child) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher that passes it on twice
        assert child.stdout.readline() == "heard\n" and child.poll() is None
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        assert child.wait(10) == -signal.SIGKILL
    assert signals == [signal.SIGINT] * 3
    child.stdout.close()


def test_ctrl_c_outside_the_steps_is_a_stop_with_130(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught, exclusive(tmp_path, fresh=False):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except Exception:  # as around a decoder
            pytest.fail("a signal was taken for a damaged file")
    assert caught.value.exit_code == 130


def test_of_equal_messages_the_first_process_tells(tmp_path: Path) -> None:
    """It names the bundle of a divergence; the others may be a moment faster."""
    for rank, hint in ((1, "lower the rate"), (0, "lower the rate; see diverged.json")):
        content = {"message": "the loss is NaN", "hint": hint, "exit_code": 5, "time": 10.0 - rank}
        (tmp_path / f"error-{rank}.json").write_text(json.dumps(content))
    error = _first_error(tmp_path, 1, tmp_path / "log", 2, [])
    assert error.hint.endswith("diverged.json")
