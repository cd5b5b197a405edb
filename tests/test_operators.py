"""The operators that torchvision answers for mmcv: slow loops, closed forms, numbers, refusals."""

import ast
import math
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.detectors import operators
from pipeline.errors import Diverged, EnvironmentProblem

# isort: split
import mmcv
import mmcv.ops
import torchvision
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

ROIS = torch.tensor(
    [
        [0, 4.0, 4.0, 28.0, 20.0],
        [1, 0.0, 0.0, 31.0, 31.0],
        [1, 7.3, 2.9, 11.2, 30.4],
        [0, 25.0, 25.0, 40.0, 36.0],  # reaches over the border
        [0, 10.0, 10.0, 10.0, 10.0],  # empty
    ]
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_roi_align(
    feature: Tensor, roi: list[float], size: int, scale: float, ratio: int, aligned: bool
) -> Any:
    """(C, H, W) float64 and one [x1, y1, x2, y2] -> (C, size, size), point by point."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (v * scale - shift for v in roi)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    out = feature.new_zeros(len(feature), size, size)
    across = ratio or math.ceil(width / size)
    down = ratio or math.ceil(height / size)
    for row in range(size):
        for column in range(size):
            for j in range(down):
                for i in range(across):
                    y = y1 + (row + (j + 0.5) / down) * height / size
                    x = x1 + (column + (i + 0.5) / across) * width / size
                    out[:, row, column] += bilinear(feature, x, y)
    return out / max(across * down, 1)


def bilinear(feature: Tensor, x: float, y: float) -> Tensor:
    """Value at (x, y); border values go on for one pixel, then comes zero."""
    height, width = feature.shape[1:]
    if not (-1 <= x <= width and -1 <= y <= height):
        return feature.new_zeros(len(feature))
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = x - left, y - top
    upper = feature[:, top, left] * (1 - a) + feature[:, top, right] * a
    lower = feature[:, bottom, left] * (1 - a) + feature[:, bottom, right] * a
    return upper * (1 - b) + lower * b


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_is_the_slow_loop(aligned: bool, ratio: int) -> None:
    feature = noise(2, 3, 16, 16)
    layer = mmcv.ops.RoIAlign(3, spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    found = layer(feature, ROIS)
    for roi, pooled in zip(ROIS.tolist(), found, strict=True):
        expected = slow_roi_align(feature[int(roi[0])].double(), roi[1:], 3, 0.5, ratio, aligned)
        torch.testing.assert_close(pooled.double(), expected, atol=1e-5, rtol=1e-5)


def test_roi_align_of_a_ramp_is_its_value_at_the_bin_centres() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    feature = (2 * x - 3 * y + 1)[None, None]  # (H, W) -> (1, 1, H, W)
    box = torch.tensor([[0, 8.0, 16.0, 40.0, 48.0]])  # in pixels of stride 4: x 2..10, y 4..12
    pooled = mmcv.ops.RoIAlign(4, spatial_scale=0.25)(feature, box)[0, 0]
    centres = torch.arange(4) * 2 + 0.5  # bins two wide; pixel i has its centre at i + 0.5
    expected = 2 * (2 + centres)[None, :] - 3 * (4 + centres)[:, None] + 1
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_is_torchvisions_forward_and_backward(aligned: bool, ratio: int) -> None:
    ours = noise(2, 3, 16, 16).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    layer = mmcv.ops.RoIAlign((3, 5), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    found = layer(ours, ROIS)
    expected = torchvision.ops.roi_align(theirs, ROIS, (3, 5), 0.5, ratio, aligned)
    weights = noise(*found.shape, seed=1)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_roi_align_gradient_is_the_numerical_one() -> None:
    """Pooling is linear in its input, so differences with a whole step are exact but for rounding."""
    feature = noise(1, 1, 6, 6)
    box = torch.tensor([[0, 1.2, 0.7, 5.1, 4.9]])
    layer, weights = mmcv.ops.RoIAlign(2), noise(1, 1, 2, 2, seed=1)
    variable = feature.clone().requires_grad_()
    (layer(variable, box) * weights).sum().backward()
    numerical = torch.zeros_like(feature)
    for place in range(feature.numel()):
        step = torch.zeros_like(feature)
        step.view(-1)[place] = 1.0  # (1, 1, 6, 6) -> (36)
        change = (layer(feature + step, box) - layer(feature - step, box)) * weights
        numerical.view(-1)[place] = change.sum() / 2
    assert variable.grad is not None
    torch.testing.assert_close(variable.grad, numerical, atol=1e-6, rtol=1e-5)
    assert float(variable.grad.sum()) == pytest.approx(
        float(weights.sum()), rel=1e-5
    )  # each bin is an average


@pytest.mark.parametrize("autocast", [True, False])
def test_roi_align_takes_bf16_forward_and_backward(autocast: bool) -> None:
    """The backward pass is outside autocast in either case, as in training."""
    rounded = noise(2, 4, 16, 16).bfloat16()
    variable = rounded.clone().requires_grad_()
    reference = rounded.float().requires_grad_()
    layer = mmcv.ops.RoIAlign(3, spatial_scale=0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = layer(variable, ROIS)
    expected = layer(reference, ROIS)
    weights = noise(*found.shape, seed=1).bfloat16()
    (found * weights).sum().backward()
    (expected * weights.float()).sum().backward()
    assert found.dtype == variable.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0, rtol=2**-8)
    torch.testing.assert_close(variable.grad.float(), reference.grad, atol=1e-6, rtol=2**-8)


def test_roi_align_after_a_convolution_in_autocast() -> None:
    convolution = torch.nn.Conv2d(3, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = mmcv.ops.RoIAlign(3, spatial_scale=0.5)(convolution(noise(2, 3, 16, 16)), ROIS.bfloat16())
    pooled.float().square().sum().backward()
    assert convolution.weight.grad is not None
    assert float(convolution.weight.grad.abs().sum()) > 0


def test_roi_align_of_other_memory_layouts_and_of_nothing() -> None:
    plain = noise(2, 4, 16, 16).requires_grad_()
    last = plain.detach().clone().to(memory_format=torch.channels_last).requires_grad_()
    layer = mmcv.ops.RoIAlign(3, spatial_scale=0.5)
    weights = noise(5, 4, 3, 3, seed=1).transpose(2, 3)  # not contiguous
    (layer(plain, ROIS) * weights).sum().backward()
    (layer(last, ROIS) * weights).sum().backward()
    torch.testing.assert_close(last.grad, plain.grad)
    assert layer(plain, ROIS[:0]).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_box_that_is_not_finite_is_divergence(value: float) -> None:
    rois = ROIS.clone()
    rois[2, 3] = value
    with pytest.raises(Diverged, match="NaN or infinite") as caught:
        mmcv.ops.RoIAlign(3)(noise(2, 3, 16, 16), rois)
    assert caught.value.exit_code == 5 and caught.value.hint


def slow_nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):
        if all(float(torchvision.ops.box_iou(boxes[i, None], boxes[k, None])) <= threshold for k in kept):
            kept.append(i)
    return kept


def scattered(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = 20 * torch.rand(count, 2, generator=generator)
    sizes = 15 + 10 * torch.rand(count, 2, generator=generator)
    scores = torch.randperm(count, generator=generator).float() / count + 0.001  # all different
    return torch.cat([corners, corners + sizes], dim=1), scores


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_nms_is_the_slow_loop(threshold: float) -> None:
    boxes, scores = scattered(60)
    dets, kept = mmcv.ops.nms(boxes, scores, threshold)
    assert kept.tolist() == slow_nms(boxes, scores, threshold)
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])
    assert 1 < len(kept) < 60


def test_nms_with_a_score_threshold_and_a_limit() -> None:
    boxes, scores = scattered(60)
    _, kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=7)
    expected = [i for i in slow_nms(boxes, scores, 0.5) if float(scores[i]) > 0.3][:7]
    assert kept.tolist() == expected


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_batched_nms_keeps_classes_apart(class_agnostic: bool) -> None:
    boxes, scores = scattered(60)
    classes = torch.arange(60) % 3
    options = {"type": "nms", "iou_threshold": 0.4}
    _, kept = mmcv.ops.batched_nms(boxes, scores, classes, options, class_agnostic=class_agnostic)
    if class_agnostic:
        expected = slow_nms(boxes, scores, 0.4)
    else:
        groups = [torch.nonzero(classes == c)[:, 0] for c in range(3)]
        expected = [int(g[k]) for g in groups for k in slow_nms(boxes[g], scores[g], 0.4)]
    assert kept.tolist() == sorted(expected, key=lambda i: -float(scores[i]))


def test_nms_takes_bf16_and_nothing() -> None:
    boxes, scores = scattered(40)
    boxes, scores = boxes.bfloat16(), torch.linspace(1, 2, 40).exp2().bfloat16()
    assert len(set(scores.tolist())) == 40
    assert operators.nms(boxes, scores, 0.5, 0).tolist() == slow_nms(boxes.float(), scores.float(), 0.5)
    assert operators.nms(boxes[:0], scores[:0], 0.5, 0).shape == (0,)


GAMMA, ALPHA = 2.0, 0.25
LABELS = torch.tensor([0, 1, 2, 3, 3, 1])  # of 3 classes: 3 is background


def focal_formula(logits: Tensor, labels: Tensor, gamma: float = GAMMA, alpha: float = ALPHA) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log(p_t), as written in the paper, element by element."""
    positive = torch.nn.functional.one_hot(labels, logits.shape[1] + 1)[:, :-1].bool()
    p_t = torch.where(positive, logits.sigmoid(), 1 - logits.sigmoid())
    alpha_t = torch.where(positive, torch.full_like(logits, alpha), torch.full_like(logits, 1 - alpha))
    return -alpha_t * (1 - p_t) ** gamma * p_t.log()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_focal_loss_is_the_formula_and_its_autograd(reduction: str) -> None:
    logits = (3 * noise(6, 3)).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    found = mmcv.ops.SigmoidFocalLoss(GAMMA, ALPHA, reduction=reduction)(logits, LABELS)
    expected = focal_formula(exact, LABELS)
    if reduction != "none":
        expected = expected.sum() / (len(LABELS) if reduction == "mean" else 1)
    weights = noise(*found.shape, seed=1) if reduction == "none" else torch.tensor(0.7)
    (found * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)


def test_focal_loss_is_mmdets_python_version() -> None:
    logits = 3 * noise(6, 3)
    targets = torch.nn.functional.one_hot(LABELS, 4)[:, :3]
    found = mmcv.ops.sigmoid_focal_loss(logits, LABELS, GAMMA, ALPHA, None, "none")
    expected = py_sigmoid_focal_loss(logits, targets, gamma=GAMMA, alpha=ALPHA, reduction="none")
    torch.testing.assert_close(found, expected)


def test_focal_loss_without_focus_is_half_the_binary_cross_entropy() -> None:
    logits = 3 * noise(6, 3)
    targets = torch.nn.functional.one_hot(LABELS, 4)[:, :3].float()
    found = mmcv.ops.sigmoid_focal_loss(logits, LABELS, 0.0, 0.5, None, "none")
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") / 2
    torch.testing.assert_close(found, expected)


def test_focal_loss_of_huge_logits_is_finite_and_linear() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([1]), GAMMA, ALPHA, None, "none")
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([[0.75 * 200, 0.25 * 200]]))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.25]]))


