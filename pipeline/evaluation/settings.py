"""The settings of `evaluate`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.settings import setting


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions are scored.  Boxes and masks themselves come from the predictions file."""

    protocol: str = setting(
        "auto",
        "auto: lvis where the annotations carry LVIS's federated fields, else coco",
        choices=("auto", "lvis", "coco"),
    )
    max_detections: int | Literal["auto"] = setting(
        "auto",
        "auto: the protocol's own, 300 an image (lvis) or 100 an image and category (coco)",
        low=1,
    )
    masks: str = setting(
        "auto",
        "auto: masks are scored too where predictions and annotations have them; never: boxes only",
        choices=("auto", "never"),
    )
