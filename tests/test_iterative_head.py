"""PCB's RoI head against a loop over its passes: features, losses, predictions, publishing."""

import copy

import pytest
import torch
from tiny_heads import (
    CANVAS_WH,
    CHANNELS,
    CLASSES,
    labels_of,
    proposals,
    published_config,
    pyramid,
    rois_of,
    sampled_rois,
    tiny_config,
    tiny_head,
    two_images,
    without_objects,
)

from pipeline.detectors.build import build_model
from pipeline.detectors.publish import load_published, publish_detector
from pipeline.errors import UsageError

HEAD = {"type": "twodrcl.IterativeRoIHead"}
WEIGHTS = (0.2, 0.2, 0.6)


@pytest.fixture(scope="module")
def built():
    head = tiny_head("pcb", **HEAD)
    head.bbox_head.loss_cls.epoch = 17  # the first with the pull, which differs from pass to pass
    head.bbox_head.loss_cls.num_inst_cnt.fill_(1)
    with torch.no_grad():  # as small as they start, all passes but the first would see nearly the same
        head.class_mlp[2].weight *= 20
        head.box_mlp[2].bias += 1
    return head


@pytest.fixture
def head(built):
    """As new for every test."""
    return copy.deepcopy(built)


def slow_passes(head, x, rois):
    """[(scores, codes)] of the three passes, place by place and channel by channel."""
    pooled, passes = head.bbox_roi_extractor(x[:4], rois), []
    for _ in range(3):
        scores, codes = head.bbox_head(pooled)
        passes.append((scores, codes))
        hidden = head.class_mlp[0](scores).clamp(min=0)
        shift = head.class_mlp[2](hidden)  # (N, 32)
        hidden = head.box_mlp[0](codes).clamp(min=0)
        factor = head.box_mlp[2](hidden)  # (N, 49)
        rows = []
        for row in range(len(rois)):
            places = [
                pooled[row, :, y, x] * factor[row, 7 * y + x] + shift[row] for y in range(7) for x in range(7)
            ]
            rows.append(torch.stack(places, dim=1).reshape(CHANNELS, 7, 7))  # 49 x (32) -> (32, 49)
        pooled = torch.stack(rows)
    return passes


def test_layers_have_the_official_widths():
    head = tiny_head("pcb", **HEAD)
    for net, widths in (
        (head.class_mlp, [CLASSES + 1, 512, CHANNELS]),
        (head.box_mlp, [4 * CLASSES, 512, 7 * 7]),
    ):
        assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU", "Linear"]
        assert [net[0].in_features, net[0].out_features, net[2].out_features] == widths
    assert head.pass_weights == WEIGHTS


