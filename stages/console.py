"""stdout is data, stderr is talk: the two consoles, progress bars, and how long things took."""

import json
import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.artifacts import TIMING, write_json
from stages.machine import is_first

OUT = Console(soft_wrap=True)
ERR = Console(stderr=True, soft_wrap=True)
QUIET_LINE_S = 20.0  # off a terminal: one plain line this often
T = TypeVar("T")


def say(text: str) -> None:
    """One line of talk, from the first process."""
    if is_first():
        ERR.print(text, markup=False, highlight=False)


def warn(text: str) -> None:
    """One line that should be read, from the first process."""
    if is_first():
        ERR.print(f"warning: {text}", style="yellow", markup=False, highlight=False)


class _Talk(logging.Handler):
    """The library logs, the commands talk."""

    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else say)(record.getMessage())


def listen() -> None:
    """Say from now on what the library logs."""
    library = logging.getLogger("pipeline")
    library.setLevel(logging.INFO)
    library.handlers[:] = [_Talk()]
    library.propagate = False  # lvis-api gives the root logger a handler, which would say all of it again


def data(content: Any, as_json: bool, lines: Iterable[str]) -> None:
    """What the command answers: JSON with --json, else plain lines."""
    if as_json:
        sys.stdout.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
    else:
        for line in lines:
            OUT.print(line, markup=False, highlight=False)


def bar(description: str, *columns: str) -> Progress:
    return Progress(
        TextColumn(description),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(c) for c in columns),
        console=ERR,
        disable=not ERR.is_terminal,
        transient=True,
    )


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, and a plain line now and then elsewhere."""
    started = spoken = time.monotonic()
    with bar(description) as progress:
        task = progress.add_task("", total=total)
        for count, item in enumerate(items, start=1):
            yield item
            progress.update(task, completed=count)
            if not ERR.is_terminal and time.monotonic() - spoken > QUIET_LINE_S:
                spoken = time.monotonic()
                say(f"{description}: {count} of {total} after {spoken - started:.0f} s")


class Stopwatch:
    """Seconds and peak memory of a command; written beside the product, never tracked."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def write(self, folder: Path, **more: float | int) -> None:
        """Write timing.json."""
        write_json(
            folder / TIMING, {"seconds": round(self.seconds, 2), "peak_memory_mib": peak_memory_mib(), **more}
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started


def peak_memory_mib() -> int:
    """Largest resident memory of this process or of one of its finished children, in MiB."""
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage) // 1024
