"""Balanced group softmax against the released code's numbers, and a loop."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from processes import together

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.bags import GroupSoftmaxLoss, draw_members, group_layout, group_losses

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/bags.json").read_text())
CONFIG = VECTORS["config"]
COUNTS = CONFIG["instance_counts"]
STEPS = range(len(VECTORS["steps"]))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def vector_loss(**settings):
    return GroupSoftmaxLoss(
        6, instance_counts=COUNTS, beta=CONFIG["beta"], bin_split=CONFIG["bin_split"], **settings
    )


def random_logits(rows, columns=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def many_labels(rows, seed=0):
    """Mostly background, as sampled RoIs are."""
    drawn = torch.randint(0, 24, (rows,), generator=torch.Generator().manual_seed(seed))
    return drawn.clamp(max=6)


@pytest.mark.parametrize("index", STEPS)
def test_vectors_with_their_recorded_members(index):
    step, loss = VECTORS["steps"][index], vector_loss()
    logits = tensor(step["logits"]).requires_grad_()
    group_labels = loss.positions[:, torch.tensor(step["labels"])]
    assert group_labels.tolist() == step["group_labels"]
    value = group_losses(logits, group_labels, torch.tensor(step["group_weights"]), loss.sizes).sum()
    value.backward()
    torch.testing.assert_close(value.detach(), tensor(step["loss"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, tensor(step["grad"]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("index", STEPS)
def test_recorded_members_can_be_drawn(index):
    step = VECTORS["steps"][index]
    group_labels, recorded = torch.tensor(step["group_labels"]), torch.tensor(step["group_weights"])
    used = torch.ones(len(step["labels"]), dtype=torch.bool)
    members = draw_members(group_labels, used, CONFIG["beta"], (1 - recorded[:-1]).argsort(dim=1))
    assert members.int().tolist() == step["group_weights"]
    assert members.sum(dim=1).clamp(min=1).tolist() == step["group_avg"]


@pytest.mark.parametrize("index", STEPS)
def test_activation_of_the_vectors(index):
    step = VECTORS["steps"][index]
    logits = tensor(step["logits"])
    scores = vector_loss().get_activation(logits)
    torch.testing.assert_close(scores, tensor(step["activation"]), rtol=1e-6, atol=1e-12)
    assert torch.equal(logits, tensor(step["logits"]))


def test_layout_of_the_vectors():
    layout = group_layout(torch.tensor(COUNTS), CONFIG["bin_split"])
    sizes = [1 + len(classes) for classes in CONFIG["group_cls_ids"]]
    assert list(layout.sizes) == sizes and sum(sizes) == CONFIG["num_columns"]
    for group, classes in enumerate(CONFIG["group_cls_ids"]):
        for place, label in enumerate(classes, start=1):
            assert layout.positions[:, label].tolist() == [place if g == group else 0 for g in range(5)]
            assert layout.columns[label] == sum(sizes[:group]) + place
    assert vector_loss().get_cls_channels(6) == CONFIG["num_columns"]


def test_groups_of_lvis():
    with (Path(__file__).parent / "reference/lvis_v1_repeat_factors.csv").open() as file:
        counts = torch.tensor([int(row["instance_count"]) for row in csv.DictReader(file)])
    layout = group_layout(counts, (10, 100, 1000))
    assert [size - 1 for size in layout.sizes] == [200, 412, 334, 257, 1]


def slow_bags(logits, labels, members, classes_of_group):
    """Groups after one another, RoIs after one another; the last group is {object, background}."""
    total, start = 0.0, 0
    for classes, used in zip(classes_of_group, members.tolist(), strict=True):
        losses = []
        for row, label, is_used in zip(logits.tolist(), labels.tolist(), used, strict=True):
            if is_used:
                part = row[start : start + 1 + len(classes)]
                place = classes.index(label) + 1 if label in classes else 0
                losses.append(math.log(sum(math.exp(z) for z in part)) - part[place])
        total += sum(losses) / max(len(losses), 1)
        start += 1 + len(classes)
    return total


@pytest.mark.parametrize("beta", [0.4, 1, 3, 1000])
def test_equals_a_loop(beta):
    loss = GroupSoftmaxLoss(6, instance_counts=COUNTS, beta=beta)
    logits, labels = random_logits(60), many_labels(60)
    orders = loss.draws.eval().orders(4, 60, labels.device)
    members = draw_members(loss.positions[:, labels], torch.ones(60, dtype=torch.bool), beta, orders)
    expected = slow_bags(logits, labels, members, CONFIG["group_cls_ids"])
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.4, 1, 3, 1000])
def test_members_are_own_and_beta_times_as_many_others(beta):
    labels = many_labels(80, seed=1)
    group_labels = vector_loss().positions[:, labels]
    orders = torch.rand(4, 80, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    members = draw_members(group_labels, torch.ones(80, dtype=torch.bool), beta, orders)
    for group, classes in enumerate(CONFIG["group_cls_ids"][:-1]):
        is_own = torch.tensor([label in classes for label in labels.tolist()])
        assert members[group][is_own].all()
        num_others = min(int(is_own.sum().item() * beta), 80 - int(is_own.sum()))
        assert members[group][~is_own].sum() == num_others
    assert members[-1].all()


def test_members_change_with_the_step_and_the_seed_only():
    logits, labels = random_logits(60), many_labels(60)
    values = [[loss(logits, labels).item() for _ in range(3)] for loss in (vector_loss(), vector_loss())]
    assert values[0] == values[1] and len(set(values[0])) == 3
    assert vector_loss(seed=1)(logits, labels).item() != values[0][0]


def test_resume_repeats_the_draws():
    loss, resumed = vector_loss(), vector_loss()
    logits, labels = random_logits(60), many_labels(60)
    for _ in range(2):
        loss(logits, labels)
    state = loss.state_dict()
    assert list(state) == ["draws.step"]  # the groups follow from the settings
    resumed.load_state_dict(state)
    assert [resumed(logits, labels).item() for _ in range(2)] == [
        loss(logits, labels).item() for _ in range(2)
    ]


def test_background_batch_teaches_the_last_group_alone():
    logits = random_logits(5).requires_grad_()
    loss = vector_loss()(logits, torch.full((5,), 6))
    loss.backward()
    expected = torch.nn.functional.cross_entropy(logits[:, -2:], torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(loss, expected)
    assert (logits.grad[:, :-2] == 0).all() and (logits.grad[:, -1] < 0).all()


def test_no_rois_cost_nothing():
    logits = torch.zeros(0, 12, requires_grad=True)
    loss = vector_loss()(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_class_without_instances_and_group_without_classes():
    loss = GroupSoftmaxLoss(3, instance_counts=[0, 5, 5000], bin_split=(10, 100, 1000))
    assert loss.sizes == (3, 1, 1, 2, 2)
    logits = random_logits(8, 9).requires_grad_()
    value = loss(logits, torch.tensor([0, 1, 2, 3, 3, 3, 3, 3]))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    assert (logits.grad[:, 3:5] == 0).all()  # one column alone: nothing to learn
    scores = loss.get_activation(logits.detach())
    assert scores.shape == (8, 4) and ((scores > 0) & (scores < 1)).all()


def test_nan_logits_make_a_nan_loss():
    logits = random_logits(4)
    logits[2, 0] = float("nan")
    assert vector_loss()(logits, torch.tensor([6, 6, 6, 6])).isnan()  # a group that learns nothing else
    assert vector_loss()(logits, torch.tensor([0, 1, 2, 6])).isnan()


def test_rois_of_weight_0_take_no_part():
    logits, labels = random_logits(9), torch.tensor([0, 3, 1, 6, 6, 6, 2, 4, 6])
    weights = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 1])
    kept = weights > 0
    loss = GroupSoftmaxLoss(6, instance_counts=COUNTS, beta=1000)  # takes all others: nothing is random
    expected = loss(logits[kept], labels[kept])
    torch.testing.assert_close(loss(logits, labels, weights, avg_factor=6.0), expected)
    torch.testing.assert_close(loss(logits, labels, weights), expected)
    torch.testing.assert_close(loss(logits, labels, weights / 2), expected / 2)
    rows = loss(logits, labels, weights, reduction_override="none")
    assert (rows[~kept] == 0).all()
    assert loss(logits, labels, torch.zeros(9)).item() == 0


def test_avg_factor_reduction_and_loss_weight():
    logits, labels = random_logits(8), torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
    plain = GroupSoftmaxLoss(6, instance_counts=COUNTS, beta=1000)
    value, rows = plain(logits, labels), plain(logits, labels, reduction_override="none")
    assert rows.shape == (8,)
    torch.testing.assert_close(rows.mean(), value)
    torch.testing.assert_close(plain(logits, labels, None, 8, "mean"), value)
    torch.testing.assert_close(plain(logits, labels, reduction_override="sum"), 8 * value)
    tripled = GroupSoftmaxLoss(6, instance_counts=COUNTS, beta=1000, loss_weight=3.0)
    torch.testing.assert_close(tripled(logits, labels, avg_factor=4), 3 * 2 * value)
    with pytest.raises(UsageError, match="average"):
        plain(logits, labels, reduction_override="average")


def test_gradcheck():
    loss = vector_loss().eval()  # the same draw in every call
    labels = torch.tensor([0, 2, 3, 6, 6, 1])
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), random_logits(6).requires_grad_())


def test_dtypes():
    logits, labels = random_logits(6), torch.tensor([0, 2, 3, 6, 6, 1])
    assert vector_loss()(logits, labels).dtype == torch.float64
    half = vector_loss()(logits.bfloat16(), labels)
    assert half.dtype == torch.float32 and half == vector_loss()(logits.bfloat16().float(), labels)


def test_scores_of_sure_background_keep_their_order():
    logits = torch.zeros(1, 12)
    logits[0, 1], logits[0, -1] = 1.0, 40.0
    scores = vector_loss().get_activation(logits)
    assert scores[0, 0] > scores[0, 3] > 0 and scores[0, 6] == 1


def test_accuracy_follows_the_scores():
    loss = GroupSoftmaxLoss(2, instance_counts=[5, 5000])
    # columns: others, class 0 | others | others | others, class 1 | object, background
    logits = torch.zeros(4, 8)
    logits[:, 1] = torch.tensor([3.0, 3.0, 0.0, 0.0])
    logits[:, 5] = torch.tensor([0.0, 0.0, 3.0, 3.0])
    logits[:, 7] = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    accuracy = loss.get_accuracy(logits, torch.tensor([0, 1, 1, 2]))
    assert accuracy["acc_classes"].item() == pytest.approx(200 / 3)
    assert accuracy["acc_objectness"].item() == pytest.approx(75)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="needs instance_counts"):
        GroupSoftmaxLoss(6)
    with pytest.raises(UsageError, match="beta > 0, but got 0"):
        GroupSoftmaxLoss(6, instance_counts=COUNTS, beta=0)
    for splits in ([], [10, 10], [100, 10]):
        with pytest.raises(UsageError, match="ascending bin_split"):
            GroupSoftmaxLoss(6, instance_counts=COUNTS, bin_split=splits)
    with pytest.raises(MismatchedInput, match="6 categories, but the detector has 5"):
        GroupSoftmaxLoss(5, instance_counts=COUNTS)
    with pytest.raises(UsageError, match="needs 12 logits per RoI, but the head gives 7"):
        vector_loss()(torch.zeros(1, 7), torch.tensor([0]))


def train_in_a_process(rank, world):
    """Rank 0 sees objects, rank 1 background only, then no RoI at all."""
    loss = vector_loss()
    for rows in (60, 60 * (1 - rank)):
        labels = many_labels(rows) if rank == 0 else torch.full((rows,), 6)
        loss(random_logits(rows), labels)
    value = loss.eval()(random_logits(60), many_labels(60))
    return (loss.state_dict(), value)


def test_processes_keep_step_whatever_they_see_and_draw_each_its_own(tmp_path):
    first, second = together(2, train_in_a_process, tmp_path)
    alone = vector_loss()
    for _ in range(2):
        alone(random_logits(60), many_labels(60))
    assert first[0] == second[0] == alone.state_dict()
    assert first[1] == alone.eval()(random_logits(60), many_labels(60)) != second[1]
