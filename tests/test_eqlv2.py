"""EQL v2 against the official numbers (four steps with state), a loop, and mmdet's own.  C = 6 classes."""

import json
import math
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import UsageError
from pipeline.finetune.eqlv2 import EQLv2Loss, balance_weights, gradient_sums
from pipeline.finetune.row_losses import binary_losses

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/eqlv2.json").read_text())
CONFIG = VECTORS["config"]
BUFFERS = ("pos_grad", "neg_grad", "pos_neg")
CLASSES = 6
LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 6, 1])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows=len(LABELS), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, CLASSES + 1, generator=generator, dtype=torch.float64)


def state(loss):
    return torch.stack([getattr(loss, name) for name in BUFFERS])


def warm_loss(**settings):
    """With gradients of two steps."""
    loss = EQLv2Loss(CLASSES, **settings)
    for seed in (10, 11):
        loss(random_logits(seed=seed), LABELS)
    return loss


def test_vectors():
    loss = EQLv2Loss(**CONFIG)
    assert (loss.pos_neg == VECTORS["initial"]["pos_neg"]).all()
    for step in VECTORS["steps"]:
        logits = tensor(step["logits"]).requires_grad_()
        found = loss(logits, torch.tensor(step["labels"]))
        found.backward()
        torch.testing.assert_close(found.detach(), tensor(step["loss"]), rtol=1e-6, atol=0)
        torch.testing.assert_close(logits.grad, tensor(step["grad"]), rtol=1e-6, atol=1e-9)
        for name in BUFFERS:
            expected = torch.tensor(step[f"{name}_after"])
            torch.testing.assert_close(getattr(loss, name), expected, rtol=1e-6, atol=1e-9)
        negative, positive = balance_weights(loss.pos_neg, 12, 0.8, 4)
        torch.testing.assert_close(positive, torch.tensor(step["next_pos_w_row"]), rtol=1e-6, atol=0)
        torch.testing.assert_close(negative, torch.tensor(step["next_neg_w_row"]), rtol=1e-6, atol=0)
        scores = loss.get_activation(logits.detach())
        torch.testing.assert_close(scores, tensor(step["activation"]), rtol=1e-9, atol=1e-12)


def slow_step(logits, labels, pos_grad, neg_grad, first):
    """Element by element: the loss of the batch; adds its gradients to the two lists."""
    num_columns = len(pos_grad) + 1
    ratio = [100.0 if first else p / (n + 1e-10) for p, n in zip(pos_grad, neg_grad, strict=True)]
    negative = [1 / (1 + math.exp(-12 * (g - 0.8))) for g in ratio] + [1.0]
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for column in range(num_columns):
            p = 1 / (1 + math.exp(-row[column]))
            weight = 1 + 4 * (1 - negative[column]) if column == label else negative[column]
            total -= weight * math.log(p if column == label else 1 - p)
            if column < num_columns - 1:
                received = pos_grad if column == label else neg_grad
                received[column] += weight * abs(p - (column == label))
    return total / len(labels)


def test_steps_equal_a_loop():
    loss, pos_grad, neg_grad = EQLv2Loss(CLASSES), [0.0] * CLASSES, [0.0] * CLASSES
    for seed in range(4):
        labels = LABELS.roll(seed) if seed != 2 else torch.full((8,), CLASSES)  # one without objects
        found = loss(random_logits(seed=seed), labels)
        expected = slow_step(random_logits(seed=seed), labels, pos_grad, neg_grad, first=seed == 0)
        assert found.item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(loss.pos_grad, torch.tensor(pos_grad), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss.neg_grad, torch.tensor(neg_grad), rtol=1e-5, atol=1e-6)


def test_first_step_is_bce():
    logits = random_logits()
    found = EQLv2Loss(CLASSES)(logits, LABELS, reduction_override="none")
    torch.testing.assert_close(found, binary_losses(logits, LABELS))


