"""The smallest real ATSS (R18, FPN of 32, 4 classes) and images of noise for it."""

from typing import Any

import numpy as np
from torch import nn

import pipeline.finetune  # noqa: F401  registers the losses
from pipeline.data.single_view import ViewSample
from pipeline.data.targets import Target
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import method_on
from pipeline.settings import build

CLASSES = 4
CANVAS_WH = (96, 64)
COUNTS = ClassCounts(image_counts=[40, 2, 9, 1], instance_counts=[90, 2, 20, 1], num_images=50)
SIZES = {
    "type": "atss",
    "depth": 18,
    "stem_channels": 16,
    "norm": "gn",
    "fpn_channels": 32,
    "fc_channels": 24,
    "anchor_scale": 4,
    "finest_scale": 14,
}


def settings(**changes: Any) -> DetectorSettings:
    return build(DetectorSettings, {**SIZES, **changes}, "detector")


def config(method: str = "focal", **changes: Any) -> dict[str, Any]:
    """As it is published."""
    head = method_on(method, "atss").bbox_head(CLASSES, COUNTS)
    return model_config(settings(**changes), CLASSES, box_head=head)


def detector(method: str = "focal", **changes: Any) -> nn.Module:
    """As it is trained."""
    return build_model(training_config(config(method, **changes)), seed=1).train()


def target(boxes: list[list[float]], labels: list[int], size_wh: tuple[int, int] = CANVAS_WH) -> Target:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Target(array, np.array(labels, np.int64), size_wh, key=0)


ONE_OBJECT = target([[5, 6, 40, 50]], [1])
TWO_OBJECTS = target([[5, 6, 40, 50], [50, 10, 90, 60]], [0, 3])
SMALL_IMAGE = target([[2, 2, 30, 20]], [2], (40, 30))
NOTHING = target([], [])


def sample(annotated: Target, seed: int) -> ViewSample:
    width, height = annotated.size_wh
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ViewSample(CANVAS_WH, image, annotated)
