"""Models from settings: mmdet's own R50-FPN by default, and the same weights from the same seed."""

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.photometric import normalise, to_float
from pipeline.detectors.build import build_model, model_config, preprocessor_config, quiet
from pipeline.detectors.settings import DetectorSettings
from pipeline.errors import SettingsError
from pipeline.settings import build

# isort: split
import mmdet
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

TINY: dict[str, Any] = {"depth": 18, "fpn_channels": 32, "fc_channels": 32}
CLASSES = 5


def tiny(**changes: Any) -> DetectorSettings:
    return build(DetectorSettings, {**TINY, **changes}, "detector")


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """{'a': [{'b': 1}]} -> {'a.0.b': 1}."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = dict(enumerate(node)).items()
    else:
        return {path: node}
    return {k: v for key, value in items for k, v in flat(value, f"{path}.{key}".strip(".")).items()}


DEPARTURES = {
    "train_cfg.rpn.sampler.type": "KeyedRandomSampler",
    "train_cfg.rcnn.sampler.type": "KeyedRandomSampler",
    "test_cfg.rcnn.score_thr": 1e-4,
    "test_cfg.rcnn.max_per_img": 300,
}


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_the_defaults_are_mmdets_r50_fpn(kind: str) -> None:
    folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "_base_" / "models"
    stock = flat(Config.fromfile(str(folder / f"{kind}_r50_fpn.py")).model.to_dict())
    ours = flat(model_config(build(DetectorSettings, {"type": kind}, "detector"), num_classes=80))
    loading = {"backbone.init_cfg.type", "backbone.init_cfg.checkpoint"}  # here: load_initial
    assert stock.keys() - ours.keys() == loading
    written_out = {key.split(".")[-1]: ours.pop(key) for key in ours.keys() - stock.keys()}
    assert written_out == {"base_channels": 64, "finest_scale": 56}  # the defaults of mmdet's constructors
    differs = {key: ours[key] for key in ours if ours[key] != pytest.approx(stock[key])}
    assert differs == DEPARTURES


def state(seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    return build_model(model_config(tiny(**changes), CLASSES), seed).state_dict()


def test_the_same_seed_is_the_same_weights_whatever_the_global_generators() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  mmdet's initialisers might use it
    first = state(seed=3, norm="gn")
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    before = torch.get_rng_state()
    again = state(seed=3, norm="gn")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = state(seed=4, norm="gn")
    drawn = [n for n in first if first[n].float().std() > 0]
    assert len(drawn) > 20 and not any(torch.equal(first[n], other[n]) for n in drawn)


def test_the_config_is_left_as_it_was() -> None:
    plain = model_config(tiny(type="mask-rcnn"), CLASSES)
    for config in (plain, ConfigDict(copy.deepcopy(plain))):
        before = copy.deepcopy(config)
        build_model(config, seed=0)
        assert config == before


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_type_decides_the_mask_head(kind: str) -> None:
    model = build_model(model_config(tiny(type=kind), CLASSES), seed=0)
    head = model.roi_head
    assert head.with_mask == (kind == "mask-rcnn")
    assert head.bbox_head.fc_cls.out_features == CLASSES + 1
    assert head.bbox_head.fc_reg.out_features == 4 * CLASSES
    assert head.bbox_head.shared_fcs[0].in_features == 32 * 7 * 7
    if head.with_mask:
        assert head.mask_head.conv_logits.out_channels == CLASSES


def norms(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_frozen_batch_norm_stays_in_eval_and_the_first_stages_do_not_train() -> None:
    model = build_model(model_config(tiny(frozen_stages=1), CLASSES), seed=0).train()
    assert len(norms(model, nn.BatchNorm2d)) == 20 and not norms(model, nn.GroupNorm)
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    still = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert still == {"conv1", "bn1", "layer1"}


def test_group_norm_trains_everything() -> None:
    model = build_model(model_config(tiny(norm="gn", frozen_stages=3), CLASSES), seed=0).train()
    assert len(norms(model, nn.GroupNorm)) == 20 and not norms(model, nn.BatchNorm2d)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("stem", [16, 64])
@pytest.mark.parametrize("norm", ["frozen-bn", "gn"])
@pytest.mark.parametrize("depth", [18, 50, 101])
def test_every_depth_fits_its_pyramid(depth: int, norm: str, stem: int) -> None:
    """On the meta device: shapes without numbers."""
    config = model_config(tiny(depth=depth, norm=norm, stem_channels=stem), CLASSES)
    with torch.device("meta"), quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        backbone, neck = MODELS.build(config["backbone"]), MODELS.build(config["neck"])
        levels = backbone(torch.zeros(1, 3, 64, 96))
        pyramid = neck(levels)
    expansion = 1 if depth == 18 else 4
    assert [level.shape[1] for level in levels] == [expansion * stem * s for s in (1, 2, 4, 8)]
    sizes = [(1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3), (1, 32, 1, 2)]
    assert [tuple(level.shape) for level in pyramid] == sizes
    num_blocks = sum(len(getattr(backbone, f"layer{i}")) for i in (1, 2, 3, 4))
    assert num_blocks == {18: 8, 50: 16, 101: 33}[depth]
    groups = {m.num_groups for m in backbone.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == (set() if norm == "frozen-bn" else {min(32, stem // 2)})


def test_a_method_changes_the_heads() -> None:
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.5}
    changed = model_config(
        tiny(type="mask-rcnn"),
        CLASSES,
        box_head={"loss_cls": loss},
        mask_head={"predictor_cfg": {"type": "NormedConv2d", "tempearture": 20}},
    )
    plain = model_config(tiny(type="mask-rcnn"), CLASSES)
    assert changed["roi_head"]["bbox_head"]["loss_cls"] == loss
    model = build_model(changed, seed=0)
    assert model.roi_head.bbox_head.loss_cls.loss_weight == 0.5
    assert type(model.roi_head.mask_head.conv_logits).__name__ == "NormedConv2d"
    del changed["roi_head"]["mask_head"]["predictor_cfg"]
    changed["roi_head"]["bbox_head"]["loss_cls"] = plain["roi_head"]["bbox_head"]["loss_cls"]
    assert changed == plain


def test_settings_reach_the_model() -> None:
    config = model_config(
        tiny(anchor_scale=4.0, finest_scale=14, rpn_proposals=50, roi_samples=64, max_detections=10), CLASSES
    )
    model = build_model(config, seed=0)
    base = model.rpn_head.prior_generator.base_anchors[0]
    areas = (base[:, 2:] - base[:, :2]).prod(dim=1)
    torch.testing.assert_close(areas, torch.full((3,), 16.0**2))  # scale 4 on stride 4
    assert model.roi_head.bbox_roi_extractor.finest_scale == 14
    assert model.roi_head.bbox_sampler.num == 64
    assert (model.train_cfg.rpn_proposal.nms_pre, model.train_cfg.rpn_proposal.max_per_img) == (100, 50)
    assert (model.test_cfg.rpn.nms_pre, model.test_cfg.rcnn.max_per_img) == (50, 10)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"depth": 34}, "detector.depth"),
        ({"type": "cascade"}, "detector.type"),
        ({"norm": "bn"}, "detector.norm"),
        ({"fpn_channels": 16}, "detector.fpn_channels"),
        ({"score_threshold": 2}, "detector.score_threshold"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(SettingsError, match=path):
        tiny(**changes)


def test_the_preprocessor_is_our_normalisation() -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(64, 96, 3), dtype=np.uint8)  # RGB
    with DefaultScope.overwrite_default_scope("mmdet"):
        preprocessor = MODELS.build(preprocessor_config())
    bgr = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    theirs = preprocessor({"inputs": [bgr], "data_samples": None})["inputs"][0]
    torch.testing.assert_close(theirs, normalise(to_float(image, torch.device("cpu"))), atol=1e-5, rtol=1e-5)


def test_building_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    disabled = logging.root.manager.disable
    build_model(model_config(tiny(norm="gn"), CLASSES), seed=0)
    assert capsys.readouterr() == ("", "")
    with quiet():
        sys.stdout.write("talk")
        assert not logging.getLogger("anything").isEnabledFor(logging.INFO)
        assert logging.getLogger("anything").isEnabledFor(logging.WARNING)
    assert capsys.readouterr() == ("", "talk")
    assert logging.root.manager.disable == disabled
