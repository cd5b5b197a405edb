"""The learning rate over epochs of changing length: linear warm-up, then steps down by ten.

The dynamic sampler makes epochs grow, so everything is derived from the list of epoch lengths, which the
sampler knows in advance, and from the step; nothing is counted, so nothing can be lost on resume.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

from pipeline.errors import UsageError

NAMED = {"1x": 12, "2x": 24, "3x": 36, "4x": 48}  # schedule -> epochs; 1x: paper, Sec. 4.1
# epochs -> milestones.  12: the paper; 24: MMDetection's 2x; the others are ours, the paper has none
USUAL = {6: (4, 5), 12: (8, 11), 24: (16, 22), 36: (28, 34), 48: (40, 46)}


def resolve_milestones(asked: tuple[int, ...] | Literal["auto"], epochs: int) -> tuple[int, ...]:
    """Epochs after which the rate drops; `auto`: those of `USUAL`, else 2/3 and 11/12 of the epochs."""
    if asked != "auto":
        return asked
    shares = (round(epochs * 2 / 3), round(epochs * 11 / 12))
    return USUAL.get(epochs) or tuple(dict.fromkeys(m for m in shares if 0 < m < epochs))


@dataclass(frozen=True)
class Schedule:
    """Steps of a whole run.

    Args:
        epoch_steps: optimizer steps of each epoch.
        milestones: epochs (1-based count of finished epochs) after which the rate drops by `drop`.
        base_lr: the rate after warm-up, for the global batch.
        warmup_steps: steps of the linear rise from `warmup_factor * base_lr`.
        budget: total steps, if the last epoch shall not be finished; None: all of them.
    """

    epoch_steps: tuple[int, ...]
    milestones: tuple[int, ...]
    base_lr: float
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    drop: float = 0.1
    budget: int | None = None

    def __post_init__(self) -> None:
        if not self.epoch_steps or min(self.epoch_steps) < 1:
            raise UsageError(f"an epoch has no step: {list(self.epoch_steps)}", "lower the batch size")

    @cached_property
    def ends(self) -> list[int]:
        """Step at which each epoch ends."""
        return list(accumulate(self.epoch_steps))

    @cached_property
    def drops(self) -> list[int]:
        """First step of each lower rate; a milestone past the last epoch is never reached."""
        ends = [0, *self.ends]
        return [ends[m] for m in self.milestones if m < len(ends)]

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.ends[-1] if self.budget is None else min(self.budget, self.ends[-1])

    def unreached(self) -> list[str]:
        """What of the schedule lies behind the end of the run, which is hardly meant."""
        found = [
            f"the rate drops after epoch {m}, but the run has {len(self.epoch_steps)}: set milestones"
            for m in self.milestones
            if m > len(self.epoch_steps)
        ]
        if self.warmup_steps > self.total:
            found.append(
                f"the warm-up takes {self.warmup_steps} steps, but the run has {self.total}: "
                "its learning rate is never reached; set warmup_steps"
            )
        return found

    def epoch_of(self, step: int) -> int:
        """Epoch (0-based) that the 0-based `step` belongs to."""
        assert 0 <= step < self.ends[-1], f"step {step} is not one of the {self.ends[-1]} steps"
        return bisect_right(self.ends, step)

    def lr(self, step: int) -> float:
        """Learning rate of the 0-based `step`."""
        dropped = sum(step >= drop for drop in self.drops)
        rate = self.base_lr * self.drop**dropped
        if step < self.warmup_steps:
            progress = step / self.warmup_steps
            rate *= self.warmup_factor + (1 - self.warmup_factor) * progress
        return rate


def extended(schedule: Schedule, steps: int, epoch_steps: tuple[int, ...]) -> Schedule:
    """The same schedule stretched to `steps`: milestones and warm-up keep their share of the whole.

    A milestone moves to the epoch end nearest to its share.  One that is never reached stays so.  Used by the
    control run, which draws as many images as pre-training and fine-tuning together.

    Args:
        schedule: the schedule to stretch.
        steps: the new total.
        epoch_steps: lengths of at least enough epochs to hold `steps`.
    """
    assert sum(epoch_steps) >= steps, f"{sum(epoch_steps)} steps of the epochs do not hold {steps}"
    factor = steps / schedule.total
    ends = [0, *accumulate(epoch_steps)]
    shares = [drop * factor for drop in schedule.drops if drop < schedule.total]
    milestones = tuple(
        min(range(int(share > 0), len(ends)), key=lambda e: abs(ends[e] - share)) for share in shares
    )
    return replace(
        schedule,
        epoch_steps=epoch_steps,
        milestones=milestones,
        warmup_steps=round(schedule.warmup_steps * factor),
        budget=steps,
    )
