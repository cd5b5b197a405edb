"""Class activation maps of real detectors: against autograd by hand, in stored pixels, one stage and two."""

from typing import Any

import numpy as np
import pytest
import torch
from test_inference import CLASSES, CPU, TEST_WH, split, tiny  # noqa: F401  the fixture

from pipeline.data.annotations import Annotations
from pipeline.detectors.attention import Attention, eigen_cam, grad_cam
from pipeline.detectors.build import build_model
from pipeline.detectors.classifier import classifier
from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.head_contract import BoxHeadLoss

BOX = np.array([[10, 10, 50, 40]], dtype=np.float32)
ATSS: dict[str, Any] = {
    "type": "ATSS",
    "backbone": {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 16,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "norm_cfg": {"type": "GN", "num_groups": 8},
    },
    "neck": {
        "type": "FPN",
        "in_channels": [16, 32, 64, 128],
        "out_channels": 32,
        "start_level": 1,
        "num_outs": 5,
    },
    "bbox_head": {
        "type": "ATSSHead",
        "num_classes": CLASSES,
        "in_channels": 32,
        "feat_channels": 32,
        "stacked_convs": 1,
        "norm_cfg": {"type": "GN", "num_groups": 8},
        "anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [1.0],
            "octave_base_scale": 8,
            "scales_per_octave": 1,
            "strides": [8, 16, 32, 64, 128],
        },
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0] * 4,
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True},
        "loss_bbox": {"type": "GIoULoss"},
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True},
    },
}


@pytest.fixture(scope="module")
def faster() -> Any:
    return tiny("faster-rcnn")


@pytest.fixture(scope="module")
def atss() -> Any:
    return build_model(ATSS, seed=0).eval()


def look(model: Any, split: Any, **changes: str) -> Attention:  # noqa: F811
    return Attention(model, *split, TEST_WH, CPU, **{"method": "grad-cam", "layer": "c4", **changes})


def test_grad_cam_weighs_channels_by_their_mean_gradient() -> None:
    maps = torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]])  # (2, 1, 2)
    gradient = torch.tensor([[[1.0, 3.0]], [[-1.0, -1.0]]])
    torch.testing.assert_close(grad_cam(maps, gradient), torch.tensor([[0.0, 3.0]]))  # 2 - 3, 4 - 1


@pytest.mark.parametrize("shape", [(40, 3, 4), (5, 6, 7)])
def test_eigen_cam_is_the_first_component_with_the_sign_of_the_activation(shape: tuple[int, ...]) -> None:
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    maps[:, 1, 2] += 4  # one cell that all channels share
    rows = maps.flatten(1).T.double()
    rows = rows - rows.mean(dim=0)
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    expected = u[:, 0] * s[0]
    expected = torch.relu(expected * expected[expected.abs().argmax()].sign()).reshape(shape[1:])
    found = eigen_cam(maps)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)
    assert found.argmax() == 1 * shape[2] + 2
    assert (eigen_cam(torch.zeros(shape)) == 0).all()


@pytest.mark.parametrize("layer", ["c3", "c5", "p2", "p4"])
@pytest.mark.parametrize("method", ["grad-cam", "eigen-cam"])
def test_maps_are_in_stored_pixels(faster: Any, split: Any, method: str, layer: str) -> None:  # noqa: F811
    annotations: Annotations = split[0]
    attention = look(faster, split, method=method, layer=layer)
    for position in (0, 2, 3):
        heat = attention.map(position, 1, BOX)
        width, height = annotations.sizes_wh[position].tolist()
        assert heat.shape == (height, width) and heat.dtype == np.float32
        assert np.isfinite(heat).all() and (heat >= 0).all()
    assert all(p.grad is None for p in faster.parameters())


def test_grad_cam_asks_for_the_category_at_the_box(faster: Any, split: Any) -> None:  # noqa: F811
    attention = look(faster, split)
    maps = [attention.map(0, label, BOX) for label in range(CLASSES)]
    assert not np.allclose(maps[0], maps[1]) and not np.allclose(maps[1], maps[2])
    elsewhere = attention.map(0, 0, np.array([[55, 5, 78, 20]], dtype=np.float32))
    assert not np.allclose(maps[0], elsewhere)
    eigen = look(faster, split, method="eigen-cam")
    np.testing.assert_array_equal(eigen.map(0, 0, BOX), eigen.map(0, 2, BOX))


def test_one_stage_detectors_have_maps_too(atss: Any, split: Any) -> None:  # noqa: F811
    with torch.no_grad():
        atss.bbox_head.atss_cls.weight.mul_(50)
    maps = [look(atss, split).map(0, label, BOX) for label in range(CLASSES)]
    assert max(m.max() for m in maps) > 0 and not np.allclose(maps[0], maps[1])
    tiny_box = np.array([[10.1, 10.1, 10.2, 10.2]], dtype=np.float32)  # between the cells: the nearest
    assert np.isfinite(look(atss, split, layer="p3").map(0, 0, tiny_box)).all()
    with pytest.raises(UsageError, match="layer is p2, but the detector's neck begins above it"):
        look(atss, split, layer="p2").map(0, 0, BOX)


def test_rows_of_the_classifier(faster: Any, atss: Any) -> None:
    found = classifier(faster, CLASSES)
    weight = faster.roi_head.bbox_head.fc_cls.weight.detach()
    np.testing.assert_allclose(found.norms, weight[:CLASSES].norm(dim=1).numpy(), rtol=1e-5)
    assert found.weights.shape[0] == CLASSES < len(weight) and found.note == ""  # without background
    dense = classifier(atss, CLASSES)
    assert dense.weights.shape == (CLASSES, 32 * 9) and "convolution" in dense.note
    with pytest.raises(MismatchedInput, match="no classifier of 9 categories"):
        classifier(faster, 9)


def test_columns_of_groups_are_put_in_the_order_of_the_categories(faster: Any) -> None:
    head = faster.roi_head.bbox_head
    loss, layer = head.loss_cls, head.fc_cls
    try:
        head.loss_cls = BoxHeadLoss(CLASSES)
        head.loss_cls.columns = torch.tensor([2, 0, 1, 3])  # as BAGS keeps them
        found = classifier(faster, CLASSES)
    finally:
        head.loss_cls = loss
    np.testing.assert_array_equal(found.weights, layer.weight.detach().double()[[2, 0, 1]].numpy())
