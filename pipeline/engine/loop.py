"""The training loop: step, check, update, tell the hooks.

    for hook in hooks: hook.before_train(trainer)
    for batch in batches(first step):
        forward, backward                       (bf16 autocast is the model's own business; perhaps in parts)
        clip, refuse anything that is not finite on any process
        optimizer.step(); model.after_step()    (momentum encoders and queues)
        for hook in hooks: hook.after_step(trainer, record)
    for hook in hooks: hook.after_train(trainer)

An exception on the way goes to every hook's `on_failure`.

A model maps a batch to a dict of named scalar losses, of which `loss` is the sum to minimise.  The position
in the run is one number, `step`: what is drawn at a step is a function of the seed and the step.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.engine.contents import described, refuse_incomplete, remark_on_versions
from pipeline.engine.distributed import Process, gather_rows, sum_over_processes
from pipeline.engine.failures import ending_loaders, explained, sizes_of, smaller_parts
from pipeline.engine.schedule import Schedule
from pipeline.errors import Diverged, InputError

Batch = Any
Record = dict[str, float | int]


def equal_parts(batch: Batch, count: int) -> list[Batch]:
    """Consecutive slices of a batch that is a sequence or a tensor."""
    size = len(batch) // count
    return [batch[number * size :][:size] for number in range(count)]


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
        """When anything raised, before or during training."""


class Trainer:
    """One run of `schedule.total` steps.

    Args:
        model: an nn.Module with the `Model` protocol, on its device.
        optimizer: over the trainable parameters.
        schedule: learning rate and epoch lengths.
        batches: first step -> iterator of this process's batches from that step on, at least to the end.
        images_per_step: size of the global batch.
        process: this process.
        accumulate: equal parts that a batch is computed in, one after another.
        split: batch, number of parts -> the parts; not asked for one.
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
        accumulate: int = 1,
        split: Callable[[Batch, int], Sequence[Batch]] = equal_parts,
        clip_norm: float | None = None,
        hooks: Iterable[Hook] = (),
        describe: Callable[[int], Mapping[str, float]] = lambda step: {},
    ) -> None:
        self.model, self.optimizer, self.schedule, self.batches = model, optimizer, schedule, batches
        self.images_per_step, self.process, self.clip_norm = images_per_step, process, clip_norm
        self.hooks, self.describe = list(hooks), describe
        self.accumulate, self.split = accumulate, split
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.step = 0
        self._batch: Batch | None = None
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
            MachineFailed: a GPU's memory, a loader or another process gave out.
        """
        try:
            for hook in self.hooks:
                hook.before_train(self)
            with ending_loaders(), explained(self._where, self._memory_hint):
                self._run_steps()
        except BaseException as problem:
            for hook in self.hooks:
                hook.on_failure(self, problem)
            raise
        for hook in self.hooks:
            hook.after_train(self)

    def _run_steps(self) -> None:
        left = self.schedule.total - self.step
        if left:
            # held by name, or a failure would first wait for loaders to end by themselves, five seconds each
            batches = self.batches(self.step)
            for batch in islice(batches, left):
                self._batch = batch
                record = self._run_step(batch)
                self._batch = None
                for hook in self.hooks:
                    hook.after_step(self, record)
        assert self.step == self.schedule.total, f"batches end at step {self.step} of {self.schedule.total}"

    def _where(self) -> str:
        """The step, and what it computes on; between two steps the next one's batch is being loaded."""
        if self._batch is None:
            return f"step {self.step}, loading its images"
        parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
        return f"step {self.step}, {sizes_of(self._batch)}{parts}"

    def _memory_hint(self) -> str:
        return smaller_parts(0 if self._batch is None else len(self._batch), self.accumulate)

    def _run_step(self, batch: Batch) -> Record:
        lr = self.schedule.lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses_and_gradients(batch)
        limit = math.inf if self.clip_norm is None else self.clip_norm
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        values = self._finite_averages({**losses, "grad_norm": grad_norm})
        self.optimizer.step()
        self.model.after_step()
        record: Record = {"step": self.step, "epoch": self.schedule.epoch_of(self.step)}
        record |= {
            "images": (self.step + 1) * self.images_per_step,
            "lr": lr,
            **self.describe(self.step),
            **values,
        }
        self.step += 1
        return record

    def _losses_and_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the mean over the parts of a batch, in place, and the means of the losses."""
        if self.accumulate == 1:
            losses = self._forward(batch)
            losses["loss"].backward()
            return losses
        means: dict[str, Tensor] = {}
        for number, part in enumerate(self.split(batch, self.accumulate), start=1):
            with self._without_exchange(number < self.accumulate):
                losses = self._forward(part)
                (losses["loss"] / self.accumulate).backward()
            for name, value in losses.items():
                share = value.detach() / self.accumulate
                means[name] = means[name] + share if name in means else share
        return means

    def _without_exchange(self, wanted: bool) -> AbstractContextManager[None]:
        """The gradients of several processes are averaged once per step, with the last part."""
        forward = self._forward
        return forward.no_sync() if wanted and isinstance(forward, DistributedDataParallel) else nullcontext()

    def _finite_averages(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Mean over processes of named scalars, read from the device in one go.

        What is not finite on one process is not finite in the mean, so all processes stop together.
        """
        stacked = torch.stack([s.detach().double() for s in scalars.values()])  # S x () -> (S,)
        mean = sum_over_processes(stacked) / self.process.world
        values = dict(zip(scalars, mean.tolist(), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self.optimizer.zero_grad(set_to_none=True)
            problem = Diverged(
                f"step {self.step}: {', '.join(bad)} is not finite: {values}",
                "lower the learning rate, lengthen the warm-up, or set a smaller clip_norm",
            )
            rows = gather_rows(stacked[None]).tolist()  # (S,) -> (1, S) -> (world, S)
            problem.losses = [dict(zip(scalars, row, strict=True)) for row in rows]
            raise problem
        return values

    def state(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs, with a list of its contents: `restore` requires each."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return described(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`.

        Raises:
            InputError: a key is missing or unknown: continuing would silently be another run.
        """
        refuse_incomplete(state, ("step", "model", "optimizer"))
        remark_on_versions(state)
        try:
            self.model.load_state_dict(state["model"], strict=True)
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as problem:
            raise InputError(f"the checkpoint does not fit: {problem}", "start with --fresh") from None
        self.step = int(state["step"])
