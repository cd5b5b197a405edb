"""The live lines of long work: steps of a training, images of a generation."""

import time

from pipeline.engine.loop import Hook, Record, Trainer
from stages.console import ERR, QUIET_LINE_S, bar, say


class ProgressLine(Hook):
    """A live line while training: epoch, losses by their paper names, images per second, time left."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._progress = bar(description, "{task.fields[losses]}")
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


class ImagesLine:
    """A live line while images are worked on: how many of all; nothing at all unless `active`."""

    def __init__(self, description: str, total: int, *, active: bool) -> None:
        self.description, self.total, self.active = description, total, active
        self._progress = bar(f"{description}: images")
        self._started = self._spoken = time.monotonic()

    def __enter__(self) -> "ImagesLine":
        if self.active:
            self._progress.start()
            self._task = self._progress.add_task("", total=self.total)
        return self

    def __exit__(self, *problem: object) -> None:
        if self.active:
            self._progress.stop()

    def show(self, done: int) -> None:
        """Say that `done` images are done, those of an earlier run among them."""
        assert self.active, "only the first process shows anything"
        self._progress.update(self._task, completed=done)
        if not ERR.is_terminal and time.monotonic() - self._spoken > QUIET_LINE_S:
            self._spoken = time.monotonic()
            seconds = self._spoken - self._started
            say(f"{self.description}: {done} of {self.total} images after {seconds:.0f} s")
