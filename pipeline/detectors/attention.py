"""Where a detector looks (Fig. 3): class activation maps of one layer, without any extra training.

Grad-CAM (Selvaraju et al., ICCV 2017): the logit of a category, asked of the annotated boxes themselves, so
that it exists where the detector misses the object; its gradient, averaged over the layer's map, weighs the
channels.  One-stage detectors: the largest logit inside each box, over all levels.  Eigen-CAM (Muhammad and
Yeasin, IJCNN 2020): the first principal component of the layer's channels, whatever the category; its sign,
which a decomposition leaves open, is that which agrees with the mean activation.

Shapes: K channels of the layer, h x w its cells, H x W the stored image, n objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from pipeline.data.annotations import Annotations
from pipeline.detectors.inference_views import View, view_of
from pipeline.errors import UsageError

BACKBONE, NECK = ("c2", "c3", "c4", "c5"), ("p2", "p3", "p4", "p5")


@dataclass(frozen=True)
class Attention:
    """Maps of one detector.

    model: of MMDetection, in eval mode on `device`.  annotations, images, test_wh: as for
    `pipeline.detectors.inference.detect`.  method: grad-cam or eigen-cam.  layer: c2 to c5 of the backbone,
    or p2 to p5 of the neck.
    """

    model: Any
    annotations: Annotations
    images: Path
    test_wh: tuple[int, int]
    device: torch.device
    method: str
    layer: str

    def map(self, position: int, label: int, boxes: np.ndarray) -> np.ndarray:
        """The map of one image, (H, W) float32 from 0 on, in the layer's own units.

        Args:
            position: of the image.
            label: the category that grad-cam asks for.
            boxes: (n, 4) xyxy, where it asks.

        Raises:
            MissingInput, InputError: the image is absent, damaged or of another size than annotated.
            UsageError: the detector has no such layer.
        """
        view = view_of(self.annotations, self.images, self.test_wh, position, self.device)
        with torch.enable_grad():
            trunk = tuple(level.requires_grad_() for level in _frozen(self.model.backbone, view.batch))
            pyramid = tuple(self.model.neck(trunk))
            is_trunk = self.layer in BACKBONE
            maps = trunk[BACKBONE.index(self.layer)] if is_trunk else _level(trunk, pyramid, self.layer)
            if self.method == "eigen-cam":
                cells = eigen_cam(maps.detach()[0])
            else:
                asked = torch.from_numpy(boxes).to(self.device) * _scale(view).to(self.device)
                logits = _class_logits(self.model, pyramid, asked, label, view)
                (gradient,) = torch.autograd.grad(logits.sum(), maps)
                cells = grad_cam(maps.detach()[0], gradient[0])
        return _in_stored_pixels(cells, view)


def grad_cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """ReLU of the channels weighed by their mean gradient: (K, h, w) twice -> (h, w)."""
    weights = gradient.mean(dim=(1, 2))  # (K, h, w) -> (K)
    return torch.relu(torch.einsum("k,khw->hw", weights, maps))


def eigen_cam(maps: Tensor) -> Tensor:
    """ReLU of the projection on the first principal component: (K, h, w) -> (h, w)."""
    rows = maps.flatten(1).T.double()  # (K, h, w) -> (h w, K)
    rows = rows - rows.mean(dim=0)
    is_flat = len(rows) < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if is_flat else rows.T @ rows)  # the smaller one
    projection = vectors[:, -1] * values[-1].clamp(min=0).sqrt() if is_flat else rows @ vectors[:, -1]
    mean = maps.abs().mean(dim=0).flatten().double()
    if (projection * (mean - mean.mean())).sum() < 0:
        projection = -projection
    return torch.relu(projection).reshape(maps.shape[1:]).float()


def _frozen(backbone: nn.Module, batch: Tensor) -> Sequence[Tensor]:
    """C2..C5 as leaves: no map needs the gradient of an earlier layer."""
    with torch.no_grad():
        return tuple(backbone(batch))


def _level(trunk: Sequence[Tensor], pyramid: Sequence[Tensor], layer: str) -> Tensor:
    """A pyramid level by its stride: not every neck begins at P2."""
    wanted = trunk[NECK.index(layer)].shape[-2:]
    found = [level for level in pyramid if level.shape[-2:] == wanted]
    if not found:
        raise UsageError(
            f"analyze.attention.layer is {layer}, but the detector's neck begins above it",
            "name a coarser level, or one of the backbone",
        )
    return found[0]


def _class_logits(model: Any, pyramid: tuple[Tensor, ...], boxes: Tensor, label: int, view: View) -> Tensor:
    """(n,) the category's logit at each box of the canvas."""
    if not hasattr(model, "roi_head"):
        return _dense_logits(model.bbox_head(pyramid)[0], boxes, label, view)
    rows = model.roi_head._bbox_forward(pyramid, bbox2roi([boxes]))["cls_score"]
    loss = model.roi_head.bbox_head.loss_cls
    if hasattr(loss, "split_logits"):  # ours: columns need not be in the order of the labels
        rows = loss.split_logits(rows)[0]
    return rows[:, label]


def _dense_logits(levels: Sequence[Tensor], boxes: Tensor, label: int, view: View) -> Tensor:
    """(n,) the largest logit among the cells whose centre lies in the box, else of the nearest cell."""
    points, logits = [], []
    for level in levels:  # (1, C, h, w)
        height, width = level.shape[-2:]
        x = (torch.arange(width, device=boxes.device) + 0.5) * view.batch.shape[-1] / width
        y = (torch.arange(height, device=boxes.device) + 0.5) * view.batch.shape[-2] / height
        points.append(torch.cartesian_prod(y, x).flip(1))  # (h w, 2) as x, y
        logits.append(level[0, label].flatten())
    xy, values = torch.cat(points), torch.cat(logits)
    outside = torch.maximum(boxes[:, None, :2] - xy, xy - boxes[:, None, 2:]).amax(dim=2)  # (n, cells)
    inside = outside <= outside.amin(dim=1, keepdim=True).clamp(min=0)
    return torch.where(inside, values, values.new_tensor(-torch.inf)).amax(dim=1)


def _scale(view: View) -> Tensor:
    """(4,) stored pixels -> pixels of the view."""
    return torch.tensor([view.view_wh[0] / view.stored_wh[0], view.view_wh[1] / view.stored_wh[1]]).repeat(2)


def _in_stored_pixels(cells: Tensor, view: View) -> np.ndarray:
    """(h, w) of the padded canvas -> (H, W) of the stored image."""
    canvas = F.interpolate(cells[None, None], view.batch.shape[-2:], mode="bilinear", align_corners=False)
    width, height = view.view_wh
    size = (view.stored_wh[1], view.stored_wh[0])
    stored = F.interpolate(canvas[..., :height, :width], size, mode="bilinear", align_corners=False)
    return stored[0, 0].cpu().numpy().astype(np.float32)
