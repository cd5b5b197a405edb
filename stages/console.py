"""stdout is data, stderr is talk: the two consoles, the progress line, and how long things took."""

import json
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
from pipeline.engine.loop import Hook, Record, Trainer

OUT = Console(soft_wrap=True)
ERR = Console(stderr=True, soft_wrap=True)
QUIET_LINE_S = 20.0  # off a terminal: one plain line this often
T = TypeVar("T")


def say(text: str) -> None:
    """One line of talk."""
    ERR.print(text, markup=False, highlight=False)


def warn(text: str) -> None:
    """One line that should be read."""
    ERR.print(f"warning: {text}", style="yellow", markup=False, highlight=False)


def data(content: Any, as_json: bool, lines: Iterable[str]) -> None:
    """What the command answers: JSON with --json, else plain lines."""
    if as_json:
        sys.stdout.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
    else:
        for line in lines:
            OUT.print(line, markup=False, highlight=False)


def _bar(description: str, *columns: str) -> Progress:
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
    with _bar(description) as progress:
        task = progress.add_task("", total=total)
        for count, item in enumerate(items, start=1):
            yield item
            progress.update(task, completed=count)
            if not ERR.is_terminal and time.monotonic() - spoken > QUIET_LINE_S:
                spoken = time.monotonic()
                say(f"{description}: {count} of {total} after {spoken - started:.0f} s")


class ProgressLine(Hook):
    """A live line while training: epoch, losses by their paper names, images per second, time left."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._progress = _bar(description, "{task.fields[losses]}")
        self._spoken = self._started = time.monotonic()
        self._first = 0

    def before_train(self, trainer: Trainer) -> None:
        self._first, self._started = trainer.step, time.monotonic()
        total = trainer.schedule.total
        if trainer.step:
            say(f"{self.description}: continuing from step {trainer.step} of {total}")
        self._progress.start()
        self._task = self._progress.add_task("", total=total, completed=trainer.step, losses="")

    def after_step(self, trainer: Trainer, record: Record) -> None:
        seconds = time.monotonic() - self._started
        speed = (trainer.step - self._first) * trainer.images_per_step / max(seconds, 1e-9)
        losses = _losses(record) + f" {speed:.1f} img/s"
        self._progress.update(self._task, completed=trainer.step, losses=losses)
        if not ERR.is_terminal and time.monotonic() - self._spoken > QUIET_LINE_S:
            self._spoken = time.monotonic()
            say(f"{self.description}: step {trainer.step} of {trainer.schedule.total}, {losses}")

    def after_train(self, trainer: Trainer) -> None:
        self._progress.stop()

    def on_failure(self, trainer: Trainer, problem: BaseException) -> None:
        self._progress.stop()


def _losses(record: Record) -> str:
    hidden = ("step", "images", "lr", "grad_norm")
    shown = [
        f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items() if k not in hidden
    ]
    return " ".join(shown)


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
