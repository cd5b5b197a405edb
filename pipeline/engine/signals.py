"""A signal as an error at a moment that suits the work."""

import signal
from types import FrameType
from typing import Any

from pipeline.errors import Stopped


class SignalWatch:
    """Remembers SIGTERM and SIGINT while it is entered (in the main thread); `check` raises then.

    Args:
        hint: how the user goes on.
    """

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def check(self, work: str) -> None:
        """Stop `work` if a signal came.

        Raises:
            Stopped: exit code 75, or 130 after SIGINT.
        """
        if self._received is not None:
            stopped = Stopped(f"stopped by a signal while {work}", self.hint)
            if self._received == signal.SIGINT:
                stopped.exit_code = 130
            raise stopped
