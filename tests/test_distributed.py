"""Two processes (gloo) against one: collectives, gradients, training, and stopping together.

Starting processes costs seconds, so one pair does everything and the tests look at what it brought back.
"""

import copy
import json
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_checkpoint import FORKS, exit_code
from test_hooks import run_toy
from test_loop import BATCH, SCHEDULE, Poisoned, StopAt, Toy, rows_of, same, toy_trainer
from torch import Tensor

from pipeline.engine import distributed
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.engine.distributed import Process, gather_rows, sum_over_processes, sum_with_gradient
from pipeline.engine.hooks import DebugBundle
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.errors import Diverged, InputError, Stopped, UsageError

CPU = torch.device("cpu")
KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)


def source(process: Process, action: Callable[[int], object] = lambda step: None) -> Any:
    """This process's half of each batch; `action` happens while it is drawn."""

    def batches(start: int) -> Iterator[Tensor]:
        for step in range(start, SCHEDULE.total):
            action(step)
            yield rows_of(step)[process.rank :: process.world]

    return batches


# --- what each of the two processes does


def collectives(process: Process, folder: Path) -> dict[str, Any]:
    rank = process.rank
    rows = torch.arange(6).reshape(2, 3) + 10 * rank
    return {
        "who": (distributed.rank(), distributed.world_size(), process.is_first),
        "gathered": [gather_rows((rows % 7 > 2) if k is torch.bool else rows.to(k)) for k in KINDS],
        "strided": gather_rows(rows.T),  # (2, 3) -> (3, 2)
        "empty": gather_rows(torch.empty(0, 3)),
        "sum": sum_over_processes(rows.T),
        "any": [distributed.any_process(flag, CPU) for flag in (False, rank == 0, rank == 1, True)],
        "same": [distributed.is_same_everywhere(v, CPU) for v in (7, rank, -rank, 10**12)],
    }


def gradients(process: Process, folder: Path) -> dict[str, Tensor]:
    """Gradients of both functions, averaged over processes as DistributedDataParallel does."""
    rows = rows_of(0)[process.rank :: process.world]
    results = {"statistics": normalised_loss(rows, sum_with_gradient), "keys": contrast(rows, gather_rows)}
    return {name: sum_over_processes(g) / process.world for name, g in results.items()}


def train(process: Process, folder: Path) -> dict[str, Any]:
    trainer = run_toy(folder, process=process, batches=source(process))
    return trainer.state()


def poisoned(process: Process, folder: Path) -> dict[str, Any]:
    """Only the second process meets what is not finite."""
    outcome = {}
    for kind in ("nan", "gradient"):
        before: dict[str, Any] = {}

        class Snapshot(Hook):
            def after_step(self, trainer: Trainer, record: Record, before: dict[str, Any] = before) -> None:
                before.update(copy.deepcopy(trainer.state()))

        model = Toy() if process.is_first else Poisoned(kind)
        bundle = DebugBundle(folder / f"{kind}.json", lambda step: range(BATCH))
        hooks = (Snapshot(), bundle)
        trainer = toy_trainer(*hooks, process=process, batches=source(process), model=model)
        try:
            trainer.train()
        except Diverged as problem:
            outcome[kind] = (trainer.step, same(trainer.state(), before), problem.message)
    return outcome


def signalled(process: Process, folder: Path) -> dict[str, Any]:
    """Only the second process is interrupted, while it draws the batch of step 4; then both continue."""

    def interrupt(step: int) -> None:
        if step == 4 and process.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        run_toy(folder, steps=100, process=process, batches=source(process, interrupt))
    except Stopped as stopped:
        code, saved = stopped.exit_code, CheckpointFolder(folder / "checkpoints").steps()
    distributed.barrier()  # the other one looks at the folder too, before it changes
    return {"code": code, "saved": saved, "state": train(process, folder)}


def torn_apart(process: Process, folder: Path) -> str:
    """Each process sees another folder, and only the first one's has a checkpoint."""
    own, state = folder / str(process.rank), stepped(4)
    if process.is_first:
        CheckpointFolder(own / "checkpoints").save(4, state)
    try:
        run_toy(own, process=process, batches=source(process))
    except InputError as problem:
        return problem.message
    return "trained"


