"""Settings of `2drcl finetune`: what all runs share, and the runs."""

from dataclasses import dataclass
from typing import Literal

from pipeline.data.copy_paste_settings import CopyPasteSettings
from pipeline.engine.schedule import NAMED, resolve_milestones
from pipeline.errors import SettingsError
from pipeline.finetune.method import Method, SecondStage
from pipeline.settings import setting

Value = bool | int | float | str | tuple[float, ...] | tuple[str, ...] | None
Transfer = Literal["all", "backbone", "neck", "rpn", "roi"]
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
    transfer: tuple[Transfer, ...] = setting(
        ("all",),
        "which modules start from `init`, the others anew; paper: pre-training is of all components, so all; "
        "or some of backbone, neck, rpn, roi (of ATSS, roi is its dense head)",
    )
    stage1: str = setting(
        "train",
        "of a method with two stages: `train` it here, or the detector.pth of another run, which one file "
        "can be for several methods",
    )
    sampler: Sampler = setting("method", "`method`: the sampler its authors pair it with")
    augment: Literal["method", "plain", "copy-paste"] = setting(
        "method",
        "views of its only stage, or of the first of two; `plain`: multi-scale and flip; `copy-paste`: "
        "large-scale jitter and objects of a random image; `method`: its authors': BACL copy-paste, the "
        "others plain",
    )
    loss: dict[str, Value] = setting(
        {}, "settings of the method's loss that differ from its own: `2drcl methods NAME` lists them"
    )
    head: dict[str, Value] = setting(
        {}, "the same of LOCE's memory (e.g. queue_size), BACL's hallucination and PCB's passes"
    )
    classifier: Literal["method", "linear", "normed"] = setting(
        "method", "last layer of the box head; `normed`: cosine, temperature 20"
    )
    mask_predictor: Literal["method", "conv", "normed"] = setting(
        "method", "last layer of the mask head; Seesaw and ROG on Seesaw have a `normed` variant"
    )
    bias_prior: float | Literal["method"] | None = setting(
        "method",
        "probability that every class starts at, by the classifier's bias; null: bias 0",
        low=1e-9,
        high=1 - 1e-9,
    )
    match_pretrain_draws: bool = setting(
        False, "a control: as many images drawn as pre-training and this fine-tuning together"
    )

    def __post_init__(self) -> None:
        if not self.transfer or ("all" in self.transfer and len(self.transfer) > 1):
            raise SettingsError(
                f"transfer must be all, or name some modules, but it is {list(self.transfer)}",
                "init: none starts everything anew",
            )


@dataclass(frozen=True)
class SecondStageSettings:
    """The second stage of the methods that have two: bags, acsl, loce, bacl."""

    epochs: int | Literal["auto"] = setting("auto", "auto: the method's own (12; LOCE 6)", low=1)
    milestones: tuple[int, ...] | Literal["auto"] = setting(
        "auto", "auto: the method's own ([8, 11]; LOCE [3, 5]), at the same share of other epochs", low=1
    )
    lr: float | Literal["auto"] = setting(
        "auto", "auto: the method's own (0.02; BAGS 0.01), for 16 images; not scaled to another batch", low=0
    )
    score_threshold: float | Literal["auto"] = setting(
        "auto", "at test time; auto: the method's own (ACSL and BAGS 0, BAGS with masks 0.001)", low=0, high=1
    )


@dataclass(frozen=True)
class FinetuneSettings:
    """Shared by all runs.  Defaults are the paper's 1x schedule (Sec. 4.1, A.1)."""

    epochs: int = setting(
        12, "paper, Sec. 4.1: 1x; a number, or 1x, 2x, 3x, 4x for 12, 24, 36, 48", low=1, names=NAMED
    )
    milestones: tuple[int, ...] | Literal["auto"] = setting(
        "auto",
        "paper, Sec. 4.1: the rate drops by ten after epochs 8 and 11 of 12; auto: also 4, 5 of 6; 16, 22 of "
        "24; 28, 34 of 36; 40, 46 of 48; else 2/3 and 11/12",
        low=1,
    )
    method_schedule: Literal["paper", "method"] = setting(
        "paper",
        "paper (A.1): the epochs and milestones above for every method, and for the first stage of two; "
        "`method`: its authors' own instead (Seesaw, PCB, LOCE 24 [16, 22], others 12 [8, 11])",
    )
    second_stage: SecondStageSettings = setting(SecondStageSettings)
    batch_size: int = setting(16, "paper, Sec. 4.1: global, over all processes", low=1)
    accumulate: int = setting(
        1,
        "parts that a process's share of the batch is computed in, one after another, where it does not fit; "
        "the gradients are those of the whole but for statistics, which are of a part: "
        "normalisers of the detector's losses, running counts of a method",
        low=1,
    )
    lr: float = setting(0.02, "paper, Sec. 4.1: for the global batch", low=0)
    sgd_momentum: float = setting(0.9, "MMDetection", low=0, high=1)
    weight_decay: float | Literal["method"] = setting(
        "method", "0.0001 as MMDetection; BACL's first stage 0.00005", low=0
    )
    warmup_steps: int | Literal["auto"] = setting(
        "auto", "auto: the method's own (ECM: 10,000), but at most a tenth of the run", low=0
    )
    clip_norm: float | Literal["method"] | None = setting(
        "method", "ECM and ROG clip at 5, BAGS and ACSL at 35, the others not at all", low=0
    )
    short_sides: tuple[int, ...] = setting(
        (640, 672, 704, 736, 768, 800), "multi-scale, as previous methods", low=32
    )
    long_side: int = setting(1333, "MMDetection", low=32)
    flip: float = setting(0.5, "MMDetection", low=0, high=1)
    copy_paste: CopyPasteSettings = setting(CopyPasteSettings)
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16: trunk and FPN only")
    allow_partial: tuple[str, ...] = setting((), "parts that initial weights may lack, e.g. layer4")
    runs: dict[str, FinetuneRun] = setting({}, "name: {method: ...}; names lower-case with hyphens")

    def __post_init__(self) -> None:
        if not self.short_sides:
            raise SettingsError("short_sides is empty", "name at least one size in pixels, e.g. [800]")


def resolve_warmup(asked: int | Literal["auto"], of_method: int, total_steps: int) -> int:
    """Steps of the linear warm-up."""
    return int(asked) if asked != "auto" else min(of_method, total_steps // 10)


@dataclass(frozen=True)
class Recipe:
    """Numbers of one training."""

    epochs: int
    milestones: tuple[int, ...]
    lr: float  # for the global batch


def first_recipe(method: Method, settings: FinetuneSettings) -> Recipe:
    """Of a method with one stage, and of the first one of two."""
    if settings.method_schedule == "method":
        return Recipe(method.epochs, method.milestones, settings.lr)
    milestones = resolve_milestones(settings.milestones, settings.epochs)
    return Recipe(settings.epochs, milestones, settings.lr)


def second_recipe(stage: SecondStage, settings: SecondStageSettings) -> Recipe:
    """Of the second stage; milestones that nobody set keep their share of the epochs."""
    epochs = stage.epochs if settings.epochs == "auto" else settings.epochs
    if settings.milestones == "auto":
        milestones = tuple(max(1, round(m * epochs / stage.epochs)) for m in stage.milestones)
    else:
        milestones = settings.milestones
    return Recipe(epochs, milestones, stage.lr if settings.lr == "auto" else settings.lr)
