"""BACL's FCBL against the official numbers (four steps with state) and a loop.  C = 6 unless said."""

import json
import math
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import UsageError
from pipeline.finetune.bacl import FCBLLoss, confusion_margins, confusion_matrix, kept_columns
from pipeline.finetune.bce import BCELoss

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/bacl_fcbl.json").read_text())
LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 1, 0])


def random_logits(rows=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, 7, generator=generator, dtype=torch.float64)


def trained_loss(**settings):
    loss = FCBLLoss(6, **settings)
    for seed in range(3):
        loss(random_logits(seed=10 + seed), LABELS)
    return loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors(dtype):
    loss = FCBLLoss(**VECTORS["config"])
    for step in VECTORS["steps"]:
        loss.reweight = step["reweight"]
        logits = torch.tensor(step["logits"], dtype=dtype, requires_grad=True)
        found = loss(logits, torch.tensor(step["labels"]))
        found.backward()
        assert found.dtype == dtype
        # float32 where they come from
        assert found.item() == pytest.approx(step["loss"], rel=1e-6)
        torch.testing.assert_close(logits.grad.float(), torch.tensor(step["grad"]), rtol=1e-5, atol=1e-7)
        for name in ("cm_numerator", "num_gt"):
            expected = torch.tensor(step[f"{name}_after"])
            torch.testing.assert_close(getattr(loss, name), expected, rtol=1e-6, atol=1e-6)


def slow_fcbl(logits, labels, confusion, alpha, threshold, reweight):
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        probability = [1 / (1 + math.exp(-logit)) for logit in row]
        score = [p * (1 - probability[6]) for p in probability[:6]]
        for column, logit in enumerate(row):
            margin, weight = 0.0, 1.0
            if label < 6 and column < 6:
                taken = [max(float(confusion[pair]), 1e-3) for pair in ((label, column), (column, label))]
                margin = alpha * math.log(taken[0] / taken[1])
                if reweight and score[column] < score[label] and score[column] < threshold:
                    weight = 0.0
            shifted = 1 / (1 + math.exp(-(logit + margin)))
            total -= weight * math.log(shifted if column == label else 1 - shifted)
    return total / len(labels)


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("threshold", [0.7, 0.2])
def test_equals_a_loop(reweight, threshold):
    loss = trained_loss(alpha=0.6, prob_thr=threshold, reweight=reweight)
    confusion = confusion_matrix(loss.cm_numerator, loss.num_gt)
    for seed in range(5):
        logits = random_logits(seed=seed)
        loss.eval()
        expected = slow_fcbl(logits, LABELS, confusion, 0.6, threshold, reweight)
        assert loss(logits, LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_matrix_equals_a_loop():
    loss, sums, counts = FCBLLoss(6), torch.zeros(6, 6), [0.0] * 6
    for seed in range(3):
        logits = random_logits(seed=seed)
        loss(logits, LABELS)
        for row, label in zip(logits, LABELS.tolist(), strict=True):
            if label < 6:
                sums[label] += row[:6].softmax(dim=0).float()
                counts[label] += 1
    torch.testing.assert_close(loss.cm_numerator, sums)
    assert loss.num_gt.tolist() == counts
    confusion = confusion_matrix(loss.cm_numerator, loss.num_gt)
    torch.testing.assert_close(confusion.sum(dim=1), (loss.num_gt > 0).float())
    torch.testing.assert_close(loss.correct_ratio(), confusion.diagonal())


def test_margins_are_antisymmetric_and_spare_the_background():
    loss = trained_loss()
    confusion = confusion_matrix(loss.cm_numerator, loss.num_gt)
    margins = confusion_margins(confusion, 0.85, torch.arange(6))
    of_some = confusion_margins(confusion, 0.85, torch.tensor([1, 4]))
    torch.testing.assert_close(of_some, margins[[1, 4, 6]])
    torch.testing.assert_close(margins, -margins.T)
    assert not margins[6].any() and not margins[:, 6].any()
    # class 2 has no RoI: its row counts as the floor
    expected = 0.85 * math.log(float(loss.cm_numerator[0, 2] / loss.num_gt[0]) / 1e-3)
    assert margins[0, 2].item() == pytest.approx(expected, rel=1e-5)


def test_columns_below_the_own_class_and_the_threshold_are_left_out():
    logits = torch.tensor([[0.0, 1.0, -1.0, 3.0, -9.0], [5.0, -5.0, -5.0, -5.0, 5.0]])
    kept = kept_columns(logits, torch.tensor([1, 4]), 0.7)
    assert kept.tolist() == [[False, True, False, True, True], [True] * 5]
    sure = torch.tensor([[2.0, 9.0, 0.0, -1.0, -9.0]])  # p_0 = .88 takes part though below p_1
    assert kept_columns(sure, torch.tensor([1]), 0.7).tolist() == [[True, True, False, False, True]]
    sure[0, 4] = 9.0  # background: no score reaches the threshold any more
    assert kept_columns(sure, torch.tensor([1]), 0.7).tolist() == [[False, True, False, False, True]]


def test_a_fresh_loss_without_reweighting_is_bce():
    torch.testing.assert_close(FCBLLoss(6)(random_logits(), LABELS), BCELoss(6)(random_logits(), LABELS))


def test_first_step_does_not_see_its_own_confusion():
    loss = FCBLLoss(6)
    first = loss(random_logits(), LABELS)
    assert loss.num_gt.sum() == 6
    assert loss(random_logits(), LABELS) != first


def test_evaluation_leaves_the_state():
    loss = FCBLLoss(6).eval()
    loss(random_logits(), LABELS)
    assert not loss.num_gt.any() and not loss.cm_numerator.any()


def test_gradcheck():
    loss, logits = trained_loss(reweight=True).eval(), random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), logits)


