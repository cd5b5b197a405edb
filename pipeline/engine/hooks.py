"""The hooks every training run has: history, checkpoints, stopping on a signal, a bundle when it diverges."""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from pipeline.artifacts import disk_errors, write_bytes, write_json
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.engine.distributed import any_process, barrier, is_same_everywhere
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.engine.signals import SignalWatch, stopped_by
from pipeline.errors import Diverged, InputError, MachineFailed, first_ten

LOG = logging.getLogger(__name__)


class History(Hook):
    """One JSON line per step in `path`.  Comes before `Checkpoints`: a checkpoint's lines are all written.

    A resumed run drops the lines after its checkpoint when it writes its first own one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_continued = False

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if not trainer.process.is_first:
            return
        if not self._is_continued:
            self._keep(int(record["step"]))
            self._is_continued = True
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _keep(self, count: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n")][:count]
        if len(kept) < count:  # a power cut, or somebody removed it: no reason not to train on
            LOG.warning("%s lacks %d of the %d lines before this step", self.path, count - len(kept), count)
        write_bytes(self.path, b"".join(kept))


class Checkpoints(Hook):
    """Resume from the newest checkpoint of `folder`, and save one every `seconds` and at the end.

    Time decides, not steps, because a step may take a tenth of a second or ten; the first process decides
    for all.  `steps` overrides the clock with a fixed interval.
    """

    def __init__(self, folder: Path, *, seconds: float = 120.0, steps: int | None = None) -> None:
        self.files, self.seconds, self.steps = CheckpointFolder(folder), seconds, steps
        self._saved_at = time.monotonic()

    def before_train(self, trainer: Trainer) -> None:
        if trainer.process.is_first:
            self.files.refuse_full_disk(_size(trainer))
        found = self.files.newest()
        if found is not None:
            trainer.restore(found[1])
        if not is_same_everywhere(trainer.step, trainer.process.device):
            raise InputError(
                f"processes found different checkpoints in {self.files.folder} (here: step {trainer.step})",
                "all machines of a run must share the folder",
            )
        self._saved_at = time.monotonic()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step == trainer.schedule.total or self._due(trainer.step):
            self.save(trainer)

    def _due(self, step: int) -> bool:
        if self.steps is not None:
            return step % self.steps == 0
        return time.monotonic() - self._saved_at >= self.seconds

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this very moment (first process only: the others hold the same state)."""
        if trainer.process.is_first:
            self.files.save(trainer.step, trainer.state())
        self._saved_at = time.monotonic()


def _size(trainer: Trainer) -> int:
    """Bytes of a checkpoint: the state, and a momentum for each parameter that trains."""
    tensors = [t for t in trainer.model.state_dict().values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in [*tensors, *trainer.parameters])


class StopOnSignal(Hook):
    """On SIGTERM or SIGINT finish the step, save, and raise Stopped; all processes agree on the step.

    A step or a save that takes too long is given up, as is one that a second signal comes into: the last
    checkpoint stands (`pipeline.engine.signals`).
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.watch = SignalWatch("the same command continues from here")

    def before_train(self, trainer: Trainer) -> None:
        self.watch.__enter__()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        received = self.watch.received
        if any_process(received is not None, trainer.process.device):
            self.checkpoints.save(trainer)
            barrier()  # no process leaves, and takes the group down, before the file is whole
            by_hand = any_process(received == signal.SIGINT, trainer.process.device)
            raise stopped_by(
                signal.SIGINT if by_hand else signal.SIGTERM,
                f"stopped by a signal after step {trainer.step} of {trainer.schedule.total}",
                self.watch.hint,
            )

    def after_train(self, trainer: Trainer) -> None:
        self.watch.__exit__()

    def on_failure(self, trainer: Trainer, problem: BaseException) -> None:
        self.watch.__exit__()


class DebugBundle(Hook):
    """When the run diverges, writes what to look at: step, epoch, rate, losses of each process, image ids.
    When the machine gives out (memory, a loader), the error names the step's images.

    Args:
        path: json; the first process writes it, and the error's hint names it.
        images: step -> image ids of the global batch, process after process.
    """

    def __init__(self, path: Path, images: Callable[[int], Sequence[int]]) -> None:
        self.path, self.images = path, images

    def on_failure(self, trainer: Trainer, problem: BaseException) -> None:
        if isinstance(problem, MachineFailed):
            problem.hint += f"; images of that step: {first_ten([int(i) for i in self.images(trainer.step)])}"
        # a box that is not finite raises inside the forward, on one process alone and without losses
        if not isinstance(problem, Diverged) or (problem.losses and not trainer.process.is_first):
            return
        step, schedule = trainer.step, trainer.schedule
        images = [int(i) for i in self.images(step)]
        share = len(images) // (len(problem.losses) or 1)
        processes = [
            {"image_ids": images[i * share :][:share], "losses": {k: _plain(v) for k, v in row.items()}}
            for i, row in enumerate(problem.losses or [{}])
        ]
        content = {"step": step, "epoch": schedule.epoch_of(step), "lr": schedule.lr(step)}
        write_json(self.path, {**content, "problem": problem.message, "processes": processes})
        problem.hint += f"; {self.path} has that step's images and losses"


def _plain(value: float) -> float | str:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else str(value)
