"""ATSS: mmdet's own config and losses, exact on any number of processes; each method's head trains."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_atss
import torch
from processes import together
from tiny_atss import CANVAS_WH, CLASSES, NOTHING, ONE_OBJECT, SMALL_IMAGE, TWO_OBJECTS, config, detector
from torch import Tensor, nn

from pipeline.data.single_view import ViewSample
from pipeline.data.targets import Target
from pipeline.detectors.atss import rate_warnings
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.one_stage import OneStageModel, in_parts
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.supervised import SupervisedModel
from pipeline.engine.distributed import Process
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.finetune.ecm import column_weights, logit_shifts
from pipeline.settings import build

# isort: split
import mmdet
from mmengine.config import Config

CPU = torch.device("cpu")
METHODS = ("focal", "ecm")


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """{'a': [{'b': 1}]} -> {'a.0.b': 1}."""
    if not isinstance(node, dict | list | tuple):
        return {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {k: v for key, value in items for k, v in flat(value, f"{path}.{key}".strip(".")).items()}


def test_the_defaults_are_mmdets_r50_fpn() -> None:
    file = Path(mmdet.__file__).parent / ".mim" / "configs" / "atss" / "atss_r50_fpn_1x_coco.py"
    stock = flat(Config.fromfile(str(file)).model.to_dict())
    ours = flat(model_config(build(DetectorSettings, {"type": "atss"}, "detector"), num_classes=80))
    loading = {"backbone.init_cfg.type", "backbone.init_cfg.checkpoint"}  # here: load_initial
    assert stock.keys() - ours.keys() == loading
    written_out = {key: ours.pop(key) for key in ours.keys() - stock.keys()}
    assert written_out == {  # the defaults of mmdet's constructors
        "backbone.base_channels": 64,
        "bbox_head.norm_cfg.type": "GN",
        "bbox_head.norm_cfg.num_groups": 32,
        "bbox_head.norm_cfg.requires_grad": True,
    }
    differs = {key: ours[key] for key in ours if ours[key] != pytest.approx(stock[key])}
    assert differs == {"test_cfg.score_thr": 1e-4, "test_cfg.max_per_img": 300}


def test_settings_reach_the_model() -> None:
    model = detector(nms_pre=77, max_detections=9, score_threshold=0.3)
    assert (model.test_cfg.nms_pre, model.test_cfg.max_per_img, model.test_cfg.score_thr) == (77, 9, 0.3)
    base = model.bbox_head.prior_generator.base_anchors
    assert [tuple(b[0, 2:] - b[0, :2]) for b in base] == [(4 * s, 4 * s) for s in (8, 16, 32, 64, 128)]
    assert model.bbox_head.cls_convs[0].gn.num_groups == 16  # two channels in each


@pytest.mark.parametrize("channels", [33, 48, 50])
def test_any_width_has_its_groups(channels: int) -> None:
    head = detector(fpn_channels=channels).bbox_head
    assert channels % head.reg_convs[0].gn.num_groups == 0


def test_frozen_batch_norm_stays_frozen() -> None:
    model = detector(norm="frozen-bn")
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad} == {
        "conv1",
        "bn1",
        "layer1",
    }


def test_every_class_starts_at_one_percent_of_the_loss_s_own_probability() -> None:
    focal, ecm = (detector(method).bbox_head.atss_cls.bias.double() for method in METHODS)
    torch.testing.assert_close(focal.sigmoid(), torch.full((CLASSES,), 0.01).double(), rtol=1e-5, atol=0)
    shifts = logit_shifts(torch.tensor(tiny_atss.COUNTS.instance_counts).double())
    torch.testing.assert_close((2 * ecm + shifts).sigmoid(), focal.sigmoid(), rtol=1e-5, atol=0)


def test_the_rate_of_a_two_stage_detector_is_remarked_on() -> None:
    atss, faster = tiny_atss.settings(), tiny_atss.settings(type="faster-rcnn")
    assert (
        rate_warnings(atss, 0.01, 16) == rate_warnings(atss, 0.02, 32) == rate_warnings(faster, 1.0, 16) == []
    )
    assert "MMDetection trains ATSS with 0.01 for 16" in rate_warnings(atss, 0.02, 16)[0]


# --- the losses


def pyramid_of(model: OneStageModel, targets: list[Target]) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    images = torch.randn(len(targets), 3, CANVAS_WH[1], CANVAS_WH[0])
    return model.encoder.pyramid(model.encoder.trunk(images))


def losses_of(model: nn.Module, targets: list[Target]) -> dict[str, Tensor]:
    parts = in_parts(model)
    assert isinstance(parts, OneStageModel)
    return parts.detection_losses(pyramid_of(parts, targets), targets, CANVAS_WH, with_mask=False)


@pytest.mark.parametrize("targets", [[TWO_OBJECTS, SMALL_IMAGE], [TWO_OBJECTS, NOTHING], [NOTHING]])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_mmdets_head(method: str, targets: list[Target]) -> None:
    ours, stock = detector(method), build_model(config(method), seed=1).train()
    stock.load_state_dict(ours.state_dict())
    found, expected = losses_of(ours, targets), losses_of(stock, targets)
    assert found.keys() == expected.keys() == {"loss_cls", "loss_bbox", "loss_centerness"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    for losses in (found, expected):
        torch.stack(list(losses.values())).sum().backward()
    for (name, one), two in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=name)


def watched(model: nn.Module, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Logits, labels and weights of all anchors, the divisor, and the loss that was made of them."""
    seen: list[Any] = []

    def watch(module: nn.Module, given: Any, named: Any, value: Tensor) -> None:
        seen.extend((*given, float(named["avg_factor"]), value.item()))

    hook = model.bbox_head.loss_cls.register_forward_hook(watch, with_kwargs=True)  # type: ignore[union-attr]
    losses_of(model, targets)
    hook.remove()
    return tuple(seen)  # type: ignore[return-value]


