"""Initial weights: from a torchvision ResNet file or a detector checkpoint, with an account of what came.

Nothing is loaded halfway in silence.  A module that stays new does so for one of four named reasons; anything
else is an error that names the tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.detectors.detectron2_weights import from_detectron2, is_detectron2, read_pickle
from pipeline.detectors.settings import Pixels
from pipeline.engine.checkpoint import load_tensors
from pipeline.errors import MismatchedInput, UsageError, first_ten

# tensors whose shape follows the categories or the method, and that may therefore stay new
CLASS_SHAPED = (
    "roi_head.bbox_head.fc_cls",
    "roi_head.bbox_head.fc_reg",
    "roi_head.mask_head.conv_logits",
    "bbox_head.atss_cls",
)


@dataclass(frozen=True)
class LoadReport:
    """What came from a file.  Parts are module names such as `backbone.layer3` or `rpn_head`."""

    source: str
    loaded: dict[str, int]  # part -> number of tensors
    new: dict[str, str]  # part -> why it is newly initialised
    left_behind: str = ""  # what an earlier stage trained and did not publish

    def frozen_but_new(self, norm: str) -> list[str]:
        """Backbone stages without weights whose batch norm would stay at its empty statistics."""
        stages = [part for part in self.new if part.split(".")[0] == "backbone"]
        return stages if norm == "frozen-bn" else []

    def sentence(self) -> str:
        """One sentence for the log."""
        if not self.loaded:
            return f"nothing was loaded: every module is newly initialised ({self.source})"
        loaded = ", ".join(f"{part} ({count})" for part, count in self.loaded.items())
        new = "; ".join(f"{part} ({why})" for part, why in self.new.items())
        left = f"; stayed behind: {self.left_behind}" if self.left_behind else ""
        return f"from {self.source}: loaded {loaded} tensors; newly initialised: {new or 'nothing'}{left}"


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a file that training may start from; of a .pkl its arrays as tensors.

    Raises:
        MissingInput, InputError: no such file, or not a file of weights.
    """
    return read_pickle(path) if path.suffix == ".pkl" else load_tensors(path)


def load_initial(
    model: nn.Module,
    path: Path | None,
    *,
    classes: Sequence[str],
    drop: Mapping[str, str],
    allow_partial: Sequence[str],
    pixels: Pixels = "auto",
    foreign: Mapping[str, str] | None = None,
) -> LoadReport:
    """Load weights into a MMDetection detector, in place.

    Args:
        model: the detector with its own initial weights.
        path: torchvision's ResNet state dict, a detector.pth of ours, a MMDetection checkpoint, or a backbone
            or detector of detectron2 (.pkl or .pth); None: nothing.
        classes: names of the detector's categories; class-shaped layers of a checkpoint with other names
            stay new.
        drop: part -> reason, for parts that must stay new (a classifier of another kind).
        allow_partial: parts that the file may, but need not, lack as a whole: `layer4`, `mask_head`.
        pixels: of a detectron2 file, see detectron2_weights.
        foreign: part -> whose it is, for parts that a file may have and this detector has not.

    Raises:
        MissingInput, InputError: no such file, or not a file of weights.
        MismatchedInput: the file is of another detector, or lacks a part that `allow_partial` does not name.
        UsageError: `allow_partial` names what is no part of this detector.
    """
    if path is None:
        return LoadReport("no initial weights given", {}, {})
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    _refuse_unknown_parts(allow_partial, own)
    content = read_weights(path)
    state, is_detector = _in_our_names(content, path, pixels)
    left = [str((content.get("meta") or {}).get("left_behind", ""))]
    left += [f"{part} ({why})" for part, why in (foreign or {}).items() if _has(state, part)]
    state = {n: t for n, t in state.items() if not _startswith(n, foreign or {})}
    new = dict(drop)
    if is_detector and list(_classes(content)) != list(classes):
        new |= {part: "the checkpoint has other categories" for part in CLASS_SHAPED}
    new = {part: why for part, why in new.items() if not _startswith(part, [p for p in new if p != part])}
    state = {n: t for n, t in state.items() if not _startswith(n, new)}
    _refuse_unknown(state, own, path)
    new = {part: why for part, why in new.items() if _has(own, part)}
    _refuse_shapes(state, own, path)
    new |= _missing_parts(state, own, new, is_detector, allow_partial, path)
    model.load_state_dict({n: t.to(own[n].dtype) for n, t in state.items()}, strict=False)
    loaded: dict[str, int] = {}
    for name in state:
        loaded[part_of(name)] = loaded.get(part_of(name), 0) + 1
    return LoadReport(path.name, loaded, new, "; ".join(filter(None, left)))


