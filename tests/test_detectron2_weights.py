"""detectron2's files as initial weights: names, pixels, and nothing but arrays."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.photometric import MEAN, STD, normalise
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.exchange import DETECTRON2, to_layout
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.weights import load_initial
from pipeline.errors import InputError, MismatchedInput, MissingInput
from pipeline.settings import build

NAMES = ["cone", "drum", "bolt"]
STEM = "stem.conv1.weight"


def tiny(seed: int) -> Any:
    sizes = {"depth": 18, "stem_channels": 16, "fpn_channels": 32, "fc_channels": 32}
    model = build_model(model_config(build(DetectorSettings, sizes, "detector"), 3), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "running" in name:  # not those of a fresh layer
            low = 0.5 if name.endswith("var") else -0.5
            tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
    return model


def backbone(model: Any) -> dict[str, Tensor]:
    """detectron2's names of the backbone alone, with a classifier as its converted files have."""
    state = to_layout(model.state_dict(), DETECTRON2)
    prefix = "backbone.bottom_up."
    named = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return {**named, "stem.fc.weight": torch.zeros(4, 3), "stem.fc.bias": torch.zeros(4)}


def write_pickle(path: Path, named: dict[str, Tensor], **more: str) -> Path:
    content = {"model": OrderedDict((n, t.numpy()) for n, t in named.items()), **more}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def load(model: Any, path: Path, **changes: Any) -> Any:
    return load_initial(model, path, classes=NAMES, drop={}, allow_partial=(), **changes)


def test_a_converted_backbone_is_loaded_whole(tmp_path: Path) -> None:
    source, model = tiny(1), tiny(2)
    path = write_pickle(tmp_path / "R-18.pkl", backbone(source), __author__="torchvision")
    report = load(model, path)
    assert report.loaded.keys() == {"backbone.stem", *(f"backbone.layer{i}" for i in range(1, 5))}
    assert set(report.new) == {"neck", "rpn_head", "roi_head.bbox_head"}
    for name, tensor in source.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(model.backbone.state_dict()[name], tensor), name


def test_bgr_pixels_give_the_same_features(tmp_path: Path) -> None:
    """The network of the file, on BGR of 0 to 255 minus the mean, against ours on normalised RGB."""
    theirs, ours = tiny(1), tiny(2)
    with torch.no_grad():
        theirs.backbone.conv1.weight /= 60  # of the size that such pixels need
    path = write_pickle(tmp_path / "zoo.pkl", backbone(theirs))
    load(ours, path, pixels="bgr")
    rgb = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    bgr = 255 * rgb.flip(1) - 255 * torch.tensor(MEAN[::-1]).view(1, 3, 1, 1)
    with torch.no_grad():
        for found, expected in zip(ours.backbone(normalise(rgb)), theirs.backbone(bgr), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
            assert expected.std() > 1e-3
    assert STD[0] != STD[1]  # or an order of the channels would not be seen


def test_a_file_that_does_not_say_its_pixels_is_refused(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "R-18.pkl", backbone(tiny(1)))
    with pytest.raises(MismatchedInput, match="does not say which pixels") as caught:
        load(tiny(2), path)
    assert "detector.init_pixels: rgb" in caught.value.hint
    assert load(tiny(2), path, pixels="rgb").loaded


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_whole_detector(tmp_path: Path, suffix: str) -> None:
    source, model, path = tiny(1), tiny(2), tmp_path / f"model_final.{suffix}"
    named = to_layout(source.state_dict(), DETECTRON2)
    named["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    named["pixel_mean"] = torch.zeros(3, 1, 1)
    if suffix == "pth":
        torch.save({"model": named, "iteration": 9, "optimizer": {"state": {}}}, path)
    else:
        write_pickle(path, named, __author__="Detectron2 Model Zoo")
    fresh = model.roi_head.bbox_head.fc_cls.weight.clone()
    report = load(model, path, pixels="rgb")
    assert {"neck", "rpn_head", "roi_head.bbox_head"} <= set(report.loaded)
    assert set(report.new) == {"roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"}  # no class names
    for name in (
        "neck.fpn_convs.2.conv.weight",
        "rpn_head.rpn_reg.bias",
        "roi_head.bbox_head.shared_fcs.0.weight",
    ):
        assert torch.equal(model.state_dict()[name], source.state_dict()[name])
    assert torch.equal(model.roi_head.bbox_head.fc_cls.weight, fresh)


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"model": {STEM: Payload(tmp_path / "ran")}}, protocol=2))
    with pytest.raises(InputError, match=r"it calls (posix|nt)\.mkdir"):
        load(tiny(2), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([1]), pickle.dumps({"model": 3})])
def test_pickles_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pkl").write_bytes(content)
    with pytest.raises(InputError):
        load(tiny(2), tmp_path / "file.pkl")
    with pytest.raises(MissingInput):
        load(tiny(2), tmp_path / "absent.pkl")


def test_arrays_of_other_types_are_read(tmp_path: Path) -> None:
    named = backbone(tiny(1))
    content = {
        "model": {n: t.numpy().astype(np.float64) for n, t in named.items()},
        "__author__": "torchvision",
    }
    (tmp_path / "double.pkl").write_bytes(pickle.dumps(content))
    model = tiny(2)
    load(model, tmp_path / "double.pkl")
    torch.testing.assert_close(model.backbone.conv1.weight.detach(), named[STEM])
