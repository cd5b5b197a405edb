"""What ended a run of several processes: whose error is shown, and with which exit code."""

import json
import signal
from pathlib import Path

import pytest

from pipeline.engine.failures import GROUP_FAILED
from pipeline.errors import TwoDRCLError
from stages.outcome import first_error


def report(folder: Path, rank: int, message: str, code: int) -> None:
    content = {"message": message, "hint": "go on", "exit_code": code, "time": float(rank)}
    (folder / f"error-{rank}.json").write_text(json.dumps(content))


def account(folder: Path, rank: int, code: int) -> None:
    """What torchrun says of the process that ended first."""
    said = "Root Cause (first observed failure):\n  rank      : {} (local_rank: 1)\n  exitcode  : {} (pid: 7)"
    (folder / "log").write_text(said.format(rank, code))


def error_of(folder: Path, received: list[int] | None = None) -> TwoDRCLError:
    return first_error(folder, 1, folder / "log", 2, received or [])


def test_a_process_that_hangs_is_named_by_its_silence(tmp_path: Path) -> None:
    message = f"step 3: {GROUP_FAILED}: Timed out waiting"
    report(tmp_path, 0, message, 4)
    error = error_of(tmp_path)
    assert (error.message, error.exit_code) == (message, 4)
    assert error.hint == "go on; no word from process 1"


def test_a_process_that_was_killed_is_named(tmp_path: Path) -> None:
    account(tmp_path, 1, -9)
    error = error_of(tmp_path)
    assert (error.message, error.exit_code) == ("process 1 of the run died of signal 9", 4)
    account(tmp_path, 1, 1)  # it raised, and left no word
    assert "died; torchrun ended with code 1" in error_of(tmp_path).message


@pytest.mark.parametrize("code", [75, 130])
@pytest.mark.parametrize("ended", ["raised", "killed on its way out", "gave its step up"])
def test_a_signal_to_one_process_alone_stops_the_command(code: int, ended: str, tmp_path: Path) -> None:
    if ended == "gave its step up":
        account(tmp_path, 1, code)
        report(tmp_path, 0, f"step 3: {GROUP_FAILED}: Connection closed", 4)
        wanted = "stopped by a signal before a step was finished"
    else:
        account(tmp_path, 1, code if ended == "raised" else -15)
        wanted = "stopped by a signal after step 4 of 9"
        for rank in (0, 1):
            report(tmp_path, rank, wanted, code)
    error = error_of(tmp_path)
    assert (error.message, error.exit_code) == (wanted, code)


def test_a_failure_is_told_before_the_stop_that_follows_it(tmp_path: Path) -> None:
    """Torchrun stops the others by a signal, and within a second cannot tell who was first."""
    account(tmp_path, 0, 75)
    report(tmp_path, 0, "stopped by a signal after step 4 of 9", 75)
    report(tmp_path, 1, "image 7 is broken", 3)
    error = error_of(tmp_path)
    assert (error.message, error.exit_code) == ("image 7 is broken", 3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_signal_that_came_first_decides_the_exit_code(number: int, code: int, tmp_path: Path) -> None:
    """torchrun may follow SIGINT with SIGTERM, so the processes' own codes do not tell."""
    signals = [number, signal.SIGTERM, signal.SIGINT]
    error = error_of(tmp_path, signals)
    assert (error.message, error.exit_code) == ("stopped by a signal before a step was finished", code)
    report(tmp_path, 0, f"step 3: {GROUP_FAILED}: Connection closed", 4)
    assert error_of(tmp_path, signals).exit_code == code
    report(tmp_path, 1, "stopped by a signal after step 4 of 9", 75)
    error = error_of(tmp_path, signals)
    assert (error.message, error.exit_code) == ("stopped by a signal after step 4 of 9", code)
    report(tmp_path, 1, "step 4: loss is not finite", 5)
    assert error_of(tmp_path, signals).exit_code == 5


def test_of_equal_messages_the_first_process_tells(tmp_path: Path) -> None:
    """It names the bundle of a divergence; the others may be a moment faster."""
    for rank, hint in ((1, "lower the rate"), (0, "lower the rate; see diverged.json")):
        content = {"message": "the loss is NaN", "hint": hint, "exit_code": 5, "time": 10.0 - rank}
        (tmp_path / f"error-{rank}.json").write_text(json.dumps(content))
    error = error_of(tmp_path)
    assert error.hint.endswith("diverged.json")
