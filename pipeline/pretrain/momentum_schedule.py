"""The momentum of the key branch over the run: constant (MoCo, the paper's), or rising to 1 (BYOL, AlignDet).

    cosine: m(s) = 1 - (1 - m) (cos(pi s / S) + 1) / 2      BYOL, Sec. 3.3, at step s of S

It is a function of the step, so that a resumed run has it without keeping anything.
"""

import math
from typing import Literal

from pipeline.engine.loop import Hook, Record, Trainer

Kind = Literal["constant", "cosine"]


def momentum_at(base: float, kind: Kind, step: int, total: int) -> float:
    """Share of the old value that stays in the update after the 0-based `step`."""
    return base if kind == "constant" else 1 - (1 - base) * (math.cos(math.pi * step / total) + 1) / 2


class MomentumSchedule(Hook):
    """Sets `momentum` of the model before each step; comes after `Checkpoints`."""

    def __init__(self, base: float, kind: Kind) -> None:
        self.base, self.kind = base, kind

    def before_train(self, trainer: Trainer) -> None:
        self._set(trainer)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self._set(trainer)

    def _set(self, trainer: Trainer) -> None:
        model: object = trainer.model
        model.momentum = momentum_at(self.base, self.kind, trainer.step, trainer.schedule.total)  # type: ignore[attr-defined]
