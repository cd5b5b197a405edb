"""LOCE's equilibrium loss against the official numbers, and its mean scores against a loop.  C = 6."""

import json
import math
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.loce import EquilibriumLoss, equilibrium_losses, object_scores, updated_mean_score

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/loce_ebl.json").read_text())
SCORES = VECTORS["config"]["mean_score"]
LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 3, 0, 3, 6])
# objects 0 and 4 are of class 0, 1 and 2 of class 3, 3 has no RoI, 5 of class 5; a RoI of class 3 is of none
GROUPS = torch.tensor([0, 1, 1, 5, -1, -1, 2, 4, -1, 2])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("index", range(len(VECTORS["steps"])))
def test_vectors(index, dtype):
    step = VECTORS["steps"][index]
    logits = torch.tensor(step["logits"], dtype=dtype, requires_grad=True)
    found = EquilibriumLoss(6, **VECTORS["config"])(logits, torch.tensor(step["labels"]))
    found.backward()
    assert found.dtype == dtype
    atol = 1e-9 if dtype == torch.float64 else 1e-7
    torch.testing.assert_close(found.detach().double(), tensor(step["loss"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), tensor(step["grad"]), rtol=1e-6, atol=atol)


def test_losses_equal_a_loop():
    logits, expected = random_logits(), []
    for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True):
        terms = [score * math.exp(logit) for score, logit in zip(SCORES, row, strict=True)]
        expected.append(-math.log(terms[label] / sum(terms)))
    torch.testing.assert_close(equilibrium_losses(logits, LABELS, tensor(SCORES)), tensor(expected))


def slow_mean_score(logits, labels, groups, momentum, scores):
    probability, scores = logits.softmax(dim=1).tolist(), list(scores)
    objects = {}
    for i, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
        if group >= 0 and label < 6:
            objects.setdefault((label, group), []).append(probability[i][label])
    for label in range(6):
        means = [sum(p) / len(p) for (other, _), p in objects.items() if other == label]
        if means:
            kept = momentum ** len(means)
            scores[label] = kept * scores[label] + (1 - kept) * sum(means) / len(means)
    return tensor(scores)


def test_mean_score_equals_a_loop():
    loss, expected = EquilibriumLoss(6, mean_score=SCORES), SCORES
    for seed in range(3):
        logits = random_logits(seed=seed)
        expected = slow_mean_score(logits, LABELS, GROUPS, 0.9, expected)
        loss.update_mean_score(logits, LABELS, GROUPS, num_groups=6)
        torch.testing.assert_close(loss.mean_score.double(), expected, rtol=1e-6, atol=0)
    assert loss.mean_score[[1, 2, 4, 6]].tolist() == torch.tensor(SCORES)[[1, 2, 4, 6]].tolist()


def test_one_object_of_many_rois_counts_once():
    sums, counts = object_scores(random_logits(3), torch.tensor([2, 2, 2]), torch.tensor([7, 7, 7]), 8)
    assert counts.tolist() == [0, 0, 1, 0, 0, 0]
    assert sums[2].item() == pytest.approx(random_logits(3).softmax(dim=1)[:, 2].mean().item())


def test_update_of_two_objects_is_the_momentum_squared():
    found = updated_mean_score(torch.tensor([0.5, 0.2, 0.01]), tensor([0.0, 1.2]), tensor([0.0, 2.0]), 0.9)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.81 * 0.2 + 0.19 * 0.6, 0.01]))


def test_mean_score_starts_at_a_hundredth_and_forward_leaves_it():
    loss = EquilibriumLoss(6)
    plain = torch.nn.functional.cross_entropy(random_logits(), LABELS)
    torch.testing.assert_close(loss(random_logits(), LABELS), plain)  # equal scores cancel
    assert loss.mean_score.tolist() == [pytest.approx(0.01)] * 7


def test_mean_score_carries_no_gradient():
    loss = EquilibriumLoss(6)
    loss.update_mean_score(random_logits().requires_grad_(), LABELS, GROUPS, 6)
    assert not loss.mean_score.requires_grad


def test_a_class_with_a_low_score_is_pushed_down_less():
    logits = torch.zeros(1, 7, requires_grad=True)
    EquilibriumLoss(6, mean_score=SCORES)(logits, torch.tensor([6])).backward()
    order = torch.tensor(SCORES[:6]).argsort()
    assert (logits.grad[0, order].diff() > 0).all()