def test_margins_and_columns_carry_no_gradient():
    loss = trained_loss(reweight=True)
    logits = random_logits().requires_grad_()
    loss(logits, LABELS).backward()
    assert not loss.cm_numerator.requires_grad and not loss.num_gt.requires_grad


def test_roi_of_weight_0_is_as_if_absent():
    weights = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])
    kept = weights > 0
    full, part = trained_loss(reweight=True), trained_loss(reweight=True)
    found = full(random_logits(), LABELS, weights, avg_factor=6.0)
    torch.testing.assert_close(found, part(random_logits()[kept], LABELS[kept]))
    torch.testing.assert_close(full.cm_numerator, part.cm_numerator)
    assert torch.equal(full.num_gt, part.num_gt)
    assert full(random_logits(), LABELS, torch.zeros(8)).item() == 0


def test_label_weights_avg_factor_and_reduction():
    def fresh(**settings):
        return trained_loss(**settings).eval()

    rows = fresh()(random_logits(), LABELS, reduction_override="none")
    loss, weights = fresh(loss_weight=2.0), torch.linspace(0, 1, 8)
    torch.testing.assert_close(loss(random_logits(), LABELS, weights, 3.0), 2 * (rows * weights).sum() / 3)
    torch.testing.assert_close(loss(random_logits(), LABELS, None, 3.0, "sum"), 2 * rows.sum())
    torch.testing.assert_close(loss(random_logits(), LABELS), 2 * rows.mean())


@pytest.mark.parametrize("labels", [torch.full((5,), 6), torch.zeros(0, dtype=torch.long)])
def test_without_objects_the_state_stays(labels):
    loss, logits = trained_loss(reweight=True), random_logits(len(labels)).requires_grad_()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    found = loss(logits, labels)
    found.backward()
    torch.testing.assert_close(found, BCELoss(6)(logits, labels))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("place", [(0, 0), (0, 4), (0, 6), (4, 2)])
def test_nan_logits_give_a_loss_that_is_not_finite(place):
    logits = random_logits()
    logits[place] = torch.nan
    assert not trained_loss(reweight=True)(logits, LABELS).isfinite()


def test_extreme_logits_stay_finite():
    logits = torch.full((2, 7), 300.0)
    logits[:, ::2] = -300
    assert trained_loss(reweight=True)(logits, torch.tensor([1, 6])).isfinite()


def test_state_round_trip_continues_exactly():
    loss, other = trained_loss(), FCBLLoss(6)
    loss.reweight = True
    other.load_state_dict(loss.state_dict())
    assert other.reweight is True
    assert list(loss.state_dict()) == ["cm_numerator", "num_gt", "is_reweighting"]
    for seed in (1, 2):
        assert loss(random_logits(seed=seed), LABELS) == other(random_logits(seed=seed), LABELS)
    assert torch.equal(loss.cm_numerator, other.cm_numerator)


def test_reweight_is_an_attribute():
    loss = FCBLLoss(6)
    assert loss.reweight is False and FCBLLoss(6, reweight=True).reweight is True
    loss.reweight = True
    assert loss.reweight is True


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits().bfloat16()
    assert FCBLLoss(6)(logits, LABELS) == FCBLLoss(6)(logits.float(), LABELS)


def test_settings_out_of_range_are_refused():
    for bad in ({"alpha": -1}, {"prob_thr": 0}, {"prob_thr": 1}, {"alpha": float("nan")}):
        with pytest.raises(UsageError, match="FCBLLoss needs"):
            FCBLLoss(6, **bad)


BATCHES = (LABELS, torch.full((4,), 6))


def train_in_a_process(rank, world):
    """The second process sees background only, where the official code waits for ever."""
    shared, own = FCBLLoss(6), FCBLLoss(6, synchronize=False)
    for loss in (shared, own):
        loss(random_logits(len(BATCHES[rank]), seed=rank), BATCHES[rank])
    return (shared.state_dict(), own.state_dict())


def test_two_processes_train_as_one(tmp_path):
    whole = FCBLLoss(6)
    whole(torch.cat([random_logits(8, seed=0), random_logits(4, seed=1)]), torch.cat(BATCHES))
    (first, first_own), (second, second_own) = together(2, train_in_a_process, tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
    assert first_own["num_gt"].sum() == 6 and not second_own["num_gt"].any()
