"""Settings of the class-agnostic proposals: section `proposals` of params.yaml.

"Released" means the OLN-Box configuration of Kim et al. 2022 (configs/oln_box/oln_box.py of
object_localization_network) and, where source rpn is named, class_agn_faster_rcnn.py beside it.  The defaults
are those values, except where a small data set breaks them; the preset `paper` puts the released ones back,
`literal` also what the paper's text says against its code.

One file may describe a detector and try several sources.  Settings that the chosen one does not use count as
their defaults, which the log says: boxes are not made again because of them.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SettingsError, first_ten
from pipeline.settings import setting

LOG = logging.getLogger(__name__)
# Faster R-CNN has its own losses, always trains the anchors at the border, and always has RPN NMS.
OLN_ALONE = ("allowed_border", "neg_fill", "border_objects", "reg_bias", "normalize_by", "rpn_nms")
USED_WITHOUT_DETECTOR = {
    "gt-jitter": ("jitter", "keep"),
    "selective-search": ("search", "keep"),
    "import": (),
}


@dataclass(frozen=True)
class JitterSettings:
    """Source gt-jitter: boxes around the annotated ones."""

    per_object: int = setting(
        10, "copies of an object's box, the first of them the box itself: 1 gives plain ground truth", low=1
    )
    shift: float = setting(
        0.1, "the centre moves by up to this share of width and height; SoCo jitters by 10 %", low=0, high=1
    )
    log_scale: float = setting(
        0.1, "width and height are each multiplied by up to e to the plus or minus this", low=0, high=2
    )


@dataclass(frozen=True)
class SearchSettings:
    """Source selective-search: OpenCV contrib's segmentation, with its own parameters."""

    mode: Literal["fast", "quality"] = setting(
        "fast", "as DETReg; quality merges regions by more cues and finds more, several times slower"
    )
    height: int = setting(
        200,
        "images are resized to this height (DETReg: 128); 128, 200, 300 take 0.06, 0.2, 0.6 s an image, and "
        "lower ones lose small objects",
        low=32,
    )


