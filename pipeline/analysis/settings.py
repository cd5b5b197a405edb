"""The settings of `analyze`."""

from dataclasses import dataclass
from typing import Literal

from pipeline.settings import setting


@dataclass(frozen=True)
class AttentionSettings:
    """Attention maps on images of tail categories (Fig. 3); need weights and images."""

    method: str = setting(
        "grad-cam",
        "paper names none; grad-cam asks for the image's own tail category, whether it was found or not; "
        "eigen-cam: first principal component of the layer, whatever the category",
        choices=("grad-cam", "eigen-cam"),
    )
    layer: str = setting(
        "c5",
        "paper names none; C5 is what the reconstructions look at; finer ones suit small images",
        choices=("c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5"),
    )
    images: int = setting(4, "images drawn by the seed; 0: no maps", low=0)
    image_ids: tuple[int, ...] = setting((), "these images instead; none: drawn by the seed")


@dataclass(frozen=True)
class AnalyzeSettings:
    """What is looked at beside the error types, and how."""

    top_n: int | Literal["objects"] = setting(
        "objects",
        "paper, A.1, after YOLO v1: the N of a category is its ground truths; or one N for all",
        low=1,
    )
    baseline: str | None = setting(
        None, "the run of finetune.runs that every other one is set beside (Fig. 2, 3, A.1, A.2); null: none"
    )
    norm_degree: int = setting(5, "paper, Fig. A.2: 'polynomial fits', degree not given", low=1)
    examples: int = setting(4, "images shown before and after (Fig. A.1): where two runs differ most", low=0)
    example_score: float | Literal["auto"] = setting(
        "auto", "boxes shown there: the best, as many as there are objects in the split; or a least score"
    )
    attention: AttentionSettings = setting(AttentionSettings)
