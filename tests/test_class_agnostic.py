"""The class-agnostic Faster R-CNN: the released numbers, losses against a loop, and that it learns."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.boxes import iou
from pipeline.data.targets import Target
from pipeline.detectors.build import STRIDES, build_model
from pipeline.detectors.sampling import set_draw_key
from pipeline.detectors.two_stage import TwoStageModel, data_sample
from pipeline.proposals.class_agnostic import faster_rcnn_config
from pipeline.proposals.settings import PRESETS, ProposalsSettings
from pipeline.settings import build

# isort: split
from mmengine.structures import InstanceData

TINY = ProposalsSettings(
    source="rpn", depth=18, stem_channels=16, fpn_channels=32, fc_channels=32, anchor_scale=4.0, rpn_max=60
)
OBJECTS = [[[10.0, 12.0, 30.0, 40.0], [0.0, 0.0, 16.0, 16.0]], [[20.0, 8.0, 60.0, 50.0]]]


def tiny(**changes: Any) -> Any:
    return build_model(faster_rcnn_config(dataclasses.replace(TINY, **changes)), 0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def targets(boxes: list[list[list[float]]], size: int = 64) -> list[Target]:
    return [
        Target(np.array(b, np.float32).reshape(-1, 4), np.zeros(len(b), np.int64), (size, size), key)
        for key, b in enumerate(boxes)
    ]


def test_released_numbers() -> None:
    paper = build(ProposalsSettings, PRESETS["paper"] | {"source": "rpn"}, "proposals")
    config = faster_rcnn_config(paper)
    head, box_head = config["rpn_head"], config["roi_head"]["bbox_head"]
    assert head["anchor_generator"] == {
        "type": "AnchorGenerator",
        "scales": [8.0],
        "ratios": [1.0],
        "strides": [4, 8, 16, 32, 64],
    }
    assert head["loss_cls"] == {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
    assert head["loss_bbox"] == {"type": "L1Loss", "loss_weight": 1.0}
    assert (box_head["type"], box_head["num_classes"]) == ("Shared2FCBBoxHead", 1)
    rpn = config["train_cfg"]["rpn"]
    assert (rpn["allowed_border"], rpn["sampler"]["neg_pos_ub"], rpn["sampler"]["num"]) == (-1, -1, 256)
    for part in (config["train_cfg"]["rpn_proposal"], config["test_cfg"]["rpn"]):
        assert (part["nms_pre"], part["max_per_img"], part["nms"]["iou_threshold"]) == (2000, 2000, 0.7)
    assert config["test_cfg"]["rcnn"] == {
        "score_thr": 0.0,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "max_per_img": 1500,
    }


@pytest.mark.parametrize("boxes", [OBJECTS, [OBJECTS[0], []], [[], []]])
def test_one_step_trains_everything(boxes: list[list[list[float]]]) -> None:
    model = TwoStageModel(tiny())
    images = noise(2, 3, 64, 64)  # P6 is one location
    encoder = model.encoder

    def losses() -> dict[str, Tensor]:
        return model.detection_losses(encoder.pyramid(encoder.trunk(images)), targets(boxes), (64, 64), False)

    before = losses()
    assert sorted(before) == ["loss_bbox", "loss_cls", "loss_rpn_bbox", "loss_rpn_cls"]
    assert all(v.isfinite() and v.dim() == 0 for v in before.values())
    sum(before.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.optim.SGD(model.parameters(), lr=0.005).step()
    assert sum(losses().values()) < sum(before.values())


def test_rpn_losses_equal_the_loop() -> None:
    head = tiny().rpn_head
    widths = [64 // s for s in STRIDES]
    logits = [noise(1, 1, w, w, seed=w) for w in widths]
    codes = [0.1 * noise(1, 4, w, w, seed=50 + w) for w in widths]
    objects = torch.tensor(OBJECTS[0])
    truth = InstanceData(bboxes=objects, labels=torch.zeros(2, dtype=torch.long))
    set_draw_key(truth, 0)
    meta = {"img_shape": (64, 64), "pad_shape": (64, 64)}
    losses = head.loss_by_feat(logits, codes, [truth], [meta])
    anchors = torch.cat(head.prior_generator.grid_priors([(w, w) for w in widths], device="cpu"))
    assert len(anchors) == 341  # one per location, those across the border too
    overlaps = iou(anchors.numpy(), objects.numpy())
    best_of_object = overlaps.max(axis=0)
    positive = (overlaps >= 0.7).any(1) | ((overlaps == best_of_object) & (best_of_object >= 0.3)).any(1)
    box_sum = positive_sum = 0.0
    logit = torch.cat([level.reshape(-1) for level in logits])
    code = torch.cat([level[0].permute(1, 2, 0).reshape(-1, 4) for level in codes])
    for i in positive.nonzero()[0]:
        box = objects[int(overlaps[i].argmax())]
        size, wanted = anchors[i, 2:] - anchors[i, :2], box[2:] - box[:2]
        shift = ((box[:2] + box[2:]) / 2 - (anchors[i, :2] + anchors[i, 2:]) / 2) / size
        box_sum += (code[i] - torch.cat([shift, (wanted / size).log()])).abs().sum().item()
        positive_sum += torch.nn.functional.softplus(-logit[i]).item()
    assert 0 < positive.sum() <= 128
    assert sum(v.item() for v in losses["loss_rpn_bbox"]) == pytest.approx(box_sum / 256, rel=1e-4)
    # which negatives fill the 256 samples up is drawn: bounds instead of the sum
    negative = (overlaps.max(axis=1) < 0.3) & ~positive
    costs = torch.nn.functional.softplus(logit[torch.from_numpy(negative)]).sort().values
    num = min(256 - int(positive.sum()), int(negative.sum()))
    total = sum(v.item() for v in losses["loss_rpn_cls"]) * 256 - positive_sum
    assert costs[:num].sum() - 1e-3 <= total <= costs[-num:].sum() + 1e-3


@pytest.mark.parametrize("size", [32, 64, 96])
def test_prediction_gives_boxes_best_first(size: int) -> None:
    model = tiny(keep=20).eval()
    samples = [data_sample(t, (size, size), torch.device("cpu"), False) for t in targets([[], []], size)]
    with torch.no_grad():
        for found in model.predict(noise(2, 3, size, size), samples, rescale=False):
            boxes, scores = found.pred_instances.bboxes, found.pred_instances.scores
            assert 0 < len(boxes) <= 20 and (scores.diff() <= 0).all()
            assert (scores > 0).all() and (scores < 1).all() and (found.pred_instances.labels == 0).all()
            assert (boxes >= 0).all() and (boxes <= size).all()
            overlaps = iou(boxes.numpy(), boxes.numpy()) - np.eye(len(boxes))
            assert overlaps.max() <= 0.7 + 1e-6
