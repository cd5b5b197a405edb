"""The way of every training stage: plan, train in scratch, publish from the last checkpoint."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.errors import InputError
from stages import launch
from stages.common import Order, discard
from stages.console import Stopwatch, say
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
    from stages.common import make

    stage = str(manifest["stage"])
    current = artifacts.is_current(order.out, stage, str(manifest["fingerprint"])) and not order.fresh
    if order.dry_run or current:
        make(order, manifest, lambda folder: None)
        return
    discard(order, job.work)
    watch = Stopwatch()
    launch.train(stage, job, order.machine, batch_size)
    if not is_first():
        return
    newest = CheckpointFolder(job.work / "checkpoints").newest()
    if newest is None:
        raise InputError(f"{job.work} holds no checkpoint after training", "run the command again")
    seconds = watch.seconds

    def produce(folder: Path) -> None:
        publish(newest[1]["model"], folder)

    make(order, manifest, produce)
    images = newest[0] * batch_size
    watch.write(order.out, train_seconds=round(seconds, 2), images_drawn=images, steps=newest[0])
    say(f"{stage}: {images} images drawn, {images / max(seconds, 1e-9):.1f} images/s")
    shutil.rmtree(job.work, ignore_errors=True)


def keep_history(work: Path, folder: Path) -> None:
    """Copy history.jsonl into the product, with a table and a figure for `dvc plots` and for people."""
    shutil.copyfile(work / "history.jsonl", folder / "history.jsonl")
    (folder / "figures").mkdir(exist_ok=True)
    write_history_table(folder / "history.jsonl", folder / "figures" / "history.csv")
    loss_figure(folder / "history.jsonl", folder / "figures" / "losses.png")
