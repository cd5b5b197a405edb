"""Settings of the statistics and of the sampler that they feed (Sec. 3.2)."""

from dataclasses import dataclass
from typing import Any, Literal

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
    rounding: Literal["stochastic", "ceil"] = setting(
        "stochastic",
        "copies of an image: expected copies equal r (LVIS, detectron2); ceil as in mmengine over-samples",
    )
    first_epoch: int = setting(
        0, "T of the first epoch in alpha = T / T_max: 0 starts as RFS, 1 ends at alpha = 1", low=0, high=1
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


PRESETS: dict[str, dict[str, Any]] = {"paper": {"threshold": 0.001}, "literal": {"threshold": 0.001}}
