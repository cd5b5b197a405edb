"""EQL against the official numbers, closed forms and a loop.  C = 6 classes unless said."""

import csv
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from processes import together

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.eql import EQLLoss, infrequent_classes
from pipeline.finetune.row_losses import binary_losses

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/eql_v1.json").read_text())
CONFIG = VECTORS["config"]
STEPS = range(len(VECTORS["steps"]))
CLASSES = 6
LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 6, 1])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows=len(LABELS), columns=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def vector_loss(**settings):
    return EQLLoss(CLASSES, **{**CONFIG, **settings})


@pytest.mark.parametrize("index", STEPS)
def test_vectors(index):
    step = VECTORS["steps"][index]
    logits = tensor(step["logits"]).requires_grad_()
    loss = vector_loss()(logits, torch.tensor(step["labels"]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensor(step["loss"]), rtol=1e-9, atol=0)
    torch.testing.assert_close(logits.grad, tensor(step["grad"]), rtol=1e-6, atol=1e-12)


def slow_losses(logits, labels, negative, positive):
    """Element by element; `negative[row][column]`, `positive[column]`."""
    losses = []
    for i, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        loss = 0.0
        for column, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            loss -= (
                positive[column] * math.log(p) if column == label else negative[i][column] * math.log(1 - p)
            )
        losses.append(loss)
    return tensor(losses)


def slow_eql(logits, labels, frequencies, threshold):
    rows = [
        [0.0 if label < CLASSES and f < threshold else 1.0 for f in frequencies] for label in labels.tolist()
    ]
    return slow_losses(logits, labels, rows, [1.0] * CLASSES)


def test_weighted_binary_losses_equal_a_loop():
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(8, CLASSES, generator=generator, dtype=torch.float64)
    positive = 1 + torch.rand(CLASSES, generator=generator, dtype=torch.float64)
    found = binary_losses(random_logits(), LABELS, table[0], positive)
    expected = slow_losses(random_logits(), LABELS, [table[0].tolist()] * 8, positive.tolist())
    torch.testing.assert_close(found, expected)
    found = binary_losses(random_logits(), LABELS, table[0])
    expected = slow_losses(random_logits(), LABELS, [table[0].tolist()] * 8, [1.0] * CLASSES)
    torch.testing.assert_close(found, expected)


def test_with_a_column_for_background_and_weights_1_it_is_bce():
    logits = random_logits(columns=CLASSES + 1)
    ones = torch.ones(CLASSES + 1, dtype=torch.float64)
    torch.testing.assert_close(binary_losses(logits, LABELS, ones, ones), binary_losses(logits, LABELS))


def test_extreme_logits_are_exact():
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    losses = binary_losses(logits, torch.tensor([1]), torch.tensor([1.0, 1.0, 0.0]))
    losses.sum().backward()
    assert losses.tolist() == [400.0]
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_float64_is_exact_where_float32_would_round():
    losses = binary_losses(tensor([[25.0]]), torch.tensor([1]), tensor([1.0]))
    assert losses.item() == pytest.approx(25 + math.log1p(math.exp(-25)), rel=0, abs=2e-13)


def test_loss_equals_a_loop():
    loss = vector_loss()(random_logits(), LABELS, reduction_override="none")
    torch.testing.assert_close(loss, slow_eql(random_logits(), LABELS, CONFIG["freq"], CONFIG["lambda_"]))


def test_gradcheck():
    logits = random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vector_loss()(z, LABELS), logits)


def test_objects_push_frequent_classes_only_and_background_pushes_all():
    logits = random_logits().requires_grad_()
    vector_loss()(logits, LABELS).backward()
    infrequent = torch.tensor([f < 0.0011 for f in CONFIG["freq"]])
    assert (logits.grad[LABELS == 6] > 0).all()
    assert (logits.grad[0, infrequent] == torch.tensor([logits.grad[0, 0], 0.0])).all()  # 0 is its label
    assert logits.grad[0, 0] < 0 and (logits.grad[0, ~infrequent] > 0).all()
    assert (logits.grad[3, infrequent] == 0).all()


def test_threshold_is_strict_unless_said():
    frequencies = tensor([0.0010, 0.0011, 0.0012])
    assert infrequent_classes(frequencies, 0.0011).tolist() == [True, False, False]
    assert infrequent_classes(frequencies, 0.0011, strict=False).tolist() == [True, True, False]
    assert vector_loss().is_infrequent[5].item() is False  # its frequency is lambda
    assert vector_loss(strict_less_than=False).is_infrequent[5].item() is True


def test_counts_and_num_images_give_the_frequencies():
    loss = EQLLoss(4, image_counts=[10, 11, 12, 0], num_images=10_000)  # 11 / 10,000 is lambda exactly
    assert loss.is_infrequent.tolist() == [True, False, False, True]


