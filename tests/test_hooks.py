"""History, checkpoints and signals: whatever ends a run, the next one continues it to the bit."""

import json
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import FORKS, exit_code
from test_loop import ALONE, SCHEDULE, Poisoned, Records, StopAt, rows_of, same, source, toy_trainer
from torch import Tensor

from pipeline.engine import signals
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.engine.distributed import Process
from pipeline.engine.hooks import Checkpoints, DebugBundle, History, StopOnSignal
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.errors import Diverged, EnvironmentProblem, InputError, Stopped, TwoDRCLError

SEEDS = range(int(os.environ.get("TWODRCL_KILLS", "3")))  # `make soak` sets twenty


def run_toy(folder: Path, *more: Hook, steps: int | None = 2, **changes: Any) -> Trainer:
    """The toy with the hooks every run has, in their order."""
    checkpoints = Checkpoints(folder / "checkpoints", steps=steps)
    hooks = [History(folder / "history.jsonl"), checkpoints, StopOnSignal(checkpoints), *more]
    trainer = toy_trainer(*hooks, **changes)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """State and history of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = run_toy(folder)
    return trainer.state(), (folder / "history.jsonl").read_bytes()


def assert_resumes_to(whole: tuple[dict[str, Any], bytes], folder: Path) -> None:
    """Run to the end, and compare with the uninterrupted run: every tensor, every byte of the history."""
    trainer = run_toy(folder)
    assert same(trainer.state(), whole[0])
    assert (folder / "history.jsonl").read_bytes() == whole[1]
    found = CheckpointFolder(folder / "checkpoints").newest()
    assert found is not None and found[0] == 13 and same(found[1], whole[0])


# --- history


def test_history_lines_are_the_records(tmp_path: Path) -> None:
    seen = Records()
    run_toy(tmp_path, seen, describe=lambda step: {"alpha": step / 13})
    lines = (tmp_path / "history.jsonl").read_text().splitlines(keepends=True)
    assert lines == [json.dumps(r) + "\n" for r in seen.records]
    assert lines[0].startswith('{"step": 0, "epoch": 0, "images": 8, "lr": 0.0001, "alpha": 0.0, "loss": ')
    assert [json.loads(line) for line in lines] == seen.records  # floats survive text to the bit


def test_history_of_another_process_is_not_written(tmp_path: Path) -> None:
    second = Process(1, 1, ALONE.device)
    toy_trainer(History(tmp_path / "history.jsonl"), process=second, batches=source(ALONE)).train()
    assert not (tmp_path / "history.jsonl").exists()


def test_history_drops_what_a_killed_run_wrote_after_its_checkpoint(
    tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, StopAt(7))
    history = tmp_path / "history.jsonl"
    assert history.read_bytes() == b"".join(whole[1].splitlines(keepends=True)[:7])  # the checkpoint is of 6
    with history.open("ab") as file:
        file.write(b'{"step": 7, "epo')
    assert_resumes_to(whole, tmp_path)


def test_history_of_an_earlier_life_without_checkpoint_is_dropped(
    tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    (tmp_path / "history.jsonl").write_bytes(b'{"step": 0}\n' * 3)
    assert_resumes_to(whole, tmp_path)


def test_history_that_lost_lines_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, StopAt(7))
    (tmp_path / "history.jsonl").write_bytes(b'{"step": 0}\n{"step": 1, "epo')
    with caplog.at_level(logging.WARNING):
        run_toy(tmp_path)
    assert [r.message for r in caplog.records] == [
        f"{tmp_path / 'history.jsonl'} lacks 5 of the 6 lines before this step"
    ]
    assert len((tmp_path / "history.jsonl").read_bytes().splitlines()) == 8


# --- checkpoints


class Saved(Hook):
    """Which steps have a checkpoint, after each step."""

    def __init__(self, folder: Path) -> None:
        self.files, self.seen = CheckpointFolder(folder / "checkpoints"), list[list[int]]()

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self.seen.append(self.files.steps())


def test_checkpoints_every_few_steps_and_at_the_end(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    run_toy(tmp_path, saved, steps=5)
    assert saved.seen == [[]] * 4 + [[5]] * 5 + [[5, 10]] * 3 + [[10, 13]]


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0, [12, 13]), (1e9, [13])])
def test_checkpoints_by_the_clock(tmp_path: Path, seconds: float, wanted: list[int]) -> None:
    toy_trainer(Checkpoints(tmp_path, seconds=seconds)).train()
    assert CheckpointFolder(tmp_path).steps() == wanted


def test_clock_starts_anew_after_each_checkpoint(tmp_path: Path) -> None:
    saves: list[tuple[int, float]] = []

    def slow(start: int) -> Iterator[Tensor]:
        for batch in source(ALONE)(start):
            time.sleep(0.02)
            yield batch

    class Noted(Checkpoints):
        def save(self, trainer: Trainer) -> None:
            saves.append((trainer.step, time.monotonic()))
            super().save(trainer)

    toy_trainer(Noted(tmp_path, seconds=0.05), batches=slow).train()
    assert len(saves) >= 2 and saves[-1][0] == 13  # 13 steps of 20 ms at least, and the end
    by_clock = [at for step, at in saves if step < 13]
    assert all(b - a >= 0.05 for a, b in pairwise(by_clock))


def test_other_processes_write_no_checkpoint(tmp_path: Path) -> None:
    second = Process(1, 1, ALONE.device)
    toy_trainer(Checkpoints(tmp_path, steps=1), process=second, batches=source(ALONE)).train()
    assert CheckpointFolder(tmp_path).steps() == []


def test_finished_run_is_not_trained_again(tmp_path: Path, whole: tuple[dict[str, Any], bytes]) -> None:
    run_toy(tmp_path)
    drawn = Records()
    trainer = run_toy(tmp_path, drawn)
    assert drawn.calls == ["before 13", "after"] and same(trainer.state(), whole[0])
    assert (tmp_path / "history.jsonl").read_bytes() == whole[1]


def test_damaged_newest_checkpoint_costs_one_interval(
    tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, StopAt(9))
    (tmp_path / "checkpoints" / "step-00000008.pth").write_bytes(b"half")
    started = Records()
    trainer = run_toy(tmp_path, started)
    assert started.calls[0] == "before 6"
    assert same(trainer.state(), whole[0]) and (tmp_path / "history.jsonl").read_bytes() == whole[1]


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "checkpoints").save(4, {"step": 4, "model": {}})
    with pytest.raises(InputError, match="lacks parts of a run"):
        run_toy(tmp_path)


def test_disk_full_in_the_middle_of_a_run(tmp_path: Path, whole: tuple[dict[str, Any], bytes]) -> None:
    """A history that may not grow past its seventh line: the run stops, and continues when there is room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = len(b"".join(whole[1].splitlines(keepends=True)[:7])) + 10

    class Fill(Hook):
        def after_step(self, trainer: Trainer, record: Record) -> None:
            if trainer.step == 7:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

    try:
        with pytest.raises(EnvironmentProblem, match=r"history\.jsonl grew larger") as caught:
            run_toy(tmp_path, Fill())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 4
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [4, 6]
    assert_resumes_to(whole, tmp_path)


