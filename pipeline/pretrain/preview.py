"""Some draws of one step as the model sees them, and what it paints of them: for people to look at.

The draws are those that the step would train on, from the same source; the weights are the initial ones, or
those of the checkpoint that would be continued.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.engine.distributed import Process
from pipeline.errors import InputError
from pipeline.pretrain.reconstruction import Painting
from pipeline.pretrain.training import PretrainPlan, batch_source, build_step
from pipeline.pretrain.views import PretrainBatch


@dataclass(frozen=True)
class Preview:
    """B draws of a step; `painting` is None where neither AR nor SR is on."""

    step: int
    batch: PretrainBatch
    painting: Painting | None


@torch.no_grad()
def preview(
    plan: PretrainPlan, device: torch.device, found: tuple[int, Mapping[str, Any]] | None, count: int
) -> Preview:
    """The first `count` draws of the next step of the run.

    Args:
        plan: of the run.
        device: where to compute.
        found: step and state of the model that the run would continue from; None: it would start.
        count: number of images, at most those of the batch.

    Raises:
        InputError: the state is of another model, or an image is not readable.
    """
    model = build_step(plan, device)
    step = 0
    if found is not None:
        try:
            model.load_state_dict(found[1])
        except (RuntimeError, KeyError) as problem:
            raise InputError(f"the checkpoint does not fit: {problem}", "start with --fresh") from None
        step = min(found[0], plan.schedule.total - 1)  # of a finished run, its last batch
    source = batch_source(plan, Process(0, 1, device), workers=0)
    samples = next(source(step))[:count]
    batch = model.to_batch(samples)
    if model.generator is None:
        return Preview(step, batch, None)
    return Preview(step, batch, model.paint(batch, model.detector.encoder.trunk(batch.query, model.bf16)[-1]))
