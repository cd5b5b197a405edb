"""The weight vector of each category in a detector's box classifier, whatever head and loss it has.

C = categories, D = width of a vector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import MismatchedInput


@dataclass(frozen=True)
class Classifier:
    """`weights` (C, D) float64 as stored; `note` says what they are where it is no plain linear layer."""

    weights: np.ndarray
    note: str

    @property
    def norms(self) -> np.ndarray:
        """(C,) float64."""
        return np.asarray(np.linalg.norm(self.weights, axis=1))


def classifier(model: nn.Module, num_classes: int) -> Classifier:
    """Find the classifier and the rows that belong to categories, without background and auxiliary columns.

    Args:
        model: a MMDetection detector, of one stage or two.
        num_classes: C.

    Raises:
        MismatchedInput: it has no classifier of that many categories.
    """
    head: Any = model.roi_head.bbox_head if hasattr(model, "roi_head") else model.bbox_head
    layer = next((m for n in ("fc_cls", "atss_cls", "retina_cls") if (m := getattr(head, n, None))), None)
    if layer is None or layer.weight.shape[0] < num_classes:
        raise MismatchedInput(
            f"the detector's {type(head).__name__} has no classifier of {num_classes} categories",
            "weight norms are known for Faster and Mask R-CNN, RetinaNet and ATSS",
        )
    weight: Tensor = layer.weight.detach().to("cpu", torch.float64).flatten(1)  # (columns, D), or of a kernel
    columns = getattr(getattr(head, "loss_cls", None), "columns", None)  # BAGS keeps its classes by groups
    rows = weight[columns[:num_classes].cpu()] if isinstance(columns, Tensor) else weight[:num_classes]
    return Classifier(rows.numpy(), _note(layer))


def _note(layer: nn.Module) -> str:
    if type(layer).__name__.startswith("Normed"):
        return "cosine classifier: the stored norms, which it divides away"
    return "of the convolution's kernels" if isinstance(layer, nn.Conv2d) else ""