@dataclass(frozen=True)
class ProposalsSettings:
    """Where boxes come from; size, losses, schedule and output of the detector that is trained for them."""

    source: Literal["oln", "rpn", "gt-jitter", "selective-search", "import"] = setting(
        "oln",
        "2DRCL, Sec. 3.1: boxes of a class-agnostic detector (its reference is OLN); rpn = a class-agnostic "
        "Faster R-CNN, trained alike; settings that a source does not use count as their defaults",
    )
    seen: str = setting(
        "all",
        "categories oln and rpn are trained on: all, voc (20 of COCO's 80: OLN's cross-category protocol) or "
        "a file of names, one a line; boxes are made for all images",
    )
    file: Path | None = setting(None, "the boxes of source import: JSON, Parquet, or a folder of Parquet")
    jitter: JitterSettings = setting(JitterSettings, "of source gt-jitter")
    search: SearchSettings = setting(SearchSettings, "of source selective-search")
    # --- the detector, of sources oln and rpn, and of no other
    depth: int = setting(50, "released: ResNet-50; 18 for small machines", choices=(18, 50, 101))
    stem_channels: int = setting(
        64, "released: ResNet's width; less only for demos without initial weights", choices=(16, 32, 64)
    )
    fpn_channels: int = setting(256, "released; also the width of the RPN", low=8)
    fc_channels: int = setting(1024, "released: width of the two box layers", low=8)
    norm: Literal["frozen-bn", "gn"] = setting(
        "gn", "released: frozen-bn, which needs `init`; GroupNorm trains from random weights"
    )
    init: Path | None = setting(None, "released: ImageNet weights of the trunk; none come with the project")
    allow_partial: tuple[str, ...] = setting((), "parts that `init` may lack, e.g. layer4")
    anchor_scale: float = setting(
        8.0,
        "released: one anchor per location, side 8 strides = 32 px and up; 4 where objects are < 16 px",
        low=1,
    )
    finest_scale: int = setting(
        56, "released: RoIs up to twice this side are pooled on P2; 14 for images of 160 px", low=1
    )
    # --- the losses, of source oln: those of rpn are Faster R-CNN's
    allowed_border: int = setting(
        0,
        "oln alone (rpn trains all); released: anchors that cross the border by more pixels are not trained; "
        "-1 trains all",
        low=-1,
    )
    neg_fill: bool = setting(
        True,
        "oln alone; released code: anchors with IoU < 0.1 and target 0 fill the 256 objectness samples up; "
        "false = the paper's text (no background), which finds less",
    )
    border_objects: bool = setting(
        True,
        "oln alone; released: false = objects that touch the left or top border of the view give no box loss "
        "(a check meant for distances looks at coordinates)",
    )
    reg_bias: float = setting(
        0.5,
        "oln alone; released: 0 = the first boxes are points, without overlap or gradient; 0.5 = the anchors "
        "themselves",
        low=0,
        high=1,
    )
    normalize_by: Literal["samples", "positives"] = setting(
        "positives",
        "oln alone; released: samples = all 256 anchors and 512 RoIs, so an image with one object hardly "
        "counts",
    )
    # --- the boxes between RPN and RoI head, and those that are kept
    rpn_nms: float | None = setting(
        0.7,
        "released: null = every RPN box goes on, 7,197 RoIs for 800 x 1216 px; source rpn always has 0.7",
        low=0,
        high=1,
    )
    rpn_max: int | None = setting(
        1000,
        "released: null = no cap (2000 in some revisions of the code and for source rpn); bounds memory "
        "(360 MB of RoI features an image)",
        low=1,
    )
    keep: int = setting(
        100,
        "per image, source import keeps all; released: 1500, for AR@1000 over unseen classes, while 2DRCL "
        "draws 8 good boxes",
        low=1,
    )
    nms_iou: float = setting(0.7, "released: class-agnostic NMS of the kept boxes", low=0, high=1)
    # --- the schedule
    epochs: int = setting(8, "released", low=1)
    milestones: tuple[int, ...] = setting((6, 7), "released: learning rate / 10 after these epochs", low=0)
    lr: float = setting(0.02, "released, for batch_size images per step", low=0)
    batch_size: int = setting(16, "released: 8 GPUs x 2 images", low=1)
    warmup_steps: int = setting(500, "released, from lr / 1000; see `warmup_of`", low=0)
    clip_norm: float | None = setting(
        35.0, "released: null; only a gradient that would ruin the run is that long", low=1e-3
    )
    short_side: int = setting(800, "released: images are scaled to this short side ...", low=32)
    long_side: int = setting(1333, "released: ... unless the long side would exceed this", low=32)

    def __post_init__(self) -> None:
        if self.source == "import" and self.file is None:
            raise SettingsError(
                "proposals.source is import, but proposals.file is not set",
                "name the JSON or Parquet of boxes, or the folder of Parquet files",
            )
        if self.source != "import" and self.file is not None:
            raise SettingsError(
                f"proposals.file is {self.file}, but proposals.source is {self.source}",
                "set proposals.source: import to read it, or remove proposals.file",
            )
        if self.seen != "all" and not self.is_trained:
            raise SettingsError(
                f"proposals.seen is {self.seen}, but source {self.source} trains no detector",
                "set proposals.source to oln or rpn, or proposals.seen: all",
            )
        self._reset_unused()

    def _reset_unused(self) -> None:
        """Give what the source does not use its default: it decides nothing, so no fingerprint may see it."""
        unused = []
        for field in dataclasses.fields(self):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if not self._uses(field.name) and getattr(self, field.name) != default:
                object.__setattr__(self, field.name, default)
                unused.append(field.name)
        if unused:
            LOG.info("proposals: source %s does not use %s", self.source, first_ten(unused))

    def _uses(self, name: str) -> bool:
        if name in ("source", "seen", "file"):  # refused above where they do not fit
            return True
        if not self.is_trained:
            return name in USED_WITHOUT_DETECTOR[self.source]
        return name not in ("jitter", "search") and (self.source == "oln" or name not in OLN_ALONE)

    @property
    def is_trained(self) -> bool:
        """Whether the source is a detector, which has to be trained first."""
        return self.source in ("oln", "rpn")

    def warmup_of(self, num_steps: int) -> int:
        """Warm-up steps of a run of `num_steps`: a few hundred images would never leave 500 of them."""
        return min(self.warmup_steps, num_steps // 10)


RELEASED: dict[str, Any] = {
    "depth": 50,
    "fpn_channels": 256,
    "fc_channels": 1024,
    "norm": "frozen-bn",
    "anchor_scale": 8.0,
    "finest_scale": 56,
    "allowed_border": 0,
    "neg_fill": True,
    "border_objects": False,
    "reg_bias": 0.0,
    "normalize_by": "samples",
    "rpn_nms": None,
    "rpn_max": None,
    "keep": 1500,
    "nms_iou": 0.7,
    "epochs": 8,
    "milestones": [6, 7],
    "lr": 0.02,
    "batch_size": 16,
    "warmup_steps": 500,
    "clip_norm": None,
    "short_side": 800,
    "long_side": 1333,
}
# Kim et al. 2022, Sec. 3.1: no background anchors in the training of the objectness.
PRESETS: dict[str, dict[str, Any]] = {"paper": RELEASED, "literal": {**RELEASED, "neg_fill": False}}
