"""ROG's ranking loss against the official numbers and a loop over objects and entries.  C = 6 unless said."""

import json
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import UsageError
from pipeline.finetune.bce import BCELoss
from pipeline.finetune.rog import GAPLoss, rank_errors, ranking_class_weights
from pipeline.finetune.seesaw import SeesawLoss

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/rog_gap.json").read_text())
LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 0, 1, 0, 6])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows=10, columns=7, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors(dtype):
    loss = GAPLoss(**VECTORS["config"])
    tight = dtype == torch.float64
    for step in VECTORS["steps"]:
        logits = torch.tensor(step["logits"], dtype=dtype, requires_grad=True)
        found = loss(logits, torch.tensor(step["labels"]))
        found.backward()
        assert found.dtype == dtype
        rtol, atol = (1e-6, 1e-9) if tight else (1e-5, 1e-7)
        torch.testing.assert_close(found.detach().double(), tensor(step["loss"]), rtol=rtol, atol=0)
        torch.testing.assert_close(logits.grad.double(), tensor(step["grad"]), rtol=rtol, atol=atol)
        assert loss.num_samples.tolist() == step["num_samples_after"]


def soft_step(difference, delta):
    return float(difference >= 0) if delta == 0 else min(1.0, max(0.0, difference / (2 * delta) + 0.5))


def slow_gap(logits, labels, weights, delta):
    """Loss and gradient, one object and one entry at a time."""
    rows, num_classes = logits.shape
    objects = [(i, m) for i, m in enumerate(labels) if m < num_classes]
    wrong = [(i, j) for i in range(rows) for j in range(num_classes) if (i, j) not in objects]
    present = {m for _, m in objects}
    total, gradient = 0.0, torch.zeros_like(logits)
    for i, m in objects:
        same = [k for k, other in objects if other == m]
        steps = {place: soft_step(float(logits[place] - logits[i, m]), delta) for place in wrong}
        num_wrong = sum(steps.values())
        rank = num_wrong + sum(soft_step(float(logits[k, m] - logits[i, m]), delta) for k in same)
        share = 1 / (len(same) * len(present))
        total += share * num_wrong / rank
        gradient[i, m] -= share * weights[m] * num_wrong / rank
        for place, step in steps.items():
            gradient[place] += share * weights[m] * step / rank
    return total, gradient


@pytest.mark.parametrize("delta", [0.5, 0.1, 3.0, 0.0])
@pytest.mark.parametrize("scale", [0.2, 4.0])
def test_equals_a_loop(delta, scale):
    logits, weights = random_logits(columns=6, scale=scale), [0.5, 2.0, 1.0, 0.1, 3.0, 0.7]
    errors, gradient = rank_errors(logits, LABELS, tensor(weights), delta)
    total, expected = slow_gap(logits, LABELS.tolist(), weights, delta)
    assert errors.sum().item() == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)
    assert (errors[LABELS == 6] == 0).all()


def test_equal_logits_equal_a_loop():
    logits = random_logits(columns=6).round()  # many ties
    errors, gradient = rank_errors(logits, LABELS, torch.ones(6), 0.0)
    total, expected = slow_gap(logits, LABELS.tolist(), [1.0] * 6, 0.0)
    assert errors.sum().item() == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


def test_perfect_ranking_costs_nothing():
    logits = torch.full((4, 3), -5.0)
    logits[[0, 1, 2], [0, 1, 1]] = 5.0
    errors, gradient = rank_errors(logits, torch.tensor([0, 1, 1, 3]), torch.ones(3), 0.5)
    assert errors.tolist() == [0] * 4
    assert not gradient.any()


def test_descent_raises_objects_and_lowers_the_rest():
    logits = random_logits().requires_grad_()
    loss = GAPLoss(6)
    before = loss(logits, LABELS)
    before.backward()
    objects = torch.zeros(10, 7, dtype=torch.bool)
    objects[LABELS < 6, LABELS[LABELS < 6]] = True
    assert (logits.grad[objects] <= 0).all() and (logits.grad[~objects] >= 0).all()
    assert not logits.grad[:, 6].any()  # the background column is not ranked
    assert loss(logits.detach() - 5 * logits.grad, LABELS) < before


def test_class_weights():
    torch.testing.assert_close(ranking_class_weights(torch.tensor([0.0, 1, 4]), 0.5), tensor([1.2, 1.2, 0.6]))
    torch.testing.assert_close(ranking_class_weights(torch.tensor([7.0, 1]), 0.0), tensor([1.0, 1.0]))


@pytest.mark.parametrize("labels", [torch.full((5,), 6), torch.zeros(0, dtype=torch.long)])
def test_without_objects_it_is_zero_with_a_graph(labels):
    logits = random_logits(len(labels)).requires_grad_()
    loss = GAPLoss(6)
    found = loss(logits, labels)
    found.backward()
    assert found.item() == 0 and not logits.grad.any()
    assert loss.num_samples.tolist() == [0] * 6 + [len(labels)]