def test_focal_loss_takes_bf16() -> None:
    logits = (3 * noise(6, 3)).bfloat16().requires_grad_()
    loss = mmcv.ops.sigmoid_focal_loss(logits, LABELS, GAMMA, ALPHA, None, "none")
    loss.sum().backward()
    assert loss.dtype == logits.grad.dtype == torch.bfloat16
    expected = focal_formula(logits.detach().float(), LABELS)
    torch.testing.assert_close(loss.detach().float(), expected, atol=1e-6, rtol=2**-7)


def refuse(what: str) -> Any:
    return pytest.raises(EnvironmentProblem, match=what)


def test_what_torchvision_cannot_do_is_refused_by_name() -> None:
    boxes, scores = scattered(3)
    with refuse("offset=1"):
        mmcv.ops.nms(boxes, scores, 0.5, offset=1)
    with refuse("pool_mode='max'"):
        mmcv.ops.RoIAlign(3, pool_mode="max")(noise(2, 3, 16, 16), ROIS)
    with refuse("class weights"):
        mmcv.ops.sigmoid_focal_loss(noise(6, 3), LABELS, GAMMA, ALPHA, torch.ones(3), "none")
    with refuse("`softnms`"):
        mmcv.ops.soft_nms(boxes, scores)
    with refuse("`deform_conv_forward`") as caught:
        mmcv.ops.DeformConv2d(1, 1, 3)(noise(1, 1, 8, 8), noise(1, 18, 6, 6))
    assert "install mmcv" in caught.value.hint and caught.value.exit_code == 4


