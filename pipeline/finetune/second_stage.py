"""Decoupled training (Kang et al., ICLR 2020): a plain method trains the whole detector, then BAGS, ACSL,
LOCE or BACL trains its last layers on features that stay as they are.

What the second stage needs to be sure of: that the first one's detector fits, and that what shall stay
stays.  Frozen is what gets no gradient and is not in the optimizer; batch norm's statistics are frozen by
the detector itself (`detector.norm`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.detectors.weights import LoadReport, part_of
from pipeline.engine.checkpoint import load_tensors
from pipeline.errors import MismatchedInput, MissingInput, UsageError
from pipeline.finetune.last_layers import (
    CLASSIFIER,
    MASK_PREDICTOR,
    cls_predictor_in,
    cls_predictor_of,
    maker_of,
    mask_predictor_of,
    meta_of,
)
from pipeline.finetune.method import Method
from pipeline.finetune.methods import METHODS, get_method
from pipeline.finetune.settings import FinetuneRun


def first_method(method: Method) -> Method:
    """The method of the first stage, with the layers that the second one goes on with."""
    stage = method.second_stage
    assert stage is not None, f"{method.name} has one stage"
    first = replace(
        get_method(stage.first),
        mask_predictor=method.mask_predictor,
        proposals_factor=stage.first_proposals_factor,
        weight_decay=stage.first_weight_decay,
        augment=stage.first_augment,
    )
    if not stage.keeps_classifier:
        return first
    return replace(first, cls_predictor=method.cls_predictor, fc_cls_bias_prior=method.fc_cls_bias_prior)


def refuse_contradictions(run: FinetuneRun) -> None:
    """Refuse a given first stage where there is none, or settings of a first stage that is not trained.

    Raises:
        UsageError: naming both sides.
    """
    if run.stage1 == "train":
        return
    if get_method(run.method).second_stage is None:
        known = ", ".join(name for name, method in METHODS.items() if method.second_stage)
        raise UsageError(
            f"stage1: {run.stage1}, but {run.method} has one stage",
            f"start from it with init; methods with two stages: {known}",
        )
    if run.init != "pretrain":
        raise UsageError(
            f"init: {run.init} is where stage 1 starts, but stage1: {run.stage1} is trained already",
            "give one of the two",
        )
    if run.augment != "method":
        raise UsageError(
            f"augment: {run.augment} is of stage 1, but stage1: {run.stage1} is trained already",
            "leave augment out",
        )
    if run.transfer != ("all",):
        raise UsageError(
            f"transfer: {', '.join(run.transfer)} is of what stage 1 starts from, but stage1: {run.stage1} "
            "is trained already",
            "leave transfer out",
        )
    if run.match_pretrain_draws:
        raise UsageError(
            f"match_pretrain_draws makes stage 1 longer, but stage1: {run.stage1} is trained already",
            "set stage1: train",
        )


def parts_to_renew(method: Method, first: Mapping[str, Any]) -> dict[str, str]:
    """Parts that the second stage does not take from the first one's file, and why.

    Args:
        method: of the second stage.
        first: content of a detector.pth.
    """
    assert method.second_stage is not None, f"{method.name} has one stage"
    renewed = {}
    if not method.second_stage.keeps_classifier:
        renewed[CLASSIFIER] = f"{method.name} trains a new classifier"
    found, wanted = meta_of(first).get("mask_predictor", "Conv"), mask_predictor_of(method)
    if found != wanted:
        renewed[MASK_PREDICTOR] = f"{wanted} and not the {found} of stage 1"
    return renewed


def read_first(path: Path) -> dict[str, Any]:
    """A first stage's detector.pth, ours or MMDetection's.

    Raises:
        MissingInput, InputError: no such file, or it is not readable.
        MismatchedInput: it is no detector, or only a pre-trained one.
    """
    if not path.exists():
        raise MissingInput(
            f"stage1: {path} does not exist",
            "train it, e.g. `2drcl finetune --method ce`, or set stage1: train",
        )
    content = load_tensors(path)
    if meta_of(content).get("stage") == "pretrain":
        raise MismatchedInput(
            f"stage1: {path} is of the pretrain stage, and no method was trained on it yet",
            f"train stage 1 from it: init: {path}, stage1: train",
        )
    if not isinstance(content.get("state_dict"), Mapping):
        raise MismatchedInput(
            f"stage1: {path} is no detector (no state_dict)", "only stage 1 can start from a backbone"
        )
    return content


def refuse_other_classes(path: Path, first: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Refuse a first stage whose categories are not those of the annotations.

    Raises:
        MismatchedInput: with both numbers, or with the first name that differs.
    """
    meta = meta_of(first)
    dataset = meta.get("dataset_meta") or meta
    found = list(dataset.get("classes") or dataset.get("CLASSES") or ())  # mmdet 2 wrote capitals
    if found == list(classes):
        return
    pairs = zip(found, classes, strict=False)
    differing = next((f": {a!r} where they have {b!r}" for a, b in pairs if a != b), "")
    raise MismatchedInput(
        f"stage1: {path} names {len(found)} categories, the annotations {len(classes)}{differing}",
        "both stages must be trained on the same categories",
    )


