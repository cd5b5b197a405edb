"""The training loop: step, check, update, tell the hooks.

    for hook in hooks: hook.before_train(trainer)
    for batch in batches(first step):
        forward, backward                       (bf16 autocast is the model's own business)
        clip, refuse anything that is not finite on any process
        optimizer.step(); model.after_step()    (momentum encoders and queues)
        for hook in hooks: hook.after_step(trainer, record)
    for hook in hooks: hook.after_train(trainer)

A model maps a batch to a dict of named scalar losses, of which `loss` is the sum to minimise.  The position
in the run is one number, `step`: what is drawn at a step is a function of the seed and the step.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.engine.distributed import Process, any_process, sum_over_processes
from pipeline.engine.schedule import Schedule
from pipeline.errors import Diverged, InputError

Batch = Any
Record = dict[str, float | int]


class Model(Protocol):
    """What the loop trains; `after_step` runs after every optimizer step, on every process."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...

    def after_step(self) -> None: ...


class Hook:
    """What may happen around the loop; every method does nothing until overridden."""

    def before_train(self, trainer: "Trainer") -> None:
        """Once, after a possible resume."""

    def after_step(self, trainer: "Trainer", record: Record) -> None:
        """After `trainer.step` steps are done; `record` is the step's history line."""

    def after_train(self, trainer: "Trainer") -> None:
        """Once, when all steps are done."""

    def on_failure(self, trainer: "Trainer", problem: BaseException) -> None:
        """When a step raised; the weights are those before the step."""


class Trainer:
    """One run of `schedule.total` steps.

    Args:
        model: an nn.Module with the `Model` protocol, on its device.
        optimizer: over the trainable parameters.
        schedule: learning rate and epoch lengths.
        batches: first step -> iterator of this process's batches from that step on.
        images_per_step: size of the global batch.
        process: this process.
        clip_norm: largest gradient norm; None: not clipped.
        hooks: called in order.
        describe: step -> further history fields (e.g. alpha).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        batches: Callable[[int], Iterable[Batch]],
        *,
        images_per_step: int,
        process: Process,
        clip_norm: float | None = None,
        hooks: Iterable[Hook] = (),
        describe: Callable[[int], Mapping[str, float]] = lambda step: {},
    ) -> None:
        self.model, self.optimizer, self.schedule, self.batches = model, optimizer, schedule, batches
        self.images_per_step, self.process, self.clip_norm = images_per_step, process, clip_norm
        self.hooks, self.describe = list(hooks), describe
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.step = 0
        self._forward: Callable[[Batch], dict[str, Tensor]] = model
        if process.world > 1:
            # the hand-written broadcast of buffers is not wanted: queues are equal by construction
            self._forward = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def train(self) -> None:
        """Run to the end of the schedule.

        Raises:
            Diverged: a loss or a gradient is not finite on some process; weights are those before that step.
        """
        for hook in self.hooks:
            hook.before_train(self)
        try:
            if self.step < self.schedule.total:
                for batch in self.batches(self.step):
                    record = self._run_step(batch)
                    for hook in self.hooks:
                        hook.after_step(self, record)
        except BaseException as problem:
            for hook in self.hooks:
                hook.on_failure(self, problem)
            raise
        for hook in self.hooks:
            hook.after_train(self)

    def _run_step(self, batch: Batch) -> Record:
        lr = self.schedule.lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._forward(batch)
        losses["loss"].backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        values = self._averages({**losses, "grad_norm": grad_norm})
        self._refuse_non_finite(values)
        self.optimizer.step()
        self.model.after_step()  # type: ignore[operator]
        record: Record = {"step": self.step, "epoch": self.schedule.epoch_of(self.step)}
        record |= {
            "images": (self.step + 1) * self.images_per_step,
            "lr": lr,
            **self.describe(self.step),
            **values,
        }
        self.step += 1
        return record

    def _averages(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Mean over processes of named scalars, read from the device in one go."""
        stacked = torch.stack(
            [
                s.detach().double().cpu() if s.device.type == "cpu" else s.detach().double()
                for s in scalars.values()
            ]
        )
        mean = sum_over_processes(stacked) / self.process.world
        return dict(zip(scalars, mean.tolist(), strict=True))

    def _refuse_non_finite(self, values: dict[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if any_process(bool(bad), self.process.device):
            self.optimizer.zero_grad(set_to_none=True)
            raise Diverged(
                f"step {self.step}: {', '.join(bad) or 'a loss'} is not finite: {values}",
                "lower the learning rate, lengthen the warm-up, or set a smaller clip_norm",
            )

    def state(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs; each key is required by `restore`."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": self.model.extra_state() if hasattr(self.model, "extra_state") else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`.

        Raises:
            InputError: a key is missing or unknown: continuing would silently be another run.
        """
        if state.keys() != self.state().keys():
            raise InputError(
                f"the checkpoint's keys {sorted(state)} are not those of a run", "start with --fresh"
            )
        try:
            self.model.load_state_dict(state["model"], strict=True)
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as problem:
            raise InputError(f"the checkpoint does not fit: {problem}", "start with --fresh") from None
        if hasattr(self.model, "load_extra_state"):
            self.model.load_extra_state(state["extra"])
        self.step = int(state["step"])
