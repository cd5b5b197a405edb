"""BCE with a background column, and the head contract that all losses share.  C = 6 classes unless said."""

import math

import pyarrow
import pyarrow.parquet
import pytest
import torch

from pipeline.errors import InputError, MismatchedInput, MissingInput, UsageError
from pipeline.finetune.bce import BCELoss
from pipeline.finetune.head_contract import objectness_scores, reduce_rois, resolve_counts
from pipeline.finetune.row_losses import binary_losses

CLASSES = 6
LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 6, 1])


def random_logits(columns=CLASSES + 1, dtype=torch.float64):
    return torch.randn(len(LABELS), columns, generator=torch.Generator().manual_seed(0), dtype=dtype) * 3


def slow_bce(logits, labels, weights):
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        loss = 0.0
        for column, logit in enumerate(row):
            probability = 1 / (1 + math.exp(-logit))
            right = probability if column == label else 1 - probability
            loss -= weights[column] * math.log(right)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


def test_binary_losses_equal_a_loop():
    weights = [0.5, 1.0, 2.0, 0.0, 1.5, 1.0, 0.25]
    columns = torch.tensor(weights, dtype=torch.float64)
    found = binary_losses(random_logits(), LABELS, columns, columns)
    torch.testing.assert_close(found, slow_bce(random_logits(), LABELS, weights))


def test_binary_losses_survive_extreme_logits():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    losses = binary_losses(logits, torch.tensor([1]))
    losses.sum().backward()
    assert losses.tolist() == [400.0]
    assert logits.grad.tolist() == [[1.0, -1.0]]


def test_zero_logits_cost_ln_2_per_column():
    loss = BCELoss(CLASSES)(torch.zeros(4, CLASSES + 1), torch.tensor([0, 1, 6, 6]))
    assert loss.item() == pytest.approx(7 * math.log(2))


def test_prior_bias_gives_the_loss_of_section_2():
    # 1203 classes, every column at probability 0.001, a background RoI: 1203 * -ln(.999) - ln(.001)
    prior = -math.log(999)
    loss = BCELoss(1203)(torch.full((1, 1204), prior), torch.tensor([1203]))
    assert loss.item() == pytest.approx(1203 * -math.log(0.999) - math.log(0.001), rel=1e-5)
    assert loss.item() == pytest.approx(8.1, abs=0.02)


def test_background_batch_has_a_finite_loss_that_lowers_every_class():
    logits = torch.zeros(3, CLASSES + 1, requires_grad=True)
    BCELoss(CLASSES)(logits, torch.full((3,), CLASSES)).backward()
    assert (logits.grad[:, :-1] > 0).all()
    assert (logits.grad[:, -1] < 0).all()


def test_gradcheck():
    logits = random_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: BCELoss(CLASSES)(z, LABELS), logits)


def test_label_weights_and_avg_factor():
    loss, logits = BCELoss(CLASSES, loss_weight=2.0), random_logits()
    rows = slow_bce(logits, LABELS, [1.0] * 7)
    weights = torch.tensor([1.0, 0, 2, 1, 0.5, 0, 0, 1])
    expected = 2 * rows * weights
    torch.testing.assert_close(loss(logits, LABELS, weights, avg_factor=5), expected.sum() / 5)
    torch.testing.assert_close(loss(logits, LABELS, weights), expected.sum() / 8)
    torch.testing.assert_close(loss(logits, LABELS, weights, 5, "none"), expected)
    torch.testing.assert_close(loss(logits, LABELS, weights, 5, "sum"), expected.sum())


def test_unknown_reduction_is_refused():
    with pytest.raises(UsageError, match="average"):
        reduce_rois(torch.ones(2), None, None, "average")