def test_passes_equal_a_loop(head):
    rois = rois_of(sampled_rois(head, two_images()))
    found = head._bbox_forward(pyramid(), rois)
    expected = slow_passes(head, pyramid(), rois)
    assert len(found["passes"]) == 3
    for (scores, codes), (slow_scores, slow_codes) in zip(found["passes"], expected, strict=True):
        torch.testing.assert_close(scores, slow_scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(codes, slow_codes, rtol=1e-4, atol=1e-5)
    assert found["cls_score"] is found["passes"][2][0] and found["bbox_pred"] is found["passes"][2][1]
    assert (expected[1][0] - expected[2][0]).abs().max() > 0.01  # or all passes would be one
    torch.testing.assert_close(found["bbox_feats"], head.bbox_roi_extractor(pyramid()[:4], rois))


def test_losses_are_the_weighted_passes(head):
    sampled, plain = sampled_rois(head, two_images()), tiny_head("pcb")
    labels, loss_cls = labels_of(sampled), copy.deepcopy(head.bbox_head.loss_cls)
    passes = slow_passes(head, pyramid(), rois_of(sampled))
    expected = 0
    for number, (scores, _) in enumerate(passes):
        loss_cls.iter_id = number
        expected = expected + WEIGHTS[number] * loss_cls(scores, labels, avg_factor=len(labels))
    results = head.bbox_loss(pyramid(), sampled)
    torch.testing.assert_close(results["loss_bbox"]["loss_cls"], expected, rtol=1e-4, atol=1e-5)
    targets = head.bbox_head.get_targets(sampled, head.train_cfg)
    box_loss = plain.bbox_head.loss(None, passes[2][1], rois_of(sampled), *targets)["loss_bbox"]
    torch.testing.assert_close(results["loss_bbox"]["loss_bbox"], box_loss, rtol=1e-4, atol=1e-5)
    for name, state in loss_cls.state_dict().items():
        found = head.bbox_head.loss_cls.state_dict()[name]
        torch.testing.assert_close(found, state, rtol=1e-4, atol=1e-5)
    assert head.bbox_head.loss_cls.iter_id == 2  # whoever calls the loss now means the last pass
    accuracies = {name for name in results["loss_bbox"] if name.startswith("acc")}
    assert accuracies and all(0 <= results["loss_bbox"][name] <= 100 for name in accuracies)


def test_strength_of_the_pull_differs_between_passes(head):
    """So the passes must be told apart: with the last one's for all, the loss is another."""
    sampled = sampled_rois(head, two_images())
    found = copy.deepcopy(head).bbox_loss(pyramid(), sampled)["loss_bbox"]["loss_cls"]
    labels, loss_cls, expected = labels_of(sampled), copy.deepcopy(head.bbox_head.loss_cls), 0
    for weight, (scores, _) in zip(WEIGHTS, slow_passes(head, pyramid(), rois_of(sampled)), strict=True):
        expected = expected + weight * loss_cls(scores, labels, avg_factor=len(labels))
    assert abs(found - expected) > 1e-3


def test_predictions_are_those_of_the_last_pass(head):
    head.eval()
    metas = [{**one.metainfo, "scale_factor": (1.0, 1.0)} for one in two_images()]
    found = head.predict_bbox(pyramid(), metas, proposals(), head.test_cfg)
    boxes = [one.bboxes for one in proposals()]
    rois = torch.cat([torch.cat([torch.full((30, 1), i), b], dim=1) for i, b in enumerate(boxes)])
    scores, codes = slow_passes(head, pyramid(), rois)[2]
    expected = head.bbox_head.predict_by_feat(
        rois.split(30), scores.split(30), codes.split(30), metas, rcnn_test_cfg=head.test_cfg
    )
    for one, other in zip(found, expected, strict=True):
        assert len(one.scores) > 0
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("number", [0, 30])
@pytest.mark.parametrize("samples", [two_images, without_objects])
def test_every_parameter_gets_a_gradient(head, number, samples):
    """Also without any RoI: several processes would wait for it."""
    losses = head.loss(pyramid(), proposals(number), samples())
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert (losses["loss_cls"] > 0) == bool(number or samples is two_images)


def test_published_detector_has_the_head(tmp_path):
    config = published_config("pcb", **HEAD)
    detector = build_model(config, seed=1)
    detector.roi_head.class_mlp[0].weight.data.fill_(0.125)
    names = [f"class {i}" for i in range(CLASSES)]
    imports = ("pipeline.finetune", "pipeline.finetune.heads")
    publish_detector(tmp_path, detector.state_dict(), config, names, CANVAS_WH, {}, imports)
    loaded, _, _ = load_published(tmp_path / "detector.pth")
    assert type(loaded.roi_head).__name__ == "IterativeRoIHead"
    assert (loaded.roi_head.class_mlp[0].weight == 0.125).all()


@pytest.mark.parametrize("pass_weights", [[], [1.0], [0.5, 0.5]])
def test_other_numbers_of_passes_are_refused(pass_weights):
    with pytest.raises(UsageError, match=f"has {len(pass_weights)} pass_weights, loss_cls is for 3 passes"):
        build_model(tiny_config("pcb", **HEAD, pass_weights=pass_weights), seed=0)
