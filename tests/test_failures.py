"""A machine that gives out in the middle of a step: one line, what to change, exit code 4, nothing lost."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import FORKS
from test_hooks import bundle, run_toy
from test_loop import ALONE, SCHEDULE, Toy, rows_of, same, toy_trainer
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data import loading
from pipeline.data.loading import BatchSource
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.engine.failures import sizes_of, smaller_parts
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.errors import MachineFailed, Stopped, TwoDRCLError


class Gives(Toy):
    """Raises at a step, in the forward or after the optimizer."""

    def __init__(self, problem: BaseException, step: int) -> None:
        super().__init__()
        self.problem, self.left = problem, step

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        self.left -= 1
        if self.left < 0:
            raise self.problem
        return super().forward(rows)


OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80.\nSecond line")


@pytest.mark.parametrize("step", [0, 5])
def test_gpu_memory(step: int, tmp_path: Path) -> None:
    with pytest.raises(MachineFailed) as caught:
        run_toy(tmp_path, bundle(tmp_path / "diverged.json"), model=Gives(OOM, step))
    error = caught.value
    assert error.exit_code == 4 and "Second" not in error.message
    where = f"step {step}, a batch of shape (8, 3)"
    assert error.message.startswith(f"{where}: out of GPU memory: CUDA out of memory. Tried")
    assert error.hint.startswith("set accumulate: 2 (the same batch in more parts)")
    assert f"images of that step: {100 * step}, {100 * step + 1}, " in error.hint
    assert not (tmp_path / "diverged.json").exists()
    if step:  # what was saved is whole, and the run goes on to what it would have been
        assert CheckpointFolder(tmp_path / "checkpoints").newest_step() == 4
        assert same(run_toy(tmp_path).state(), run_toy(tmp_path / "other").state())


def test_parts_that_are_offered_divide_the_batch() -> None:
    assert smaller_parts(9, 1).startswith("set accumulate: 3 ")
    assert smaller_parts(8, 2).startswith("set accumulate: 4 ")
    assert smaller_parts(4, 4).startswith("set smaller short_sides")


def test_sizes_of_samples_are_those_of_their_canvas() -> None:
    samples = [SimpleNamespace(canvas_wh=(1216, 800))] * 3
    assert sizes_of(samples) == "3 images on 1216 x 800 pixels" and sizes_of([1, 2]) == "2 images"


@pytest.mark.parametrize(
    "text",
    [
        "[/x/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 300000ms for recv operation",
        "[/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2323",
        "NCCL communicator was aborted on rank 1.",
        "Application timeout caused pair closure",  # gloo's, of a process that was stopped by SIGSTOP
    ],
)
def test_a_group_that_broke(text: str) -> None:
    with pytest.raises(
        MachineFailed, match=r"step 3, .*: another process of the run died or hangs: "
    ) as caught:
        toy_trainer(model=Gives(RuntimeError(text), 3)).train()
    assert caught.value.exit_code == 4 and "continues" in caught.value.hint


def test_any_other_runtime_error_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="shape") as caught:
        toy_trainer(model=Gives(RuntimeError("shape mismatch"), 3)).train()
    assert not isinstance(caught.value, TwoDRCLError)


class Order:
    """Eight images an epoch, in order."""

    def steps(self, epoch: int) -> np.ndarray:
        return np.arange(SCHEDULE.epoch_steps[epoch] * 8).reshape(-1, 8)


class Rows(Dataset[np.ndarray]):
    """A row for each draw; what happens to the worker at the sixteenth is `fate`."""

    def __init__(self, fate: Callable[[], None]) -> None:
        self.fate = fate

    def __getitem__(self, draw: Any) -> np.ndarray:
        if draw.image == 16:
            self.fate()
        return rows_of(draw.epoch)[draw.image % 8].numpy()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(600)


def with_loaders(fate: Callable[[], None]) -> Callable[[int], Iterator[Tensor]]:
    """The toy's batches from two loader processes."""
    sizes = np.full((64, 2), 64)
    source = BatchSource(Rows(fate), Order(), SCHEDULE, sizes, (64,), 64, process=ALONE, workers=2)

    def batches(start: int) -> Iterator[Tensor]:
        for rows in source(start):
            yield torch.from_numpy(np.stack(rows))

    return batches


class Interrupts(Hook):
    """Ctrl-C reaches the process after its first step; `children` are the loaders there were."""

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step == 1:
            self.children = [p.pid for p in multiprocessing.active_children()]
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_leaves_no_loader_behind(tmp_path: Path) -> None:
    interrupts = Interrupts()
    with pytest.raises(Stopped) as caught:
        run_toy(tmp_path, interrupts, batches=with_loaders(hang))  # hung loaders ignore SIGTERM as well
    assert caught.value.exit_code == 130 and len(interrupts.children) == 2
    for child in interrupts.children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert CheckpointFolder(tmp_path / "checkpoints").newest_step() in (1, 2)


def train_with_hung_loaders(folder: Path) -> None:
    class Tell(Hook):
        def after_step(self, trainer: Trainer, record: Record) -> None:
            pids = " ".join(str(p.pid) for p in multiprocessing.active_children())
            (folder / "loaders").write_text(pids + "\n")

    multiprocessing.set_start_method("fork", force=True)  # as a command has it; here it would be FORKS's own
    run_toy(folder, Tell(), batches=with_loaders(hang))


def test_a_killed_trainer_takes_its_loaders_along_even_hung_ones(tmp_path: Path) -> None:
    """They hold its pipes, and torch only looks for a dead trainer between two images."""
    trainer, told = FORKS.Process(target=train_with_hung_loaders, args=(tmp_path,)), tmp_path / "loaders"
    trainer.start()
    while not (told.exists() and told.read_text().endswith("\n")):
        trainer.join(0.02)
        assert trainer.exitcode is None
    time.sleep(0.2)  # the one that hangs is at it
    trainer.kill()
    loaders = [Path(f"/proc/{pid}") for pid in told.read_text().split()]
    deadline = time.monotonic() + 10
    while alive := [loader.name for loader in loaders if loader.exists()]:
        time.sleep(0.02)
        if time.monotonic() > deadline:
            for pid in alive:
                os.kill(int(pid), signal.SIGKILL)
            pytest.fail("loaders outlive their trainer")
    assert len(loaders) == 2


@pytest.mark.parametrize(("fate", "says"), [(die, "DataLoader worker"), (hang, "timed out after 1 seconds")])
def test_a_loader_that_dies_or_hangs(
    fate: Callable[[], None], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "TIMEOUT_S", 1)
    began = time.monotonic()
    with pytest.raises(MachineFailed, match=says) as caught:
        run_toy(tmp_path, bundle(tmp_path / "diverged.json"), batches=with_loaders(fate))
    step = int(re.match(r"step (\d), ", caught.value.message)[1])
    assert step <= 2 and (fate is die or step == 2)  # loaders are ahead, and a death is noticed at once
    assert caught.value.exit_code == 4 and f"images of that step: {100 * step}, " in caught.value.hint
    assert fate is die or CheckpointFolder(tmp_path / "checkpoints").newest_step() == 2
    assert time.monotonic() - began < 20
    assert not multiprocessing.active_children()
