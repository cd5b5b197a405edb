"""How good a box is, without asking what is in it: OLN's targets and score (Kim et al. 2022, Sec. 3).

Shapes: N boxes, xyxy in pixels.
"""

import torch
from torch import Tensor


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the centre of each anchor lies in its box: the objectness target of the RPN.

    sqrt( min(l, r) / max(l, r) * min(t, b) / max(t, b) ), with l, r, t, b the distances from the centre of
    the anchor to the four sides.  Official code: mmdet/models/dense_heads/oln_rpn_head.py.

    Args:
        anchors: (N, 4) of positive size.
        boxes: (N, 4), the object assigned to each anchor.

    Returns:
        (N,) in [0, 1]; 0 where the centre lies outside the box or the box is empty.
    """
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2  # (N, 2)
    before = (centre - boxes[:, :2]).clamp(min=0)  # (N, 2) left, top
    after = (boxes[:, 2:] - centre).clamp(min=0)  # (N, 2) right, bottom
    longer = torch.maximum(before, after)
    smallest = torch.finfo(longer.dtype).tiny  # an empty box: 0 / tiny, not 0 / 0
    ratio = torch.minimum(before, after) / longer.clamp(min=smallest)
    return ratio.prod(dim=1).sqrt()  # (N, 2) -> (N,)


def fuse(objectness: Tensor, overlap: Tensor) -> Tensor:
    """The score of a proposal: geometric mean of centerness (RPN) and IoU (RoI head), both in [0, 1]."""
    return (objectness * overlap).sqrt()
