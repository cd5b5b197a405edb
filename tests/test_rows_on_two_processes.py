"""Every row of Table 5 around real detectors on two processes, one of which has nothing to learn from.

A parameter that waits for its gradient on one process alone would let the other wait for it: for ever, or
until `processes.SECONDS` are over.  DRB, the remaining row, changes the draws and not the step.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from processes import together
from test_loop import Records
from test_pretrain_detectors import ROWS
from tiny_pretraining import NOTHING, ONE_OBJECT, TWO_OBJECTS, batch_of, model_of

from pipeline.engine.checkpoint import state_digest
from pipeline.engine.distributed import Process
from pipeline.engine.loop import Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.pretrain.objective import TERMS
from pipeline.pretrain.views import PretrainBatch

STEPS = 3
RUNS = [
    *(("faster-rcnn", row) for row in (*ROWS, TERMS)),
    *(("atss", row) for row in (("det",), ("hcl",), ("lcl",), ("lcl", "det"), TERMS)),
    *(("mask-rcnn, mask loss", row) for row in (("det",), TERMS)),
]


def batches(rank: int, start: int) -> Iterator[PretrainBatch]:
    """In the second step one process has neither object nor box, in the third the other."""
    for step in range(start, STEPS):
        is_empty = step == 1 + rank
        targets = (NOTHING, NOTHING) if is_empty else (ONE_OBJECT, TWO_OBJECTS)
        batch = batch_of(2 * step + rank, targets)
        yield dataclasses.replace(batch, valid=batch.valid & (not is_empty))


def train(detector: str, terms: tuple[str, ...], rank: int, world: int) -> tuple[list[Any], str]:
    """History, and digest of the last state."""
    print(f"process {rank}: {detector}, {'+'.join(terms)}", file=sys.stderr)  # the last word if it hangs
    model, records = model_of(detector, terms), Records()
    Trainer(
        model,
        sgd(model, 0.02, 0.9, 0.0),
        Schedule((STEPS,), (), 0.02),
        lambda start: batches(rank, start),
        images_per_step=2 * world,
        process=Process(rank, world, torch.device("cpu")),
        clip_norm=10.0,
        hooks=[records],
    ).train()
    return records.records, state_digest(model.state_dict())


def train_all(rank: int, world: int) -> dict[str, Any]:
    return {name(*run): train(*run, rank, world) for run in RUNS}


def name(detector: str, terms: tuple[str, ...]) -> str:
    return f"{detector}-{'+'.join(terms)}"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(2, train_all, tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize(("detector", "terms"), RUNS, ids=[name(*run) for run in RUNS])
def test_no_process_waits_and_both_end_with_the_same_state(
    both: list[dict[str, Any]], detector: str, terms: tuple[str, ...]
) -> None:
    (lines, digest), other = (found[name(detector, terms)] for found in both)
    assert len(lines) == STEPS and set(lines[-1]) & set(TERMS) == set(terms)
    assert all(lines[-1][term] > 0 for term in terms)  # what the process with objects finds
    assert other == (lines, digest)
