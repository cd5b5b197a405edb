"""SIGTERM and ctrl-C outside the steps of a training, which have their own way to stop: end at once.

Nothing is lost by that: there is no step to finish, and products appear whole or not at all.
"""

import atexit
import contextlib
import gc
import signal
from collections.abc import Iterator

from pipeline.engine.signals import INTERRUPTED, SIGNALS
from pipeline.errors import Stopped

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

    Yields:
        the signals that came.
    """
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise Interrupt

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
