"""OLN's heads against slow re-implementations, its published numbers, and a tiny detector that learns.

P2..P6 of a 64 px image are 16, 8, 4, 2 and 1 locations wide.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.boxes import iou
from pipeline.detectors.build import STRIDES, build_model
from pipeline.detectors.sampling import set_draw_key
from pipeline.errors import SettingsError
from pipeline.proposals.oln import oln_config
from pipeline.proposals.settings import PRESETS, ProposalsSettings
from pipeline.settings import build, to_plain

# isort: split
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData

TINY = ProposalsSettings(depth=18, fpn_channels=32, fc_channels=32, anchor_scale=4.0, finest_scale=14)
TWO_OBJECTS = [[10.0, 12.0, 30.0, 40.0], [0.0, 0.0, 16.0, 16.0]]


def tiny(seed: int = 0, **changes: Any) -> Any:
    return build_model(oln_config(dataclasses.replace(TINY, **changes)), seed)


def instances(boxes: list[list[float]], key: int = 0) -> InstanceData:
    made = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.zeros(len(boxes), dtype=torch.long)
    )
    set_draw_key(made, key)
    return made


def shapes(height: int, width: int, scale: float = 1.0) -> dict[str, Any]:
    size = (height, width)
    return {"img_shape": size, "pad_shape": size, "ori_shape": size, "scale_factor": (scale, scale)}


def sample(boxes: list[list[float]], size: int = 64, key: int = 0) -> DetDataSample:
    made = DetDataSample(metainfo={**shapes(size, size), "batch_input_shape": (size, size)})
    made.gt_instances = instances(boxes, key)
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(batch: int, size: int = 64, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Random objectness and box code of every level, boxes of positive size."""
    widths = [max(size // s, 1) for s in STRIDES]
    logits = [noise(batch, 1, w, w, seed=seed + i) for i, w in enumerate(widths)]
    codes = [0.5 + 0.1 * noise(batch, 4, w, w, seed=seed + 10 + i) for i, w in enumerate(widths)]
    return logits, codes


def all_anchors(head: Any, size: int = 64) -> Tensor:
    return torch.cat(
        head.prior_generator.grid_priors([(max(size // s, 1),) * 2 for s in STRIDES], device="cpu")
    )


def slow_assign(
    anchors: Tensor, objects: Tensor, positive: float, negative: float, minimum: float
) -> list[int]:
    """Object of each anchor; -1 background, -2 neither.  The best anchors of an object belong to it."""
    overlaps = iou(anchors.numpy(), objects.numpy())
    assigned = []
    for row in overlaps:
        best = int(row.argmax())
        assigned.append(best if row[best] >= positive else -1 if row[best] < negative else -2)
    for k in range(len(objects)):
        best_of_object = overlaps[:, k].max()
        if best_of_object >= minimum:
            for i in (overlaps[:, k] == best_of_object).nonzero()[0]:
                assigned[i] = k
    return assigned


def inside(anchors: Tensor, size: int = 64) -> Tensor:
    return (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < size).all(1)


# --- settings and published numbers ---------------------------------------------------------------------


def test_paper_preset_holds_the_released_values() -> None:
    paper = build(ProposalsSettings, PRESETS["paper"], "proposals")
    assert (paper.lr, paper.epochs, paper.milestones, paper.batch_size) == (0.02, 8, (6, 7), 16)
    assert (paper.short_side, paper.long_side, paper.warmup_steps) == (800, 1333, 500)
    assert (paper.rpn_nms, paper.rpn_max, paper.keep, paper.normalize_by) == (None, None, 1500, "samples")
    assert (paper.border_objects, paper.reg_bias, paper.clip_norm) == (False, 0.0, None)
    assert (paper.allowed_border, paper.neg_fill, paper.seen) == (0, True, "all")
    config = oln_config(paper)
    head = config["rpn_head"]
    assert head["loss_bbox"] == {"type": "IoULoss", "mode": "linear", "loss_weight": 10.0}
    assert (head["anchor_generator"]["scales"], head["anchor_generator"]["ratios"]) == ([8.0], [1.0])
    assert config["test_cfg"]["rpn"]["nms_pre"] == config["train_cfg"]["rpn_proposal"]["nms_pre"] == 2000
    assert config["test_cfg"]["rcnn"]["nms"] == {"type": "nms", "iou_threshold": 0.7}
    assert config["backbone"]["frozen_stages"] == 1 and config["backbone"]["norm_eval"]


def test_literal_preset_differs_from_paper_in_the_background_alone() -> None:
    paper, literal = (build(ProposalsSettings, PRESETS[p], "proposals") for p in ("paper", "literal"))
    assert literal == dataclasses.replace(paper, neg_fill=False)
    samplers = [oln_config(s)["train_cfg"]["rpn"]["objectness_sampler"] for s in (paper, literal)]
    assert [s["neg_pos_ub"] for s in samplers] == [-1, 0]


def test_every_setting_has_a_reason_and_survives_a_round_trip() -> None:
    for field in dataclasses.fields(ProposalsSettings):
        assert field.metadata["why"], field.name
    assert build(ProposalsSettings, to_plain(TINY), "proposals") == TINY
    for wrong in ({"depth": 34}, {"rpn_nms": 1.5}, {"normalize_by": "all"}, {"keep": 0}, {"anchors": 3}):
        with pytest.raises(SettingsError, match=f"proposals.{next(iter(wrong))}"):
            build(ProposalsSettings, wrong, "proposals")


def test_warm_up_is_at_most_a_tenth_of_the_run() -> None:
    assert ProposalsSettings().warmup_of(59_000) == 500
    assert ProposalsSettings().warmup_of(150) == 15


def test_published_box_code_and_box_loss() -> None:
    config = oln_config(ProposalsSettings(normalize_by="samples"))
    head = build_model(config, 0).rpn_head
    prior, box = torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    code = head.bbox_coder.encode(prior, box)
    torch.testing.assert_close(code, torch.tensor([[0.625, 0.625, 0.625, 1.875]]))
    torch.testing.assert_close(head.bbox_coder.decode(prior, code), box)
    half = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert head.loss_bbox(half, box).item() == pytest.approx(5.0)


def test_one_square_anchor_of_scale_times_stride_per_location() -> None:
    head = build_model(oln_config(ProposalsSettings(depth=18)), 0).rpn_head
    anchors = head.prior_generator.grid_priors([(2, 3)] * 5, device="cpu")
    for stride, level in zip(STRIDES, anchors, strict=True):
        assert level.shape == (6, 4)
        assert ((level[:, 2:] - level[:, :2]) == 8 * stride).all()


# --- the network ------------------------------------------------------------------------------------------


def test_a_fresh_head_predicts_the_anchors_themselves() -> None:
    head = tiny().rpn_head
    with torch.no_grad():
        head.rpn_reg.weight.zero_()
    _, codes = head((torch.zeros(1, 32, 3, 3),) * 5)
    anchors = head.prior_generator.grid_priors([(3, 3)] * 5, device="cpu")[0]
    torch.testing.assert_close(head.bbox_coder.decode(anchors, codes[0].flatten(2)[0].T), anchors)


def test_the_released_head_starts_from_points() -> None:
    head = tiny(reg_bias=0.0).rpn_head
    assert (head.rpn_reg.bias == 0).all() and (tiny().rpn_head.rpn_reg.bias == 0.5).all()
    with torch.no_grad():
        head.rpn_reg.weight.zero_()
    _, codes = head((torch.zeros(1, 32, 3, 3),) * 5)
    anchors = head.prior_generator.grid_priors([(3, 3)] * 5, device="cpu")[0]
    boxes = head.bbox_coder.decode(anchors, codes[0].flatten(2)[0].T)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(boxes, centre.repeat(1, 2))


def test_outputs_see_features_of_unit_length() -> None:
    head, seen = tiny().rpn_head, []
    head.rpn_obj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    objectness, codes = head.forward_single(100 * noise(2, 32, 5, 7))
    assert objectness.shape == (2, 1, 5, 7) and codes.shape == (2, 4, 5, 7)
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(2, 5, 7))


def test_no_classification_layer_anywhere() -> None:
    names = set(tiny().state_dict())
    assert not [n for n in names if "cls" in n]
    heads = sorted(n for n in names if n.startswith("r") and n.endswith("weight"))
    assert heads == [
        "roi_head.bbox_head.fc_overlap.weight",
        "roi_head.bbox_head.fc_reg.weight",
        "roi_head.bbox_head.shared_fcs.0.weight",
        "roi_head.bbox_head.shared_fcs.1.weight",
        "rpn_head.rpn_conv.weight",
        "rpn_head.rpn_obj.weight",
        "rpn_head.rpn_reg.weight",
    ]


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("rpn_nms", [None, 0.7])
def test_small_images_train_and_predict(size: int, rpn_nms: float | None) -> None:
    model, images = tiny(rpn_nms=rpn_nms, rpn_max=100), noise(2, 3, size, size)
    samples = [sample(TWO_OBJECTS, size), sample(TWO_OBJECTS[:1], size)]
    losses = model.loss(images, samples)
    assert sorted(losses) == ["loss_bbox", "loss_overlap", "loss_rpn_bbox", "loss_rpn_obj"]
    assert all(v.isfinite() and v > 0 and v.dim() == 0 for v in losses.values())
    with torch.no_grad():
        for found in model.eval().predict(images, samples, rescale=False):
            boxes, scores = found.pred_instances.bboxes, found.pred_instances.scores
            assert 0 < len(boxes) <= 100 and (scores.diff() <= 0).all()
            assert (boxes >= 0).all() and (boxes <= size).all() and (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("normalize_by", ["samples", "positives"])
@pytest.mark.parametrize("boxes", [[TWO_OBJECTS, TWO_OBJECTS[:1]], [TWO_OBJECTS, []], [[], []]])
@pytest.mark.parametrize("neg_fill", [True, False])
def test_every_trained_parameter_gets_a_gradient(
    normalize_by: str, boxes: list[list[list[float]]], neg_fill: bool
) -> None:
    model = tiny(normalize_by=normalize_by, neg_fill=neg_fill, rpn_max=50)
    losses = model.loss(noise(2, 3, 64, 64), [sample(b) for b in boxes])
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if boxes[0]:
        last = [model.rpn_head.rpn_reg, model.rpn_head.rpn_obj]
        last += [model.roi_head.bbox_head.fc_reg, model.roi_head.bbox_head.fc_overlap]
        assert all(layer.weight.grad.abs().sum() > 0 for layer in last)
    else:
        boxless = [losses["loss_rpn_bbox"], losses["loss_bbox"], losses["loss_overlap"]]
        assert all(loss == 0 for loss in boxless)
        assert (losses["loss_rpn_obj"] > 0) == neg_fill  # only background is left to learn from


def test_frozen_bn_leaves_the_stem_and_every_statistic_alone() -> None:
    model = tiny(norm="frozen-bn", rpn_max=50).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    sum(model.loss(noise(1, 3, 64, 64), [sample(TWO_OBJECTS)]).values()).backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


def test_state_dict_round_trip() -> None:
    first, second, image = tiny(0).eval(), tiny(1).eval(), noise(1, 3, 64, 64)
    with torch.no_grad():
        wanted = first.predict(image, [sample([])])[0].pred_instances
        assert not torch.equal(second.predict(image, [sample([])])[0].pred_instances.scores, wanted.scores)
        second.load_state_dict(first.state_dict(), strict=True)
        found = second.predict(image, [sample([])])[0].pred_instances
    assert torch.equal(found.bboxes, wanted.bboxes) and torch.equal(found.scores, wanted.scores)


# --- targets and losses -----------------------------------------------------------------------------------


def quality_targets(head: Any, boxes: list[list[float]], key: int = 0) -> tuple[Tensor, Tensor]:
    anchors = all_anchors(head)
    targets = head._get_targets_single(
        anchors, torch.ones(len(anchors), dtype=torch.bool), instances(boxes, key), shapes(64, 64)
    )
    return targets[-2], targets[-1]


def slow_centerness(anchor: Tensor, box: Tensor) -> float:
    x, y = ((anchor[:2] + anchor[2:]) / 2).tolist()
    distances = [x - box[0].item(), box[2].item() - x, y - box[1].item(), box[3].item() - y]
    if min(distances) <= 0:
        return 0.0
    left, right, top, bottom = distances
    return (min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)) ** 0.5


def test_objectness_targets_equal_the_loop() -> None:
    head = tiny().rpn_head
    target, weight = quality_targets(head, TWO_OBJECTS)
    anchors, objects = all_anchors(head), torch.tensor(TWO_OBJECTS)
    usable = inside(anchors)
    assigned = slow_assign(anchors[usable], objects, 0.3, 0.1, 0.3)
    num_positive = sum(a >= 0 for a in assigned)
    assert 5 < num_positive < 256
    for anchor, a, t, w in zip(anchors[usable], assigned, target[usable], weight[usable], strict=True):
        if a >= 0:
            assert w == 1 and t.item() == pytest.approx(slow_centerness(anchor, objects[a]), abs=1e-6)
        else:
            assert t == 0 and (w == 0 or a == -1)
    assert (weight[~usable] == 0).all()
    num_background = sum(a == -1 for a in assigned)
    assert weight.sum() == num_positive + min(num_background, 256 - num_positive)


def test_negative_fill_on_and_off() -> None:
    fill, no_fill = (quality_targets(tiny(neg_fill=f).rpn_head, TWO_OBJECTS)[1] for f in (True, False))
    head = tiny(allowed_border=-1).rpn_head  # 341 anchors: more than the 256 samples
    assert quality_targets(head, TWO_OBJECTS)[1].sum() == 256
    assigned = slow_assign(
        all_anchors(head)[inside(all_anchors(head))], torch.tensor(TWO_OBJECTS), 0.3, 0.1, 0.3
    )
    assert no_fill.sum() == sum(a >= 0 for a in assigned)
    assert fill.sum() > no_fill.sum() and ((fill - no_fill) >= 0).all()
    assert quality_targets(tiny(neg_fill=False).rpn_head, [])[1].sum() == 0
    assert quality_targets(tiny(neg_fill=True).rpn_head, [])[1].sum() == min(
        256, inside(all_anchors(head)).sum()
    )


@pytest.mark.parametrize("normalize_by", ["samples", "positives"])
def test_rpn_losses_equal_the_loop(normalize_by: str) -> None:
    head = tiny(normalize_by=normalize_by).rpn_head
    truth = [TWO_OBJECTS, [[20.0, 8.0, 60.0, 50.0]]]
    logits, codes = outputs(batch=2)
    losses = head.loss_by_feat(logits, codes, [instances(b) for b in truth], [shapes(64, 64)] * 2)
    anchors = all_anchors(head)
    usable = inside(anchors)
    box_sum = quality_sum = 0.0
    num_positive = num_box_samples = num_quality_samples = 0
    for i, boxes in enumerate(truth):
        objects = torch.tensor(boxes)
        logit = torch.cat([level[i].reshape(-1) for level in logits])
        code = torch.cat([level[i].permute(1, 2, 0).reshape(-1, 4) for level in codes])
        side = anchors[:, 2:] - anchors[:, :2]
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).T
        top, bottom, left, right = (code * side[:, :1]).T
        predicted = torch.stack([x - left, y - top, x + right, y + bottom], dim=1)
        assigned = slow_assign(anchors[usable], objects, 0.7, 0.3, 0.3)
        for box, a in zip(predicted[usable], assigned, strict=True):
            if a >= 0:
                box_sum += 1 - float(iou(box[None].numpy(), objects[a][None].numpy()).item())
        positives = sum(a >= 0 for a in assigned)
        assert 0 < positives <= 128
        num_positive += positives
        num_box_samples += positives + min(256 - positives, sum(a == -1 for a in assigned))
        target, weight = quality_targets(head, boxes)
        quality_sum += ((logit.sigmoid() - target).abs() * weight).sum().item()
        num_quality_samples += int(weight.sum())
    if normalize_by == "samples":
        wanted = (10 * box_sum / num_box_samples, quality_sum / num_box_samples)
    else:
        wanted = (box_sum / num_positive, quality_sum / num_quality_samples)
    assert losses["loss_rpn_bbox"].item() == pytest.approx(wanted[0], rel=1e-5)
    assert losses["loss_rpn_obj"].item() == pytest.approx(wanted[1], rel=1e-5)


def test_objects_at_the_image_border_are_learnt() -> None:
    head = tiny().rpn_head
    logits, codes = outputs(batch=1)
    codes = [c.requires_grad_() for c in codes]
    loss = head.loss_by_feat(logits, codes, [instances([[0.0, 0.0, 16.0, 16.0]])], [shapes(64, 64)])
    loss["loss_rpn_bbox"].backward()
    assert sum(c.grad.abs().sum() for c in codes) > 0


@pytest.mark.parametrize("box", [[0.0, 4.0, 16.0, 20.0], [4.0, 0.0, 20.0, 16.0]])
def test_released_quirk_leaves_out_objects_at_the_left_and_top_border(box: list[float]) -> None:
    inner = [20.0, 20.0, 36.0, 36.0]
    logits, codes = outputs(batch=1)

    def losses(boxes: list[list[float]], border_objects: bool) -> dict[str, Tensor]:
        head = tiny(border_objects=border_objects).rpn_head
        return head.loss_by_feat(logits, codes, [instances(boxes)], [shapes(64, 64)])

    assert losses([box], border_objects=False)["loss_rpn_bbox"] == 0
    assert losses([box], border_objects=True)["loss_rpn_bbox"] > 0
    moved = [v + 1 for v in box]  # the quirk is about the border, not about the object
    assert losses([moved], border_objects=False)["loss_rpn_bbox"] > 0
    both = losses([box, inner], border_objects=False)
    assert both["loss_rpn_bbox"] > 0  # only the object at the border is left out
    quality = losses([box, inner], border_objects=True)["loss_rpn_obj"]
    assert torch.equal(both["loss_rpn_obj"], quality)  # its centerness is learnt all the same


def test_objects_at_the_right_border_always_count() -> None:
    head = tiny(border_objects=False, allowed_border=-1).rpn_head
    logits, codes = outputs(batch=1)
    losses = head.loss_by_feat(logits, codes, [instances([[44.0, 44.0, 64.0, 64.0]])], [shapes(64, 64)])
    assert losses["loss_rpn_bbox"] > 0


def test_images_smaller_than_every_anchor_are_refused_with_a_remedy() -> None:
    head = tiny(anchor_scale=32.0).rpn_head
    logits, codes = outputs(batch=1)
    with pytest.raises(SettingsError, match=r"\(64, 64\)") as refused:
        head.loss_by_feat(logits, codes, [instances(TWO_OBJECTS)], [shapes(64, 64)])
    assert "proposals.anchor_scale" in refused.value.hint
    head = tiny(anchor_scale=32.0, allowed_border=-1).rpn_head
    assert head.loss_by_feat(logits, codes, [instances(TWO_OBJECTS)], [shapes(64, 64)])["loss_rpn_obj"] > 0


@pytest.mark.parametrize("normalize_by", ["samples", "positives"])
def test_roi_losses_equal_the_loop(normalize_by: str) -> None:
    head = tiny(normalize_by=normalize_by).roi_head
    truth = [TWO_OBJECTS, []]
    near = torch.tensor([[11.0, 11.0, 29.0, 41.0], [1.0, 2.0, 15.0, 15.0], [12.0, 12.0, 52.0, 40.0]])
    far = torch.tensor([[40.0, 40.0, 60.0, 62.0], [30.0, 2.0, 60.0, 12.0]])
    proposals = [InstanceData(bboxes=torch.cat([near, far]), scores=torch.rand(5)) for _ in truth]
    pyramid = tuple(noise(2, 32, 64 // s, 64 // s, seed=s) for s in STRIDES)
    losses = head.loss(pyramid, proposals, [sample(b) for b in truth])
    objects = torch.tensor(TWO_OBJECTS)
    priors = torch.cat([objects, near])  # the objects themselves are proposals too; both `far` are negative
    features = head.bbox_roi_extractor(pyramid[:4], bbox2roi([priors, priors[:0]]))
    logits, codes = head.bbox_head(features)
    box_sum = overlap_sum = 0.0
    num_positive = 0
    for prior, logit, code in zip(priors, logits, codes, strict=True):
        overlaps = iou(prior[None].numpy(), objects.numpy())[0]
        if overlaps.max() < 0.5:
            continue
        box = objects[int(overlaps.argmax())]
        size, wanted_size = prior[2:] - prior[:2], box[2:] - box[:2]
        shift = ((box[:2] + box[2:]) / 2 - (prior[:2] + prior[2:]) / 2) / size / 0.1
        stretch = (wanted_size / size).log() / 0.2
        box_sum += (code - torch.cat([shift, stretch])).abs().sum().item()
        overlap_sum += abs(logit.sigmoid().item() - overlaps.max())
        num_positive += 1
    assert num_positive == 4  # the two objects and two of `near`
    # 5 proposals and 2 objects in image 0, 5 proposals in image 1; a quarter of 512 may be positive
    count = num_positive / 0.25 if normalize_by == "positives" else 12
    assert losses["loss_bbox"].item() == pytest.approx(box_sum / count, rel=1e-4)
    assert losses["loss_overlap"].item() == pytest.approx(overlap_sum / count, rel=1e-4)


def test_sampling_depends_on_the_key_alone() -> None:
    model, images = tiny(rpn_max=200), noise(1, 3, 128, 128)
    many = [[8.0 * i, 8.0 * j, 8.0 * i + 24, 8.0 * j + 24] for i in range(12) for j in range(12)]

    def loss_with(key: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return torch.stack(list(model.loss(images, [sample(many, 128, key)]).values()))

    assert torch.equal(loss_with(key=5, global_seed=0), loss_with(key=5, global_seed=1))
    assert not torch.equal(loss_with(key=5, global_seed=0), loss_with(key=6, global_seed=0))


# --- prediction -------------------------------------------------------------------------------------------


def rpn_boxes(rpn_nms: float | None, rpn_max: int | None, size: int = 64) -> InstanceData:
    head = tiny(rpn_nms=rpn_nms, rpn_max=rpn_max).rpn_head
    logits, codes = outputs(batch=1, size=size)
    return head.predict_by_feat(logits, codes, batch_img_metas=[shapes(size, size)])[0]


def test_without_rpn_nms_every_box_goes_on() -> None:
    everything = rpn_boxes(None, None)
    assert len(everything) == 16**2 + 8**2 + 4**2 + 2**2 + 1 == 341
    logits, _ = outputs(batch=1)
    scores = torch.cat([level.flatten() for level in logits]).sigmoid()
    torch.testing.assert_close(everything.scores.sort().values, scores.sort().values)


def test_rpn_nms_and_cap_reduce_the_boxes() -> None:
    everything, suppressed = rpn_boxes(None, None), rpn_boxes(0.3, None)
    assert 0 < len(suppressed) < len(everything)
    capped = rpn_boxes(None, 20)
    best = everything.scores.sort(descending=True).values[:20]
    torch.testing.assert_close(capped.scores, best)


def test_each_level_gives_its_best_2000() -> None:
    logits, _ = outputs(batch=1, size=256)
    levels = [level.flatten().sigmoid().sort(descending=True).values[:2000] for level in logits]
    assert [len(level) for level in levels] == [2000, 1024, 256, 64, 16]
    found = rpn_boxes(None, None, size=256)
    torch.testing.assert_close(found.scores.sort().values, torch.cat(levels).sort().values)


def test_boxes_turned_inside_out_never_reach_the_roi_head() -> None:
    head = tiny(rpn_nms=None, rpn_max=None).rpn_head
    logits, codes = outputs(batch=1)
    codes[0][:] = -0.5
    found = head.predict_by_feat(logits, codes, batch_img_metas=[shapes(64, 64)])[0]
    assert len(found) == 341 - 256 and (found.bboxes[:, 2:] > found.bboxes[:, :2]).all()
    nothing = [torch.full_like(c, -0.5) for c in codes]
    empty = head.predict_by_feat(logits, nothing, batch_img_metas=[shapes(64, 64)])
    pyramid = tuple(noise(1, 32, 64 // s, 64 // s) for s in STRIDES)
    assert len(empty[0]) == 0
    assert len(tiny().roi_head.predict(pyramid, empty, [sample([])])[0].bboxes) == 0


def test_scores_are_the_geometric_mean_of_both_stages() -> None:
    model = tiny(rpn_nms=None, rpn_max=None, nms_iou=1.0, keep=10_000).eval()
    image, samples = noise(1, 3, 64, 64), [sample([])]
    with torch.no_grad():
        for layer in (model.rpn_head.rpn_obj, model.roi_head.bbox_head.fc_overlap):
            layer.weight.mul_(50)  # a fresh head says 0.5 everywhere
        pyramid = model.extract_feat(image)
        first = model.rpn_head.predict(pyramid, samples)[0]
        rois = bbox2roi([first.bboxes])
        logits, codes = model.roi_head.bbox_head(model.roi_head.bbox_roi_extractor(pyramid[:4], rois))
        found = model.predict(image, samples, rescale=False)[0].pred_instances
    wanted = (first.scores * logits[:, 0].sigmoid()).sqrt()
    order = wanted.argsort(descending=True, stable=True)
    refined = model.roi_head.bbox_head.bbox_coder.decode(first.bboxes, codes, max_shape=(64, 64))
    assert len(found) == len(first) == 341 and wanted.std() > 0.01
    torch.testing.assert_close(found.scores, wanted[order])
    torch.testing.assert_close(found.bboxes, refined[order])
    assert (found.labels == 0).all()


def test_kept_boxes_survive_nms_and_are_scaled_back() -> None:
    model, image = tiny(keep=30).eval(), noise(1, 3, 64, 64)
    scaled = sample([])
    scaled.set_metainfo(shapes(64, 64, scale=2.0))
    with torch.no_grad():
        plain = model.predict(image, [sample([])], rescale=False)[0].pred_instances
        found = model.predict(image, [scaled], rescale=True)[0].pred_instances
    assert len(plain) == 30
    torch.testing.assert_close(found.bboxes * 2, plain.bboxes)
    overlaps = iou(plain.bboxes.numpy(), plain.bboxes.numpy())
    assert (overlaps - torch.eye(30).numpy()).max() <= 0.7


# --- learning ---------------------------------------------------------------------------------------------


def scene(boxes: list[list[float]], seed: int) -> Tensor:
    image = 0.1 * noise(3, 96, 96, seed=seed)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[k % 3, int(y1) : int(y2), int(x1) : int(x2)] += 2
    return image


def recall(model: Any, images: Tensor, truth: list[list[list[float]]], top: int) -> float:
    """Share of the objects that one of the best `top` boxes covers with IoU 0.5."""
    model.eval()
    with torch.no_grad():
        found = model.predict(images, [sample(b, 96) for b in truth], rescale=False)
    hit = []
    for boxes, one in zip(truth, found, strict=True):
        overlaps = iou(torch.tensor(boxes).numpy(), one.pred_instances.bboxes[:top].numpy())
        hit += (overlaps.max(axis=1) >= 0.5).tolist()
    return sum(hit) / len(hit)


def test_forty_steps_find_the_objects() -> None:
    truth = [[[8.0, 8.0, 36.0, 30.0], [50.0, 44.0, 90.0, 88.0]], [[30.0, 20.0, 70.0, 60.0]]]
    images = torch.stack([scene(b, seed) for seed, b in enumerate(truth)])
    model = tiny(rpn_max=100, fc_channels=64)
    before = recall(model, images, truth, top=20)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 0.005 if step < 30 else 0.0005
        losses = model.loss(images, [sample(b, 96, key=step) for b in truth])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    assert before < 0.5 and recall(model, images, truth, top=20) == 1
