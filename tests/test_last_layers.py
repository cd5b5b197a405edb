"""Last layers of initial weights: taken over where they mean the same, renewed with the reason where not."""

from typing import Any, Literal

import pytest
import torch
from tiny_heads import tiny_config
from torch import nn

from pipeline.detectors.build import build_model
from pipeline.finetune.last_layers import CLASSIFIER, MASK_PREDICTOR, last_layers_to_renew
from pipeline.finetune.methods import get_method, method_on
from pipeline.finetune.settings import FinetuneRun
from pipeline.finetune.variant import method_of


def detector_of(method: str) -> nn.Module:
    return build_model(tiny_config(method), seed=0)


def file_of(
    method: str | None, *, columns: int = 5, mask: str | None = None, kind: str | None = None
) -> dict[str, Any]:
    """Of a detector.pth what is looked at: a classifier and what it says of itself."""
    meta = {"classifier": method, "mask_predictor": mask, "cls_predictor": kind}
    state = {f"{CLASSIFIER}.weight": torch.zeros(columns, 24)}
    return {"state_dict": state, "meta": {k: v for k, v in meta.items() if v}}


@pytest.mark.parametrize(
    ("method", "found", "columns", "reason"),
    [
        ("ce", "ce", 5, None),
        ("ce", None, 5, None),  # a plain detector does not say
        ("rfs", "ce", 5, None),
        ("ecm", "ecm", 5, None),
        ("ce", "ecm", 5, "ce classifies in another way than ecm"),  # of equal width, but cosines
        ("ce", "acsl", 5, "ce classifies in another way than acsl"),  # sigmoids
        ("ce", "loce", 5, "ce classifies in another way than loce"),
        ("ce", "pcb", 5, "ce classifies in another way than pcb"),
        ("acsl", "bce", 5, "acsl classifies in another way than bce"),
        ("ce", "seesaw", 6, "ce classifies in another way than seesaw"),
        ("ecm", None, 5, "ecm classifies in another way than pre-training"),
        ("ce", None, 9, "the file's has 9 columns, and 5 are trained"),
    ],
)
def test_classifiers(method: str, found: str | None, columns: int, reason: str | None) -> None:
    renewed = last_layers_to_renew(get_method(method), file_of(found, columns=columns), detector_of(method))
    assert renewed.get(CLASSIFIER) == reason


@pytest.mark.parametrize(
    ("method", "classifier", "found", "kind", "reason"),
    [
        ("ce", "method", "ce", "NormedLinear", "Linear and not the NormedLinear of the initial weights"),
        ("ce", "normed", "ce", None, "NormedLinear and not the Linear of the initial weights"),
        ("ce", "normed", "ce", "NormedLinear", None),
        ("ecm", "linear", "ecm", None, "Linear and not the NormedLinear of the initial weights"),
        ("ecm", "method", "ecm", "NormedLinear", None),
        ("ce", "normed", None, None, "ce classifies in another way than pre-training"),
    ],
)
def test_cosines_are_not_read_as_products(
    method: str,
    classifier: Literal["method", "normed"],
    found: str | None,
    kind: str | None,
    reason: str | None,
) -> None:
    """Layers of the same shape and the same loss, where a run has another classifier than its method."""
    chosen = method_of(FinetuneRun(method, classifier=classifier))
    renewed = last_layers_to_renew(chosen, file_of(found, kind=kind), detector_of("ce"))
    assert renewed.get(CLASSIFIER) == reason


@pytest.mark.parametrize(
    ("method", "found", "kept"), [("ecm", "ecm", True), ("ecm", "focal", False), ("focal", "focal", True)]
)
def test_a_method_on_atss_goes_on_with_its_own_classifier_there(method: str, found: str, kept: bool) -> None:
    detector = torch.nn.ModuleDict({"layer": torch.nn.Linear(24, 5)})
    content = {"state_dict": {"layer.weight": torch.zeros(5, 24)}, "meta": {"classifier": found}}
    renewed = last_layers_to_renew(method_on(method, "atss"), content, detector, "layer")
    assert ("layer" not in renewed) == kept


def test_mask_predictors() -> None:
    ce, plain = get_method("ce"), file_of("ce")
    assert last_layers_to_renew(ce, plain, detector_of("ce")) == {}
    normed = file_of("ce", mask="NormedConv2d")
    found = last_layers_to_renew(ce, normed, detector_of("ce"))
    assert found == {MASK_PREDICTOR: "Conv and not the NormedConv2d of the initial weights"}
    ecm = get_method("ecm")
    assert MASK_PREDICTOR not in last_layers_to_renew(ecm, normed, detector_of("ecm"))


def test_without_weights_all_is_new_anyway() -> None:
    assert last_layers_to_renew(get_method("ce"), {}, detector_of("ce")) == {}
