"""What the second stages of LOCE and BACL share: boxes around objects, classes drawn by weakness.

Both keep what they know of a class from boxes jittered around its objects (official: fcjian/LOCE,
mmdet/models/utils/mfs.py; Tianhao-Qi/BACL, mmdet/models/utils/bbox_generator.py), and give the classes that
do badly more of it.

G = objects, C = foreground classes.
"""

import itertools

import torch
from torch import Tensor

NUM_JITTERED = 16  # the corners of a box move outwards or inwards: 2^4 combinations of signs
LARGEST_SHIFT = 1 / 6  # of the box's width and height


def jittered_boxes(boxes: Tensor, uniform: Tensor, image_wh: tuple[float, float]) -> Tensor:
    """Every object's box with its sides moved by up to a sixth of its size, in all combinations of signs.

    The official code draws one set of lengths for all objects of an image; `uniform` of 1 row does the same.

    Args:
        boxes: (G, 4) xyxy in pixels; uniform: (G, 64) or (1, 64) numbers in [0, 1).
        image_wh: width and height that the boxes are clipped to.

    Returns:
        (G, 16, 4) xyxy.
    """
    signs = boxes.new_tensor(list(itertools.product((-1, 1), repeat=4)))  # (16, 4)
    lengths = uniform.to(boxes.dtype).reshape(-1, NUM_JITTERED, 4)  # (G, 64) -> (G, 16, 4)
    sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # (G, 2) -> (G, 4)
    moved = boxes[:, None] + LARGEST_SHIFT * signs * lengths * sizes[:, None]
    limits = boxes.new_tensor(image_wh).repeat(2)  # (2) -> (4)
    return torch.minimum(moved.clamp(min=0), limits)


def draw_classes(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw classes with replacement, each with a probability proportional to its weight.

    Args:
        weights: (C,) from 0 on; all 0 counts as all alike.
        uniform: (K,) numbers in [0, 1).

    Returns:
        (K,) int64 in 0..C-1.
    """
    weights = weights.double()
    bounds = torch.where(weights.sum() > 0, weights, 1.0).cumsum(dim=0)
    chosen = torch.searchsorted(bounds, uniform.double() * bounds[-1], right=True)
    return chosen.clamp(max=len(weights) - 1)  # u * sum may round up to the sum
