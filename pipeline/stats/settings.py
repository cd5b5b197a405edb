"""Settings of the statistics and of the sampler that they feed (Sec. 3.2): what papers leave open."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import SettingsError
from pipeline.settings import setting


@dataclass(frozen=True)
class StatsSettings:
    """Section `stats` of params.yaml."""

    threshold: float | Literal["auto"] = setting(
        "auto",
        "t of r = max(1, sqrt(t / f)); auto = 100 / images, because the paper's 0.001 means 100 of LVIS's "
        "100,000 images; on small data 0.001 repeats nothing",
        low=1e-12,
    )
    denominator: Literal["annotated", "all"] = setting(
        "annotated",
        "images that f_im is a share of; the paper says the entire dataset, LVIS tools leave out empty ones",
    )
    instances: Literal["annotations", "proposals"] = setting(
        "annotations",
        "what f_in counts; the paper says object proposals associated with a category, IRFS and the authors' "
        "early code count annotated boxes; proposals = those with IoU >= 0.5 to a box",
    )
    irfs_mean: Literal["geometric", "harmonic", "arithmetic"] = setting(
        "geometric", "of f_im and f_in in IRFS; its own is geometric, the others are its ablations"
    )
    first_epoch: int = setting(
        0, "T of the first epoch in alpha = T / T_max: 0 starts as RFS, 1 ends at alpha = 1", low=0, high=1
    )
    progress_max: float = setting(
        1.0,
        "T / T_max goes no further; eq. 4 has no limit, the authors' early code stops at 0.5",
        low=0,
        high=1,
    )
    direction: Literal["to-instances", "to-images"] = setting(
        "to-instances",
        "eq. 4 as printed moves from f_im to f_in; the authors' early code moves back: alpha = 1 - T / T_max",
    )
    floor: int = setting(
        1,
        "smallest factor; 0, as in the authors' early code, may leave out images of frequent categories",
        low=0,
        high=1,
    )
    max_factor: float | None = setting(
        None,
        "largest factor; no paper has one; eq. 4 ends by drawing one-box categories 36 times on LVIS",
        low=1,
    )
    root: bool = setting(True, "false: r = t / f, which detectron2 offers (REPEAT_SQRT)")
    rounding: Literal["stochastic", "ceil"] = setting(
        "stochastic",
        "copies of an image: expected copies equal r (LVIS, detectron2); ceil as in mmengine over-samples",
    )
    length: Literal["growing", "fixed", "images"] = setting(
        "growing",
        "draws of an epoch: growing, the sum of the factors, as eq. 4 implies; fixed, that sum in the first "
        "epoch, in all of them; images, one per image; the last two keep copies proportional to the factors",
    )

    def __post_init__(self) -> None:
        if self.rounding == "ceil" and self.length != "growing":
            raise SettingsError(
                f"stats.rounding is ceil, but stats.length is {self.length}: rounding up changes the length",
                "set stats.rounding: stochastic, or stats.length: growing",
            )


def resolve_threshold(threshold: float | Literal["auto"], num_images: int) -> float:
    """The number behind `threshold`.

    Args:
        threshold: t, or "auto" for 100 / num_images: categories in fewer than 100 images are repeated.
        num_images: the images that f_image is a share of (`CategoryFrequencies.num_images`), at least 1.

    Raises:
        ValueError: no images.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, but it is {num_images}")
    return 100 / num_images if threshold == "auto" else threshold


# Every preset names all the keys on which the sources differ, so that a changed default does not change it.
_AS_PRINTED: dict[str, Any] = {
    "threshold": 0.001,
    "denominator": "annotated",
    "instances": "annotations",
    "first_epoch": 0,
    "direction": "to-instances",
    "progress_max": 1.0,
    "floor": 1,
    "root": True,
    "rounding": "stochastic",
    "length": "growing",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _AS_PRINTED,
    "literal": _AS_PRINTED,
    # mmengine/dataset/dataset_wrapper.py ClassBalancedDataset(oversample_thr=1e-3): every image ceil(r) times
    "mmdet": {**_AS_PRINTED, "rounding": "ceil"},
    # detectron2/data/samplers/distributed_sampler.py RepeatFactorTrainingSampler, REPEAT_THRESHOLD 0.001
    "detectron2": _AS_PRINTED,
    # LT-pretrain, MultiViewDataset: eq. 4 backwards and half way, factors below 1 kept.  Its images without a
    # copy get one in the next epoch at the latest; here no epoch depends on the draws of another, so not.
    # Its rounding is not seeded, hence different on every process: here it is.
    "early-code": {
        **_AS_PRINTED,
        "direction": "to-images",
        "progress_max": 0.5,
        "floor": 0,
    },
}
