"""A signal as an error at a moment that suits the work, and an end to waiting for that moment.

Python calls a handler between two of its instructions, and a whole backward pass is one.  So a thread, which
hears of a signal at once, ends the process when the moment does not come within `GRACE_S`, or when a second
signal asks for that.  Nothing is lost by it but the work since the last checkpoint.
"""

import ctypes
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from pipeline.errors import Stopped

LOG = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # the exit code of SIGINT
GRACE_S = 18.0  # two seconds less than promised; torchrun, SLURM and Kubernetes kill after 30
AGAIN_S = 0.5  # launchers pass one signal on twice; nobody asks again as soon as that
_OVER = 0  # no signal has this number
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stopped_by(number: int, message: str, hint: str) -> Stopped:
    """The error of a signal: exit code 75, or 130 after SIGINT."""
    stopped = Stopped(message, hint)
    if number == signal.SIGINT:
        stopped.exit_code = INTERRUPTED
    return stopped


class SignalWatch:
    """Remembers the first SIGTERM or SIGINT while it is open (in the main thread); `check` raises then.

    Args:
        hint: how the user goes on.
    """

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._limit: _Limit | None = None

    def __enter__(self) -> "SignalWatch":
        self.received, self._limit = None, _Limit()
        self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *problem: object) -> None:
        """Put the earlier handlers back; also when it was never open."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._limit is not None:
            self._limit.close()
        self._previous, self._limit = {}, None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number

    def check(self, work: str) -> None:
        """Stop `work` if a signal came.

        Raises:
            Stopped: exit code 75, or 130 after SIGINT.
        """
        if self.received is not None:
            raise stopped_by(self.received, f"stopped by a signal while {work}", self.hint)


class _Limit:
    """Ends the process `GRACE_S` after a signal, or at a second one, unless it is closed before."""

    def __init__(self) -> None:
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        self._previous = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="signal limit", daemon=True)
        self._thread.start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._previous)
        os.write(self._told, bytes([_OVER]))
        self._thread.join()
        os.close(self._told)
        os.close(self._heard)

    def _wait(self) -> None:
        first = self._next(None)
        if first == _OVER:
            return
        began = time.monotonic()
        while (left := began + GRACE_S - time.monotonic()) > 0:
            number = self._next(left)
            if number == _OVER:
                return
            if number and time.monotonic() - began > AGAIN_S:
                _end(first, "a second signal")
        _end(first, f"{GRACE_S:.0f} s after a signal the work at hand is not done")

    def _next(self, seconds: float | None) -> int | None:
        """The next of our signals, `_OVER`, or None when there was none for so long."""
        while select.select([self._heard], [], [], seconds)[0]:
            number = os.read(self._heard, 1)[0]
            if number == _OVER or number in SIGNALS:  # torch's loaders are told of with SIGCHLD
                return number
        return None


def _end(number: int | None, why: str) -> None:
    LOG.warning("%s: ended at once; the same command continues from the last checkpoint", why)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(INTERRUPTED if number == signal.SIGINT else Stopped.exit_code)


def hear_no_signal() -> None:
    """For a forked process: signals to it are neither its own nor those of the process it came from."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends: it would go on holding GPUs, files and pipes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
