"""The way of every training stage: plan, train in scratch, publish from the last checkpoint."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.detectors.weights import LoadReport
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.errors import InputError
from stages import launch
from stages.common import Order, make
from stages.console import Stopwatch, say, warn
from stages.history import loss_figure, write_history_table
from stages.machine import is_first


def train_and_publish(
    order: Order,
    manifest: Mapping[str, Any],
    job: Any,
    batch_size: int,
    publish: Callable[[dict[str, Any], Path], None],
) -> None:
    """Train `job` if its product is not current, and put the product in its place.

    Args:
        order: options.
        manifest: decides whether the product is current.
        job: a job of `stages.jobs`, its `work` the scratch folder.
        batch_size: global.
        publish: (model state, folder) -> writes the product's own files.
    """
    stage = str(manifest["stage"])
    current = artifacts.is_current(order.out, stage, str(manifest["fingerprint"])) and not order.fresh
    if order.dry_run or current:
        make(order, manifest, lambda folder: None)
        if current and is_first():
            shutil.rmtree(job.work, ignore_errors=True)  # a kill right after publishing leaves it
        return
    checkpoints = CheckpointFolder(job.work / "checkpoints")
    before = 0 if order.fresh else max(checkpoints.steps(), default=0)
    watch = Stopwatch()
    launch.train(stage, job, order.machine, batch_size, fresh=order.fresh)
    if not is_first():
        return
    newest = checkpoints.newest()
    if newest is None:
        raise InputError(f"{job.work} holds no checkpoint after training", "run the command again")
    seconds = watch.seconds

    def produce(folder: Path) -> None:
        publish(newest[1]["model"], folder)

    make(order, manifest, produce)
    speed = round((newest[0] - before) * batch_size / max(seconds, 1e-9), 2)  # of this command alone
    watch.write(order.out, train_seconds=round(seconds, 2), images_per_second=speed, steps=newest[0])
    say(f"{stage}: {newest[0] * batch_size} images drawn, {speed} images/s")
    shutil.rmtree(job.work, ignore_errors=True)


def report_start(stage: str, report: LoadReport, norm: str) -> None:
    """Say what the detector starts from, and warn of stages that cannot train well from there."""
    say(f"{stage}: {report.sentence()}")
    for part in report.frozen_but_new(norm):
        warn(f"{part} is new, and frozen batch norm keeps its empty statistics: it trains, but slowly")


def keep_history(work: Path, folder: Path) -> None:
    """Copy history.jsonl into the product, with a table and a figure for `dvc plots` and for people."""
    shutil.copyfile(work / "history.jsonl", folder / "history.jsonl")
    (folder / "figures").mkdir(exist_ok=True)
    write_history_table(folder / "history.jsonl", folder / "figures" / "history.csv")
    loss_figure(folder / "history.jsonl", folder / "figures" / "losses.png")
