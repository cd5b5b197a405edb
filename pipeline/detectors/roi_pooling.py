"""RoIAlign of each box on its own pyramid level, without asking the device which level that is.

MMDetection's extractor lists the boxes of a level with `nonzero`, whose length the host must wait for: four
times a call.  Here every level sees all boxes, those of other levels as empty ones, which RoIAlign takes no
sample for; what is kept of each level is chosen on the device.

Shapes: R boxes, C channels, h x w cells.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pooled(extractor: Any, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
    """What MMDetection's SingleRoIExtractor answers, to the bit: (R, C, h, w).

    Args:
        extractor: SingleRoIExtractor whose RoIAlign is `aligned` (an empty box has no cell of one pixel).
        pyramid: its levels, finest first, (B, C, H_l, W_l) each.
        rois: (R, 5) batch index and xyxy in pixels.
    """
    levels = extractor.map_roi_levels(rois, len(pyramid))[:, None]  # (R, 1)
    empty = torch.cat([rois[:, :1], torch.zeros_like(rois[:, 1:])], dim=1)  # of the same image
    features = None
    for level, (layer, maps) in enumerate(zip(extractor.roi_layers, pyramid, strict=True)):
        here = levels == level
        of_level = layer(maps, torch.where(here, rois, empty))
        chosen = here[:, :, None, None]  # (R, 1) -> (R, 1, 1, 1)
        features = of_level if features is None else torch.where(chosen, of_level, features)
    assert features is not None
    return features