def grown(process: Process, folder: Path) -> dict[str, Any]:
    """Two processes continue what one began."""
    state = stepped(5)  # by both: the toy's model sums over all processes
    if process.is_first:
        CheckpointFolder(folder / "checkpoints").save(5, state)
    distributed.barrier()
    return train(process, folder)


def shrunk(process: Process, folder: Path) -> list[int]:
    """Two processes stop after step 6; one will continue."""
    try:
        run_toy(folder, StopAt(6), process=process, batches=source(process))
    except KeyboardInterrupt:
        distributed.barrier()
    return CheckpointFolder(folder / "checkpoints").steps()


SCENARIOS = (collectives, gradients, train, poisoned, signalled, torn_apart, grown, shrunk)


def work(rank: int, port: int, folder: Path) -> None:
    group = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    torch.set_num_threads(1)
    process = distributed.join(use_gpu=False)
    found = {scenario.__name__: scenario(process, folder / scenario.__name__) for scenario in SCENARIOS}
    distributed.leave()
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What the two processes brought back, and their folder."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [FORKS.Process(target=work, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    codes = [exit_code(p) for p in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)], folder


# --- the same by one process


def normalised_loss(rows: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of a loss through batch statistics over all rows; (N, 3) -> (3, 2)."""
    weight = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
    out = rows @ weight
    sums = total(torch.cat([out.new_tensor([len(out)]), out.sum(0), out.square().sum(0)]))
    count, first, second = sums.split([1, 2, 2])
    mean = first / count
    normal = (out - mean) * torch.rsqrt(second / count - mean.square() + 1e-3)
    loss = (normal - rows[:, :2]).square().mean() + (normal[:, 0] * rows[:, 2]).mean()
    return torch.autograd.grad(loss, weight)[0]


def contrast(rows: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of queries against the keys of all rows, where keys must give none; (N, 3) -> (3, 2)."""
    weight = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
    queries = rows @ weight
    keys = gather(queries.roll(1, dims=1) * 2)
    assert not keys.requires_grad
    return torch.autograd.grad(F.softplus(queries @ keys.T).mean(), weight)[0]


def stepped(steps: int) -> dict[str, Any]:
    """State after some steps on whole batches."""
    trainer = toy_trainer(batches=lambda start: [rows_of(s) for s in range(steps)])
    with pytest.raises(AssertionError, match="batches end"):
        trainer.train()
    return trainer.state()


# --- comparisons


def test_collectives(pair: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = (found["collectives"] for found in pair[0])
    assert (first["who"], second["who"]) == ((0, 2, True), (1, 2, False))
    rows = torch.arange(6).reshape(2, 3)
    both = torch.cat([rows, rows + 10])
    for found in (first, second):
        for kind, gathered in zip(KINDS, found["gathered"], strict=True):
            wanted = both % 7 > 2 if kind is torch.bool else both.to(kind)
            assert gathered.dtype == kind and torch.equal(gathered, wanted)
        assert torch.equal(found["strided"], torch.cat([rows.T, rows.T + 10]))
        assert found["empty"].shape == (0, 3)
        assert torch.equal(found["sum"], 2 * rows.T + 10)
        assert found["any"] == [False, True, True, True]
        assert found["same"] == [True, False, False, True]


def test_gradients_equal_those_of_one_process(pair: tuple[list[dict[str, Any]], Path]) -> None:
    rows = rows_of(0)
    wanted = {
        "statistics": normalised_loss(rows, lambda sums: sums),
        "keys": contrast(rows, lambda keys: keys.detach()),
    }
    without = normalised_loss(rows, Tensor.detach)  # the part of the gradient that comes through the sums
    assert (wanted["statistics"] - without).abs().max() > 1e-2
    for found in pair[0]:
        for name, gradient in wanted.items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-5, atol=1e-6)


def test_training_equals_that_of_one_process(pair: tuple[list[dict[str, Any]], Path], tmp_path: Path) -> None:
    alone = run_toy(tmp_path).state()
    first, second = (found["train"] for found in pair[0])
    assert same(first, second)
    assert first["step"] == alone["step"] and first["contents"] == alone["contents"]
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(first["model"][name], tensor, rtol=1e-5, atol=1e-6)
    for index, wanted in alone["optimizer"]["state"].items():
        torch.testing.assert_close(first["optimizer"]["state"][index], wanted, rtol=1e-5, atol=1e-6)


def test_history_is_written_once_and_averages(
    pair: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    run_toy(tmp_path)
    lines = (pair[1] / "train" / "history.jsonl").read_text().splitlines()
    alone = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == len(alone) == 13
    for line, wanted in zip(lines, alone, strict=True):
        assert json.loads(line) == pytest.approx(json.loads(wanted), rel=1e-4)
    assert json.loads(lines[-1])["images"] == 13 * BATCH


def test_not_finite_on_one_process_stops_both(pair: tuple[list[dict[str, Any]], Path]) -> None:
    for found in pair[0]:
        for kind, named in (("nan", "loss"), ("gradient", "grad_norm")):
            step, untouched, message = found["poisoned"][kind]
            assert step == 5 and untouched
            assert named in message.split(" is not finite")[0]


def test_the_bundle_says_which_process_and_its_images(pair: tuple[list[dict[str, Any]], Path]) -> None:
    found = json.loads((pair[1] / "poisoned" / "nan.json").read_text())
    first, second = found["processes"]
    assert isinstance(first["losses"]["loss"], float) and second["losses"]["loss"] == "nan"
    assert (first["image_ids"], second["image_ids"]) == ([0, 1, 2, 3], [4, 5, 6, 7])


def test_another_number_of_processes_continues(
    pair: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    alone = run_toy(tmp_path).state()
    assert pair[0][0]["shrunk"] == [4, 6]
    ends = [run_toy(pair[1] / "shrunk").state(), *(found["grown"] for found in pair[0])]
    for state in ends:
        assert state["step"] == 13 and state["contents"] == alone["contents"]
        for name, tensor in alone["model"].items():
            torch.testing.assert_close(state["model"][name], tensor, rtol=1e-5, atol=1e-6)


def test_signal_to_one_process_stops_both_at_the_same_step(
    pair: tuple[list[dict[str, Any]], Path],
) -> None:
    for found in pair[0]:
        assert (found["signalled"]["code"], found["signalled"]["saved"]) == (130, [5])
        assert same(found["signalled"]["state"], found["train"])  # and continued to the same end
    histories = [(pair[1] / name / "history.jsonl").read_bytes() for name in ("signalled", "train")]
    assert histories[0] == histories[1]


def test_processes_that_found_different_checkpoints_refuse(
    pair: tuple[list[dict[str, Any]], Path],
) -> None:
    for rank, found in enumerate(pair[0]):
        assert found["torn_apart"].startswith("processes found different checkpoints in ")
        assert found["torn_apart"].endswith(f"(here: step {4 - 4 * rank})")


# --- alone


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    process = distributed.join(use_gpu=False)
    assert process == Process(0, 1, CPU) and process.is_first
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(gather_rows(value), value) and not gather_rows(value).requires_grad
    assert torch.equal(sum_over_processes(value), value) and not sum_over_processes(value).requires_grad
    assert torch.autograd.grad((sum_with_gradient(value) ** 2).sum(), value)[0].tolist() == [2.0, 4.0]
    assert [distributed.any_process(f, CPU) for f in (True, False)] == [True, False]
    assert distributed.is_same_everywhere(3, CPU)
    distributed.barrier()
    distributed.leave()


def test_sum_over_processes_leaves_its_input_alone() -> None:
    value = torch.tensor([1.0, 2.0])
    sum_over_processes(value).add_(1)
    assert value.tolist() == [1.0, 2.0]


def test_share_of() -> None:
    assert [distributed.share_of(16, n) for n in (1, 2, 4, 8, 16)] == [16, 8, 4, 2, 1]
    for world in (3, 5, 32):
        with pytest.raises(
            UsageError, match=f"batch of 16 does not divide among {world} processes"
        ) as caught:
            distributed.share_of(16, world)
        assert caught.value.exit_code == 2
