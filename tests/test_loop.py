"""The training loop on a toy that has every kind of state a run has, against the same training by hand."""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.engine.checkpoint import load_tensors, save_tensors
from pipeline.engine.determinism import seeded
from pipeline.engine.distributed import Process, sum_over_processes, world_size
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.errors import Diverged, InputError

ALONE = Process(0, 1, torch.device("cpu"))
BATCH = 8
SCHEDULE = Schedule((3, 4, 6), (1, 2), base_lr=0.1, warmup_steps=2)  # 13 steps


class Toy(nn.Module):
    """A trained layer, its momentum copy, a ring of earlier outputs with a Python pointer, a frozen gain."""

    ring: Tensor

    def __init__(self) -> None:
        super().__init__()
        with seeded(3):
            self.layer = nn.Linear(3, 2)
            self.slow = copy.deepcopy(self.layer).requires_grad_(False)
        self.gain = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("ring", torch.zeros(4, 2))
        self.pointer = 0

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """(N, 3) -> losses that are means over rows, and depend on all of the state."""
        out = self.layer(rows)
        fit = (out - self.gain * rows[:, :2] - self.ring.mean(0)).square().mean()
        tie = (out - self.slow(rows)).square().mean()
        self._seen = out.detach().mean(0)  # (N, 2) -> (2,)
        return {"loss": fit + 0.5 * tie, "fit": fit, "tie": tie}

    def after_step(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.layer.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.25)
        self.ring[self.pointer] = sum_over_processes(self._seen) / world_size()
        self.pointer = (self.pointer + 1) % 4

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer}

    def set_extra_state(self, state: Any) -> None:
        self.pointer = int(state["pointer"])


def rows_of(step: int) -> Tensor:
    """(BATCH, 3), a function of the step alone."""
    return torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(1000 + step))


def source(process: Process) -> Callable[[int], Iterator[Tensor]]:
    def batches(start: int) -> Iterator[Tensor]:
        for step in range(start, SCHEDULE.total):
            yield rows_of(step)[process.rank :: process.world]

    return batches


def toy_trainer(*hooks: Hook, process: Process = ALONE, **changes: Any) -> Trainer:
    model = changes.pop("model", None) or Toy()
    options: dict[str, Any] = {"batches": source(process), "images_per_step": BATCH, "process": process}
    options |= {"hooks": hooks, **changes}
    optimizer = sgd(model, lr=0.1, momentum=0.9, weight_decay=1e-3)
    return Trainer(model, optimizer, SCHEDULE, options.pop("batches"), **options)


