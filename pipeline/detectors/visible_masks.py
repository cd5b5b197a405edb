"""Polygons of which parts are hidden by others: what is before an object is taken from its mask target."""

from typing import Any

import numpy as np
from mmdet.structures.mask import BitmapMasks, PolygonMasks


class VisibleMasks(PolygonMasks):
    """MMDetection's polygons, cut per RoI from what is seen of them.

    Args:
        masks: n lists of flat [x, y, ...] arrays in view pixels.
        hidden: n lists of polygons that lie before each object; what they cover is not seen.
        height, width: of the view.
    """

    def __init__(
        self, masks: list[list[np.ndarray]], hidden: list[list[np.ndarray]], height: int, width: int
    ) -> None:
        super().__init__(masks, height, width)
        self.hidden = hidden

    def crop_and_resize(self, bboxes: np.ndarray, out_shape: Any, inds: np.ndarray, **kwargs: Any) -> Any:
        """(R, 4) boxes, of the objects `inds` (R,) -> R bitmaps of `out_shape`."""
        height, width = out_shape
        seen = super().crop_and_resize(bboxes, out_shape, inds, **kwargs).to_ndarray()
        hidden = [self.hidden[i] for i in np.asarray(inds).tolist()]
        rows = [row for row, polygons in enumerate(hidden) if polygons]
        before = PolygonMasks([hidden[row] for row in rows], self.height, self.width)
        cut = before.crop_and_resize(bboxes[rows], out_shape, np.arange(len(rows)), **kwargs)
        seen[rows] &= ~cut.to_ndarray().astype(bool)
        return BitmapMasks(seen, height, width)
