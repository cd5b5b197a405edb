"""BACL's RoI head against loops: the Gaussians, what joins the class loss, gradients, a resume."""

import copy

import pytest
import torch
from tiny_heads import (
    CLASSES,
    boxes_around,
    labels_of,
    proposals,
    pyramid,
    sampled_rois,
    tiny_config,
    tiny_head,
    two_images,
    without_objects,
)

from pipeline.detectors.build import build_model
from pipeline.errors import UsageError
from pipeline.finetune.heads import UNPUBLISHED
from pipeline.finetune.heads.class_features import draws_of_images

HEAD = {"type": "twodrcl.HallucinationRoIHead"}
SETTINGS = {"sampled_num_classes": 5, "sampled_num_features": 3, "decay_ratio": 0.25}


@pytest.fixture(scope="module")
def built():
    return tiny_head("bacl", **HEAD, hallucination=SETTINGS)


@pytest.fixture
def head(built):
    """As new for every test."""
    return copy.deepcopy(built)


def drawn_for(head, sampled):
    """Features, labels and weights that the next step draws."""
    kept = head.class_features
    numbers = draws_of_images(sampled, kept.draws_per_image, kept.noise_per_image)
    return kept.sample(head.bbox_head.loss_cls.correct_ratio(), *numbers)


def classifier_inputs(head, x):
    """Of the boxes around the objects: {class: (n, 24)}."""
    rois, _, labels = boxes_around(two_images())
    found = {}
    for roi, label in zip(rois, labels, strict=True):
        hidden = head.bbox_roi_extractor(x[:4], roi[None]).flatten(1)
        for layer in head.bbox_head.shared_fcs:
            hidden = layer(hidden).clamp(min=0)
        found.setdefault(label, []).append(hidden.detach())
    return {label: torch.cat(rows) for label, rows in found.items()}


def test_gaussians_are_those_of_the_classifiers_inputs(head):
    expected = {}
    for step in range(3):
        head.collect(tuple(level.requires_grad_() for level in pyramid(step)), two_images())
        for label, rows in classifier_inputs(head, pyramid(step)).items():
            new = torch.stack([rows.mean(dim=0), rows.var(dim=0)])
            expected[label] = new if label not in expected else 0.25 * new + 0.75 * expected[label]
    features = head.class_features
    assert features.feature_used.tolist() == [1, 0, 1, 1]
    for label, (mean, variance) in expected.items():
        torch.testing.assert_close(features.feature_prototype[label], mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(features.feature_variance[label], variance, rtol=1e-4, atol=1e-6)
    assert not features.feature_prototype.requires_grad


def test_drawn_features_join_the_class_loss_alone(head):
    plain = tiny_head("bacl")
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if "class_features" not in k})
    for step in range(2):  # so that the confusion matrix is not empty
        head.loss(pyramid(step), proposals(seed=step), two_images())
    head.collect(pyramid(), two_images())
    plain.bbox_head.load_state_dict(head.bbox_head.state_dict())
    sampled, loss_cls = sampled_rois(head, two_images()), copy.deepcopy(head.bbox_head.loss_cls)
    drawn, labels, weights = drawn_for(head, sampled)
    assert 0 < weights.sum() < 30 == len(labels)  # class 1 was never seen

    found = head.bbox_loss(pyramid(), sampled)["loss_bbox"]
    expected = plain.bbox_loss(pyramid(), sampled)
    scores = torch.cat([expected["cls_score"], head.bbox_head.fc_cls(drawn)])
    everything = torch.cat([torch.ones(len(labels_of(sampled))), weights])
    loss = loss_cls(
        scores, torch.cat([labels_of(sampled), labels]), everything, avg_factor=float(everything.sum())
    )
    torch.testing.assert_close(found["loss_cls"], loss)
    assert found["loss_bbox"] == expected["loss_bbox"]["loss_bbox"]
    assert found["loss_cls"] != expected["loss_bbox"]["loss_cls"]
    for name, state in loss_cls.state_dict().items():
        torch.testing.assert_close(head.bbox_head.loss_cls.state_dict()[name], state)