def test_weights_at_their_limits():
    negative, positive = balance_weights(tensor([0.0, 0.8, 100.0]), gamma=12, mu=0.8, alpha=4)
    torch.testing.assert_close(negative, tensor([1 / (1 + math.exp(9.6)), 0.5, 1.0, 1.0]))
    torch.testing.assert_close(positive, 5 - 4 * negative)


def test_collected_gradients_are_those_of_autograd():
    loss, logits = warm_loss(), random_logits().requires_grad_()
    before = state(loss)
    negative, positive = (w.double() for w in balance_weights(loss.pos_neg, 12, 0.8, 4))
    is_label = LABELS[:, None] == torch.arange(CLASSES + 1)
    p = logits.sigmoid()
    elements = torch.where(is_label, -positive * p.log(), -negative * (1 - p).log())
    elements.sum().backward()
    gradient = logits.grad[:, :CLASSES]
    torch.testing.assert_close(
        gradient_sums(logits.grad, LABELS),
        torch.stack([-gradient.clamp(max=0).sum(0), gradient.clamp(min=0).sum(0)]),
    )
    loss(logits, LABELS)
    torch.testing.assert_close(
        (state(loss) - before)[:2], gradient_sums(logits.grad, LABELS).float(), rtol=1e-4, atol=1e-5
    )


def test_gradcheck():
    loss = warm_loss().eval()
    logits = random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), logits)


def test_class_that_was_only_pushed_down_is_spared_and_pulled_harder():
    loss = warm_loss().eval()
    assert loss.pos_grad[2] == 0 and loss.neg_grad[2] > 0  # class 2 has no RoI
    logits = torch.zeros(2, CLASSES + 1, requires_grad=True)
    loss(logits, torch.tensor([2, 6]), reduction_override="sum").backward()
    assert logits.grad[0, 2].item() == pytest.approx(-2.5, abs=1e-3)
    assert logits.grad[1, 2].item() == pytest.approx(0, abs=1e-3)
    assert logits.grad[1, 6].item() == pytest.approx(-0.5)


def test_background_batch_pushes_only():
    loss = EQLv2Loss(CLASSES)
    logits = torch.zeros(3, CLASSES + 1, requires_grad=True)
    loss(logits, torch.full((3,), CLASSES)).backward()
    torch.testing.assert_close(
        logits.grad, torch.tensor([[1.0] * CLASSES + [-1.0]]).expand(3, CLASSES + 1) / 6
    )
    assert (loss.pos_grad == 0).all() and (loss.neg_grad == 1.5).all() and (loss.pos_neg == 0).all()


def test_no_rois_cost_nothing_and_leave_the_gradients():
    loss = warm_loss()
    before = state(loss)
    logits = torch.zeros(0, CLASSES + 1, requires_grad=True)
    found = loss(logits, torch.zeros(0, dtype=torch.long))
    found.backward()
    assert found.item() == 0
    assert torch.equal(state(loss), before)


@pytest.mark.parametrize("column", range(CLASSES + 1))
def test_nan_logits_give_a_nan_loss(column):
    logits = random_logits()
    logits[0, column] = math.nan
    assert EQLv2Loss(CLASSES)(logits, LABELS).isnan()


def test_label_weights_avg_factor_and_reduction():
    logits = random_logits()
    rows = warm_loss()(logits, LABELS, reduction_override="none")
    weights = torch.tensor([1.0, 0, 2, 1, 0.5, 0, 0, 1])
    expected = 3 * rows * weights

    def loss(*arguments):
        return warm_loss(loss_weight=3.0)(logits, LABELS, *arguments)

    torch.testing.assert_close(loss(weights, 5), expected.sum() / 5)
    torch.testing.assert_close(loss(weights, None, "mean"), expected.sum() / 8)
    torch.testing.assert_close(loss(weights, 5, "sum"), expected.sum())
    torch.testing.assert_close(loss(weights, 5, "none"), expected)