def flat(content: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists by path; an empty one is a leaf."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found: dict[str, Any] = {}
    for name, part in items:
        is_inner = isinstance(part, dict | list) and part
        found |= flat(part, f"{path}/{name}") if is_inner else {f"{path}/{name}": part}
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit."""
    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(
        torch.equal(a, other[k]) if isinstance(a, Tensor) else a == other[k] for k, a in one.items()
    )


class Records(Hook):
    """Keeps what the loop tells."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.calls: list[str] = []

    def before_train(self, trainer: Trainer) -> None:
        self.calls.append(f"before {trainer.step}")

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self.records.append(record)
        self.calls.append(f"step {trainer.step}")

    def after_train(self, trainer: Trainer) -> None:
        self.calls.append("after")

    def on_failure(self, trainer: Trainer, problem: BaseException) -> None:
        self.calls.append(type(problem).__name__)


# --- what a step does


def by_hand() -> tuple[Toy, list[dict[str, float]]]:
    """SGD written out (torch.optim.SGD: momentum 0.9, weight decay added to the gradient)."""
    model, buffers, values = Toy(), {}, []
    for step in range(SCHEDULE.total):
        losses = model(rows_of(step))
        parameters = dict(model.layer.named_parameters())
        gradients = torch.autograd.grad(losses["loss"], list(parameters.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                gradient = gradient + 1e-3 * parameter
                buffers[name] = gradient if step == 0 else 0.9 * buffers[name] + gradient
                parameter -= SCHEDULE.lr(step) * buffers[name]
        model.after_step()
        values.append({**{k: v.item() for k, v in losses.items()}, "grad_norm": norm.item()})
    return model, values


def test_training_equals_training_by_hand() -> None:
    seen = Records()
    trainer = toy_trainer(seen)
    trainer.train()
    model, values = by_hand()
    for name, tensor in trainer.model.state_dict().items():
        if isinstance(tensor, Tensor):
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert trainer.model.pointer == model.pointer == 13 % 4
    for record, value in zip(seen.records, values, strict=True):
        assert {k: record[k] for k in value} == pytest.approx(value, rel=1e-4)
    assert seen.records[-1]["loss"] < seen.records[0]["loss"]


class WithoutRing(Toy):
    """Nothing of a step is kept but the gradient."""

    def after_step(self) -> None:
        pass


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_is_the_same_step(parts: int) -> None:
    runs = []
    for accumulate in (1, parts):
        records, sizes = Records(), []
        trainer = toy_trainer(records, model=WithoutRing(), accumulate=accumulate, clip_norm=0.5)
        trainer.model.register_forward_pre_hook(lambda model, rows, sizes=sizes: sizes.append(len(rows[0])))
        trainer.train()
        assert sizes == [BATCH // accumulate] * (SCHEDULE.total * accumulate)
        runs.append((records.records, trainer.model.layer.weight.detach()))
    for whole, in_parts in zip(runs[0][0], runs[1][0], strict=True):
        assert in_parts == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(runs[1][1], runs[0][1])


def test_one_part_that_is_not_finite_stops_the_step() -> None:
    trainer = toy_trainer(model=WithoutRing(), accumulate=2, batches=lambda start: iter([spoilt]))
    spoilt = rows_of(0)
    spoilt[1, 0] = math.nan
    before = trainer.model.layer.weight.clone()
    with pytest.raises(Diverged, match="fit"):
        trainer.train()
    assert torch.equal(trainer.model.layer.weight, before)


def test_record_and_order_of_calls() -> None:
    seen = Records()
    toy_trainer(seen, describe=lambda step: {"alpha": step / 10}).train()
    keys = ["step", "epoch", "images", "lr", "alpha", "loss", "fit", "tie", "grad_norm"]
    assert [list(r) for r in seen.records] == [keys] * 13
    assert [r["step"] for r in seen.records] == list(range(13))
    assert [r["epoch"] for r in seen.records] == [0] * 3 + [1] * 4 + [2] * 6
    assert [r["images"] for r in seen.records] == [8 * (s + 1) for s in range(13)]
    assert [r["lr"] for r in seen.records] == [SCHEDULE.lr(s) for s in range(13)]
    assert [r["alpha"] for r in seen.records] == [s / 10 for s in range(13)]
    assert seen.calls == ["before 0", *(f"step {s + 1}" for s in range(13)), "after"]


def test_clip_norm() -> None:
    def first_gradient(clip_norm: float | None) -> tuple[float, float]:
        seen = Records()
        trainer = toy_trainer(seen, clip_norm=clip_norm)
        trainer.train()
        last = torch.cat([p.grad.flatten() for p in trainer.model.layer.parameters()]).norm().item()
        return last, float(seen.records[-1]["grad_norm"])

    kept, told = first_gradient(None)
    assert kept == pytest.approx(told, rel=1e-5) and told > 1e-3
    kept, told = first_gradient(1e-3)
    assert kept == pytest.approx(1e-3, rel=1e-2) and told > 1e-2  # the history has the norm before clipping
    assert first_gradient(0.0)[0] == 0.0  # 0 is a limit, not the absence of one
    assert first_gradient(1e6)[0] == pytest.approx(first_gradient(None)[0], rel=1e-6)


def test_frozen_parameters_stay() -> None:
    trainer = toy_trainer()
    trainer.train()
    assert trainer.model.gain.item() == 2.0
    assert len(trainer.parameters) == 2 and len(trainer.optimizer.param_groups[0]["params"]) == 2


# --- how a run ends


def test_batches_past_the_end_are_not_drawn() -> None:
    drawn = []

    def endless(start: int) -> Iterator[Tensor]:
        for step in range(start, 1000):
            drawn.append(step)
            yield rows_of(step)

    trainer = toy_trainer(batches=endless)
    trainer.train()
    assert trainer.step == 13 and drawn == list(range(13))
    trainer.train()  # nothing is left to do
    assert drawn == list(range(13))


def test_batches_that_end_early_are_no_finished_run() -> None:
    seen = Records()
    with pytest.raises(AssertionError, match="batches end at step 5 of 13"):
        toy_trainer(seen, batches=lambda start: [rows_of(s) for s in range(5)]).train()
    assert seen.calls[-1] == "AssertionError" and "after" not in seen.calls


def test_failures_before_the_first_step_reach_every_hook() -> None:
    class Breaks(Hook):
        def before_train(self, trainer: Trainer) -> None:
            raise OSError("no such disk")

    first, last = Records(), Records()
    with pytest.raises(OSError, match="no such disk"):
        toy_trainer(first, Breaks(), last).train()
    assert first.calls == ["before 0", "OSError"] and last.calls == ["OSError"]


class Poisoned(Toy):
    """Becomes `kind` of not finite at step 5, or in its gradient alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.steps = kind, 0

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        losses = super().forward(rows)
        if self.steps == 5 and self.kind == "gradient":
            zero = (self.layer.weight * 0).sum()
            losses["loss"] = losses["loss"] + zero.sqrt()  # 0, with an infinite slope
        elif self.steps == 5 and self.kind == "term":
            losses["tie"] = losses["tie"].detach() * math.nan
        elif self.steps == 5:
            losses["loss"] = losses["loss"] * float(self.kind)
        return losses

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf", "gradient", "term"])
def test_not_finite_stops_before_the_weights_are_touched(kind: str) -> None:
    before: dict[str, Any] = {}

    class Snapshot(Hook):
        def after_step(self, trainer: Trainer, record: Record) -> None:
            before.update(copy.deepcopy(trainer.state()))

    seen = Records()
    trainer = toy_trainer(Snapshot(), seen, model=Poisoned(kind), clip_norm=1.0)
    with pytest.raises(Diverged, match=r"step 5: .* is not finite: \{'loss'") as caught:
        trainer.train()
    assert caught.value.exit_code == 5 and "learning rate" in caught.value.hint
    assert seen.calls[-2:] == ["step 5", "Diverged"] and len(seen.records) == 5
    assert trainer.step == 5 and same(trainer.state(), before)
    assert all(p.grad is None for p in trainer.parameters)
    named = {"gradient": "grad_norm", "term": "tie"}.get(kind, "loss")
    assert named in caught.value.message.split(" is not finite")[0]


# --- resume


class StopAt(Hook):
    """Leaves the run after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step == self.step:
            raise KeyboardInterrupt


def state_after(steps: int, file: Path) -> dict[str, Any]:
    """The state after `steps` steps, through a file."""
    trainer = toy_trainer(StopAt(steps))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    save_tensors(file, trainer.state())
    return load_tensors(file)


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Any], list[Record]]:
    """The uninterrupted run."""
    seen = Records()
    trainer = toy_trainer(seen)
    trainer.train()
    return trainer.state(), seen.records


@pytest.mark.parametrize("steps", range(1, 13))
def test_resume_is_exact_to_the_bit(
    steps: int, tmp_path: Path, whole: tuple[dict[str, Any], list[Record]]
) -> None:
    seen = Records()
    trainer = toy_trainer(seen)
    trainer.restore(state_after(steps, tmp_path / "state.pth"))
    assert trainer.step == steps
    trainer.train()
    assert same(trainer.state(), whole[0])
    assert seen.records == whole[1][steps:]


def without(state: dict[str, Any], path: list[Any]) -> dict[str, Any]:
    """A copy that lacks the part at `path`."""
    changed = copy.deepcopy(state)
    part = changed
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return changed


def all_paths(part: Any, path: list[Any]) -> Iterator[list[Any]]:
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for name, inner in items:
        yield [*path, name]
        yield from all_paths(inner, [*path, name])


def test_each_part_of_the_state_is_required(tmp_path: Path) -> None:
    state = state_after(4, tmp_path / "state.pth")
    paths = list(all_paths(state, []))
    for needed in (
        ["step"],
        ["optimizer", "state", 0, "momentum_buffer"],
        ["model", "_extra_state", "pointer"],
    ):
        assert needed in paths
    for path in paths:
        trainer = toy_trainer()
        with pytest.raises(InputError) as caught:
            trainer.restore(without(state, path))
        assert caught.value.hint == "start with --fresh" and caught.value.exit_code == 3, path
    toy_trainer().restore(state)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    state = state_after(4, tmp_path / "state.pth")
    with pytest.raises(InputError, match=r"it lacks /optimizer/state/0/momentum_buffer$"):
        toy_trainer().restore(without(state, ["optimizer", "state", 0, "momentum_buffer"]))
    renamed = without(state, ["model", "ring"])
    renamed["model"]["buffer"] = state["model"]["ring"]
    with pytest.raises(InputError, match=r"it lacks /model/ring, and has /model/buffer$"):
        toy_trainer().restore(renamed)


def test_other_versions_are_told_of_and_another_layout_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_after(4, tmp_path / "state.pth")
    assert {"2drcl", "code", "torch"} <= state["versions"].keys()
    with caplog.at_level(logging.WARNING):
        toy_trainer().restore(state)
        assert not caplog.records
        toy_trainer().restore({**state, "versions": {**state["versions"], "torch": "2.6.0"}})
    assert f"torch 2.6.0 (here {state['versions']['torch']})" in caplog.records[0].message
    assert "2drcl" not in caplog.records[0].message and "may end differently" in caplog.records[0].message
    older = toy_trainer(model=WithoutRing())
    del older.model.ring  # as if that version had not known it
    with pytest.raises(InputError, match=r"(?s)does not fit: .*ring"):
        toy_trainer().restore(older.state())


def test_unknown_parts_and_other_shapes_are_refused(tmp_path: Path) -> None:
    state = state_after(4, tmp_path / "state.pth")
    for more in ({"scaler": 1.0}, {"model": {**state["model"], "layer.extra": torch.zeros(1)}}):
        with pytest.raises(InputError, match="lacks parts of a run, or has others"):
            toy_trainer().restore({**state, **more})
    other = Toy()
    other.layer = nn.Linear(3, 5)
    with pytest.raises(InputError, match=r"(?s)the checkpoint does not fit: .*layer\.weight"):
        toy_trainer(model=other).restore(state)


# --- initial weights


def test_seeded_draws_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    with seeded(7):
        first = torch.rand(3)
    torch.rand(11)
    with seeded(7):
        second = torch.rand(3)
    with seeded(8):
        other = torch.rand(3)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_seeded_leaves_the_generator_as_it_was_found() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(7):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