def refuse_other_kind(path: Path, first: Mapping[str, Any], method: Method) -> None:
    """Refuse a first stage whose classifier, which shall be kept, is cosines where products are meant.

    Raises:
        MismatchedInput: with both kinds of layer.
    """
    found = cls_predictor_in(first, maker_of(first, method.detectors))
    wanted = cls_predictor_of(method)
    if found != wanted:
        raise MismatchedInput(
            f"stage1: the classifier in {path} is a {found}, but {method.name} goes on with a {wanted}",
            f"set classifier: {'linear' if found == 'Linear' else 'normed'} too, or stage1: train",
        )


def refuse_other_width(path: Path, first: Mapping[str, Any], detector: nn.Module) -> None:
    """Refuse a first stage whose classifier, which shall be kept, has another number of columns.

    Raises:
        MismatchedInput: with both numbers.
    """
    name = f"{CLASSIFIER}.weight"
    own, tensor = len(detector.state_dict()[name]), first["state_dict"].get(name)
    if tensor is not None and len(tensor) != own:
        raise MismatchedInput(
            f"stage1: the classifier in {path} has {len(tensor)} columns, but {own} are to be trained on",
            "take a stage 1 of the method that `2drcl methods` names, or set stage1: train",
        )


def refuse_frozen_but_new(path: Path, report: LoadReport, detector: nn.Module) -> None:
    """Refuse parameters that the first stage lacks and the second one does not train.

    Args:
        path: of the first stage's file.
        report: of loading it.
        detector: frozen by `freeze_all_but`.

    Raises:
        MismatchedInput: naming the parts.
    """
    frozen = [name for name, parameter in detector.named_parameters() if not parameter.requires_grad]
    idle = [
        f"{part} ({why})"
        for part, why in report.new.items()
        if any(name.startswith(f"{part}.") for name in frozen)
    ]
    if idle:
        raise MismatchedInput(
            f"stage1: {path} does not bring {', '.join(idle)}, which would stay untrained",
            "give a stage 1 of the same detector, or set stage1: train",
        )


def remark_on_classifier(method: Method, first: Mapping[str, Any]) -> str:
    """What to know of a kept classifier that was trained in another way than the authors' own, or nothing."""
    stage, known = method.second_stage, METHODS.get(str(meta_of(first).get("classifier")))
    if stage is None or not stage.keeps_classifier or known is None:
        return ""
    if known.loss == get_method(stage.first).loss:
        return ""
    return (
        f"stage 1 was trained with {known.name}; {method.name} keeps its classifier, meant for {stage.first}"
    )


def _is_among(name: str, patterns: Sequence[str]) -> bool:
    return any(pattern in name for pattern in patterns)


@dataclass(frozen=True)
class Trained:
    """Numbers of parameters by module."""

    trained: dict[str, int]
    frozen: dict[str, int]

    def sentence(self) -> str:
        """One sentence for the log."""
        shown = [
            ", ".join(f"{module} ({number:,})" for module, number in numbers.items()) or "nothing"
            for numbers in (self.trained, self.frozen)
        ]
        return f"trains {shown[0]} parameters; frozen: {shown[1]}"


def freeze_all_but(detector: nn.Module, patterns: Sequence[str]) -> None:
    """Take the gradient from parameters whose name holds none of the patterns; leave the others alone."""
    for name, parameter in detector.named_parameters():
        if not _is_among(name, patterns):
            parameter.requires_grad_(False)


def trained_parts(detector: nn.Module) -> Trained:
    """What of a detector trains, as it is now."""
    found = Trained({}, {})
    for name, parameter in detector.named_parameters():
        # the RoI heads by their layers: a second stage splits them
        module = ".".join(name.split(".")[:3]) if name.startswith("roi_head.") else part_of(name)
        numbers = found.trained if parameter.requires_grad else found.frozen
        numbers[module] = numbers.get(module, 0) + parameter.numel()
    return found