def test_gradcheck():
    loss, logits = EquilibriumLoss(6, mean_score=SCORES), random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), logits)


def test_scores_are_the_plain_softmax():
    loss, logits = EquilibriumLoss(6, mean_score=SCORES), random_logits()
    assert torch.equal(loss.get_activation(logits), logits.softmax(dim=1))
    assert loss.get_cls_channels(6) == 7


def test_accuracy_follows_the_softmax():
    # best of all: 0, background, 2, background
    logits = torch.tensor([[5.0, 1, 0, 4], [3, 1, 0, 4], [0, 1, 5, 4], [0, 1, 0, 4]])
    accuracy = EquilibriumLoss(3).get_accuracy(logits, torch.tensor([0, 0, 1, 3]))
    assert accuracy["acc_classes"].item() == pytest.approx(200 / 3)
    assert accuracy["acc_objectness"].item() == pytest.approx(75)


def test_label_weights_avg_factor_and_reduction():
    rows = EquilibriumLoss(6, mean_score=SCORES)(random_logits(), LABELS, reduction_override="none")
    loss, weights = EquilibriumLoss(6, mean_score=SCORES, loss_weight=3.0), torch.linspace(0, 1, 10)
    expected = 3 * rows * weights
    torch.testing.assert_close(loss(random_logits(), LABELS, weights, 4.0), expected.sum() / 4)
    torch.testing.assert_close(loss(random_logits(), LABELS, weights, None, "sum"), expected.sum())
    torch.testing.assert_close(loss(random_logits(), LABELS, weights, 4.0, "none"), expected)
    assert loss(random_logits(), LABELS, torch.zeros(10)).item() == 0


@pytest.mark.parametrize("labels", [torch.full((5,), 6), torch.zeros(0, dtype=torch.long)])
def test_without_objects_the_mean_scores_stay(labels):
    loss, logits = EquilibriumLoss(6, mean_score=SCORES), random_logits(len(labels)).requires_grad_()
    loss.update_mean_score(logits, labels, torch.full_like(labels, -1), 0)
    assert loss.mean_score.tolist() == torch.tensor(SCORES).tolist()
    found = loss(logits, labels)
    found.backward()
    assert found.isfinite()


def test_extreme_logits_stay_finite_and_nan_does_not():
    loss = EquilibriumLoss(6, mean_score=SCORES)
    logits = torch.tensor([[500.0, -500, 0, 0, 0, 0, 0]])
    assert loss(logits, torch.tensor([1])).isfinite()
    for column in (0, 1):
        logits[0, column] = torch.nan
        assert loss(logits, torch.tensor([1])).isnan()


def test_state_round_trip_continues_exactly():
    loss, other = EquilibriumLoss(6), EquilibriumLoss(6)
    loss.update_mean_score(random_logits(), LABELS, GROUPS, 6)
    assert list(loss.state_dict()) == ["mean_score"]
    other.load_state_dict(loss.state_dict())
    for each in (loss, other):
        each.update_mean_score(random_logits(seed=1), LABELS, GROUPS, 6)
    assert torch.equal(loss.mean_score, other.mean_score)


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits().bfloat16()
    assert EquilibriumLoss(6)(logits, LABELS) == EquilibriumLoss(6)(logits.float(), LABELS)
    assert EquilibriumLoss(6).get_activation(logits).dtype == torch.float32


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(
        MismatchedInput, match="mean_score has 6 numbers, but 6 classes and background need 7"
    ):
        EquilibriumLoss(6, mean_score=SCORES[:6])
    for bad in ({"mean_score": [0.0] * 7}, {"mean_score": [1.1] * 7}, {"momentum": 1.0}):
        with pytest.raises(UsageError, match="mean scores above 0"):
            EquilibriumLoss(6, **bad)


def update_in_a_process(rank, world):
    """The first process has all objects, the second background only."""
    loss = EquilibriumLoss(6)
    background = torch.full((2,), 6)
    logits, labels = (random_logits(), LABELS) if rank == 0 else (random_logits(2, seed=1), background)
    groups = GROUPS if rank == 0 else torch.full((2,), -1)
    loss.update_mean_score(logits, labels, groups, 6 if rank == 0 else 0)
    return loss.mean_score


def test_two_processes_update_as_one(tmp_path):
    whole = EquilibriumLoss(6)
    whole.update_mean_score(random_logits(), LABELS, GROUPS, 6)
    assert all(torch.equal(found, whole.mean_score) for found in together(2, update_in_a_process, tmp_path))
