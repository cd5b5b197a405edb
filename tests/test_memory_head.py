"""LOCE's RoI head against loops: what is stored, what joins the RoIs, losses and gradients, a resume."""

import copy

import pytest
import torch
from tiny_heads import (
    CLASSES,
    boxes_around,
    labels_of,
    proposals,
    pyramid,
    rois_of,
    sample,
    sampled_rois,
    tiny_config,
    tiny_head,
    two_images,
    without_objects,
)

from pipeline.detectors.build import build_model
from pipeline.errors import UsageError
from pipeline.finetune.heads import UNPUBLISHED
from pipeline.finetune.heads.class_features import boxes_around_objects, draws_of_images

HEAD = {"type": "twodrcl.MemoryRoIHead"}
MEMORY = {"queue_size": 24, "sampled_num_classes": 5, "sampled_num_features": 3}


@pytest.fixture(scope="module")
def built():
    return tiny_head("loce", **HEAD, memory=MEMORY)


@pytest.fixture
def head(built):
    """As new for every test."""
    return copy.deepcopy(built)


def rows_of(memory, label):
    """The filled rows of a class, features (n, 32, 7, 7) and box targets (n, 4)."""
    number = int(memory.num_filled[label])
    return memory.features[label, :number].reshape(-1, 32, 7, 7), memory.box_targets[label, :number]


def test_boxes_around_objects_equal_a_loop():
    found = boxes_around_objects(two_images())
    rois, objects, labels = boxes_around(two_images())
    torch.testing.assert_close(found.rois, rois)
    assert torch.equal(found.objects, objects) and found.labels.tolist() == labels
    assert len(labels) == 4 * 16
    assert (rois[-16:, 1:3] == 0).any() and (rois[:, 3] <= 96).all()  # cut to the image
    empty = boxes_around_objects(without_objects())
    assert empty.rois.shape == (0, 5) and empty.objects.shape == (0, 4) and empty.labels.shape == (0,)


def test_boxes_follow_the_key_alone_where_there_is_one():
    def boxes(key, seed):
        torch.manual_seed(seed)
        one = sample([[10.0, 12, 40, 50]], [2], (96, 64), key=5)
        one.gt_instances.set_metainfo({"draw_key": key})
        return boxes_around_objects([one]).rois

    assert torch.equal(boxes(5, seed=1), boxes(5, seed=2))
    assert not torch.equal(boxes(5, seed=1), boxes(6, seed=1))
    assert not torch.equal(boxes(None, seed=1), boxes(None, seed=2))


def test_collect_stores_features_and_targets_of_the_boxes(head):
    x = pyramid()
    head.collect(tuple(level.requires_grad_() for level in x), two_images())
    rois, objects, labels = boxes_around(two_images())
    for label in range(CLASSES):
        kept = [i for i, own in enumerate(labels) if own == label][:24]  # class 2 has 32
        features, targets = rows_of(head.class_features, label)
        assert len(features) == len(kept) == {0: 16, 1: 0, 2: 24, 3: 16}[label]
        for position, row in enumerate(kept):
            one = head.bbox_roi_extractor(x[:4], rois[row : row + 1])
            torch.testing.assert_close(features[position : position + 1], one)
        decoded = head.bbox_head.bbox_coder.decode(rois[kept, 1:], targets)
        torch.testing.assert_close(decoded, objects[kept], rtol=1e-4, atol=1e-3)
    assert not head.class_features.features.requires_grad


def test_collect_in_evaluation_mode_stores_the_same(head):
    other = copy.deepcopy(head).eval()
    for seed in (0, 1):
        head.collect(pyramid(seed), two_images())
        other.collect(pyramid(seed), two_images())
    assert torch.equal(head.class_features.features, other.class_features.features)
    assert head.class_features.num_filled.tolist() == [24, 0, 24, 24]