def part_of(name: str) -> str:
    """The part a tensor is reported under: a backbone stage, neck, rpn_head, or one of the RoI heads."""
    pieces = name.split(".")
    if pieces[0] == "backbone":
        return f"backbone.{pieces[1]}" if pieces[1].startswith("layer") else "backbone.stem"
    return ".".join(pieces[:2]) if pieces[0] == "roi_head" else pieces[0]


def _in_our_names(content: Mapping[str, Any], path: Path, pixels: Pixels) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether they are a whole detector."""
    if isinstance(content.get("state_dict"), Mapping):
        return dict(content["state_dict"]), True
    if is_detectron2(content):
        return from_detectron2(content, path, pixels)
    return _as_backbone(content, path), False


def _as_backbone(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """torchvision's names -> ours; the classifier is left out."""
    if "conv1.weight" not in content:
        raise MismatchedInput(
            f"{path} is neither a torchvision ResNet (no conv1.weight) nor a detector (no state_dict)",
            "name the detector.pth of a finished stage, or torchvision's file of a ResNet",
        )
    return {
        f"backbone.{n}": t for n, t in content.items() if isinstance(t, Tensor) and not n.startswith("fc.")
    }


def _classes(content: Mapping[str, Any]) -> Sequence[str]:
    meta = content.get("meta") or {}
    dataset = meta.get("dataset_meta") or {}
    return dataset.get("classes") or dataset.get("CLASSES") or meta.get("CLASSES") or ()


def _startswith(name: str, parts: Mapping[str, str] | Sequence[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def _has(state: Mapping[str, Tensor], part: str) -> bool:
    return any(_startswith(name, [part]) for name in state)


def _refuse_unknown(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    unknown = [name for name in state if name not in own]
    if unknown:
        has_statistics = [any(n.endswith("running_mean") for n in names) for names in (state, own)]
        hint = "is detector.type or detector.depth another?"
        if has_statistics == [True, False]:
            hint = "the file has batch-norm statistics: set detector.norm: frozen-bn"
        elif has_statistics == [False, True]:
            hint = "the file has no batch-norm statistics: set detector.norm: gn"
        raise MismatchedInput(f"{path} is of another detector: it has {first_ten(unknown)}", hint)


def _refuse_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    wrong = [
        f"{n} {tuple(t.shape)} instead of {tuple(own[n].shape)}"
        for n, t in state.items()
        if t.shape != own[n].shape
    ]
    if wrong:
        raise MismatchedInput(
            f"{path} is of another detector: {first_ten(wrong)}", "compare detector: in params.yaml"
        )


def _missing_parts(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    new: Mapping[str, str],
    is_detector: bool,
    allow_partial: Sequence[str],
    path: Path,
) -> dict[str, str]:
    """Parts of the model that the file lacks, with the reason each may be lacking."""
    relevant = [n for n in own if not n.endswith("num_batches_tracked") and not _startswith(n, new)]
    missing: dict[str, list[str]] = {}
    for name in relevant:
        if name not in state:
            missing.setdefault(part_of(name), []).append(name)
    reasons, whole_parts, torn = {}, [], []
    for part, names in missing.items():
        whole = len(names) == sum(part_of(n) == part for n in relevant)
        if not is_detector and not part.startswith("backbone"):
            reasons[part] = "the file holds a backbone only"
        elif whole and _short(part) in allow_partial:
            reasons[part] = "the file lacks it, as allowed"
        elif whole:
            whole_parts.append(part)
        else:
            torn += names
    _refuse_missing(whole_parts, torn, path)
    return reasons


def _refuse_missing(whole_parts: list[str], torn: list[str], path: Path) -> None:
    """`whole_parts` may be allowed by the user; the tensors in `torn` leave a part half loaded."""
    if torn:
        raise MismatchedInput(
            f"{path} has only some tensors of a part; it lacks {first_ten(torn)}", "is the file complete?"
        )
    if whole_parts:
        options = " ".join(f"--allow-partial {_short(part)}" for part in whole_parts)
        raise MismatchedInput(f"{path} lacks {first_ten(whole_parts)}", f"if that is intended: {options}")


def _refuse_unknown_parts(allow_partial: Sequence[str], own: Mapping[str, Tensor]) -> None:
    known = dict.fromkeys(_short(part_of(name)) for name in own)
    unknown = [name for name in allow_partial if name not in known]
    if unknown:
        raise UsageError(
            f"--allow-partial {', '.join(unknown)}: no part of this detector",
            f"its parts: {', '.join(known)}",
        )


def _short(part: str) -> str:
    """`layer4` of `backbone.layer4`: what users write."""
    return part.split(".")[-1]


def clone_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it, contiguous and on the CPU: what is published."""
    return {
        name[len(prefix) :]: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in state.items()
        if name.startswith(prefix) and isinstance(tensor, torch.Tensor)
    }
