"""Pairwise class balance against the released code's numbers (seven steps with state), and a loop."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import together

from pipeline.errors import UsageError
from pipeline.finetune.pcb import PCBLoss, mixed_targets, sum_class_softmax, update_confusion

VECTORS = json.loads((Path(__file__).parent / "reference/vectors/pcb_ce.json").read_text())
SEEN_ALL = torch.tensor([0, 1, 2, 3, 3, 3, 0])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows, columns=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def active_loss(**settings):
    """Of 3 classes, in the first epoch with the pull, every class seen."""
    loss = PCBLoss(3, **settings)
    loss(random_logits(7, seed=9), SEEN_ALL)
    loss.epoch = loss.start_epoch
    return loss


def test_vectors():
    loss = PCBLoss(**VECTORS["config"])
    for step in VECTORS["steps"]:
        loss.epoch, loss.iter_id = step["epoch"], step["iter_id"]
        logits = torch.tensor(step["logits"], requires_grad=True)
        value = loss(logits, torch.tensor(step["labels"]))
        value.backward()
        close = {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(value.detach(), torch.tensor(step["loss"]), **close)
        torch.testing.assert_close(logits.grad, torch.tensor(step["grad"]), **close)
        torch.testing.assert_close(loss.confusion, torch.tensor(step["confusion_after"]), **close)
        assert loss.num_inst_cnt.tolist() == step["num_inst_cnt_after"]


def test_vectors_in_float64():
    loss = PCBLoss(**VECTORS["config"]).double()
    for step in VECTORS["steps"]:
        loss.epoch, loss.iter_id = step["epoch"], step["iter_id"]
        value = loss(tensor(step["logits"]), torch.tensor(step["labels"]))
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(step["loss"], rel=1e-6)


class SlowPCB:
    """The definition, with lists and loops."""

    def __init__(self, num_classes, momentum, alpha):
        self.num_classes, self.momentum, self.alpha = num_classes, momentum, alpha
        self.confusion = [[0.0] * num_classes for _ in range(num_classes)]

    def learn(self, logits, labels):
        for label in sorted(set(labels) - {self.num_classes}):
            rows = [row[: self.num_classes] for row, y in zip(logits, labels, strict=True) if y == label]
            softmaxes = [[math.exp(z) / sum(map(math.exp, row)) for z in row] for row in rows]
            old, mean = self.confusion[label], [sum(p) / len(rows) for p in zip(*softmaxes, strict=True)]
            moved = [self.momentum * q + (1 - self.momentum) * p for q, p in zip(old, mean, strict=True)]
            self.confusion[label] = [q / sum(moved) for q in moved]

    def losses(self, logits, labels):
        for row, label in zip(logits, labels, strict=True):
            total = sum(map(math.exp, row))
            entropy = math.log(total) - row[label]
            if label == self.num_classes:
                yield entropy
                continue
            column = [self.confusion[c][label] for c in range(self.num_classes)]
            target = [q / sum(column) for q in column]
            kl = sum(
                t * (math.log(t) - z + math.log(total))
                for t, z in zip(target, row[: self.num_classes], strict=True)
            )
            yield (1 - self.alpha) * entropy + self.alpha * kl


def test_equals_a_loop():
    loss = PCBLoss(3, start_epoch=0, alpha=0.3, momentum=0.9, n_iter=1).double()
    slow = SlowPCB(3, momentum=0.9, alpha=0.3)
    for seed, labels in enumerate((SEEN_ALL, torch.tensor([0, 0, 3, 2, 2, 1, 3]), torch.full((7,), 3))):
        logits = random_logits(7, seed=seed)
        found = loss(logits, labels, reduction_override="none")
        slow.learn(logits.tolist(), labels.tolist())
        torch.testing.assert_close(loss.confusion, tensor(slow.confusion))
        torch.testing.assert_close(found, tensor(list(slow.losses(logits.tolist(), labels.tolist()))))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_mixed_targets_are_cross_entropy_and_divergence(strength):
    confusion = random_logits(3, 3).softmax(dim=1)
    log_probs, labels = random_logits(6, 4).log_softmax(dim=1), torch.tensor([0, 1, 2, 2, 1, 3])
    targets, entropies = mixed_targets(confusion, strength, torch.arange(3))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4, dtype=torch.float64))
    found = -(targets[labels] * log_probs).sum(dim=1) - entropies[labels]
    cross_entropy = F.nll_loss(log_probs, labels, reduction="none")
    pulled = F.pad((confusion / confusion.sum(dim=0)).T, (0, 1))[labels[:5]]
    divergence = F.kl_div(log_probs[:5], pulled, reduction="none").sum(dim=1)
    torch.testing.assert_close(found[:5], (1 - strength) * cross_entropy[:5] + strength * divergence)
    torch.testing.assert_close(found[5], cross_entropy[5])  # background
    of_some = mixed_targets(confusion, strength, torch.tensor([0, 2]))
    torch.testing.assert_close(of_some, (targets[[0, 2, 3]], entropies[[0, 2, 3]]))


def test_confusion_of_perfect_answers_changes_nothing():
    targets, entropies = mixed_targets(torch.eye(3), 0.4, torch.arange(3))
    torch.testing.assert_close(targets, torch.eye(4))
    assert not entropies.any()


def test_sums_leave_the_background_out():
    total = sum_class_softmax(random_logits(7), SEEN_ALL, 3)
    assert total[:, 3].tolist() == [2, 1, 1]
    torch.testing.assert_close(total[:, :3].sum(dim=1), total[:, 3])
    torch.testing.assert_close(total[1, :3], random_logits(7)[1, :3].softmax(dim=0))


def test_rows_of_absent_classes_stay():
    confusion = random_logits(3, 3).softmax(dim=1)
    before = confusion.clone()
    update_confusion(confusion, 2 * torch.eye(3, dtype=torch.float64), tensor([2, 0, 2]), 0.5)
    torch.testing.assert_close(confusion[0], before[0] / 2 + tensor([0.5, 0, 0]))
    assert torch.equal(confusion[1], before[1])
    nothing = torch.zeros(3, 3)
    update_confusion(nothing, torch.zeros(3, 3), torch.zeros(3), 0.0)
    assert not nothing.any()


def test_pull_starts_with_its_epoch_and_grows_with_the_pass():
    logits, labels = random_logits(7), torch.tensor([0, 1, 2, 3, 3, 3, 1])
    loss = active_loss().eval()
    cross_entropy = F.cross_entropy(logits, labels)
    values = []
    for loss.iter_id in range(3):
        values.append(loss(logits, labels))
    torch.testing.assert_close(values[0], cross_entropy)
    torch.testing.assert_close(values[1] - values[0], (values[2] - values[0]) / 2)
    assert abs(values[2] - values[0]) > 0.01
    loss.epoch = loss.start_epoch - 1
    torch.testing.assert_close(loss(logits, labels), cross_entropy)


def test_plain_head_pulls_at_full_strength():
    logits, labels = random_logits(7), torch.tensor([0, 1, 2, 3, 3, 3, 1])
    last_of_three, only_one = active_loss(), active_loss(n_iter=1)
    assert last_of_three(logits, labels) == only_one(logits, labels)


def test_pull_waits_for_every_class_that_comes():
    logits, labels = random_logits(4), torch.tensor([0, 1, 3, 3])  # class 2 is never seen
    cross_entropy = F.cross_entropy(logits, labels)
    for counts, waits in ((None, True), ([5, 5, 1], True), ([5, 5, 0], False)):
        loss = PCBLoss(3, instance_counts=counts, start_epoch=0, n_iter=1)
        logits.requires_grad_()
        value = loss(logits, labels)
        value.backward()
        assert (value.item() == pytest.approx(cross_entropy.item(), rel=1e-12)) is waits
        assert logits.grad.isfinite().all()
        logits = logits.detach()


def test_gradient_of_a_pulled_roi_is_probability_minus_mixed_target():
    loss, labels = active_loss(n_iter=1, alpha=0.25).eval(), torch.tensor([0, 1, 2, 3])
    logits = random_logits(4).requires_grad_()
    loss(logits, labels, reduction_override="sum").backward()
    target = loss.confusion.double() / loss.confusion.double().sum(dim=0)
    mixed = 0.75 * torch.eye(3, 4, dtype=torch.float64) + 0.25 * F.pad(target.T, (0, 1))
    mixed = torch.cat([mixed, tensor([[0, 0, 0, 1]])])
    torch.testing.assert_close(logits.grad, (logits.softmax(dim=1) - mixed).detach(), rtol=1e-6, atol=1e-7)


def test_gradcheck():
    loss, labels = active_loss().eval(), torch.tensor([0, 1, 2, 3])
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), random_logits(4).requires_grad_())


def test_background_batch_is_cross_entropy_and_leaves_the_state():
    loss, labels = active_loss(), torch.full((5,), 3)
    before = loss.confusion.clone()
    logits = random_logits(5).requires_grad_()
    value = loss(logits, labels)
    value.backward()
    torch.testing.assert_close(value, F.cross_entropy(logits, labels))
    assert torch.equal(loss.confusion, before) and loss.num_inst_cnt.tolist() == [2, 1, 1]


def test_no_rois_cost_nothing():
    loss, logits = active_loss(), torch.zeros(0, 4, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert loss.confusion.isfinite().all()


def test_nan_logits_make_a_nan_loss():
    for loss in (PCBLoss(3), active_loss()):
        for label in (0, 3):
            logits = random_logits(2)
            logits[0, 1] = float("nan")
            assert loss(logits, torch.tensor([label, 3])).isnan()


def test_label_weights_avg_factor_reduction_and_loss_weight():
    logits, labels = random_logits(4), torch.tensor([0, 1, 2, 3])
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
    rows = active_loss().eval()(logits, labels, reduction_override="none")
    loss = active_loss(loss_weight=3.0).eval()
    assert rows.shape == (4,)
    torch.testing.assert_close(loss(logits, labels), 3 * rows.mean())
    torch.testing.assert_close(loss(logits, labels, weights, 2.0), 3 * (rows * weights).sum() / 2)
    torch.testing.assert_close(
        loss(logits, labels, weights, reduction_override="sum"), 3 * (rows * weights).sum()
    )


def test_rois_of_weight_0_add_nothing_to_the_state():
    loss, kept = PCBLoss(3), PCBLoss(3)
    loss(random_logits(7), SEEN_ALL, torch.tensor([1.0, 0, 1, 0, 1, 1, 0]))
    rows = torch.tensor([0, 2, 4, 5])
    kept(random_logits(7)[rows], SEEN_ALL[rows])
    assert loss.num_inst_cnt.tolist() == [1, 0, 1]
    torch.testing.assert_close(loss.confusion, kept.confusion)


def test_evaluation_learns_nothing():
    loss = PCBLoss(3).eval()
    loss(random_logits(7), SEEN_ALL)
    assert not loss.confusion.any() and not loss.num_inst_cnt.any()


def test_resume_continues_exactly():
    loss, resumed = active_loss(), PCBLoss(3)
    resumed.load_state_dict(loss.state_dict())
    assert sorted(loss.state_dict()) == ["_epoch", "confusion", "num_inst_cnt"]
    assert resumed.epoch == 17
    for seed in range(2):
        logits = random_logits(7, seed=seed)
        assert loss(logits, SEEN_ALL) == resumed(logits, SEEN_ALL)
    assert torch.equal(loss.confusion, resumed.confusion)


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits(7).bfloat16()
    half, full = active_loss(), active_loss()
    value = half(logits, SEEN_ALL)
    assert value.dtype == torch.float32 and value == full(logits.float(), SEEN_ALL)
    assert torch.equal(half.confusion, full.confusion)


def test_scores_are_softmax_and_the_split_is_against_any_object():
    logits = random_logits(20)
    loss = PCBLoss(3)
    scores = loss.get_activation(logits)
    torch.testing.assert_close(scores, logits.softmax(dim=1))
    labels = torch.where(scores[:, 3] > 0.5, 3, scores[:, :3].argmax(dim=1))
    accuracy = loss.get_accuracy(logits, labels)
    assert accuracy["acc_classes"].item() == 100 and accuracy["acc_objectness"].item() == 100


def test_settings_that_make_no_sense_are_refused():
    assert PCBLoss(3).get_cls_channels(3) == 4
    for bad in ({"momentum": 1}, {"momentum": -0.1}, {"alpha": 1.5}, {"n_iter": 0}):
        with pytest.raises(UsageError, match="PCBLoss needs"):
            PCBLoss(3, **bad)


LABELS_OF_RANKS = torch.tensor(
    [[[0, 1, 2, 3], [3, 3, 3, 3]], [[0, 0, 2, 1], [0, 3, 3, 3]]]
)  # step, rank, RoI


def train_in_a_process(rank, world):
    """In the first step rank 1 sees background only; in the last one it has no RoI at all."""
    loss = PCBLoss(3, start_epoch=0).double()
    values = []
    for step, labels in enumerate(LABELS_OF_RANKS[:, rank]):
        logits = random_logits(8, seed=step).reshape(2, 4, 4)[rank]
        values.append(loss(logits, labels))
    loss(random_logits(4 * (1 - rank), seed=5), torch.arange(4 * (1 - rank)))
    return (loss.state_dict(), values)


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path):
    first, second = together(2, train_in_a_process, tmp_path)
    alone = PCBLoss(3, start_epoch=0).double()
    for step, labels in enumerate(LABELS_OF_RANKS):
        value = alone(random_logits(8, seed=step), labels.reshape(8))
        torch.testing.assert_close((first[1][step] + second[1][step]) / 2, value)
    alone(random_logits(4, seed=5), torch.arange(4))
    for name, expected in alone.state_dict().items():
        assert torch.equal(first[0][name], second[0][name])
        torch.testing.assert_close(first[0][name], expected)
