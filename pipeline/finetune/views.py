"""What a stage of fine-tuning sees: plain views, or BACL's squares with pasted objects."""

from typing import Any

from torch.utils.data import Dataset

from pipeline.data.copy_paste_settings import resolve_side
from pipeline.data.loading import BatchSource
from pipeline.data.pasted_view import PastedViewDataset
from pipeline.data.single_view import SingleViewDataset, ViewSample
from pipeline.engine.distributed import Process
from pipeline.finetune.plan import FinetunePlan


def dataset_of(plan: FinetunePlan) -> Dataset[ViewSample]:
    """Draw -> ViewSample, as the plan's `augment` says."""
    job, settings = plan.job, plan.job.finetune
    common: dict[str, Any] = {
        "flip": settings.flip,
        "seed": job.seed,
        "with_polygons": job.detector.type == "mask-rcnn",
    }
    if plan.augment == "plain":
        sizes = (settings.short_sides, settings.long_side)
        return SingleViewDataset(plan.annotations, job.images, *sizes, **common)
    views, side = settings.copy_paste, resolve_side(settings.copy_paste.side, settings.long_side)
    return PastedViewDataset(plan.annotations, job.images, side, views.scales, views.most, **common)


def source_of(
    plan: FinetunePlan, dataset: Dataset[ViewSample], process: Process, workers: int
) -> BatchSource:
    """Batches of one process; squares lie on square canvases."""
    short_sides, long_side = plan.job.finetune.short_sides, plan.job.finetune.long_side
    if isinstance(dataset, PastedViewDataset):
        short_sides, long_side = (dataset.side,), dataset.side
    return BatchSource(
        dataset,
        plan.sampler,
        plan.schedule,
        plan.annotations.sizes_wh,
        short_sides,
        long_side,
        process=process,
        workers=workers,
    )
