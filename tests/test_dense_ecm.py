"""Focal loss and ECM of dense heads: recorded numbers, float64 loops, closed forms, and mmdet's own."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import UsageError
from pipeline.finetune.dense_ecm import DenseECMLoss, focal_losses

VECTOR = json.loads((Path(__file__).parent / "reference/vectors/focal.json").read_text())
COUNTS = [90, 2, 20, 0, 31]
CLASSES = len(COUNTS)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def rows(number=12, scale=4.0, seed=0):
    """Logits of any sign, and labels of which half are background."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(number, CLASSES, generator=random, dtype=torch.float64)
    return logits, torch.arange(number) % (2 * CLASSES) % 7 % (CLASSES + 1)


def slow_ecm(logits, labels, counts, weights, positives, scale=2.0, gamma=2.0, alpha=0.25):
    """The definition, a logit at a time, in plain Python floats."""
    counts = [max(n, 1) for n in counts]
    total = 0.0
    for row, label, weight in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        for j, s in enumerate(row):
            n, m = counts[j], sum(counts) - counts[j]
            q = 1 / (1 + math.exp(-(scale * s + math.log(n / m) / 4)))
            own = m / n * math.log(1 + n / m)
            if j == label:
                total -= weight * own * alpha * (1 - q) ** gamma * math.log(q)
            else:
                total -= weight * own * (1 - alpha) * q**gamma * math.log(1 - q)
    return total / positives


def test_recorded_focal_loss():
    logits = tensor(VECTOR["logits"]).requires_grad_()
    loss = focal_losses(logits, torch.tensor(VECTOR["labels"]), 2.0, 0.25).sum() / VECTOR["avg_factor"]
    loss.backward()
    # float32 in mmdet's reduction: it adds 1.2e-7 to the divisor
    torch.testing.assert_close(loss.detach(), tensor(VECTOR["loss"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, tensor(VECTOR["grad"]), rtol=1e-6, atol=1e-12)


def test_without_gamma_it_is_half_the_binary_cross_entropy():
    logits, labels = rows()
    target = F.one_hot(labels, CLASSES + 1)[:, :CLASSES].double()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1) / 2
    torch.testing.assert_close(focal_losses(logits, labels, 0.0, 0.5), expected)


def test_given_gradients_are_those_of_differences():
    logits, labels = rows(7)
    weights = tensor([1.0, 0.2, 3.0, 0.5, 1.5])
    torch.autograd.gradcheck(
        lambda s: focal_losses(s, labels[:7], 2.0, 0.25, weights), (logits.requires_grad_(),)
    )
    loss = DenseECMLoss(CLASSES, instance_counts=COUNTS)
    torch.autograd.gradcheck(lambda s: loss(s, labels[:7], avg_factor=3.0), (logits,))


@pytest.mark.parametrize("logit_scale", [2.0, 1.0])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_equals_a_loop(scale, logit_scale):
    logits, labels = rows(scale=scale)
    weights = tensor([1.0, 0.0, 0.5] * 4)
    loss = DenseECMLoss(CLASSES, instance_counts=COUNTS, logit_scale=logit_scale)
    found = loss(logits, labels, weights, avg_factor=3.0)
    expected = slow_ecm(logits, labels, COUNTS, weights, 3.0, logit_scale)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_the_scale_of_the_logit_changes_the_pace_alone():
    """Twice the logit with half the scale costs the same, and its gradient is half as large."""
    logits, labels = rows()
    values, gradients = [], []
    for scale in (2.0, 1.0):
        given = (2 / scale * logits).requires_grad_()
        loss = DenseECMLoss(CLASSES, instance_counts=COUNTS, logit_scale=scale)(given, labels, avg_factor=3.0)
        loss.backward()
        values.append(loss.detach())
        gradients.append(given.grad * 2 / scale)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_of_two_equal_classes_it_is_the_focal_loss_of_twice_the_logit():
    logits, labels = rows()
    logits, labels = logits[:, :2], labels.clamp(max=2)
    found = DenseECMLoss(2, instance_counts=[7, 7])(logits, labels, avg_factor=1.0)
    expected = math.log(2) * focal_losses(2 * logits, labels, 2.0, 0.25).sum()
    torch.testing.assert_close(found, expected)


def test_every_class_starts_at_the_prior():
    for scale in (2.0, 1.0):
        loss = DenseECMLoss(CLASSES, instance_counts=COUNTS, logit_scale=scale)
        bias = loss.initial_bias(0.01)
        start = (scale * bias + loss.logit_shift).sigmoid()
        torch.testing.assert_close(start, torch.full((CLASSES,), 0.01).double())
        assert bias.argmax() in (3, 1)  # a rare class has the larger margin, and may start higher


def test_scores_leave_out_the_margin_and_have_no_background():
    logits, _ = rows()
    for settings, scale in (({}, 1), ({"score_scale": 2.0}, 2)):
        found = DenseECMLoss(CLASSES, instance_counts=COUNTS, **settings).get_activation(logits)
        torch.testing.assert_close(found, (scale * logits).sigmoid())


def test_anchors_of_no_weight_and_batches_of_background_or_nothing():
    loss = DenseECMLoss(CLASSES, instance_counts=COUNTS)
    logits, labels = rows()
    for chosen, weights in ((logits, torch.zeros(12)), (logits[:0], None)):
        chosen = chosen.clone().requires_grad_()
        value = loss(chosen, labels[: len(chosen)], weights, avg_factor=1.0)
        value.backward()
        assert value.item() == 0 and not chosen.grad.any()
    logits = logits.clone().requires_grad_()
    value = loss(logits, torch.full((12,), CLASSES), avg_factor=1.0)
    value.backward()
    assert value > 0 and (logits.grad > 0).all()  # every score is pushed down


def test_extreme_logits_stay_finite_and_half_precision_is_left():
    loss = DenseECMLoss(CLASSES, instance_counts=COUNTS)
    logits = torch.tensor([[1e4, -1e4, 80.0, -80.0, 0.0]] * 2, requires_grad=True)
    value = loss(logits, torch.tensor([1, CLASSES]), avg_factor=1.0)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    assert loss(logits.bfloat16(), torch.tensor([1, CLASSES]), avg_factor=1.0).dtype == torch.float32


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UsageError, match="needs instance_counts"):
        DenseECMLoss(CLASSES)
    with pytest.raises(UsageError, match="only one") as refused:
        DenseECMLoss(1, instance_counts=[5])
    assert "focal" in refused.value.hint
    for name in ("score_scale", "logit_scale"):
        with pytest.raises(UsageError, match="score_scale and logit_scale > 0"):
            DenseECMLoss(CLASSES, instance_counts=COUNTS, **{name: 0.0})
    with pytest.raises(UsageError, match="5 logits per RoI, but the head gives 6"):
        DenseECMLoss(CLASSES, instance_counts=COUNTS)(torch.zeros(2, 6), torch.tensor([0, 1]))
