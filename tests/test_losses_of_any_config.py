"""Every key that the reference vectors' configs name, with other values, through constructor and `forward`.

Against the slow formulas of `slow_losses.py`, on the batches of `test_losses_at_random.py`, with any numbers
as running state.  What a loss draws is drawn from a copy of it.
"""

import copy

import pytest
import slow_losses as slow
import torch
from test_losses_at_random import Draw, compare

from pipeline.finetune.acsl import ACSLLoss, draw_suppressors
from pipeline.finetune.bacl import FCBLLoss
from pipeline.finetune.bags import GroupSoftmaxLoss, draw_members
from pipeline.finetune.droploss import DropLoss
from pipeline.finetune.ecm import ECMLoss
from pipeline.finetune.eql import EQLLoss
from pipeline.finetune.eqlv2 import EQLv2Loss
from pipeline.finetune.loce import EquilibriumLoss
from pipeline.finetune.pcb import PCBLoss
from pipeline.finetune.seesaw import SeesawLoss

SEEDS = range(8)


def uniform(draw, *shape):
    return torch.rand(*shape, generator=draw.generator, dtype=torch.float64)


def eql(draw, weight):
    freq, strict = (
        [draw.random.choice([0.0, 0.0011, 0.02, 1.0]) for _ in draw.images],
        draw.random.random() < 0.5,
    )
    lambda_ = draw.random.choice([0.0011, 0.02, 0.5])
    config = {"freq": freq, "lambda_": lambda_, "strict_less_than": strict}
    loss = EQLLoss(draw.num_classes, loss_weight=weight, **config)
    return loss, lambda z, batch: slow.eql(z, batch.labels, freq, lambda_, strict)


def droploss(draw, weight):
    freq, lambda_ = (
        [draw.random.choice([0.0, 0.002, 0.4]) for _ in draw.images],
        draw.random.choice([0.001, 0.1]),
    )
    loss = DropLoss(draw.num_classes, loss_weight=weight, freq=freq, lambda_=lambda_, seed=draw.num_classes)
    state = copy.deepcopy(loss)

    def expected(z, batch):
        labels = torch.tensor(batch.labels, dtype=torch.int64)
        dropped = state.shifts(labels, torch.float64)(slice(0, len(labels))) != 0
        for i, label in enumerate(batch.labels):
            for j, f in enumerate(freq):
                of_object = label < draw.num_classes and j != label
                assert not of_object or bool(dropped[i, j]) is (f < lambda_)
                assert not dropped[i, j] or f < lambda_
        return slow.binary(z, batch.labels, lambda i, j: float(j == batch.labels[i] or not dropped[i, j]))

    return loss, expected


def eqlv2(draw, weight):
    config = {"gamma": draw.random.choice([12, 3.0]), "mu": draw.random.choice([0.8, 0.3]), "alpha": 2.0}
    loss = EQLv2Loss(num_classes=draw.num_classes, loss_weight=weight, **config).eval()
    loss.pos_neg.copy_(2 * uniform(draw, draw.num_classes))
    return loss, lambda z, batch: slow.eqlv2(z, batch.labels, loss.pos_neg.tolist(), **config)[0]


def seesaw(draw, weight):
    p, q, eps = draw.random.choice([(0.8, 2.0, 0.01), (0.5, 1.0, 0.1), (0.0, 0.0, 0.01)])
    loss = SeesawLoss(num_classes=draw.num_classes, p=p, q=q, eps=eps, loss_weight=weight).eval()
    seen = [draw.random.choice([0, 1, 50, 4000]) for _ in range(draw.num_classes + 1)]
    loss.cum_samples.copy_(torch.tensor(seen))
    return loss, lambda z, batch: sum(slow.seesaw(z, batch.labels, seen, p, q, eps))


def ecm(draw, weight):
    ratio = draw.random.choice([6.3313, 0.5, 40.0])
    config = {"fg_bg_ratio": ratio, "num_classes": draw.num_classes, "toy_instance_counts": draw.instances}
    if draw.random.random() < 0.5:
        config["instance_counts"] = list(draw.instances)
    loss = ECMLoss(loss_weight=weight, **config)
    return loss, lambda z, batch: slow.ecm(z, batch.labels, draw.instances, ratio)


