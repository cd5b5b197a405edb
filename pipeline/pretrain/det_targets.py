"""What L_det of eq. 8 learns from: "the loss of object detection", of which the paper says no more.

    categories   the annotations with their categories
    objects      the annotations, all of one category: where things are, not what
    proposals    the proposals of one category, in place of annotations: no label is used (AlignDet)

No L_det at all: leave `det` out of `pretrain.terms`.
"""

from dataclasses import replace

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.data.targets import MIN_SIDE, Target, target_of
from pipeline.data.views import Geometry
from pipeline.pretrain.settings import DetTargets

MIN_VISIBLE = 0.5  # of a proposal: what a crop leaves of others is a box around no object


def class_names(kind: DetTargets, annotations: Annotations) -> list[str]:
    """Names of the detector's categories."""
    return list(annotations.category_names) if kind == "categories" else ["object"]


def det_target(
    kind: DetTargets,
    annotations: Annotations,
    image: int,
    geometry: Geometry,
    key: int,
    proposals: np.ndarray,
    *,
    with_polygons: bool,
) -> Target:
    """The target of one view.

    Args:
        kind: see the module.
        annotations, image, geometry, key, with_polygons: as `pipeline.data.targets.target_of` takes them.
        proposals: (n, 4) xyxy in stored pixels.
    """
    if kind == "proposals":
        boxes, visible = geometry.map_boxes(proposals)
        kept = (visible >= MIN_VISIBLE) & (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
        return Target(boxes[kept], np.zeros(int(kept.sum()), dtype=np.int64), geometry.size_wh, key)
    target = target_of(annotations, image, geometry, key, with_polygons)
    return target if kind == "categories" else replace(target, labels=np.zeros_like(target.labels))
