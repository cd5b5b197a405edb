"""`2drcl proposals`: annotations (and images) -> boxes of every image in Parquet, from a detector that is
trained for it or from another source."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.data.annotations import read_annotations
from pipeline.data.category_split import absent_names, names_file
from pipeline.data.images import check_files
from pipeline.data.settings import Split
from pipeline.engine.checkpoint import load_tensors, save_tensors
from pipeline.errors import UsageError, first_ten
from pipeline.proposals.generation import GenerationJob, GenerationPlan, boxes_digest, merge
from pipeline.proposals.settings import ProposalsSettings
from pipeline.settings import to_plain
from stages import launch
from stages.common import Order, answer, check_splits, make
from stages.console import Stopwatch, say, warn
from stages.initial_weights import initial_digest
from stages.machine import Machine, is_first
from stages.training import nothing_to_do, report_start, train

EXAMPLES = 8  # images in the picture of the best boxes
WITHOUT_IMAGES = ("gt-jitter", "import")  # these sources read annotations alone


def run(order: Order, split: Split, allow_partial: tuple[str, ...] = (), weights: Path | None = None) -> None:
    """Make the boxes of every image of the split, after training a detector on it if the source is one.

    Args:
        order: options.
        split: whose images get boxes.
        allow_partial: parts that the initial weights may lack.
        weights: of a detector that an earlier run trained, on another split perhaps: it is not trained again.
    """
    settings = order.params.section("proposals")
    artifacts.refuse_foreign(order.out, "proposals")
    if weights is not None and not settings.is_trained:
        raise UsageError(f"--weights are of a detector, but proposals.source is {settings.source}")
    world, use_gpu = _processes(order.machine, settings)
    if settings.is_trained and weights is None:
        check_splits(split, order.params.section("data"))
    else:
        _check_images(split, settings)
    inputs = _inputs(split, settings)
    if weights is not None:
        inputs["weights"] = artifacts.file_digest(weights)
    manifest = artifacts.manifest("proposals", {"proposals": to_plain(settings)}, inputs, order.params.seed)
    work = artifacts.scratch(order.out, "proposals", manifest["fingerprint"])
    job = GenerationJob(split.annotations, split.images, work, order.params.seed, settings)
    training = _training(job, allow_partial) if settings.is_trained and weights is None else None
    if not nothing_to_do(order, manifest, work):
        watch = Stopwatch()
        with launch.exclusive(work, fresh=order.fresh):
            if weights is not None and is_first():
                save_tensors(job.weights, load_tensors(weights))
            measured = {} if training is None else _train(order, job, training)
            launch.run("generation", job, order.machine, world, use_gpu)
            if is_first():
                make(order, manifest, lambda folder: _publish(job, folder))
                watch.write(order.out, **measured)
                if training is not None:
                    _keep_weights(job)
                shutil.rmtree(work, ignore_errors=True)
    answer(order)


def _processes(machine: Machine, settings: ProposalsSettings) -> tuple[int, bool]:
    """How many, and whether each has a GPU: those that train also generate.

    Raises:
        UsageError: the batch does not divide among them.
    """
    if settings.is_trained:
        return machine.processes(settings.batch_size)
    # no detector, so GPUs are only a number
    return int(os.environ.get("WORLD_SIZE", max(machine.gpus or 0, machine.procs))), False


def _check_images(split: Split, settings: ProposalsSettings) -> None:
    """Before anything long starts; nothing is trained, so the split may be that of validation."""
    annotations = read_annotations(split.annotations)
    for remark in annotations.remarks():
        say(remark)
    if settings.source not in WITHOUT_IMAGES:
        check_files(split.images, annotations.file_names)


def _inputs(split: Split, settings: ProposalsSettings) -> dict[str, str]:
    """Digests of the files that decide the boxes."""
    inputs = {"annotations": artifacts.file_digest(split.annotations)}
    if settings.file is not None:
        inputs["file"] = boxes_digest(settings.file)
    if settings.is_trained and settings.init is not None:
        inputs["init"] = initial_digest(settings.init, settings.depth)
    names = names_file(settings.seen)
    if names is not None:
        inputs["seen"] = artifacts.file_digest(names)
    return inputs


def _training(job: GenerationJob, allow_partial: tuple[str, ...]) -> Any:
    """The job that trains the detector; says what it starts from."""
    from pipeline.proposals.training import ProposalsJob, ProposalsPlan, build_detector

    settings = job.proposals
    allowed = (*settings.allow_partial, *allow_partial)
    training = ProposalsJob(job.annotations, job.images, job.work, job.seed, settings, allowed)
    plan = ProposalsPlan(training)
    absent = absent_names(settings.seen, plan.annotations)
    if absent:
        warn(f"{job.annotations} lacks {len(absent)} categories of the seen split: {first_ten(absent)}")
    report_start("proposals", build_detector(plan)[1], settings.norm)
    return training


def _train(order: Order, job: GenerationJob, training: Any) -> dict[str, float]:
    """Leave the trained detector's tensors in scratch, where a killed generation finds them again."""
    from pipeline.detectors.supervised import SupervisedModel
    from pipeline.detectors.weights import clone_state

    # --fresh: the first process of a group has removed the file, or is about to
    if job.weights.exists() and not order.fresh:
        return {}
    state, measured = train(order, "proposals", training, job.proposals)
    if is_first():
        save_tensors(job.weights, clone_state(state, SupervisedModel.PREFIX))
    return measured


def _publish(job: GenerationJob, folder: Path) -> None:
    """The boxes, and the figures of what they look like."""
    from pipeline.proposals.figures import examples_figure, summary_figure
    from pipeline.proposals.store import ProposalStore

    plan = GenerationPlan(job)
    merge(plan, folder)
    annotations = plan.annotations
    store = ProposalStore.open(folder, annotations.digest)  # checks what was written, as every reader will
    for remark in store.remarks(wanted=1):
        say(f"proposals: {remark}")
    (folder / "figures").mkdir()
    summary_figure(store, folder / "figures" / "summary.png")
    some = np.linspace(0, len(store) - 1, min(EXAMPLES, len(store))).astype(int).tolist()
    if all((job.images / annotations.file_names[i]).is_file() for i in some):
        examples_figure(store, annotations, job.images, some, folder / "figures" / "examples.png")


def _keep_weights(job: GenerationJob) -> None:
    """The detector outlives the scratch folder, so that it can be run on another split."""
    kept = job.work.with_name(f"weights-{job.work.name}.pth")
    os.replace(job.weights, kept)
    say(f"proposals: the detector is in {kept}; with --weights it makes the boxes of another split")