def test_classification_loss_equals_its_definition_in_float64() -> None:
    logits, labels, weights, positives, value = watched(detector("ecm"), [TWO_OBJECTS, SMALL_IMAGE])
    assert positives == (labels < CLASSES).sum() > 2
    counts = torch.tensor(tiny_atss.COUNTS.instance_counts).double()
    q = (2 * logits.double() + logit_shifts(counts)).sigmoid()
    is_own = torch.arange(CLASSES) == labels[:, None]
    wrong = torch.where(is_own, 1 - q, q)
    alpha = torch.where(is_own, 0.25, 0.75)
    elements = -alpha * wrong**2 * (1 - wrong).log() * column_weights(counts) * weights[:, None]
    assert value == pytest.approx(elements.sum().item() / positives, rel=1e-5)


def test_anchors_beyond_the_padding_of_an_image_do_not_count() -> None:
    """40 x 30 px are padded to 64 x 32 of a canvas of 96 x 64."""
    *_, weights, _, _ = watched(detector(), [SMALL_IMAGE])
    cells = [
        (-(-CANVAS_WH[1] // s), -(-CANVAS_WH[0] // s), -(-32 // s), -(-64 // s)) for s in (8, 16, 32, 64, 128)
    ]
    start = 0
    for rows, columns, seen_rows, seen_columns in cells:
        found = weights[start : start + rows * columns].reshape(rows, columns)
        expected = torch.zeros(rows, columns)
        expected[:seen_rows, :seen_columns] = 1
        assert torch.equal(found, expected)
        start += rows * columns
    assert start == len(weights)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_background_trains_the_classifier_alone(method: str) -> None:
    model = SupervisedModel(detector(method), CPU, with_mask=False, bf16=False)
    losses = model([tiny_atss.sample(NOTHING, 1), tiny_atss.sample(NOTHING, 2)])
    losses["loss"].backward()
    assert list(losses) == ["loss", "cls", "bbox", "centerness"]
    assert losses["bbox"] == losses["centerness"] == 0 and losses["cls"] > 0
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert not grads["model.detector.bbox_head.atss_reg.weight"].any()  # type: ignore[union-attr]
    assert grads["model.detector.bbox_head.atss_cls.weight"].any()  # type: ignore[union-attr]


# --- processes

# each image of every step; the second process is without objects, then the first one
STEPS = [[ONE_OBJECT, NOTHING], [NOTHING, SMALL_IMAGE], [NOTHING, NOTHING]]


class Records(Hook):
    """Keeps the history lines."""

    def __init__(self) -> None:
        self.lines: list[Record] = []

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self.lines.append(dict(record))


def train(method: str, rank: int, world: int) -> tuple[list[Record], dict[str, Tensor]]:
    model = SupervisedModel(detector(method), CPU, with_mask=False, bf16=False).train()
    records, share = Records(), len(STEPS[0]) // world

    def batches(start: int) -> Iterator[list[ViewSample]]:
        for step, targets in enumerate(STEPS[start:], start):
            samples = [tiny_atss.sample(t, seed=10 * step + i) for i, t in enumerate(targets)]
            yield samples[rank * share : (rank + 1) * share]

    Trainer(
        model,
        sgd(model, 0.02, 0.9, 1e-4),
        Schedule((len(STEPS),), (), 0.02),
        batches,
        images_per_step=len(STEPS[0]),
        process=Process(rank, world, CPU),
        hooks=[records],
    ).train()
    return records.lines, model.state_dict()


def run_in_a_process(rank: int, world: int) -> dict[str, Any]:
    return {method: train(method, rank, world) for method in METHODS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return together(2, run_in_a_process, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("method", METHODS)
def test_a_process_without_positives_changes_nothing(both: list[Any], method: str) -> None:
    lines, state = train(method, 0, 1)
    assert lines[0]["bbox"] > 0 and lines[2]["bbox"] == 0
    for result in both:
        found_lines, found = result[method]
        for line, expected in zip(found_lines, lines, strict=True):
            assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for name, value in state.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