# --- signals


def at_step(step: int, action: Callable[[], object]) -> Callable[[int], Iterator[Tensor]]:
    """The toy's batches; while the one of `step` is drawn, `action` happens."""

    def batches(start: int) -> Iterator[Tensor]:
        for current in range(start, SCHEDULE.total):
            if current == step:
                action()
            yield rows_of(current)

    return batches


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_finishes_the_step_saves_and_restores_the_handlers(
    number: int, code: int, tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(Stopped, match="after step 5 of 13") as caught:
        run_toy(tmp_path, steps=100, batches=at_step(4, lambda: os.kill(os.getpid(), number)))
    assert caught.value.exit_code == code and caught.value.hint == "the same command continues from here"
    assert {n: signal.getsignal(n) for n in before} == before
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [5]
    assert len((tmp_path / "history.jsonl").read_bytes().splitlines()) == 5
    assert_resumes_to(whole, tmp_path)
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_second_signal_and_one_during_a_save_lose_nothing(
    tmp_path: Path, whole: tuple[dict[str, Any], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CheckpointFolder.save

    def disturbed(self: CheckpointFolder, step: int, state: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, step, state)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CheckpointFolder, "save", disturbed)
    with pytest.raises(Stopped, match="after step 6 of 13") as caught:
        run_toy(tmp_path, steps=6)
    assert caught.value.exit_code == 75
    monkeypatch.undo()
    assert_resumes_to(whole, tmp_path)


def stuck(folder: Path, step: int, grace: float) -> None:
    """A process that trains the toy, and spends minutes in the given step."""
    signals.GRACE_S = grace
    batches = at_step(step, lambda: time.sleep(100))
    try:
        run_toy(folder, batches=batches)
    except TwoDRCLError as problem:
        sys.exit(problem.exit_code)


@pytest.mark.parametrize(
    ("number", "again", "code"),
    [(signal.SIGTERM, False, 75), (signal.SIGINT, True, 130), (signal.SIGTERM, True, 75)],
)
def test_a_step_that_takes_too_long_is_given_up(
    number: int, again: bool, code: int, tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    """After the grace, or at a second signal; and the last checkpoint stands."""
    process = FORKS.Process(target=stuck, args=(tmp_path, 5, 100.0 if again else 0.2))
    process.start()
    history = tmp_path / "history.jsonl"
    while not (history.exists() and history.read_bytes().count(b"\n") >= 5):
        process.join(0.01)
        assert process.exitcode is None
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # passed on twice by a launcher: no second signal
    if again:
        process.join(signals.AGAIN_S + 0.2)
        assert process.exitcode is None
        os.kill(process.pid, number)
    assert exit_code(process) == code
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [2, 4]
    assert_resumes_to(whole, tmp_path)


def child_run(folder: Path, pause: float, kill_at: tuple[str, int] | None) -> None:
    """A process that trains the toy, slowly, and may be killed by itself at a step or a file operation."""

    class Die(Hook):
        def after_step(self, trainer: Trainer, record: Record) -> None:
            if kill_at == ("hook", trainer.step):
                os.kill(os.getpid(), signal.SIGKILL)

    def batches(start: int) -> Iterator[Tensor]:
        for step in range(start, SCHEDULE.total):
            if kill_at == ("batch", step):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(pause)
            yield rows_of(step)

    left = kill_at[1] if kill_at and kill_at[0] == "file" else 10**9

    def on_file(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_file)
    try:
        run_toy(folder, Die(), batches=batches)
    except TwoDRCLError as problem:
        sys.exit(problem.exit_code)


def start(folder: Path, pause: float = 0.0, kill_at: tuple[str, int] | None = None) -> Any:
    process = FORKS.Process(target=child_run, args=(folder, pause, kill_at))
    process.start()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_to_another_process(
    number: int, code: int, tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    history = tmp_path / "history.jsonl"
    process = start(tmp_path, pause=0.1)
    while not (history.exists() and history.read_bytes().count(b"\n") >= 3):
        process.join(0.01)
        assert process.exitcode is None
    os.kill(process.pid, number)
    assert exit_code(process) == code
    steps = CheckpointFolder(tmp_path / "checkpoints").steps()
    assert history.read_bytes().count(b"\n") == steps[-1] < 13
    assert_resumes_to(whole, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_again_and_again(seed: int, tmp_path: Path, whole: tuple[dict[str, Any], bytes]) -> None:
    """SIGKILL while drawing a batch, between hooks and in the middle of writing; then run to the end."""
    chance = random.Random(seed)
    first, second = sorted(chance.sample(range(2, 12), 2))
    for death in (("batch", first), ("file", chance.randrange(12)), ("hook", second + 1)):
        process = start(tmp_path, kill_at=death)
        assert exit_code(process) == -signal.SIGKILL, death
    assert_resumes_to(whole, tmp_path)


def test_kill_loses_at_most_one_interval(tmp_path: Path) -> None:
    for step in (3, 8):
        process = start(tmp_path, kill_at=("batch", step))
        assert exit_code(process) == -signal.SIGKILL
        found = CheckpointFolder(tmp_path / "checkpoints").newest()
        assert found is not None and found[0] == step - step % 2


# --- divergence


def bundle(path: Path) -> DebugBundle:
    return DebugBundle(path, lambda step: range(100 * step, 100 * step + 8))


@pytest.mark.parametrize("kind", ["nan", "-inf", "gradient"])
def test_what_diverged_is_written_down_and_the_state_before_it_is_kept(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "diverged.json"
    with pytest.raises(Diverged) as caught:
        run_toy(tmp_path, bundle(path), model=Poisoned(kind))
    assert str(path) in caught.value.hint and "learning rate" in caught.value.hint
    found = json.loads(path.read_text())
    assert (found["step"], found["epoch"], found["lr"]) == (5, 1, SCHEDULE.lr(5))
    assert len(found["processes"]) == 1 and found["processes"][0]["image_ids"] == list(range(500, 508))
    losses = found["processes"][0]["losses"]
    assert list(losses) == ["fit", "grad_norm", "loss", "tie"]  # sorted, as all json of ours
    bad = {"nan": ("loss", "nan"), "-inf": ("loss", "-inf"), "gradient": ("grad_norm", "nan")}[kind]
    assert losses[bad[0]] == bad[1] and isinstance(losses["fit"], float)
    # no checkpoint of the bad state: the newest is of step 4
    assert CheckpointFolder(tmp_path / "checkpoints").newest()[0] == 4


def test_divergence_inside_the_forward_is_written_down_without_losses(tmp_path: Path) -> None:
    class Raises(Poisoned):
        def forward(self, rows: Tensor) -> dict[str, Tensor]:
            if self.steps == 5:
                raise Diverged("a box is not finite")
            return super().forward(rows)

    with pytest.raises(Diverged):
        run_toy(tmp_path, bundle(tmp_path / "diverged.json"), model=Raises("none"))
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert found["problem"] == "a box is not finite" and found["step"] == 5
    assert found["processes"] == [{"image_ids": list(range(500, 508)), "losses": {}}]


def test_other_failures_leave_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, bundle(tmp_path / "diverged.json"), StopAt(7))
    assert not (tmp_path / "diverged.json").exists()
