"""MMDetection without compiled mmcv: the operators its detectors call, answered by torchvision.

mmcv's Python looks its C++/CUDA functions up in a module `mmcv._ext`.  Importing this file registers such a
module, unless a compiled one is installed, which is then used as it is.  It must be imported before anything
of `mmdet.models`; `pipeline.detectors` does so.  Called by our detectors: nms, roi_align (forward, backward)
and, on CUDA, sigmoid_focal_loss (forward, backward).  Every other name raises, with the remedy.

Everything is computed in float32: torchvision's CPU kernels know no bfloat16, and mmcv's backward runs
outside autocast.
"""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from pipeline.errors import Diverged, EnvironmentProblem

NAME = "mmcv._ext"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) xyxy; scores: (N,).
        iou_threshold: a box is dropped when it overlaps a better one by more than this.
        offset: 0; the legacy 1 (widths counted with +1) is refused.

    Returns:
        (M,) int64 positions of the kept boxes, best first.
    """
    if offset != 0:
        raise EnvironmentProblem(f"nms with offset={offset} needs compiled mmcv", _REMEDY)
    return torch.ops.torchvision.nms(boxes.float(), scores.float(), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average RoIAlign of (B, C, H, W) at (R, 5) [batch index, xyxy] into `output` (R, C, h, w), in place.

    Raises:
        Diverged: a box is not finite (torchvision's CPU kernel would end the process).
        EnvironmentProblem: max pooling, which torchvision does not have.
    """
    if pool_mode != 1:
        raise EnvironmentProblem("roi_align with pool_mode='max' needs compiled mmcv", _REMEDY)
    if rois.device.type == "cpu" and not bool(torch.isfinite(rois).all()):
        raise Diverged(
            "a box handed to RoIAlign is NaN or infinite", "lower the learning rate or clip gradients"
        )
    pooled = torch.ops.torchvision.roi_align(
        input.float(), rois.float(), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to its input, into `grad_input` (B, C, H, W), in place."""
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output.float().contiguous(),
        rois.float(),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al. 2017, eq. 5) of (N, C) logits and (N,) labels (C = background), in place.

    Raises:
        EnvironmentProblem: `weight` is not empty.  mmdet never gives one; mmcv's kernel reads it at the
            label, which for background lies outside it.
    """
    positive, p, log_p, log_not_p = _focal_parts(input, target, weight)
    of_positive = -alpha * (1 - p) ** gamma * log_p
    of_negative = -(1 - alpha) * p**gamma * log_not_p
    output.copy_(torch.where(positive, of_positive, of_negative))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Derivative of each element of `sigmoid_focal_loss_forward` with respect to its logit, in place."""
    positive, p, log_p, log_not_p = _focal_parts(input, target, weight)
    of_positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    of_negative = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * log_not_p)
    grad_input.copy_(torch.where(positive, of_positive, of_negative))


def _focal_parts(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if weight.numel():
        raise EnvironmentProblem("sigmoid_focal_loss with class weights needs compiled mmcv", _REMEDY)
    logits = input.float()
    classes = torch.arange(logits.shape[1], device=logits.device)
    positive = target[:, None] == classes[None, :]  # (N, C)
    logsigmoid = torch.nn.functional.logsigmoid
    return positive, logits.sigmoid(), logsigmoid(logits), logsigmoid(-logits)


_REMEDY = "use a detector of this project, or install mmcv 2.1.0 built with its operators"
_ANSWERED: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    )
}


class OperatorModule(types.ModuleType):
    """Stands in for `mmcv._ext`; mmcv looks up 112 names at import, and our detectors call five."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ANSWERED.get(name) or _missing(name)


def _missing(name: str) -> Callable[..., NoReturn]:
    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise EnvironmentProblem(
            f"the operator `{name}` of mmcv is not available without compilation", _REMEDY
        )

    operator.__name__ = name
    return operator


def install() -> str:
    """Register the stand-in unless compiled operators are there; idempotent.

    Returns:
        "compiled" or "torchvision": who answers.

    Raises:
        EnvironmentProblem: compiled operators are there, but built for another torch, CUDA or Python.
    """
    registered = sys.modules.get(NAME)
    if registered is None and importlib.util.find_spec(NAME) is None:
        registered = OperatorModule(NAME)
        # mmengine asks for the module with find_loader, which reads the spec
        registered.__spec__ = importlib.machinery.ModuleSpec(NAME, loader=None, origin="torchvision")
        sys.modules[NAME] = registered
    elif registered is None:
        try:
            importlib.import_module(NAME)
        except (ImportError, OSError) as problem:  # an undefined symbol, or a CUDA library that is not there
            raise EnvironmentProblem(
                f"mmcv's compiled operators do not load with torch {torch.__version__}: {problem}",
                "put mmcv-lite 2.1.0 in mmcv's place, whose operators torchvision answers, "
                "or an mmcv that is built for this torch and CUDA",
            ) from None
    return "torchvision" if isinstance(registered, OperatorModule) else "compiled"


ANSWERED_BY = install()
