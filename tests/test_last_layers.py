"""Last layers of initial weights: taken over where they mean the same, renewed with the reason where not."""

from pathlib import Path

import pytest
import torch
from tiny_heads import tiny_config
from torch import nn

from pipeline.detectors.build import build_model
from pipeline.finetune.last_layers import CLASSIFIER, MASK_PREDICTOR, last_layers_to_renew
from pipeline.finetune.methods import get_method


def detector_of(method: str) -> nn.Module:
    return build_model(tiny_config(method), seed=0)


def file_of(folder: Path, method: str | None, *, columns: int = 5, mask: str | None = None) -> Path:
    """A detector.pth with what is looked at: a classifier and what it says of itself."""
    meta = {"classifier": method, "mask_predictor": mask}
    state = {f"{CLASSIFIER}.weight": torch.zeros(columns, 24)}
    path = folder / "detector.pth"
    torch.save({"state_dict": state, "meta": {k: v for k, v in meta.items() if v}}, path)
    return path


@pytest.mark.parametrize(
    ("method", "found", "columns", "reason"),
    [
        ("ce", "ce", 5, None),
        ("ce", None, 5, None),  # a plain detector does not say
        ("rfs", "ce", 5, None),
        ("ecm", "ecm", 5, None),
        ("ce", "ecm", 5, "ce classifies in another way than ecm"),  # of equal width, but cosines
        ("ce", "seesaw", 6, "ce classifies in another way than seesaw"),
        ("ecm", None, 5, "ecm classifies in another way than pre-training"),
        ("ce", None, 9, "the file's has 9 columns, and 5 are trained"),
    ],
)
def test_classifiers(
    tmp_path: Path, method: str, found: str | None, columns: int, reason: str | None
) -> None:
    renewed = last_layers_to_renew(
        get_method(method), file_of(tmp_path, found, columns=columns), detector_of(method)
    )
    assert renewed.get(CLASSIFIER) == reason


def test_mask_predictors(tmp_path: Path) -> None:
    ce, plain = get_method("ce"), file_of(tmp_path, "ce")
    assert last_layers_to_renew(ce, plain, detector_of("ce")) == {}
    normed = file_of(tmp_path, "ce", mask="NormedConv2d")
    found = last_layers_to_renew(ce, normed, detector_of("ce"))
    assert found == {MASK_PREDICTOR: "Conv and not the NormedConv2d of the initial weights"}
    ecm = get_method("ecm")
    assert MASK_PREDICTOR not in last_layers_to_renew(ecm, normed, detector_of("ecm"))


def test_without_weights_all_is_new_anyway(tmp_path: Path) -> None:
    assert last_layers_to_renew(get_method("ce"), None, detector_of("ce")) == {}
    assert last_layers_to_renew(get_method("ce"), tmp_path / "none.pth", detector_of("ce")) == {}
