"""The settings of `evaluate`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SettingsError
from pipeline.settings import setting


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions or proposals are scored.  Boxes and masks themselves come from files."""

    protocol: str = setting(
        "auto",
        "auto: lvis where the annotations carry LVIS's federated fields, else coco; lvis-fixed: lvis with "
        "10,000 detections a category instead of 300 an image; coco-lt: coco with AP1 to AP4 by training "
        "instances; proposals: the average recall of class-agnostic boxes instead",
        choices=("auto", "lvis", "lvis-fixed", "coco", "coco-lt", "proposals"),
    )
    max_detections: int | Literal["auto"] = setting(
        "auto",
        "auto: the protocol's own, 300 an image (lvis), 10,000 a category (lvis-fixed) or 100 an image and "
        "category (coco)",
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
    engine: str = setting(
        "fast",
        "fast: ours, equal to the official ones in 1/20 of the time; official: pycocotools and lvis-api",
        choices=("fast", "official"),
    )
    bootstrap: int = setting(
        0, "resamples of the images for intervals.json, e.g. 1000; 0: no intervals", low=0, high=100_000
    )

    def __post_init__(self) -> None:
        if self.bootstrap and self.engine == "official":
            raise SettingsError(
                f"evaluate.bootstrap is {self.bootstrap}, but the official engine cannot weigh images",
                "take the fast engine, whose numbers are the same",
            )
