"""The detector in parts gives what mmdet's whole gives: features, losses, gradients.

Two images of 64 x 96 px (one smaller, padded), two boxes and one; R18, everything small.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.targets import Target
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.sampling import KEY, set_draw_key
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.two_stage import TwoStageModel, data_sample
from pipeline.settings import build

# isort: split
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.structures.mask import PolygonMasks
from mmengine.structures import InstanceData

CANVAS_WH = (96, 64)
CLASSES = 4
TINY = {
    "depth": 18,
    "norm": "gn",
    "fpn_channels": 32,
    "fc_channels": 32,
    "anchor_scale": 4.0,
    "finest_scale": 14,
    "rpn_proposals": 60,
    "roi_samples": 32,
}


def tiny(kind: str) -> Any:
    settings = build(DetectorSettings, {"type": kind, **TINY}, "detector")
    return build_model(model_config(settings, CLASSES), seed=0).train()


@pytest.fixture(scope="module")
def faster() -> Any:
    return tiny("faster-rcnn")


@pytest.fixture(scope="module")
def mask() -> Any:
    return tiny("mask-rcnn")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def target(boxes: list[list[float]], labels: list[int], size_wh: tuple[int, int], key: int) -> Target:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    corners = [[np.array([x1, y1, x2, y1, (x1 + x2) / 2, y2])] for x1, y1, x2, y2 in boxes]  # triangles
    return Target(array, np.array(labels, dtype=np.int64), size_wh, key, corners)


TARGETS = [
    target([[10, 12, 40, 50], [30.5, 8, 90, 33]], [2, 0], (96, 64), key=11),
    target([[4, 4, 60, 58]], [3], (80, 60), key=12),
]
EMPTY = [target([], [], (96, 64), key=11), target([], [], (80, 60), key=12)]


def mmdet_sample(one: Target, with_mask: bool) -> DetDataSample:
    """As mmdet's own pipeline packs it."""
    width, height = one.size_wh
    instances = InstanceData(bboxes=torch.tensor(one.boxes), labels=torch.tensor(one.labels))
    if with_mask:
        instances.masks = PolygonMasks(one.polygons, height, width)
    set_draw_key(instances, one.key)
    canvas = (CANVAS_WH[1], CANVAS_WH[0])
    info = {"img_shape": (height, width), "pad_shape": canvas, "batch_input_shape": canvas}
    return DetDataSample(metainfo=info, gt_instances=instances)


def summed(detector: Any, losses: dict[str, Any]) -> dict[str, Tensor]:
    """mmdet's own reduction, without its total and its accuracies."""
    _, log = detector.parse_losses(losses)
    return {name: value for name, value in log.items() if name.startswith("loss_")}


def ours(detector: Any, images: Tensor, targets: list[Target], with_mask: bool) -> dict[str, Tensor]:
    model = TwoStageModel(detector)
    pyramid = model.encoder.pyramid(model.encoder.trunk(images))
    return model.detection_losses(pyramid, targets, CANVAS_WH, with_mask)


def gradients(detector: Any, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    detector.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad for name, p in detector.named_parameters()}


NAMES = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}


@pytest.mark.parametrize("targets", [TARGETS, EMPTY, [TARGETS[0], EMPTY[1]]], ids=["both", "none", "one"])
@pytest.mark.parametrize("kind", ["faster", "mask"])
def test_losses_and_gradients_are_mmdets(
    kind: str, targets: list[Target], images: Tensor, request: pytest.FixtureRequest
) -> None:
    detector, with_mask = request.getfixturevalue(kind), kind == "mask"
    theirs = summed(detector, detector.loss(images, [mmdet_sample(t, with_mask) for t in targets]))
    found = ours(detector, images, targets, with_mask)
    assert found.keys() == theirs.keys() == (NAMES | {"loss_mask"} if with_mask else NAMES)
    for name, value in found.items():
        assert value.shape == () and torch.isfinite(value)
        torch.testing.assert_close(value, theirs[name].view(()))
    expected = {n: None if g is None else g.clone() for n, g in gradients(detector, theirs).items()}
    for name, gradient in gradients(detector, found).items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_losses_follow_the_keys_and_not_the_global_generator(faster: Any, images: Tensor) -> None:
    torch.manual_seed(1)
    first = ours(faster, images, TARGETS, with_mask=False)
    torch.manual_seed(2)
    again = ours(faster, images, TARGETS, with_mask=False)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    moved = [Target(t.boxes, t.labels, t.size_wh, t.key + 100) for t in TARGETS]
    other = ours(faster, images, moved, with_mask=False)
    assert not torch.equal(first["loss_rpn_cls"], other["loss_rpn_cls"])


def test_the_mask_loss_can_be_left_out(mask: Any, images: Tensor) -> None:
    whole = ours(mask, images, TARGETS, with_mask=True)
    without_polygons = [Target(t.boxes, t.labels, t.size_wh, t.key) for t in TARGETS]
    part = ours(mask, images, without_polygons, with_mask=False)
    assert part.keys() == NAMES
    assert all(torch.equal(part[name], whole[name]) for name in NAMES)
    head = mask.roi_head
    assert head.with_mask and "mask_head" in dict(head.named_children())
    found = gradients(mask, part)
    assert {n for n, g in found.items() if g is None} == {n for n in found if "mask_head" in n}