def slow_losses(head, x, sampled, drawn, mean_score):
    """LOCE's losses, and the mean scores that they use, from the rows drawn."""
    features, drawn_labels, drawn_targets, drawn_images = drawn
    box_head = head.bbox_head
    pooled = torch.cat([head.bbox_roi_extractor(x[:4], rois_of(sampled)), features])
    hidden = pooled.flatten(1)
    for layer in box_head.shared_fcs:
        hidden = layer(hidden).clamp(min=0)
    scores = box_head.fc_cls(hidden)
    codes = box_head.fc_reg(hidden).reshape(len(hidden), CLASSES, 4)
    labels = [*labels_of(sampled).tolist(), *drawn_labels.tolist()]

    objects = {}  # (object, class) -> probabilities
    first = position = 0
    for one in sampled:
        for gt in one.pos_assigned_gt_inds.tolist():
            objects.setdefault((first + gt, labels[position]), []).append(position)
            position += 1
        first, position = first + one.num_gts, position + len(one.neg_inds)
    for label, image in zip(drawn_labels.tolist(), drawn_images.tolist(), strict=True):
        objects.setdefault((f"drawn for {image}", label), []).append(position)
        position += 1
    probabilities = scores.detach().softmax(dim=1)
    mean_score = mean_score.clone()
    for label in range(CLASSES):
        own = [
            sum(float(probabilities[row, label]) for row in rows) / len(rows)
            for (_, of), rows in objects.items()
            if of == label
        ]
        kept = 0.9 ** len(own)
        mean_score[label] = kept * mean_score[label] + (1 - kept) * sum(own) / max(len(own), 1)

    loss_cls, loss_bbox, targets = 0.0, 0.0, drawn_targets.tolist()
    for one in reversed(sampled):
        codes_of = head.bbox_head.bbox_coder.encode(one.pos_priors, one.pos_gt_bboxes).tolist()
        targets = [*codes_of, *[None] * len(one.neg_inds), *targets]
    for row, label in enumerate(labels):
        loss_cls = loss_cls - (scores[row] + mean_score.log()).log_softmax(dim=0)[label]
        if label < CLASSES:
            loss_bbox = loss_bbox + (codes[row, label] - torch.tensor(targets[row])).abs().sum()
    return loss_cls / len(labels), loss_bbox / len(labels), mean_score


