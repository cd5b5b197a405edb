"""SIGTERM and ctrl-C outside the steps of a training, which have their own way to stop: end at once.

Nothing is lost by that: there is no step to finish, and products appear whole or not at all.
"""

import _thread
import atexit
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator

from pipeline.engine.signals import INTERRUPTED, SIGNALS
from pipeline.errors import Stopped

SOON_S = 0.05
SAME_COMMAND = "the same command continues from here"


class Interrupt(KeyboardInterrupt):
    """No `Exception`, or somebody on the way would take it for a damaged file.

    A class of its own: where the standard one passes through `exec`, and dataclasses are made there, Python
    remembers it and ends with its own exit code whatever we say.
    """


def end_quickly() -> None:
    """Leave out Python's last search for garbage among the 400,000 objects of torch and mmdet.

    It takes every command one to two seconds, which a signal does not leave.
    """
    atexit.register(gc.freeze)


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """SIGTERM and SIGINT raise `Interrupt`, wherever the main thread is.

    In a destructor or the callback of a weak reference Python only prints an exception and goes on; importing
    torch and pandas is full of them, one signal in twenty was lost there.  Such a signal is sent once more.

    Yields:
        the signals that came.
    """
    received: list[int] = []
    others = sys.unraisablehook

    def ignored(problem: "sys.UnraisableHookArgs") -> None:
        if isinstance(problem.exc_value, Interrupt):
            _thread.start_new_thread(_send_soon, (received[-1],))  # a Thread's locks might be held here
        else:
            others(problem)

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise Interrupt

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    sys.unraisablehook = ignored
    try:
        yield received
    finally:
        sys.unraisablehook = others
        for number, handler in previous.items():
            signal.signal(number, handler)


def _send_soon(number: int) -> None:
    time.sleep(SOON_S)  # the destructor is left by then, or swallows it again
    os.kill(os.getpid(), number)


def exit_code(received: list[int]) -> int:
    """75 after SIGTERM, 130 after ctrl-C; the first signal counts."""
    return Stopped.exit_code if received[:1] == [signal.SIGTERM] else INTERRUPTED


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A signal becomes an error of the user's.

    Raises:
        Stopped: with `exit_code`.
    """
    with interrupts() as received:
        try:
            yield
        except KeyboardInterrupt:
            stopped = Stopped("stopped by a signal", SAME_COMMAND)
            stopped.exit_code = exit_code(received)
            raise stopped from None