def looked_up() -> set[str]:
    """The operator names in mmcv's own sources: the second argument of every `load_ext('_ext', [...])`."""
    names: set[str] = set()
    for path in (Path(mmcv.__file__).parent / "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_ext":
                names |= set(ast.literal_eval(node.args[1]))
    return names


def test_every_name_that_mmcv_looks_up_is_answered() -> None:
    module, names = sys.modules["mmcv._ext"], looked_up()
    assert isinstance(module, operators.OperatorModule) and operators.ANSWERED_BY == "torchvision"
    assert len(names) == 112
    assert operators._ANSWERED.keys() <= names
    for name in names - operators._ANSWERED.keys():
        with refuse(f"`{name}`"):
            getattr(module, name)()


def test_the_module_can_be_looked_up_but_has_no_dunder_names() -> None:
    from mmengine.utils.dl_utils import mmcv_full_available

    pkgutil.find_loader("mmcv._ext")  # raises ValueError for a module without a spec
    assert mmcv_full_available() is False
    assert not hasattr(sys.modules["mmcv._ext"], "__file__")


def test_installing_again_changes_nothing() -> None:
    before = sys.modules["mmcv._ext"]
    assert operators.install() == "torchvision"
    assert sys.modules["mmcv._ext"] is before


def test_compiled_operators_on_disk_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_ext.py").write_text("nms = 'compiled'\n")
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(mmcv, "__path__", [*mmcv.__path__, str(tmp_path)])
    assert operators.install() == "compiled"
    assert sys.modules["mmcv._ext"].nms == "compiled"


def test_compiled_operators_of_another_torch_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undefined = "_ext.so: undefined symbol: _ZN2at4_ops5zeros4callE"
    (tmp_path / "_ext.py").write_text(f"raise ImportError('{undefined}')\n")
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(mmcv, "__path__", [*mmcv.__path__, str(tmp_path)])
    with pytest.raises(EnvironmentProblem, match=undefined) as caught:
        operators.install()
    assert caught.value.exit_code == 4 and "mmcv-lite" in caught.value.hint


def test_compiled_operators_already_imported_are_left_alone() -> None:
    program = """
import sys, types
compiled = types.ModuleType("mmcv._ext")
compiled.nms = lambda *args, **kwargs: "compiled"
sys.modules["mmcv._ext"] = compiled
from pipeline.detectors import operators
assert sys.modules["mmcv._ext"] is compiled
print(operators.ANSWERED_BY, compiled.nms())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["compiled", "compiled"], done.stderr