def test_no_rois_cost_nothing():
    logits = torch.zeros(0, CLASSES + 1, requires_grad=True)
    loss = BCELoss(CLASSES)(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits().bfloat16()
    loss = BCELoss(CLASSES)(logits, LABELS)
    assert loss.dtype == torch.float32
    assert loss == BCELoss(CLASSES)(logits.float(), LABELS)
    assert BCELoss(CLASSES).get_activation(logits).dtype == torch.float32


def test_scores_are_class_times_not_background_with_the_background_last():
    logits = random_logits()
    before = logits.clone()
    scores = BCELoss(CLASSES).get_activation(logits)
    p = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(scores[:, :CLASSES], p[:, :CLASSES] * (1 - p[:, CLASSES:]))
    torch.testing.assert_close(scores[:, CLASSES], p[:, CLASSES])
    assert torch.equal(logits, before)


def test_scores_are_differentiable():
    logits = random_logits(CLASSES).requires_grad_()
    objectness_scores(logits, torch.zeros(8, dtype=torch.float64)).sum().backward()
    p = logits.detach().sigmoid()  # an in-place change of the sigmoid would raise above
    torch.testing.assert_close(logits.grad, p * (1 - p) * 0.5)


def test_scores_of_sure_background_keep_their_order():
    scores = objectness_scores(torch.tensor([[2.0, 1.0]]), torch.tensor([40.0]))  # 1 - sigmoid(40) == 0
    assert scores[0, 0] > scores[0, 1] > 0


def test_accuracy_counts_foreground_classes_and_the_background_split():
    # best class 1, 0, 2 | background logit -, +, -, +
    logits = torch.tensor([[0.0, 5, 0, -1], [5, 0, 0, 1], [0, 0, 5, -1], [5, 0, 0, 1]])
    accuracy = BCELoss(3).get_accuracy(logits, torch.tensor([1, 0, 0, 3]))
    assert accuracy["acc_classes"].item() == pytest.approx(200 / 3)
    assert accuracy["acc_objectness"].item() == pytest.approx(75)


def test_accuracy_without_foreground_is_zero():
    accuracy = BCELoss(3).get_accuracy(torch.zeros(2, 4), torch.tensor([3, 3]))
    assert accuracy["acc_classes"].item() == 0


def test_head_width():
    loss = BCELoss(CLASSES)
    assert loss.custom_cls_channels and loss.custom_activation and loss.custom_accuracy
    assert loss.get_cls_channels(CLASSES) == 7
    with pytest.raises(MismatchedInput, match=r"6 classes.*80"):
        loss.get_cls_channels(80)
    with pytest.raises(UsageError, match="needs 7 logits per RoI, but the head gives 6"):
        loss(torch.zeros(2, 6), torch.tensor([0, 1]))


def write_categories(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_counts_from_a_list():
    counts = resolve_counts([5, 0, 7], "image_count", 3)
    assert counts.dtype == torch.int64 and counts.tolist() == [5, 0, 7]


def test_counts_from_parquet_follow_the_category_ids(tmp_path):
    path = write_categories(
        tmp_path / "c.parquet", category_id=[30, 10, 20], image_count=[3, 1, 2], instance_count=[9, 7, 8]
    )
    assert resolve_counts(path, "image_count", 3).tolist() == [1, 2, 3]
    loss = BCELoss(3, image_counts=str(path), instance_counts=path, num_images=4)
    assert loss.image_counts.tolist() == [1, 2, 3]
    assert loss.instance_counts.tolist() == [7, 8, 9]
    assert loss.num_images == 4


@pytest.mark.parametrize("values", [[1, -1, 2], [1, 2.5, 2], [1, float("nan"), 2], [1, None, 2], [1, "2", 2]])
def test_counts_that_are_none_are_refused_with_their_place(values):
    with pytest.raises(InputError, match=r"image_count.*positions 1$"):
        resolve_counts(values, "image_count", 3)


def test_counts_of_other_categories_are_refused(tmp_path):
    path = write_categories(tmp_path / "c.parquet", category_id=[1, 2], instance_count=[3, 4])
    with pytest.raises(MismatchedInput, match="2 categories, but the detector has 6"):
        resolve_counts(path, "instance_count", 6)
    with pytest.raises(MismatchedInput, match="image_counts: 1 categories"):
        BCELoss(2, image_counts=[1])


def test_count_files_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(MissingInput, match="does not exist"):
        resolve_counts(tmp_path / "absent.parquet", "image_count", 2)
    path = write_categories(tmp_path / "c.parquet", category_id=[1, 2], instance_count=[3, 4])
    with pytest.raises(InputError, match="no column image_count"):
        resolve_counts(path, "image_count", 2)
    (tmp_path / "text.parquet").write_text("category_id,image_count\n1,2\n")
    with pytest.raises(InputError, match="not a readable parquet"):
        resolve_counts(tmp_path / "text.parquet", "image_count", 1)
