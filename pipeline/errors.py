"""The errors a user can meet.  Each says what is wrong, with which value, and what to do next.

The command line prints `error: ...` and `hint: ...` and exits with `exit_code`; a library user catches
`TwoDRCLError`.  Anything else that escapes is a bug (exit code 1).
"""

from collections.abc import Sequence
from typing import Any


class TwoDRCLError(Exception):
    """Base of all errors that are the user's to solve.  `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str], dict[str, Any]]:
        # crosses a process boundary whole: with its hint, and with an exit code that was set on it
        return type(self), (self.message, self.hint), self.__dict__


class UsageError(TwoDRCLError):
    """The command or the settings make no sense (exit 2)."""

    exit_code = 2


class SettingsError(UsageError):
    """params.yaml: unknown key, wrong type or value out of range, with its dotted path (exit 2)."""


class InputError(TwoDRCLError):
    """An input is missing, broken, or belongs to something else (exit 3)."""

    exit_code = 3


class MissingInput(InputError):
    """A file or folder that a stage needs is not there (exit 3)."""


class MismatchedInput(InputError):
    """An input was made for other annotations, another detector, another stage (exit 3)."""


class EnvironmentProblem(TwoDRCLError):
    """This machine lacks what was asked for: a GPU, an operator, disk space (exit 4)."""

    exit_code = 4


class MachineFailed(EnvironmentProblem):
    """Memory, a loader process or another process of the run gave out in the middle of work (exit 4)."""


class Diverged(TwoDRCLError):
    """A loss or gradient is not finite; the weights of the step before are untouched (exit 5).

    `losses` has the named values of each process at that step, where they are known.
    """

    exit_code = 5

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.losses: list[dict[str, float]] = []


class Stopped(TwoDRCLError):
    """A signal ended the run after a checkpoint; the same command continues it (exit 75)."""

    exit_code = 75


def first_ten(ids: Sequence[object]) -> str:
    """`3, 7, 9 and 12 more`: the way every message lists offenders."""
    shown = ", ".join(str(i) for i in ids[:10])
    return shown if len(ids) <= 10 else f"{shown} and {len(ids) - 10} more"