def test_losses_and_gradients_equal_a_slow_computation(head):
    x = tuple(level.requires_grad_() for level in pyramid(1))
    head.collect(pyramid(0), two_images())
    head.loss(pyramid(0), proposals(), two_images())  # another mean score than the first
    sampled, before = sampled_rois(head, two_images()), head.bbox_head.loss_cls.mean_score.clone()
    memory, random = head.class_features, torch.Generator().manual_seed(2)
    rare = (torch.randn(3, 32, 7, 7, generator=random), torch.ones(3).long())
    memory.store(*rare, torch.randn(3, 4, generator=random))  # of the class that these images do not show
    drawn = memory.sample(before, draws_of_images(sampled, memory.draws_per_image)[0])
    assert len(drawn.labels) >= 18 and len(drawn.labels.unique()) >= 2
    assert drawn.images.unique().tolist() == [0, 1]
    found = head.bbox_loss(x, sampled)
    expected = slow_losses(head, x, sampled, drawn, before)
    losses = found["loss_bbox"]
    torch.testing.assert_close(head.bbox_head.loss_cls.mean_score, expected[2])
    torch.testing.assert_close(losses["loss_cls"], expected[0])
    torch.testing.assert_close(losses["loss_bbox"], expected[1])
    assert found["bbox_feats"].shape == (len(rois_of(sampled)), 32, 7, 7)
    parts = [x[0], x[1], *head.bbox_head.parameters()]
    ours = torch.autograd.grad(losses["loss_cls"] + losses["loss_bbox"], parts)
    slow = torch.autograd.grad(expected[0] + expected[1], parts)
    for one, other in zip(ours, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_step_collects_before_it_draws(head):
    expected = copy.deepcopy(head)
    expected.collect(pyramid(), two_images())
    losses = expected.bbox_loss(pyramid(), sampled_rois(head, two_images()))["loss_bbox"]
    found = head.loss(pyramid(), proposals(), two_images())
    assert found["loss_cls"] == losses["loss_cls"] and found["loss_bbox"] == losses["loss_bbox"]


def test_mask_loss_and_published_names_are_those_of_the_plain_head():
    head = tiny_head("loce", "mask-rcnn", **HEAD, memory=MEMORY)
    plain = tiny_head("loce", "mask-rcnn", seed=1)
    head.collect(pyramid(), two_images())
    state = {f"roi_head.{name}": value for name, value in head.state_dict().items()}
    left = {name for name in state if name.startswith(UNPUBLISHED)}
    assert left == {"roi_head.class_features._extra_state"}
    kept = {name.removeprefix("roi_head."): state[name] for name in state.keys() - left}
    plain.load_state_dict(kept, strict=True)
    found, expected = (each.loss(pyramid(), proposals(), two_images()) for each in (head, plain))
    assert found["loss_mask"] == expected["loss_mask"]
    assert found["loss_cls"] != expected["loss_cls"] and found["loss_bbox"] != expected["loss_bbox"]


def train(head, steps):
    """Losses of a few steps."""
    optimizer, losses = torch.optim.SGD(head.parameters(), lr=0.05), []
    for step in steps:
        found = head.loss(pyramid(step), proposals(seed=step), two_images())
        optimizer.zero_grad()
        (found["loss_cls"] + found["loss_bbox"]).backward()
        optimizer.step()
        losses.append((found["loss_cls"].item(), found["loss_bbox"].item()))
    return losses


def test_resume_is_exact(head, tmp_path):
    resumed = tiny_head("loce", seed=5, **HEAD, memory=MEMORY)
    train(resumed, [7])  # must leave nothing behind
    train(head, range(2))
    torch.save(head.state_dict(), tmp_path / "head.pth")
    resumed.load_state_dict(torch.load(tmp_path / "head.pth", weights_only=True))
    assert train(resumed, range(2, 5)) == train(head, range(2, 5))
    assert torch.equal(resumed.class_features.features, head.class_features.features)
    assert torch.equal(resumed.bbox_head.loss_cls.mean_score, head.bbox_head.loss_cls.mean_score)


@pytest.mark.parametrize("part", ["features", "box_targets", "num_filled", "pointers", "mean_score"])
def test_every_part_of_the_state_is_needed_for_that(head, part):
    """A checkpoint that left it out would go on with what a new head has, and train something else."""
    head.class_features.sampled_num_features = 12  # so that old rows are among those drawn
    new = copy.deepcopy(head)
    train(head, range(2))
    whole, empty = head.state_dict(), new.state_dict()
    if part == "mean_score":
        name = f"bbox_head.loss_cls.{part}"
        whole |= {name: empty[name].clone()}
    elif part == "num_filled":
        whole |= {"class_features._extra_state": empty["class_features._extra_state"]}
    else:
        memory = whole["class_features._extra_state"]
        whole |= {"class_features._extra_state": {**memory, part: torch.zeros_like(memory[part])}}
    new.load_state_dict(whole)
    losses = [train(each, [2, 3]) for each in (head, new)]
    same = torch.equal(head.class_features.features, new.class_features.features)
    assert losses[0] != losses[1] or not same


@pytest.mark.parametrize("number", [0, 30])
def test_no_objects(head, number):
    head.collect(pyramid(), without_objects())
    losses = head.loss(pyramid(), proposals(number), without_objects())
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert not head.class_features.num_filled.any()
    assert (head.bbox_head.loss_cls.mean_score == 0.01).all()
    assert losses["loss_bbox"] == 0 and (losses["loss_cls"] == 0) == (number == 0)


def test_no_rois_but_a_filled_memory(head):
    head.collect(pyramid(), two_images())
    losses = head.loss(pyramid(), proposals(0), without_objects())
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert losses["loss_cls"] > 0 and losses["loss_bbox"] > 0
    assert all(p.grad is not None for p in head.bbox_head.parameters())


def test_another_loss_is_refused():
    with pytest.raises(UsageError, match="works with EquilibriumLoss, but loss_cls is FCBLLoss"):
        build_model(tiny_config("bacl", **HEAD), seed=0)
