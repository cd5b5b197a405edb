"""The way of every training stage: plan, train in scratch, publish from the last checkpoint."""

import datetime
import json
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
from stages.console import Stopwatch, peak_memory_mib, say, warn
from stages.history import loss_figure, measures_figure, write_history_table
from stages.jobs import GPU_MEMORY
from stages.machine import is_first


def train_and_publish(
    order: Order,
    manifest: Mapping[str, Any],
    job: Any,
    settings: Any,
    publish: Callable[[dict[str, Any], Path], None],
) -> None:
    """Train `job` if its product is not current, and put the product in its place.

    Args:
        order: options.
        manifest: decides whether the product is current.
        job: a job of `stages.jobs`, its `work` the scratch folder.
        settings: of the stage, with `batch_size` and perhaps `accumulate`.
        publish: (model state, folder) -> writes the product's own files.
    """
    if nothing_to_do(order, manifest, job.work):
        return
    watch = Stopwatch()
    with launch.exclusive(job.work, fresh=order.fresh):
        state, measured = train(order, str(manifest["stage"]), job, settings)
        if is_first():
            make(order, manifest, lambda folder: publish(state, folder))
            watch.write(order.out, **measured)
            say(f"{manifest['stage']}: {_spent(watch.seconds, measured)}")
            shutil.rmtree(job.work, ignore_errors=True)


def _spent(seconds: float, measured: Mapping[str, float]) -> str:
    """Time and memory of this command."""
    memory = f"{peak_memory_mib() / 1024:.1f} GiB of memory in the largest process"
    if "gpu_memory_mib" in measured:
        memory += f" and {measured['gpu_memory_mib'] / 1024:.1f} GiB on all GPUs"
    return f"this command took {datetime.timedelta(seconds=round(seconds))} and {memory}"


def nothing_to_do(order: Order, manifest: Mapping[str, Any], work: Path) -> bool:
    """Whether this is a dry run, or the product is current; says so."""
    stage, wanted = str(manifest["stage"]), str(manifest["fingerprint"])
    current = artifacts.is_current(order.out, stage, wanted) and not order.fresh
    if order.dry_run or current:
        make(
            order,
            {**manifest, **_unfinished(order, work)} if order.dry_run else manifest,
            lambda folder: None,
        )
        if current and is_first():
            shutil.rmtree(work, ignore_errors=True)  # a kill right after publishing leaves it
    return order.dry_run or current


def _unfinished(order: Order, work: Path) -> dict[str, Any]:
    """Of a dry run: the scratch folder, from which step each training in it would continue, and whether
    another command is at it now."""
    found = {} if order.fresh else {folder: CheckpointFolder(folder) for folder in work.rglob("checkpoints")}
    steps = {str(folder.parent.relative_to(work)): files.newest_step() for folder, files in found.items()}
    return {
        "work": str(work),
        "continues_from_step": {name: step for name, step in steps.items() if step},
        "is_running": launch.is_held(work),
    }


def train(order: Order, kind: str, job: Any, settings: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Train to the end, in the scratch folder that the caller holds.

    Returns:
        the model's state, and what was measured in this command alone, for timing.json; both empty on all
        processes of a group but the first.

    Raises:
        TwoDRCLError: what stopped the run.
    """
    checkpoints = CheckpointFolder(job.work / "checkpoints")
    before, watch = max(checkpoints.steps(), default=0), Stopwatch()
    batch_size, accumulate = settings.batch_size, getattr(settings, "accumulate", 1)
    launch.run(kind, job, order.machine, *order.machine.processes(batch_size, accumulate))
    if not is_first():
        return {}, {}
    newest = checkpoints.newest()
    if newest is None:
        raise InputError(f"{job.work} holds no checkpoint after training", "run the command again")
    step, seconds = newest[0], watch.seconds
    speed = round((step - before) * batch_size / max(seconds, 1e-9), 2)
    say(f"{kind}: {step * batch_size} images drawn, {speed} images/s")
    return newest[1]["model"], {
        "train_seconds": round(seconds, 2),
        "images_per_second": speed,
        "steps": step,
        **_gpu_memory(job.work / GPU_MEMORY),
    }


def _gpu_memory(path: Path) -> dict[str, float]:
    """What `stages.jobs` measured, if it ran on GPUs."""
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


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
    measures_figure(folder / "history.jsonl", folder / "figures" / "measures.png")
