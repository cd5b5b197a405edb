"""Settings of `2drcl pretrain`.  Where the paper is silent the line says so, and why we chose this."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data.photometric_draws import PhotometricSettings
from pipeline.engine.schedule import NAMED
from pipeline.errors import SettingsError
from pipeline.pretrain.objective import TERMS, ObjectiveWeights
from pipeline.settings import setting


@dataclass(frozen=True)
class ContrastSettings:
    """HCL and LCL (Sec. 3.1)."""

    temperature: float = setting(0.2, "paper, Sec. 3.1.1", low=1e-3)
    momentum: float = setting(0.999, "paper: 'the same EMA strategy as MoCo', constant 0.999", low=0, high=1)
    momentum_schedule: Literal["constant", "cosine"] = setting(
        "constant", "paper: MoCo's; cosine: rises to 1 over the run (BYOL, AlignDet)"
    )
    hidden: int = setting(256, "paper, A.1", low=8)
    width: int = setting(256, "paper, A.1", low=8)
    queue: int | Literal["auto"] = setting(
        "auto",
        "paper: 65,536 images; auto: largest power of two up to half an epoch's keys, at most that",
        low=1,
    )
    local_queue: int | Literal["auto"] = setting(
        "auto", "paper: K again, taken as 65,536 proposals; auto as above with `boxes` keys per image", low=1
    )
    norm: Literal["batch", "none"] = setting(
        "batch", "paper silent: of the hidden layers, over all processes; none: as MoCo v2's own head"
    )
    mask_same_image: bool = setting(
        True,
        "paper: negatives are 'within other unrelated images'; tail images would meet their older keys",
    )
    predictor: bool = setting(True, "paper: A.1 has a prediction network, eq. 1 has none; on the query only")
    boxes: int = setting(8, "paper, A.1: 8 boxes per image", low=1)
    candidates: int = setting(100, "paper silent: the boxes are drawn among this many best proposals", low=1)
    choose: Literal["uniform", "best"] = setting(
        "uniform", "paper, A.1: 'randomly select'; best: the highest scores, whatever the draw"
    )
    min_visible: float = setting(0.5, "paper silent: share of a box that both views must show", low=0, high=1)
    min_side: float = setting(16.0, "paper silent: shortest side in both views, pixels", low=1)


LEVELS = ("c2", "c3", "c4", "c5")
DetTargets = Literal["categories", "objects", "proposals"]  # see det_targets


@dataclass(frozen=True)
class ReconstructionSettings:
    """AR and SR (Sec. 3.3)."""

    mask_fraction: float = setting(0.25, "paper, Sec. 3.3.3: of each selected proposal", low=0, high=1)
    mask_shape: Literal["rectangle", "square", "proposal"] = setting(
        "rectangle",
        "paper silent: with nearly the box's proportions; square: as far as it fits (SoCo); proposal: that "
        "share of the proposals is hidden whole",
    )
    levels: tuple[str, ...] = setting(
        LEVELS,
        "paper: 'multiple layers': all that the backbone has; fewer to see what each brings",
        choices=LEVELS,
    )
    second_pass: Literal["frozen", "trained"] = setting(
        "frozen",
        "paper: the masked image is 're-encoded by the encoder', no gradient named; frozen: its weights are "
        "constants there, and SR teaches f through g, as a perceptual loss does; trained, `preset: literal`: "
        "f also learns from what g paints, which in short trainings is no image yet and costs much AP",
    )
    detach_target: bool = setting(
        True, "paper: eq. 6 has no stop-gradient; without it features can shrink to satisfy the loss"
    )
    scale: Literal["full", "half"] = setting(
        "full",
        "paper silent: the generator reaches half size; `half` runs AR and SR there, 17 % less arithmetic",
    )

    def __post_init__(self) -> None:
        if not self.levels:
            raise SettingsError("pretrain.reconstruction.levels is empty", "leave sr out of pretrain.terms")


@dataclass(frozen=True)
class ViewSettings:
    """The two views of an image."""

    short_sides: tuple[int, ...] = setting(
        (640, 672, 704, 736, 768, 800),
        "paper silent: detection scale, as fine-tuning (24 GB cards, 2 images)",
        low=32,
    )
    long_side: int = setting(1333, "MMDetection", low=32)
    crop: tuple[float, float] = setting(
        (0.5, 1.0), "paper silent: share of each side; smaller crops lose the boxes", low=0.05, high=1
    )
    flip: float = setting(0.5, "MoCo v2", low=0, high=1)
    photometric: PhotometricSettings = setting(PhotometricSettings)
    query_colours: Literal["same", "mild", "none"] = setting(
        "same",
        "paper: each view is augmented; L_det and AR see the query: mild has half the jitter alone",
    )

    def __post_init__(self) -> None:
        if not self.short_sides:
            raise SettingsError("pretrain.views.short_sides is empty", "give at least one length in pixels")
        if self.crop[0] > self.crop[1]:
            raise SettingsError(
                f"pretrain.views.crop must be [smallest, largest], but it is {list(self.crop)}",
                f"write {sorted(self.crop)}",
            )


@dataclass(frozen=True)
class PretrainSettings:
    """The whole stage."""

    init: str | None = setting(
        None,
        "torchvision ResNet file for the backbone (the paper's start), a detector of MMDetection, detectron2 "
        "or an earlier run; null: random weights",
    )
    allow_partial: tuple[str, ...] = setting((), "parts that file may lack, e.g. layer4")
    sampler: Literal["drb", "rfs", "irfs", "random"] = setting("drb", "paper, Sec. 3.2: eq. 4")
    terms: tuple[str, ...] = setting(
        TERMS, "paper, eq. 8: all; leave some out for the rows of Table 5", choices=TERMS
    )
    det_targets: DetTargets = setting(
        "categories",
        "paper silent: L_det has the data set's labels (DRB needs them too); objects: one category for all; "
        "proposals: no labels, as AlignDet",
    )
    mask_loss: bool = setting(
        False, "paper: L_det is 'the loss of object detection'; true adds Mask R-CNN's mask loss"
    )
    epochs: int = setting(
        12, "paper, Sec. 4.1: 1x; a number, or 1x, 2x, 3x, 4x for 12, 24, 36, 48", low=1, names=NAMED
    )
    milestones: tuple[int, ...] | Literal["auto"] = setting(
        "auto",
        "paper, Sec. 4.1: the rate drops by ten after epochs 8 and 11 of 12; auto: also 4, 5 of 6; 16, 22 of "
        "24; 28, 34 of 36; 40, 46 of 48; else 2/3 and 11/12",
        low=1,
    )
    batch_size: int = setting(16, "paper, Sec. 4.1: global, over all processes", low=1)
    accumulate: int = setting(
        1,
        "parts that a process's share of the batch is computed in, one after another, where it does not fit; "
        "losses, gradients and queues are those of the whole, but batch norm of the projectors and L_det's "
        "normalisers are of a part: `contrast.norm: none` has no such statistics",
        low=1,
    )
    lr: float = setting(0.02, "paper, Sec. 4.1: for the global batch", low=0)
    sgd_momentum: float = setting(0.9, "MMDetection", low=0, high=1)
    weight_decay: float = setting(1e-4, "MMDetection", low=0)
    warmup_steps: int = setting(500, "MMDetection", low=0)
    clip_norm: float | None = setting(
        None, "MMDetection: no clipping; a largest gradient norm otherwise", low=0
    )
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16: trunk, FPN and generator only")
    objective: ObjectiveWeights = setting(ObjectiveWeights)
    contrast: ContrastSettings = setting(ContrastSettings)
    reconstruction: ReconstructionSettings = setting(ReconstructionSettings)
    views: ViewSettings = setting(ViewSettings)

    def __post_init__(self) -> None:
        if not self.terms:
            raise SettingsError(
                "pretrain.terms is empty: there is nothing to learn", f"keep some of {', '.join(TERMS)}"
            )
        if self.mask_loss and self.det_targets == "proposals":
            raise SettingsError(
                "pretrain.mask_loss needs polygons, and det_targets: proposals has none",
                "set det_targets: objects, or mask_loss: false",
            )


_PAPER: dict[str, Any] = {"contrast": {"queue": 65536, "local_queue": 65536}}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    # eq. 1, 2 and 6 as printed
    "literal": {
        "contrast": {**_PAPER["contrast"], "mask_same_image": False, "predictor": False},
        "reconstruction": {"detach_target": False, "second_pass": "trained"},
    },
}


def resolve_queue(queue: int | Literal["auto"], keys_per_epoch: int) -> int:
    """Length of a queue: `auto` is the largest power of two up to half an epoch's keys, in [1, 65,536]."""
    if queue != "auto":
        return int(queue)
    half = max(1, keys_per_epoch // 2)
    return min(65536, 1 << (half.bit_length() - 1))
