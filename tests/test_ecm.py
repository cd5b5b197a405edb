"""ECM loss against the released code's numbers, the paper's surrogate, and a loop."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.finetune.ecm import (
    ECMLoss,
    column_counts,
    column_weights,
    logit_shifts,
    official_float32_column_weights,
)

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/ecm.json").read_text())
COUNTS = VECTORS["config"]["toy_instance_counts"]
CLASSES = VECTORS["config"]["num_classes"]
STEPS = range(len(VECTORS["steps"]))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def vector_loss(**settings):
    config = {key: VECTORS["config"][key] for key in ("num_classes", "fg_bg_ratio", "loss_weight")}
    return ECMLoss(instance_counts=COUNTS, **config, **settings)


def run_step(loss, step):
    logits = tensor(step["logits"]).requires_grad_()
    value = loss(logits, torch.tensor(step["labels"]))
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("index", STEPS)
def test_closed_form_of_the_vectors(index):
    step = VECTORS["steps"][index]
    value, gradient = run_step(vector_loss(), step)
    torch.testing.assert_close(value, tensor(step["loss_float64_closed_form"]), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, tensor(step["grad_float64_closed_form"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", STEPS)
def test_released_code_with_its_float32_table(index):
    step = VECTORS["steps"][index]
    value, gradient = run_step(vector_loss(official_float32_weights=True), step)
    torch.testing.assert_close(value, tensor(step["loss"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, tensor(step["grad"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("index", STEPS)
def test_activation_of_the_vectors(index):
    step = VECTORS["steps"][index]
    scores = vector_loss().get_activation(tensor(step["logits"]))
    torch.testing.assert_close(scores, tensor(step["activation"]), rtol=1e-9, atol=1e-12)


def test_tables_of_the_vectors():
    counts = column_counts(torch.tensor(COUNTS), 6.3313)
    torch.testing.assert_close(counts.float(), torch.tensor(VECTORS["sample_n_float32"]))
    torch.testing.assert_close(
        logit_shifts(counts), tensor(VECTORS["logit_shift_float64"]), rtol=1e-12, atol=0
    )
    weights = column_weights(counts)
    torch.testing.assert_close(weights, tensor(VECTORS["detection_cls_weight_float64"]), rtol=1e-9, atol=0)
    assert (weights < 1).all()
    official = official_float32_column_weights(counts)
    expected = torch.tensor(VECTORS["detection_cls_weight_float32"])
    torch.testing.assert_close(official, expected, rtol=1e-6, atol=0)
    assert official[3] > 1.01  # one instance: the rounding error that the default avoids


def test_surrogate_of_the_paper_is_a_shifted_sigmoid():
    counts = column_counts(torch.tensor(COUNTS), 6.3313)
    others = counts.sum() - counts
    w_pos, w_neg = others**-0.25, counts**-0.25  # 1 / gamma+, 1 / gamma-
    logits = torch.linspace(-5, 5, 7, dtype=torch.float64)
    surrogate = w_pos * logits.exp() / (w_pos * logits.exp() + w_neg * (-logits).exp())
    torch.testing.assert_close(surrogate, (2 * logits + logit_shifts(counts)).sigmoid())


def slow_ecm(logits, labels, counts, ratio):
    counts = [*counts, ratio * sum(counts)]
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for column, (logit, own) in enumerate(zip(row, counts, strict=True)):
            others = sum(counts) - own
            weight = others / own * math.log(1 + own / others)
            probability = 1 / (1 + math.exp(-(2 * logit + math.log(own / others) / 4)))
            total -= weight * math.log(probability if column == label else 1 - probability)
    return total / len(labels)


def test_equals_a_loop():
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3, 3, 0, 1, 2])
    loss = ECMLoss(3, instance_counts=[4, 50, 900], fg_bg_ratio=2.5)
    assert loss(logits, labels).item() == pytest.approx(
        slow_ecm(logits, labels, [4, 50, 900], 2.5), rel=1e-12
    )


def test_gradcheck():
    logits = torch.randn(
        5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vector_loss()(z, torch.tensor([0, 2, 3, 6, 6])), logits)


def test_background_batch_lowers_every_class():
    logits = torch.zeros(4, 7, requires_grad=True)
    loss = vector_loss()(logits, torch.full((4,), 6))
    loss.backward()
    assert loss.isfinite()
    assert (logits.grad[:, :-1] > 0).all() and (logits.grad[:, -1] < 0).all()
    order = torch.tensor(COUNTS).argsort()
    assert logits.grad[0, order].diff().min() > 0  # the rarer, the weaker the push


def test_class_without_instances_counts_as_one():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 3])
    without, with_one = (ECMLoss(3, instance_counts=[n, 5, 90])(logits, labels) for n in (0, 1))
    assert without == with_one and without.isfinite()


def test_label_weights_avg_factor_and_loss_weight():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(4))
    labels, counts = torch.tensor([0, 1, 2, 3]), [3, 5, 90]
    rows = ECMLoss(3, instance_counts=counts)(logits, labels, reduction_override="none")
    weighted = ECMLoss(3, instance_counts=counts, loss_weight=3.0)
    found = weighted(logits, labels, torch.tensor([1.0, 0.0, 1.0, 0.5]), avg_factor=3.0)
    torch.testing.assert_close(found, 3 * (rows[0] + rows[2] + rows[3] / 2) / 3)


def test_half_precision_logits_are_computed_in_float32():
    logits = tensor(VECTORS["steps"][0]["logits"]).bfloat16()
    labels = torch.tensor(VECTORS["steps"][0]["labels"])
    loss = vector_loss()(logits, labels)
    assert loss.dtype == torch.float32 and loss == vector_loss()(logits.float(), labels)


def test_has_no_state_of_another_data_set():
    assert vector_loss().state_dict() == {}


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="needs instance_counts"):
        ECMLoss(6)
    with pytest.raises(UsageError, match="fg_bg_ratio > 0, but got 0"):
        ECMLoss(6, instance_counts=COUNTS, fg_bg_ratio=0)


def test_lvis_tables():
    with (Path(__file__).parent / "reference/lvis_v1_repeat_factors.csv").open() as file:
        instances = torch.tensor([int(row["instance_count"]) for row in csv.DictReader(file)])
    counts = column_counts(instances, 6.3313)
    shift, weight = logit_shifts(counts), official_float32_column_weights(counts)
    assert shift.min().item() == pytest.approx(-4.012, abs=1e-3)
    assert shift[-1].item() == pytest.approx(0.461, abs=1e-3)
    assert weight[:-1][instances == 1].unique().item() == pytest.approx(1.1101, abs=1e-4)
    assert (weight[:-1] > 1).sum() == 560
    exact = column_weights(counts)[:-1]
    assert exact.min() >= 0.925 and exact.max() < 1
