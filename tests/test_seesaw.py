"""Seesaw loss against mmdet's numbers (three settings, four steps with state each) and a loop."""

import json
import math
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import UsageError
from pipeline.finetune.seesaw import SeesawLoss, count_labels, seesaw_shift

CASES = json.loads((Path(__file__).parent / "reference/vectors/seesaw.json").read_text())["cases"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"p={c['p']},q={c['q']}")
def test_vectors(case):
    loss = SeesawLoss(**{key: case[key] for key in ("num_classes", "p", "q", "eps")})
    for step in case["steps"]:
        logits = tensor(step["logits"]).requires_grad_()
        found = loss(logits, torch.tensor(step["labels"]), tensor(step["label_weights"]), step["avg_factor"])
        sum(found.values()).backward()
        for name in ("loss_cls_classes", "loss_cls_objectness"):
            torch.testing.assert_close(found[name].detach(), tensor(step[name]), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(logits.grad, tensor(step["grad"]), rtol=1e-6, atol=1e-8)
        scores = loss.get_activation(logits.detach())
        torch.testing.assert_close(scores, tensor(step["activation"]), rtol=1e-6, atol=1e-9)
        assert loss.cum_samples.tolist() == step["cum_samples_after"]


def slow_shift(row, label, counts, p, q, eps):
    exponentials = [math.exp(logit) for logit in row]
    probability = [e / sum(exponentials) for e in exponentials]
    shift = []
    for j in range(len(row)):
        mitigation = min(1.0, max(counts[j], 1) / max(counts[label], 1)) ** p
        compensation = max(1.0, probability[j] / max(probability[label], eps)) ** q
        shift.append(0.0 if j == label else math.log(mitigation * compensation))
    return shift


@pytest.mark.parametrize(
    ("p", "q", "eps"), [(0.8, 2.0, 0.01), (0.8, 0.0, 0.01), (0.0, 2.0, 0.3), (0.0, 0.0, 0.01)]
)
def test_shift_equals_a_loop(p, q, eps):
    logits, labels, counts = random_logits(6, 5), torch.tensor([0, 1, 2, 3, 4, 2]), [0, 1, 7, 40, 900]
    found = seesaw_shift(logits, labels, torch.tensor(counts), p, q, eps)
    expected = [
        slow_shift(r, i, counts, p, q, eps) for r, i in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, tensor(expected))
    assert (found[torch.arange(6), labels] == 0).all()


def test_shift_is_finite_where_softmax_underflows():
    shift = seesaw_shift(
        torch.tensor([[0.0, 500.0, -500.0]]), torch.tensor([0]), torch.ones(3), 0.8, 2.0, 0.01
    )
    assert shift.tolist() == [[0.0, pytest.approx(2 * math.log(100)), 0.0]]


def test_without_factors_it_is_softmax_cross_entropy():
    logits, labels = random_logits(8, 7), torch.tensor([0, 1, 2, 3, 4, 5, 5, 5])
    loss = SeesawLoss(5, p=0, q=0)(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits[:5, :5], labels[:5], reduction="sum") / 8
    torch.testing.assert_close(loss["loss_cls_classes"], expected)  # background RoIs count in the divisor


def test_gradcheck_of_what_carries_a_gradient():
    # q = 0: the compensation is a constant by definition, which finite differences cannot know
    loss, labels = SeesawLoss(4, q=0.0), torch.tensor([0, 1, 4, 2, 4])
    loss(random_logits(5, 6), labels)
    loss.eval()
    logits = random_logits(5, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: tuple(loss(z, labels).values()), logits)


def test_gradient_with_compensation_is_that_of_a_constant_shift():
    loss, labels = SeesawLoss(4), torch.tensor([0, 1, 3, 2])
    logits = random_logits(4, 6).requires_grad_()
    loss(logits, labels)["loss_cls_classes"].backward()
    shift = seesaw_shift(logits[:, :4], labels, loss.cum_samples[:4], 0.8, 2.0, 0.01)
    assert not shift.requires_grad
    expected = ((logits[:, :4] + shift).softmax(dim=1) - torch.eye(4)[labels]) / 4
    torch.testing.assert_close(logits.grad[:, :4], expected.detach())


def test_batch_without_foreground_keeps_the_graph():
    loss = SeesawLoss(4)
    logits = random_logits(3, 6).requires_grad_()
    found = loss(logits, torch.tensor([4, 4, 4]))
    assert found["loss_cls_classes"].item() == 0
    found["loss_cls_classes"].backward(retain_graph=True)
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert loss.get_accuracy(logits, torch.tensor([4, 4, 4]))["acc_classes"].item() == 0


def test_label_weights_avg_factor_and_reduction():
    logits, labels = random_logits(4, 6), torch.tensor([0, 4, 2, 1])
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
    rows = SeesawLoss(4)(logits, labels, reduction_override="none")
    found = SeesawLoss(4, loss_weight=3.0)(logits, labels, weights, avg_factor=2)
    assert rows["loss_cls_classes"][1] == 0  # the background RoI
    for name, values in rows.items():
        torch.testing.assert_close(found[name], 3 * (values * weights).sum() / 2)


def test_counts_every_label_while_training_only():
    loss, labels = SeesawLoss(4), torch.tensor([0, 0, 4, 2, 4, 4])
    loss(random_logits(6, 6), labels)
    loss.eval()
    loss(random_logits(6, 6), labels)
    assert loss.cum_samples.tolist() == [2, 0, 1, 0, 3]
    assert count_labels(labels, 5).tolist() == torch.bincount(labels, minlength=5).tolist()


def test_counts_survive_a_checkpoint():
    loss, other = SeesawLoss(4), SeesawLoss(4)
    loss(random_logits(3, 6), torch.tensor([0, 1, 4]))
    other.load_state_dict(loss.state_dict())
    assert list(loss.state_dict()) == ["cum_samples"]
    assert other.cum_samples.tolist() == [1, 1, 0, 0, 1]


def test_half_precision_logits_are_computed_in_float32():
    logits, labels = random_logits(4, 6).bfloat16(), torch.tensor([0, 4, 2, 1])
    half, full = SeesawLoss(4)(logits, labels), SeesawLoss(4)(logits.float(), labels)
    assert all(value.dtype == torch.float32 and value == full[name] for name, value in half.items())


def test_accuracy_follows_the_two_softmaxes():
    logits = tensor([[5, 0, 0, 2, 1], [0, 5, 0, 1, 2], [0, 5, 0, 1, 2], [0, 0, 5, 2, 1]])
    accuracy = SeesawLoss(3).get_accuracy(logits, torch.tensor([0, 1, 3, 0]))
    assert accuracy["acc_classes"].item() == pytest.approx(200 / 3)
    assert accuracy["acc_objectness"].item() == pytest.approx(75)


def test_head_width_and_settings():
    assert SeesawLoss(6).get_cls_channels(6) == 8
    with pytest.raises(UsageError, match="needs 8 logits per RoI"):
        SeesawLoss(6)(torch.zeros(1, 7), torch.tensor([0]))
    for bad in ({"p": -1}, {"q": -1}, {"eps": 0}):
        with pytest.raises(UsageError, match="eps > 0"):
            SeesawLoss(6, **bad)


def count_in_a_process(rank, world):
    """Rank 0 sees foreground and background, rank 1 background only; saves both kinds of counts."""
    shared, own = SeesawLoss(3), SeesawLoss(3, synchronize=False)
    labels = torch.tensor([[0, 0, 3], [3, 3, 3]][rank])
    for loss in (shared, own):
        loss(torch.zeros(3, 5), labels)
    return (shared.cum_samples, own.cum_samples)


def test_counts_are_those_of_all_processes(tmp_path):
    first, second = together(2, count_in_a_process, tmp_path)
    assert first[0].tolist() == second[0].tolist() == [2, 0, 0, 4]
    assert first[1].tolist() == [2, 0, 0, 1] and second[1].tolist() == [0, 0, 0, 3]
