"""Settings of the class-agnostic proposals: section `proposals` of params.yaml.

"Released" means the OLN-Box configuration of Kim et al. 2022 (configs/oln_box/oln_box.py of
object_localization_network).  The defaults are those values, except where a small data set breaks them; the
preset `paper` puts the released ones back.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.settings import setting


@dataclass(frozen=True)
class ProposalsSettings:
    """Size, losses, schedule and output of OLN."""

    source: Literal["oln"] = setting("oln", "2DRCL, Sec. 3.1: boxes of a class-agnostic detector")
    # --- the detector
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
    # --- the losses
    allowed_border: int = setting(
        0, "released: anchors that cross the border by more pixels are not trained; -1 trains all", low=-1
    )
    neg_fill: bool = setting(
        True,
        "released code: anchors with IoU < 0.1 and target 0 fill the 256 objectness samples up; false = the "
        "paper's text (no background), which finds less",
    )
    normalize_by: Literal["samples", "positives"] = setting(
        "positives",
        "released: samples = all 256 anchors and 512 RoIs, so an image with one object hardly counts",
    )
    # --- the boxes between RPN and RoI head, and those that are kept
    rpn_nms: float | None = setting(
        0.7, "released: null = every RPN box goes on, 7,197 RoIs for 800 x 1216 px", low=0, high=1
    )
    rpn_max: int | None = setting(
        1000, "released: null = no cap; bounds memory (360 MB of RoI features an image) and time", low=1
    )
    keep: int = setting(
        100,
        "per image; released: 1500, for AR@1000 over unseen classes, while 2DRCL draws 8 good boxes",
        low=1,
    )
    nms_iou: float = setting(0.7, "released: class-agnostic NMS of the kept boxes", low=0, high=1)
    # --- the schedule
    epochs: int = setting(8, "released", low=1)
    milestones: tuple[int, ...] = setting((6, 7), "released: learning rate / 10 after these epochs", low=0)
    lr: float = setting(0.02, "released, for batch_size images per step", low=0)
    batch_size: int = setting(16, "released: 8 GPUs x 2 images", low=1)
    warmup_steps: int = setting(500, "released, from lr / 1000; see `warmup_of`", low=0)
    short_side: int = setting(800, "released: images are scaled to this short side ...", low=32)
    long_side: int = setting(1333, "released: ... unless the long side would exceed this", low=32)

    def warmup_of(self, num_steps: int) -> int:
        """Warm-up steps of a run of `num_steps`: a few hundred images would never leave 500 of them."""
        return min(self.warmup_steps, num_steps // 10)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "depth": 50,
        "fpn_channels": 256,
        "fc_channels": 1024,
        "norm": "frozen-bn",
        "anchor_scale": 8.0,
        "finest_scale": 56,
        "allowed_border": 0,
        "neg_fill": True,
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
        "short_side": 800,
        "long_side": 1333,
    },
}
