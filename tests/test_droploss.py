"""DropLoss against the official numbers with the recorded draws, and a loop.  C = 6 classes."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.droploss import DropLoss, count_objects, droploss_bounds, droploss_shifts
from pipeline.finetune.eql import EQLLoss
from pipeline.finetune.row_losses import LEFT_OUT, binary_losses

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/droploss.json").read_text())
CONFIG = VECTORS["config"]
STEPS = range(len(VECTORS["steps"]))
CLASSES = 6
INFREQUENT = torch.tensor([f < CONFIG["lambda_"] for f in CONFIG["freq"]])
LABELS = torch.tensor([0, 4, 4, 5, 6, 6, 6, 1])
ALL = slice(None)  # rows


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows=len(LABELS), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)


def kept(shifts):
    """1 where a pair counts, 0 where it is left out."""
    assert ((shifts == 0) | (shifts == torch.tensor(LEFT_OUT, dtype=shifts.dtype))).all()
    return (shifts == 0).double()


def kept_with(ratio, labels, uniform):
    bounds = droploss_bounds(INFREQUENT, ratio)
    return kept(droploss_shifts(uniform, bounds, (labels < CLASSES).long()))


def new_loss(**settings):
    return DropLoss(CLASSES, **{**CONFIG, **settings})


@pytest.mark.parametrize("index", STEPS)
def test_vectors_with_the_recorded_weights(index):
    step = VECTORS["steps"][index]
    logits = tensor(step["logits"]).requires_grad_()
    shifted = logits + LEFT_OUT * (1 - tensor(step["drop_weight"]))
    losses = binary_losses(logits, torch.tensor(step["labels"]), shifted=lambda rows: shifted[rows])
    losses.mean().backward()
    torch.testing.assert_close(losses.mean().detach(), tensor(step["loss"]), rtol=1e-7, atol=0)
    torch.testing.assert_close(logits.grad, tensor(step["grad"]), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("index", STEPS)
def test_vectors_with_the_recorded_draw(index):
    step = VECTORS["steps"][index]
    labels = torch.tensor(step["labels"])
    num_infrequent, num_objects = count_objects(labels, INFREQUENT)
    ratio = num_infrequent / num_objects
    assert ratio.item() == pytest.approx(step["ratio"], rel=1e-7)
    uniform = torch.rand(10, CLASSES, generator=torch.Generator().manual_seed(step["torch_seed"]))
    weights = kept_with(ratio, labels, uniform)
    expected = tensor(step["drop_weight"])
    is_label = labels[:, None] == torch.arange(CLASSES)
    assert torch.equal(weights[~is_label], expected[~is_label])
    assert (expected[is_label] == 1).all()
    assert (expected[labels == 6][:, INFREQUENT] == 0).any()  # or the draw would not be tested
    assert (expected[labels == 6][:, INFREQUENT] == 1).any()


def slow_weights(labels, uniform):
    objects = [label for label in labels.tolist() if label < CLASSES]
    rho = sum(bool(INFREQUENT[label]) for label in objects) / len(objects) if objects else math.nan
    weights = []
    for i, label in enumerate(labels.tolist()):
        row = []
        for column in range(CLASSES):
            if not INFREQUENT[column]:
                row.append(1.0)
            elif label < CLASSES:
                row.append(0.0)
            else:
                row.append(0.0 if uniform[i, column].item() > rho else 1.0)
        weights.append(row)
    return tensor(weights)


@pytest.mark.parametrize("labels", [LABELS, torch.full((8,), 6), torch.tensor([1, 4, 6, 6, 6, 6, 6, 6])])
def test_weights_equal_a_loop(labels):
    uniform = torch.rand(8, CLASSES, generator=torch.Generator().manual_seed(3))
    num_infrequent, num_objects = count_objects(labels, INFREQUENT)
    expected = slow_weights(labels, uniform)  # before the memory of the draws is taken
    assert torch.equal(kept_with(num_infrequent / num_objects, labels, uniform), expected)


def test_pairs_are_kept_with_probability_rho():
    only_background = torch.full((9000,), CLASSES)
    for objects, rho in (([0], 1.0), ([1], 0.0), ([0, 1, 4, 4], 0.25), ([], 1.0)):
        labels = torch.cat([only_background, torch.tensor(objects, dtype=torch.int64)])
        found = kept(new_loss().shifts(labels, torch.float32)(ALL)[:9000])
        assert (found[:, ~INFREQUENT] == 1).all()
        share = found[:, INFREQUENT].mean().item()
        assert share == rho if rho in (0, 1) else share == pytest.approx(rho, abs=0.01)


def test_objects_are_treated_as_by_eql():
    logits, objects = random_logits(), LABELS < CLASSES
    rows = new_loss()(logits, LABELS, reduction_override="none")
    eql = EQLLoss(CLASSES, **CONFIG)(logits, LABELS, reduction_override="none")
    assert torch.equal(rows[objects], eql[objects])
    assert (rows[~objects] <= eql[~objects]).all() and (rows[~objects] < eql[~objects]).any()


def test_background_batch_drops_nothing():
    logits, labels = random_logits(), torch.full((8,), CLASSES)
    assert new_loss()(logits, labels) == EQLLoss(CLASSES, **CONFIG)(logits, labels)


def test_batch_without_infrequent_objects_drops_every_pair():
    logits = random_logits().requires_grad_()
    new_loss()(logits, torch.tensor([1, 4, 6, 6, 6, 6, 6, 6])).backward()
    assert (logits.grad[2:, INFREQUENT] == 0).all() and (logits.grad[2:, ~INFREQUENT] > 0).all()


def test_gradcheck():
    logits = random_logits().requires_grad_()
    loss = new_loss().eval()  # the same draw at every call
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), logits)


def test_every_training_step_draws_anew():
    loss = new_loss()
    labels = torch.cat([LABELS, torch.full((50,), CLASSES)])
    first, second = (loss.shifts(labels, torch.float32)(ALL) for _ in range(2))
    assert not torch.equal(first, second)
    assert loss.draws.step == 2
    other = new_loss(seed=1).shifts(labels, torch.float32)(ALL)
    assert not torch.equal(first, other)
    assert torch.equal(first, new_loss().shifts(labels, torch.float32)(ALL))


def test_validation_does_not_disturb_training():
    plain, interrupted = new_loss(), new_loss()
    for loss in (plain, interrupted):
        loss(random_logits(), LABELS)
    interrupted.eval()
    interrupted(random_logits(), LABELS)
    interrupted.train()
    assert plain(random_logits(seed=1), LABELS) == interrupted(random_logits(seed=1), LABELS)


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    new_loss()(random_logits(), LABELS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)  # and are not moved by it
    first = new_loss()(random_logits(), LABELS)
    torch.set_rng_state(before)
    assert first == new_loss()(random_logits(), LABELS)


def test_state_survives_a_checkpoint_exactly():
    loss, other = new_loss(), new_loss()
    for seed in range(3):
        loss(random_logits(seed=seed), LABELS)
    other.load_state_dict(loss.state_dict())
    assert list(loss.state_dict()) == ["draws.step"] and other.draws.step == 3
    for seed in (20, 21):
        assert loss(random_logits(seed=seed), LABELS) == other(random_logits(seed=seed), LABELS)


def test_no_rois():
    logits = torch.zeros(0, CLASSES, requires_grad=True)
    loss = new_loss()
    found = loss(logits, torch.zeros(0, dtype=torch.long))
    found.backward()
    assert found.item() == 0 and loss.draws.step == 1


@pytest.mark.parametrize("column", range(CLASSES))
def test_nan_logits_give_a_nan_loss_even_where_the_weight_is_0(column):
    logits = random_logits()
    logits[0, column] = math.nan
    assert new_loss()(logits, LABELS).isnan()


def test_label_weights_avg_factor_and_reduction():
    logits = random_logits()
    rows = new_loss()(logits, LABELS, reduction_override="none")
    weights = torch.tensor([1.0, 0, 2, 1, 0.5, 0, 0, 1])
    expected = 3 * rows * weights

    def loss(*arguments):
        return new_loss(loss_weight=3.0)(logits, LABELS, *arguments)

    torch.testing.assert_close(loss(weights, 5), expected.sum() / 5)
    torch.testing.assert_close(loss(weights, None, "mean"), expected.sum() / 8)
    torch.testing.assert_close(loss(weights, 5, "sum"), expected.sum())
    torch.testing.assert_close(loss(weights, 5, "none"), expected)
    assert loss(torch.zeros(8)).item() == 0


def test_dtypes():
    logits = random_logits()
    assert new_loss()(logits, LABELS).dtype == torch.float64
    half = new_loss()(logits.bfloat16(), LABELS)
    assert half.dtype == torch.float32 and half == new_loss()(logits.bfloat16().float(), LABELS)
    torch.testing.assert_close(new_loss()(logits.float(), LABELS).double(), new_loss()(logits, LABELS))


def test_head_and_settings():
    assert new_loss().get_cls_channels(CLASSES) == CLASSES
    logits = random_logits()
    assert torch.equal(new_loss().get_activation(logits), EQLLoss(CLASSES, **CONFIG).get_activation(logits))
    with pytest.raises(UsageError, match="DropLoss needs image_counts and num_images, or freq"):
        DropLoss(CLASSES)
    with pytest.raises(MismatchedInput, match="DropLoss: 6 freq for 5 classes"):
        DropLoss(5, freq=CONFIG["freq"])


def test_lvis_has_876_infrequent_classes():
    with (Path(__file__).parent / "reference/lvis_v1_repeat_factors.csv").open() as file:
        counts = [int(row["image_count"]) for row in csv.DictReader(file)]
    assert DropLoss(1203, counts, num_images=99_388).is_infrequent.sum() == 876


def draw_in_a_process(rank, world):
    """Rank 0 sees four objects, one infrequent; rank 1 background only; saves what is kept there."""
    background = torch.full((2000,), CLASSES)
    labels = torch.cat([background, torch.tensor([0, 1, 4, 4])]) if rank == 0 else background
    shared, own = new_loss(), new_loss(synchronize=False)
    weights = [kept(loss.shifts(labels, torch.float32)(ALL)[:2000, INFREQUENT]) for loss in (shared, own)]
    return weights


def test_rho_is_that_of_all_processes_and_draws_differ(tmp_path):
    first, second = together(2, draw_in_a_process, tmp_path)
    for shared in (first[0], second[0]):
        assert shared.mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], first[1])  # all objects are here
    assert (second[1] == 1).all()  # none here: a process on its own drops nothing