@pytest.mark.parametrize("place", [(0, 0), (0, 4), (4, 2)])  # an object, beside one, in a background row
@pytest.mark.parametrize("labels", [LABELS, torch.full((10,), 6)], ids=["objects", "background"])
def test_nan_logits_give_a_loss_that_is_not_finite(place, labels):
    logits = random_logits()
    logits[place] = torch.nan
    assert not GAPLoss(6)(logits, labels).isfinite()


def test_roi_of_weight_0_is_as_if_absent():
    logits, weights = random_logits(), torch.ones(10)
    weights[[1, 4]] = 0
    kept = weights > 0
    full, part = GAPLoss(6), GAPLoss(6)
    torch.testing.assert_close(full(logits, LABELS, weights), part(logits[kept], LABELS[kept]))
    assert full.num_samples.tolist() == part.num_samples.tolist()
    assert GAPLoss(6)(logits, LABELS, torch.zeros(10)).item() == 0


def test_reductions_and_loss_weight():
    logits = random_logits()
    mean = GAPLoss(6)(logits, LABELS)
    assert GAPLoss(6)(logits, LABELS, None, 3.0, "mean") == mean  # a mean over classes, not RoIs
    assert GAPLoss(6)(logits, LABELS, None, None, "sum") == mean
    rows = GAPLoss(6, loss_weight=2.0)(logits.requires_grad_(), LABELS, reduction_override="none")
    torch.testing.assert_close(rows.sum(), 2 * mean)
    rows.sum().backward()
    half = random_logits().requires_grad_()
    GAPLoss(6)(half, LABELS).backward()
    torch.testing.assert_close(logits.grad, 2 * half.grad)


@pytest.mark.parametrize(("base", "plain", "columns"), [("bce", BCELoss(6), 7), ("seesaw", SeesawLoss(6), 8)])
def test_base_keeps_its_losses_columns_and_scores(base, plain, columns):
    logits, weights = random_logits(columns=columns), torch.linspace(0.5, 1, 10)
    loss = GAPLoss(6, base=base)
    found = loss(logits, LABELS, weights, 7.0)
    expected = plain(logits, LABELS, weights, 7.0)
    expected = expected if isinstance(expected, dict) else {"loss_cls": expected}
    assert found.keys() == expected.keys() | {"loss_rank"}
    assert all(found[name] == value for name, value in expected.items())
    assert found["loss_rank"] == GAPLoss(6)(logits[:, :7], LABELS)
    assert loss.get_cls_channels(6) == columns
    assert torch.equal(loss.get_activation(logits), plain.get_activation(logits))
    assert loss.get_accuracy(logits, LABELS) == plain.get_accuracy(logits, LABELS)


def test_state_round_trip_continues_exactly():
    loss, other = GAPLoss(6, base="seesaw"), GAPLoss(6, base="seesaw")
    loss(random_logits(columns=8), LABELS)
    other.load_state_dict(loss.state_dict())
    assert list(loss.state_dict()) == ["num_samples", "base.cum_samples"]
    again = [each(random_logits(columns=8, seed=1), LABELS) for each in (loss, other)]
    assert again[0] == again[1]
    assert torch.equal(loss.num_samples, other.num_samples)


def test_counts_while_training_only():
    loss = GAPLoss(6)
    loss(random_logits(), LABELS)
    loss.eval()
    loss(random_logits(), LABELS)
    assert loss.num_samples.tolist() == [3, 1, 0, 2, 0, 1, 3]


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits().bfloat16()
    assert GAPLoss(6)(logits, LABELS) == GAPLoss(6)(logits.float(), LABELS)


def test_settings_out_of_range_are_refused():
    for bad in ({"gamma": -1}, {"lam": -1}, {"delta_RS": -0.1}, {"base": "ce"}, {"lam": float("nan")}):
        with pytest.raises(UsageError, match="GAPLoss needs"):
            GAPLoss(6, **bad)


BATCHES = (LABELS[:5], torch.full((5,), 6))


def count_in_a_process(rank, world):
    """The second process sees background only."""
    shared, own = GAPLoss(6), GAPLoss(6, synchronize=False)
    for loss in (shared, own):
        loss(random_logits(5, seed=rank), BATCHES[rank])
    return (shared.num_samples, own.num_samples)


def test_two_processes_count_as_one(tmp_path):
    first, second = together(2, count_in_a_process, tmp_path)
    whole = GAPLoss(6)
    whole(random_logits(), torch.cat(BATCHES))
    assert torch.equal(first[0], whole.num_samples) and torch.equal(second[0], whole.num_samples)
    assert first[1].tolist() == [1, 0, 0, 2, 0, 1, 1] and second[1].tolist() == [0] * 6 + [5]
