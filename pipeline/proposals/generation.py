"""Running OLN over the images of a split."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.detectors.build import build_model
from pipeline.detectors.inference import detect
from pipeline.proposals.training import ProposalsPlan

BATCH = 8


def generate(
    plan: ProposalsPlan, weights: Mapping[str, Tensor], device: torch.device | None = None
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Boxes of every image of the plan's split, by ascending image id, as `write_proposals` takes them.

    Args:
        plan: of the training.
        weights: OLN's tensors, MMDetection's names.
        device: default: CUDA when there is one.

    Yields:
        image id, (boxes (n, 4) float32 xyxy in stored pixels, scores (n,) float32), best first.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(plan.model_config(), plan.job.seed)
    model.load_state_dict(dict(weights), strict=True)
    model.to(device).eval()
    settings, annotations = plan.job.proposals, plan.annotations
    found = detect(
        model,
        annotations,
        plan.job.images,
        (settings.long_side, settings.short_side),
        device,
        order=[int(i) for i in np.argsort(annotations.image_ids)],
        batch=BATCH,
    )
    for detections in found:
        yield int(annotations.image_ids[detections.image]), (detections.boxes, detections.scores)
