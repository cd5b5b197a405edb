"""Settings of `2drcl finetune`: what all runs share, and the runs."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SettingsError
from pipeline.settings import setting

Sampler = Literal["method", "random", "rfs", "irfs", "drb"]


@dataclass(frozen=True)
class FinetuneRun:
    """One entry of `finetune.runs`; its name is the name of the artifact."""

    method: str = setting(why="one of `2drcl methods`")
    init: str = setting(
        "pretrain",
        "`pretrain`: the pretrain stage's detector; `backbone`: what pre-training itself started from; "
        "`none`; or a file",
    )
    sampler: Sampler = setting("method", "`method`: the sampler its authors pair it with")
    match_pretrain_draws: bool = setting(
        False, "a control: as many images drawn as pre-training and this fine-tuning together"
    )


@dataclass(frozen=True)
class FinetuneSettings:
    """Shared by all runs.  Defaults are the paper's 1x schedule (Sec. 4.1, A.1)."""

    epochs: int = setting(12, "paper, Sec. 4.1: 1x", low=1)
    milestones: tuple[int, ...] = setting((8, 11), "paper, Sec. 4.1", low=1)
    batch_size: int = setting(16, "paper, Sec. 4.1: global, over all processes", low=1)
    lr: float = setting(0.02, "paper, Sec. 4.1: for the global batch", low=0)
    sgd_momentum: float = setting(0.9, "MMDetection", low=0, high=1)
    weight_decay: float = setting(1e-4, "MMDetection", low=0)
    warmup_steps: int | Literal["auto"] = setting(
        "auto", "auto: the method's own (ECM: 10,000), but at most a tenth of the run", low=0
    )
    clip_norm: float | Literal["method"] | None = setting(
        "method", "ECM clips at 5, the others not at all", low=0
    )
    short_sides: tuple[int, ...] = setting(
        (640, 672, 704, 736, 768, 800), "multi-scale, as previous methods", low=32
    )
    long_side: int = setting(1333, "MMDetection", low=32)
    flip: float = setting(0.5, "MMDetection", low=0, high=1)
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16: trunk and FPN only")
    allow_partial: tuple[str, ...] = setting((), "parts that initial weights may lack, e.g. layer4")
    runs: dict[str, FinetuneRun] = setting({}, "name: {method: ...}; names lower-case with hyphens")

    def __post_init__(self) -> None:
        if not self.short_sides:
            raise SettingsError("short_sides is empty", "name at least one size in pixels, e.g. [800]")


def resolve_warmup(asked: int | Literal["auto"], of_method: int, total_steps: int) -> int:
    """Steps of the linear warm-up."""
    return int(asked) if asked != "auto" else min(of_method, total_steps // 10)