def test_the_mask_head_comes_back_after_a_failure(mask: Any, images: Tensor) -> None:
    head, names = mask.roi_head.mask_head, list(mask.state_dict())
    bad = [Target(t.boxes, t.labels + 99, t.size_wh, t.key) for t in TARGETS]
    with pytest.raises(IndexError):  # no such class
        ours(mask, images, bad, with_mask=False)
    assert mask.roi_head.mask_head is head
    assert list(mask.state_dict()) == names


def test_a_mask_loss_without_polygons_is_a_bug(mask: Any, images: Tensor) -> None:
    without = [Target(t.boxes, t.labels, t.size_wh, t.key) for t in TARGETS]
    with pytest.raises(AssertionError, match="polygons"):
        ours(mask, images, without, with_mask=True)


def test_box_features_are_what_mmdets_classifier_sees(faster: Any, images: Tensor) -> None:
    model = TwoStageModel(faster)
    pyramid = model.encoder.pyramid(model.encoder.trunk(images))
    boxes = torch.tensor(
        [[[3.0, 3, 20, 20], [0, 0, 96, 64]], [[10, 20, 15, 25], [30, 5, 90, 60]]]
    )  # (2, 2, 4)
    seen: list[Tensor] = []
    hook = faster.roi_head.bbox_head.fc_cls.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    faster.roi_head._bbox_forward(pyramid, bbox2roi(list(boxes)))
    hook.remove()
    found = model.encoder.box_features(pyramid, boxes)
    assert found.shape == (4, model.box_width) and model.box_width == 32
    torch.testing.assert_close(found, seen[0], rtol=0, atol=0)
    assert float((found > 0).float().mean()) > 0.05


def test_trunk_and_pyramid_are_mmdets_features(faster: Any, images: Tensor) -> None:
    model = TwoStageModel(faster)
    levels = model.encoder.trunk(images)
    assert [tuple(c.shape[1:]) for c in levels] == [(64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert model.c5_width == 512
    for found, expected in zip(model.encoder.pyramid(levels), faster.extract_feat(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_bf16_is_for_trunk_and_pyramid_only(faster: Any, images: Tensor) -> None:
    encoder = TwoStageModel(faster).encoder
    levels = encoder.trunk(images, bf16=True)
    assert {c.dtype for c in levels} == {torch.bfloat16}
    pyramid = encoder.pyramid(levels, bf16=True)
    exact = encoder.pyramid(encoder.trunk(images))
    for found, expected in zip(pyramid, exact, strict=True):
        assert found.dtype == torch.float32
        assert 0 < ((found - expected).norm() / expected.norm()).item() < 0.05
    losses = TwoStageModel(faster).detection_losses(pyramid, TARGETS, CANVAS_WH, with_mask=False)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(faster, losses).values())


def test_the_encoder_shares_and_its_copy_does_not(faster: Any, images: Tensor) -> None:
    encoder = TwoStageModel(faster).encoder
    mine = {id(p) for p in faster.parameters()}
    assert {id(p) for p in encoder.parameters()} < mine
    gradients(faster, ours(faster, images, TARGETS, with_mask=False))
    momentum = copy.deepcopy(encoder)
    assert not {id(p) for p in momentum.parameters()} & mine
    assert list(momentum.state_dict()) == list(encoder.state_dict())
    copy.deepcopy(faster)  # the samplers hold generators


def test_the_wrapper_adds_one_prefix_and_nothing_else(faster: Any) -> None:
    names = list(TwoStageModel(faster).state_dict())
    assert names == [f"detector.{name}" for name in faster.state_dict()]


def test_a_sample_says_what_mmdet_asks() -> None:
    sample = data_sample(TARGETS[1], CANVAS_WH, torch.device("cpu"), with_mask=True)
    assert sample.img_shape == (60, 80) and sample.pad_shape == sample.batch_input_shape == (64, 96)
    assert sample.gt_instances.labels.tolist() == [3] and sample.gt_instances.bboxes.tolist() == [
        [4, 4, 60, 58]
    ]
    assert sample.gt_instances.metainfo[KEY] == 12
    assert (sample.gt_instances.masks.height, sample.gt_instances.masks.width) == (60, 80)
    agnostic = data_sample(TARGETS[0], CANVAS_WH, torch.device("cpu"), with_mask=False, agnostic=True)
    assert agnostic.gt_instances.labels.tolist() == [0, 0] and "masks" not in agnostic.gt_instances
    assert TARGETS[0].labels.tolist() == [2, 0]


def test_channels_last_survives_trunk_pyramid_and_generator(images: Tensor) -> None:
    """An operation that answers in NCHW would convert every map after it, at full memory traffic."""
    from pipeline.pretrain.reconstruction import Generator, apply_masks, reconstruct

    def assert_last(maps: Any) -> None:
        assert all(m.is_contiguous(memory_format=torch.channels_last) and m.shape[2] > 1 for m in maps)

    settings = build(DetectorSettings, {**TINY, "norm": "frozen-bn", "stem_channels": 16}, "detector")
    encoder = TwoStageModel(build_model(model_config(settings, CLASSES), seed=0)).encoder
    generator = Generator(128)
    for module in (encoder, generator):
        module.to(memory_format=torch.channels_last)
    sizes = torch.tensor([[96.0, 64.0], [80.0, 60.0]])
    levels = encoder.trunk(images.to(memory_format=torch.channels_last))
    assert_last(levels)
    assert_last(encoder.pyramid(levels)[:4])
    image = reconstruct(generator, levels[-1], sizes, (64, 96))
    masked = apply_masks(image, torch.tensor([[[4, 4, 20, 20]]] * 2), torch.ones(2, 1, dtype=torch.bool))
    assert_last([image, masked])
