"""Signals outside the steps: none is lost, wherever it finds the main thread."""

import os
import signal
import sys
import time
import weakref
from collections.abc import Callable

import pytest

from pipeline.errors import Stopped
from stages.interrupts import stoppable


def signal_to_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(1000):  # the handler is called between two instructions
        pass


def in_a_destructor(number: int) -> None:
    class Dies:
        def __del__(self) -> None:
            signal_to_itself(number)

    Dies()


def in_the_callback_of_a_weak_reference(number: int) -> None:
    class Dies:
        pass

    thing = Dies()
    reference = weakref.ref(thing, lambda _: signal_to_itself(number))
    del thing
    assert reference() is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("place", [in_a_destructor, in_the_callback_of_a_weak_reference])
def test_a_signal_comes_again_where_python_ignores_exceptions(
    place: Callable[[int], None], number: int, code: int
) -> None:
    hook = sys.unraisablehook
    with pytest.raises(Stopped) as caught, stoppable():
        place(number)
        time.sleep(5)
    assert caught.value.exit_code == code
    assert sys.unraisablehook is hook


def test_other_exceptions_that_are_ignored_are_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: told.append(str(problem.exc_value)))

    class Fails:
        def __del__(self) -> None:
            raise ValueError("cannot be closed")

    with stoppable():
        Fails()
    assert told == ["cannot be closed"]