def test_confusion_matrix_counts_drawn_features(head):
    head.loss(pyramid(), proposals(), two_images())
    sampled = sampled_rois(head, two_images())
    before = head.bbox_head.loss_cls.num_gt.clone()
    _, drawn, weights = drawn_for(head, sampled)
    head.bbox_loss(pyramid(), sampled)
    labels = [*labels_of(sampled).tolist(), *drawn[weights > 0].tolist()]
    added = head.bbox_head.loss_cls.num_gt - before
    assert added.tolist() == [labels.count(label) for label in range(CLASSES)]


def test_drawn_features_reach_the_classifier_and_nothing_before_it(head):
    head.collect(pyramid(), two_images())
    sampled = sampled_rois(head, without_objects(), number=0)  # no RoI: drawn features are all there is
    losses = head.bbox_loss(pyramid(), sampled)["loss_bbox"]
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert head.bbox_head.fc_cls.weight.grad.abs().sum() > 0
    for layer in (*head.bbox_head.shared_fcs, head.bbox_head.fc_reg):
        assert (layer.weight.grad == 0).all()  # and not None, which would stop several processes


def test_mask_loss_and_published_names_are_those_of_the_plain_head():
    head = tiny_head("bacl", "mask-rcnn", **HEAD, hallucination=SETTINGS)
    plain = tiny_head("bacl", "mask-rcnn", seed=1)
    state = {f"roi_head.{name}": value for name, value in head.state_dict().items()}
    left = {name for name in state if name.startswith(UNPUBLISHED)}
    kinds = ("feature_prototype", "feature_variance", "feature_used")
    assert left == {f"roi_head.class_features.{kind}" for kind in kinds}
    kept = {name.removeprefix("roi_head."): state[name] for name in state.keys() - left}
    plain.load_state_dict(kept, strict=True)
    found, expected = (each.loss(pyramid(), proposals(), two_images()) for each in (head, plain))
    assert found["loss_mask"] == expected["loss_mask"] and found["loss_bbox"] == expected["loss_bbox"]
    assert found["loss_cls"] != expected["loss_cls"]


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
    resumed = tiny_head("bacl", seed=5, **HEAD, hallucination=SETTINGS)
    train(resumed, [7])  # must leave nothing behind
    train(head, range(2))
    torch.save(head.state_dict(), tmp_path / "head.pth")
    resumed.load_state_dict(torch.load(tmp_path / "head.pth", weights_only=True))
    assert train(resumed, range(2, 5)) == train(head, range(2, 5))
    for name, value in head.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


PARTS = (
    "class_features.feature_prototype",
    "class_features.feature_variance",
    "class_features.feature_used",
    "bbox_head.loss_cls.cm_numerator",
    "bbox_head.loss_cls.num_gt",
)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_state_is_needed_for_that(head, part):
    """A checkpoint that left it out would go on with what a new head has, and train something else."""
    new = copy.deepcopy(head)
    train(head, range(2))
    without = {**head.state_dict(), part: new.state_dict()[part].clone()}
    new.load_state_dict(without)
    train(new, [2])
    train(head, [2])
    assert any(
        not torch.equal(value, new.state_dict()[name])
        for name, value in head.state_dict().items()
        if name != part
    )


@pytest.mark.parametrize("number", [0, 30])
def test_no_objects(head, number):
    losses = head.loss(pyramid(), proposals(number), without_objects())
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert not head.class_features.feature_used.any() and not head.bbox_head.loss_cls.num_gt.any()
    assert losses["loss_bbox"] == 0 and (losses["loss_cls"] == 0) == (number == 0)


def test_another_loss_is_refused():
    with pytest.raises(UsageError, match="works with FCBLLoss, but loss_cls is EquilibriumLoss"):
        build_model(tiny_config("loce", **HEAD), seed=0)
