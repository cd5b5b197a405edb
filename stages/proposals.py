"""`2drcl proposals`: annotations and images -> OLN, trained and run over the images -> boxes in Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.data.settings import Split
from pipeline.detectors.supervised import SupervisedModel
from pipeline.detectors.weights import clone_state
from pipeline.engine.checkpoint import state_digest
from pipeline.proposals.generation import generate
from pipeline.proposals.store import write_proposals
from pipeline.proposals.training import ProposalsJob, ProposalsPlan, build_oln
from pipeline.settings import to_plain
from stages.common import Order, answer, check_splits
from stages.console import track
from stages.training import report_start, train_and_publish


def run(order: Order, split: Split, allow_partial: tuple[str, ...] = ()) -> None:
    """Train OLN on the split's boxes, whatever their category, and write its boxes of every image."""
    settings = order.params.section("proposals")
    artifacts.refuse_foreign(order.out, "proposals")
    order.machine.processes(settings.batch_size)
    check_splits(split, order.params.section("data"))
    inputs = {"annotations": artifacts.file_digest(split.annotations)}
    if settings.init is not None:
        inputs["init"] = artifacts.file_digest(settings.init)
    manifest = artifacts.manifest("proposals", {"proposals": to_plain(settings)}, inputs, order.params.seed)
    work = artifacts.scratch(order.out, "proposals", manifest["fingerprint"])
    job = ProposalsJob(
        split.annotations,
        split.images,
        work,
        order.params.seed,
        settings,
        (*settings.allow_partial, *allow_partial),
    )
    plan = ProposalsPlan(job)
    report_start("proposals", build_oln(plan)[1], settings.norm)

    def publish(state: dict[str, Any], folder: Path) -> None:
        weights = clone_state(state, SupervisedModel.PREFIX)
        rows = _tracked(generate(plan, weights, order.machine.one_device()), len(plan.annotations.image_ids))
        write_proposals(folder, plan.annotations, rows, settings.source, state_digest(weights))

    train_and_publish(order, manifest, job, settings.batch_size, publish)
    answer(order)


def _tracked(
    rows: Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]], total: int
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    return track(rows, total, "proposals: images")