def test_counts_from_a_file(tmp_path):
    path = tmp_path / "categories.parquet"
    columns = {"category_id": [7, 3], "image_count": [900, 1], "instance_count": [950, 1]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    loss = EQLLoss(2, image_counts=path, instance_counts=path, num_images=1000)
    assert loss.is_infrequent.tolist() == [True, False]  # in the order of category ids


def test_lvis_has_815_infrequent_classes():
    with (Path(__file__).parent / "reference/lvis_v1_repeat_factors.csv").open() as file:
        counts = [int(row["image_count"]) for row in csv.DictReader(file)]
    assert EQLLoss(1203, counts, num_images=99_388).is_infrequent.sum() == 815


def test_without_infrequent_classes_it_is_bce_without_a_background_column():
    logits = random_logits()
    found = EQLLoss(CLASSES, freq=[0.5] * CLASSES)(logits, LABELS, reduction_override="none")
    with_column = torch.cat([logits, torch.full((8, 1), -1e9, dtype=torch.float64)], dim=1)
    objects = LABELS < CLASSES
    torch.testing.assert_close(found[objects], binary_losses(with_column[objects], LABELS[objects]))


def test_prior_bias_makes_the_first_loss_small():
    loss = EQLLoss(1203, freq=[0.5] * 1203)(torch.full((2, 1203), -math.log(999)), torch.tensor([1203, 1203]))
    assert loss.item() == pytest.approx(1203 * -math.log(0.999), rel=1e-5)


def test_background_batch():
    logits = torch.zeros(3, CLASSES, requires_grad=True)
    loss = vector_loss()(logits, torch.full((3,), CLASSES))
    loss.backward()
    assert loss.item() == pytest.approx(CLASSES * math.log(2))
    torch.testing.assert_close(logits.grad, torch.full((3, CLASSES), 0.5 / 3))


def test_no_rois():
    logits = torch.zeros(0, CLASSES, requires_grad=True)
    loss = vector_loss()(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert vector_loss().get_activation(logits).shape == (0, CLASSES + 1)


@pytest.mark.parametrize("column", range(CLASSES))
def test_nan_logits_give_a_nan_loss_even_where_the_weight_is_0(column):
    logits = random_logits()
    logits[0, column] = float("nan")
    assert vector_loss()(logits, LABELS).isnan()


def test_label_weights_avg_factor_and_reduction():
    loss, logits = vector_loss(loss_weight=2.0), random_logits()
    rows = slow_eql(logits, LABELS, CONFIG["freq"], CONFIG["lambda_"])
    weights = torch.tensor([1.0, 0, 2, 1, 0.5, 0, 0, 1])
    expected = 2 * rows * weights
    torch.testing.assert_close(loss(logits, LABELS, weights, avg_factor=5), expected.sum() / 5)
    torch.testing.assert_close(loss(logits, LABELS, weights), expected.sum() / 8)
    torch.testing.assert_close(loss(logits, LABELS, weights, 5, "mean"), expected.sum() / 5)
    torch.testing.assert_close(loss(logits, LABELS, weights, 5, "none"), expected)
    torch.testing.assert_close(loss(logits, LABELS, weights, 5, "sum"), expected.sum())
    assert loss(logits, LABELS, torch.zeros(8)).item() == 0


def test_dtype_of_the_computation():
    logits = random_logits()
    assert vector_loss()(logits, LABELS).dtype == torch.float64
    half = vector_loss()(logits.bfloat16(), LABELS)
    assert half.dtype == torch.float32 and half == vector_loss()(logits.bfloat16().float(), LABELS)
    torch.testing.assert_close(vector_loss()(logits.float(), LABELS).double(), vector_loss()(logits, LABELS))


def test_scores_are_sigmoids_and_a_column_of_zeros():
    logits = random_logits()
    scores = vector_loss().get_activation(logits)
    torch.testing.assert_close(scores[:, :CLASSES], 1 / (1 + (-logits).exp()))
    assert scores.shape == (8, CLASSES + 1) and (scores[:, CLASSES] == 0).all()


def test_accuracy_takes_half_as_the_border_to_background():
    logits = torch.tensor([[5.0, 0, -1], [-1, -2, -3], [-1, -2, 1], [-5, -1, -2]])
    accuracy = EQLLoss(3, freq=[0.1] * 3).get_accuracy(logits, torch.tensor([0, 1, 3, 3]))
    assert accuracy["acc_classes"].item() == pytest.approx(50)
    assert accuracy["acc_objectness"].item() == pytest.approx(50)


def test_head_has_no_background_column():
    assert vector_loss().get_cls_channels(CLASSES) == CLASSES
    with pytest.raises(UsageError, match="needs 6 logits per RoI, but the head gives 7"):
        vector_loss()(torch.zeros(2, 7), torch.tensor([0, 1]))


def test_has_no_state_of_another_data_set():
    assert vector_loss().state_dict() == {}


@pytest.mark.parametrize("settings", [{}, {"image_counts": [1, 2]}, {"num_images": 3}])
def test_missing_frequencies_are_refused(settings):
    with pytest.raises(UsageError, match="EQLLoss needs image_counts and num_images, or freq"):
        EQLLoss(2, **settings)


def test_bad_settings_are_refused():
    with pytest.raises(MismatchedInput, match="6 freq for 5 classes"):
        EQLLoss(5, freq=CONFIG["freq"])
    with pytest.raises(MismatchedInput, match="image_counts: 1 categories, but the detector has 2"):
        EQLLoss(2, image_counts=[4], num_images=9)
    for freq in ([0.5, 1.5], [-0.1, 0.5], [math.nan, 0.5]):
        with pytest.raises(UsageError, match="from 0 to 1"):
            EQLLoss(2, freq=freq)
    with pytest.raises(UsageError, match="lambda_ > 0, but got 0"):
        EQLLoss(2, freq=[0.5, 0.5], lambda_=0)


def half_of_a_batch(rank, world):
    """Rank 0 has every object, rank 1 none; saves the sum of its losses."""
    order = LABELS.argsort(stable=True).split([5, 3])[rank]
    loss = vector_loss()(random_logits()[order], LABELS[order], reduction_override="sum")
    return loss


def test_two_processes_add_up_to_one(tmp_path):
    halves = sum(together(2, half_of_a_batch, tmp_path))
    torch.testing.assert_close(halves, vector_loss()(random_logits(), LABELS, reduction_override="sum"))
