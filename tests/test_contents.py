"""Every part of the state of a real training is load-bearing, however deep it lies."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_finetune_stages as tuning
import test_proposal_training as proposing
from test_loop import ALONE, same
from test_proposal_training import folder as folder  # the fixture
from toy_detector import toy_batch, toy_model

from pipeline.engine.checkpoint import load_tensors, save_tensors
from pipeline.engine.contents import described, refuse_incomplete
from pipeline.engine.loop import Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.errors import InputError
from pipeline.proposals.training import ProposalsPlan


def holders(part: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(dict or list, key, path) of every part of a nested state."""
    items = list(
        part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    )
    for name, inner in items:
        yield part, name, f"{path}/{name}"
        yield from holders(inner, f"{path}/{name}")


def assert_each_is_needed(trainer: Trainer, file: Path, *expected: str) -> None:
    """Remove one part after the other from what a checkpoint holds; `restore` must refuse, and touch nothing.

    Args:
        trainer: after a few steps.
        file: to go through.
        expected: parts there must be.
    """
    save_tensors(file, trainer.state())
    state = load_tensors(file)
    found = [path for _, _, path in holders(state)]
    for wanted in expected:
        assert any(wanted in path for path in found), wanted
    before = copy.deepcopy(trainer.model.state_dict())
    for holder, name, path in list(holders(state)):
        order = list(holder.items()) if isinstance(holder, dict) else list(holder)
        holder.pop(name)
        with pytest.raises(InputError, match="lacks parts of a run") as caught:
            trainer.restore(state)
        assert caught.value.hint == "start with --fresh", path
        holder.clear()
        holder.update(order) if isinstance(holder, dict) else holder.extend(order)
    assert same(trainer.model.state_dict(), before)
    trainer.restore(state)


def test_of_pre_training(tmp_path: Path) -> None:
    model = toy_model(queues=(6, 7))
    batches = [toy_batch(seed) for seed in range(3)]
    optimizer = sgd(model, 0.01, 0.9, 1e-4)
    schedule = Schedule((3,), (), 0.01)
    trainer = Trainer(model, optimizer, schedule, lambda _: batches, images_per_step=4, process=ALONE)
    trainer.train()
    parts = ("key_encoder", "queue", "momentum_buffer", "running_mean", "_extra_state", "param_groups/0/lr")
    assert_each_is_needed(trainer, tmp_path / "state.pth", *parts)


@pytest.mark.parametrize(
    ("method", "counted"),
    [("eqlv2", "loss_cls"), ("seesaw", "loss_cls"), ("loce", "loss_cls"), ("pcb", "loss_cls")],
)
def test_of_methods_that_count(method: str, counted: str, tmp_path: Path) -> None:
    trainer = tuning.trainer_of(tuning.tiny_detector(method), ALONE, 2)
    trainer.train()
    assert_each_is_needed(trainer, tmp_path / "state.pth", "momentum_buffer", counted)


def test_of_oln(folder: Path, tmp_path: Path) -> None:
    trainer = proposing.trainer_of(ProposalsPlan(proposing.job(folder, epochs=1)))
    trainer.train()
    assert_each_is_needed(trainer, tmp_path / "state.pth", "rpn_head", "roi_head", "momentum_buffer")


@pytest.mark.parametrize("part", ["step", "contents", "versions"])
def test_an_account_that_does_not_know_of_a_part_does_not_excuse_it(part: str) -> None:
    """As a checkpoint of another program would be: in agreement with itself."""
    found = described({"step": 1, "model": {}})
    refuse_incomplete(found, ("step", "model"))
    del found[part]
    if part != "contents":
        found["contents"] = [path for path in found["contents"] if not path.startswith(f"/{part}")]
    with pytest.raises(InputError, match=f"it lacks /{part}"):
        refuse_incomplete(found, ("step", "model"))
