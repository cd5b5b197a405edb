"""The settings of `evaluate`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.settings import setting


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions or proposals are scored.  Boxes and masks themselves come from files."""

    protocol: str = setting(
        "auto",
        "auto: lvis where the annotations carry LVIS's federated fields, else coco; proposals: the average "
        "recall of class-agnostic boxes instead",
        choices=("auto", "lvis", "coco", "proposals"),
    )
    max_detections: int | Literal["auto"] = setting(
        "auto",
        "auto: the protocol's own, 300 an image (lvis) or 100 an image and category (coco)",
        low=1,
    )
    seen: str = setting(
        "none",
        "protocol proposals: categories that the proposals were trained on, whose objects neither count nor "
        "use up the budget (OLN): none, voc, or a file of names, one a line",
    )
    masks: str = setting(
        "auto",
        "auto: masks are scored too where predictions and annotations have them; never: boxes only",
        choices=("auto", "never"),
    )