def bags(draw, weight):
    splits, beta = draw.random.choice([[10, 100, 1000], [2], [1, 2, 50]]), draw.random.choice([8, 0.5, 1])
    bounds = list(zip([0, *splits], [*splits, float("inf")], strict=True))
    groups = [[c for c, n in enumerate(draw.instances) if low <= n < high] for low, high in bounds]
    loss = GroupSoftmaxLoss(
        draw.num_classes,
        beta=beta,
        bin_split=splits,
        instance_counts=draw.instances,
        group_cls_ids=[*groups, [draw.num_classes]],
        num_columns=draw.num_classes + len(splits) + 3,
        layout="for people",
        loss_weight=weight,
    )
    state = copy.deepcopy(loss)

    def expected(z, batch):
        labels = torch.tensor(batch.labels, dtype=torch.int64)
        used = torch.ones(len(labels)) if batch.weights is None else batch.weights
        orders = state.draws.orders(len(state.sizes) - 1, len(labels), labels.device)
        members = draw_members(state.positions[:, labels], used > 0, beta, orders)
        number = max(1, int((used > 0).sum()))
        batch.avg_factor = batch.avg_factor or number  # the default
        return number * slow.bags(z, batch.labels, draw.instances, splits, members)

    return loss, expected


def acsl(draw, weight):
    letters, column = draw.random.choices("rcf", k=draw.num_classes), draw.random.randint(0, draw.num_classes)
    threshold, name = draw.random.choice([0.7, 0.2]), f"frequency_of_category_1_to_{draw.num_classes}"
    config = {"score_thr": threshold, "background_column": column, name: letters}
    loss = ACSLLoss(draw.num_classes, loss_weight=weight, **config)
    state = copy.deepcopy(loss)

    def expected(z, batch):
        z = torch.cat([z[:, :column], z[:, column + 1 :], z[:, column : column + 1]], dim=1)
        labels = torch.tensor(batch.labels, dtype=torch.int64)
        used = torch.ones(len(labels)) if batch.weights is None else batch.weights
        is_background = (labels == draw.num_classes) & (used > 0)
        drawn = draw_suppressors(is_background, state.draws.orders(3, len(labels), labels.device))
        return slow.acsl(z, batch.labels, letters, drawn, threshold)

    return loss, expected


def pcb(draw, weight):
    momentum, alpha, passes = draw.random.choice([0.99, 0.5]), draw.random.choice([0.4, 1.0]), 4
    config = {"momentum": momentum, "start_epoch": 3, "alpha": alpha, "n_iter": passes}
    loss = PCBLoss(num_classes=draw.num_classes, loss_weight=weight, **config).eval()
    loss.confusion.copy_(uniform(draw, draw.num_classes, draw.num_classes))
    loss.num_inst_cnt.fill_(1)
    loss.epoch, loss.iter_id = draw.random.choice([2, 3, 9]), draw.random.randrange(passes)
    strength = alpha * loss.iter_id / (passes - 1) if loss.epoch >= 3 else 0.0
    return loss, lambda z, batch: slow.pcb(z, batch.labels, list(loss.confusion.double()), strength)


def loce(draw, weight):
    scores = [draw.random.choice([0.01, 0.5, 1e-6, 1.0]) for _ in range(draw.num_classes + 1)]
    loss = EquilibriumLoss(draw.num_classes, mean_score=scores, loss_weight=weight)
    return loss, lambda z, batch: slow.loce(z, batch.labels, loss.mean_score.double().tolist())


def bacl(draw, weight):
    alpha, threshold = draw.random.choice([0.85, 1.5]), draw.random.choice([0.7, 0.1])
    loss = FCBLLoss(alpha=alpha, prob_thr=threshold, num_classes=draw.num_classes, loss_weight=weight).eval()
    loss.cm_numerator.copy_(uniform(draw, draw.num_classes, draw.num_classes))
    loss.num_gt.copy_((3 * uniform(draw, draw.num_classes)).round())
    loss.reweight = draw.random.random() < 0.5
    state = (loss.cm_numerator.double(), loss.num_gt.double(), alpha, threshold, loss.reweight)
    return loss, lambda z, batch: slow.bacl(z, batch.labels, *state)


CASES = (eql, droploss, eqlv2, seesaw, ecm, bags, acsl, pcb, loce, bacl)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_any_value_of_every_key(case, seed):
    draw = Draw(100 + seed)
    weight = draw.random.choice([1.0, 0.25, 3])
    loss, expected = case(draw, weight)
    batch = draw.batch(loss.get_cls_channels(draw.num_classes))
    if case in (pcb, bacl):  # float32 buffers
        batch.logits = batch.logits.float()
    compare(
        loss,
        batch,
        lambda z: weight * expected(z, batch),
        lambda found: sum(found.values()) if isinstance(found, dict) else found,
    )