def test_rois_of_weight_0_add_no_gradients():
    weighted, without = EQLv2Loss(CLASSES), EQLv2Loss(CLASSES)
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1]).bool()
    weighted(random_logits(), LABELS, keep.float())
    without(random_logits()[keep], LABELS[keep])
    torch.testing.assert_close(state(weighted), state(without))
    before = state(weighted)
    assert weighted(random_logits(), LABELS, torch.zeros(8)).item() == 0
    assert torch.equal(state(weighted), before)


def test_collects_while_training_only():
    loss = warm_loss()
    before = state(loss)
    loss.eval()
    loss(random_logits(), LABELS)
    assert torch.equal(state(loss), before)


def test_state_survives_a_checkpoint_exactly():
    loss, other = warm_loss(), EQLv2Loss(CLASSES)
    other.load_state_dict(loss.state_dict())
    assert list(loss.state_dict()) == list(BUFFERS)
    for seed in (20, 21):
        assert loss(random_logits(seed=seed), LABELS) == other(random_logits(seed=seed), LABELS)
    assert torch.equal(state(loss), state(other))


def test_dtypes():
    logits = random_logits()
    assert EQLv2Loss(CLASSES)(logits, LABELS).dtype == torch.float64
    half, full = EQLv2Loss(CLASSES), EQLv2Loss(CLASSES)
    found = half(logits.bfloat16(), LABELS)
    assert found.dtype == torch.float32 and found == full(logits.bfloat16().float(), LABELS)
    assert torch.equal(state(half), state(full)) and state(warm_loss()).dtype == torch.float32


def test_scores():
    logits = random_logits()
    p = 1 / (1 + (-logits).exp())
    scores = EQLv2Loss(CLASSES).get_activation(logits)
    torch.testing.assert_close(scores[:, :CLASSES], p[:, :CLASSES] * (1 - p[:, CLASSES:]))
    torch.testing.assert_close(scores[:, CLASSES], p[:, CLASSES])
    as_mmdet = EQLv2Loss(CLASSES, mmdet_softmax_scores=True)
    torch.testing.assert_close(as_mmdet.get_activation(logits), logits.softmax(dim=1))


def test_mmdet_has_the_same_arithmetic_but_another_head():
    pytest.importorskip("pipeline.detectors.operators", reason="mmdet.models needs the operator bridge")
    from mmdet.models.losses import EQLV2Loss

    own, theirs = EQLv2Loss(CLASSES), EQLV2Loss(num_classes=CLASSES)
    for seed in range(3):
        logits = random_logits(seed=seed)
        torch.testing.assert_close(own(logits, LABELS), theirs(logits, LABELS), rtol=1e-6, atol=0)
    torch.testing.assert_close(state(own), state(theirs))
    assert not theirs.use_distributed  # the defects that our docstring names, as long as they are there
    assert not getattr(theirs, "custom_cls_channels", False)


def test_head_width_and_settings():
    assert EQLv2Loss(CLASSES).get_cls_channels(CLASSES) == 7
    with pytest.raises(UsageError, match="needs 7 logits per RoI, but the head gives 8"):
        EQLv2Loss(CLASSES)(torch.zeros(1, 8), torch.tensor([0]))
    for bad in ({"gamma": -1}, {"alpha": -1}):
        with pytest.raises(UsageError, match="gamma, alpha >= 0"):
            EQLv2Loss(CLASSES, **bad)


def step_in_a_process(rank, world):
    """Rank 0 sees the objects, rank 1 background only; saves both kinds of state after two steps."""
    shared, own = EQLv2Loss(CLASSES), EQLv2Loss(CLASSES, synchronize=False)
    order = LABELS.argsort(stable=True).split([5, 3])[rank]
    for seed in (0, 1):
        for loss in (shared, own):
            loss(random_logits(seed=seed)[order], LABELS[order])
    return (state(shared), state(own))


def test_gradients_are_those_of_all_processes(tmp_path):
    first, second = together(2, step_in_a_process, tmp_path)
    alone = EQLv2Loss(CLASSES)
    for seed in (0, 1):
        alone(random_logits(seed=seed), LABELS)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], state(alone))
    assert (second[1][0] == 0).all()  # on its own it has never seen an object
