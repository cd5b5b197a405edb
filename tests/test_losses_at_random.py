"""Every loss on random settings, counts and batches against the slow formulas of `slow_losses.py`.

The draws cover what a data set can bring: a single class, classes with one instance or none, a batch of
background alone, of objects alone, or without RoIs, weights of RoIs and every reduction that mmdet's heads
ask for, in float32 and float64.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import slow_losses as slow
import torch

from pipeline.errors import MismatchedInput, UsageError
from pipeline.finetune.acsl import ACSLLoss, acsl_losses, spared_columns
from pipeline.finetune.bacl import FCBLLoss
from pipeline.finetune.bags import GroupSoftmaxLoss, draw_members, group_losses
from pipeline.finetune.bce import BCELoss
from pipeline.finetune.droploss import DropLoss, count_objects, droploss_bounds, droploss_shifts
from pipeline.finetune.ecm import ECMLoss
from pipeline.finetune.eql import EQLLoss
from pipeline.finetune.eqlv2 import EQLv2Loss
from pipeline.finetune.loce import EquilibriumLoss
from pipeline.finetune.pcb import PCBLoss
from pipeline.finetune.rog import GAPLoss
from pipeline.finetune.row_losses import binary_losses
from pipeline.finetune.seesaw import SeesawLoss

SEEDS = range(12)
STEPS = 3  # so that running state is compared too


@dataclass
class Batch:
    """What one call of a loss gets, and how a slow (N,) result is to be reduced."""

    logits: torch.Tensor
    labels: list[int]
    weights: torch.Tensor | None
    avg_factor: float | None
    reduction: str | None

    @property
    def arguments(self):
        labels = torch.tensor(self.labels, dtype=torch.int64)
        return labels, self.weights, self.avg_factor, self.reduction

    @property
    def tolerance(self):
        rtol, atol = (1e-6, 1e-9) if self.logits.dtype == torch.float64 else (2e-4, 2e-5)
        return {"rtol": rtol, "atol": atol}

    def reduced(self, losses):
        if self.weights is not None:
            losses = losses * self.weights.double()
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        return losses.sum() / (max(1, len(self.labels)) if self.avg_factor is None else self.avg_factor)


class Draw:
    """A random problem: C, counts per class, and batches for a classifier of any width."""

    def __init__(self, seed):
        self.random, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.num_classes = self.random.choice([1, 2, 3, 5, 8])
        self.instances = [
            self.random.choice([0, 1, 1, 7, 10, 99, 100, 4000]) for _ in range(self.num_classes)
        ]
        self.images = [min(n, self.random.choice([1, 10, 11, 101, 600])) for n in self.instances]
        self.num_images = 1000

    @property
    def counts(self):
        return {
            "num_classes": self.num_classes,
            "image_counts": self.images,
            "instance_counts": self.instances,
            "num_images": self.num_images,
        }

    def batch(self, columns, weighted=True):
        number = self.random.choice([0, 1, 4, 9])
        kind = self.random.choice(["mixed", "mixed", "mixed", "background", "objects"])
        choice = {"background": [self.num_classes], "objects": list(range(self.num_classes))}
        labels = self.random.choices(choice.get(kind, range(self.num_classes + 1)), k=number)
        scale = self.random.choice([0.1, 2.0, 12.0])
        logits = scale * torch.randn(number, columns, generator=self.generator, dtype=torch.float64)
        logits = logits.to(self.random.choice([torch.float64, torch.float64, torch.float32]))
        weights = None
        if weighted and self.random.random() < 0.5:
            weights = torch.tensor(self.random.choices([0.0, 1.0, 0.5], k=number))
        avg_factor = self.random.choice([None, 3.0, torch.tensor(5.0), max(1, number)])
        return Batch(logits, labels, weights, avg_factor, self.random.choice([None, "mean", "sum", "none"]))


def compare(loss, batch, expected, to_value=lambda found: found):
    """Value and gradient of `loss` on a batch, against those of `expected`, a function of float64 logits."""
    logits = batch.logits.clone().requires_grad_()
    found = to_value(loss(logits, *batch.arguments))
    assert found.dtype == batch.logits.dtype
    found.sum().backward()
    exact = batch.logits.double().clone().requires_grad_()
    wanted = batch.reduced(expected(exact))
    wanted.sum().backward()
    torch.testing.assert_close(found.detach().double(), wanted.detach(), **batch.tolerance)
    torch.testing.assert_close(logits.grad.double(), exact.grad, **batch.tolerance)


@pytest.mark.parametrize("seed", SEEDS)
def test_bce(seed):
    draw = Draw(seed)
    loss = BCELoss(**draw.counts)
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 1)
        compare(loss, batch, lambda z, b=batch: slow.bce(z, b.labels))


@pytest.mark.parametrize("seed", SEEDS)
def test_eql(seed):
    draw = Draw(seed)
    lambda_, strict = draw.random.choice([0.0011, 0.011, 0.1]), draw.random.random() < 0.5
    loss = EQLLoss(**draw.counts, lambda_=lambda_, strict_less_than=strict)
    freq = [n / draw.num_images for n in draw.images]
    again = EQLLoss(draw.num_classes, freq=freq, lambda_=lambda_, strict_less_than=strict)
    assert torch.equal(loss.is_infrequent, again.is_infrequent)
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes)
        compare(loss, batch, lambda z, b=batch: slow.eql(z, b.labels, freq, lambda_, strict))


@pytest.mark.parametrize("seed", SEEDS)
def test_droploss_with_its_draw_given(seed):
    draw = Draw(seed)
    freq = [n / draw.num_images for n in draw.images]
    is_rare = DropLoss(**draw.counts, lambda_=0.05).is_infrequent
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes, weighted=False)
        batch.avg_factor, batch.reduction = None, None
        uniform = torch.rand(batch.logits.shape, generator=draw.generator)

        def loss(z, labels, *_, uniform=uniform):
            rare, objects = count_objects(labels, is_rare)
            bounds, is_object = droploss_bounds(is_rare, rare / objects), (labels < len(is_rare)).long()
            shifted = z + droploss_shifts(uniform.clone(), bounds, is_object)
            losses = binary_losses(z, labels, shifted=lambda rows: shifted[rows])
            return losses.sum() / max(1, len(labels))

        compare(loss, batch, lambda z, b=batch, u=uniform: slow.droploss(z, b.labels, freq, 0.05, u))


@pytest.mark.parametrize("seed", SEEDS)
def test_eqlv2(seed):
    draw = Draw(seed)
    constants = {"gamma": draw.random.choice([12.0, 3.0]), "mu": draw.random.choice([0.8, 0.3])}
    constants["alpha"] = draw.random.choice([4.0, 1.0])
    loss = EQLv2Loss(**draw.counts, **constants)
    ratio = [100.0] * draw.num_classes
    pos, neg = [0.0] * draw.num_classes, [0.0] * draw.num_classes
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 1, weighted=False)
        now = list(ratio)
        compare(loss, batch, lambda z, b=batch, g=now: slow.eqlv2(z, b.labels, g, **constants)[0])
        _, pulls, pushes = slow.eqlv2(batch.logits.double(), batch.labels, now, **constants)
        pos = [a + b for a, b in zip(pos, pulls, strict=True)]
        neg = [a + b for a, b in zip(neg, pushes, strict=True)]
        ratio = [a / (b + 1e-10) for a, b in zip(pos, neg, strict=True)]
        for name, values in (("pos_grad", pos), ("neg_grad", neg), ("pos_neg", ratio)):
            torch.testing.assert_close(getattr(loss, name), torch.tensor(values), rtol=1e-4, atol=1e-6)
        ratio = loss.pos_neg.tolist()  # in float32, as the buffer: the weights are steep


@pytest.mark.parametrize("seed", SEEDS)
def test_ecm(seed):
    draw = Draw(seed)
    ratio = draw.random.choice([6.3313, 1.0])
    loss = ECMLoss(**draw.counts, fg_bg_ratio=ratio)
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 1)
        compare(loss, batch, lambda z, b=batch: slow.ecm(z, b.labels, draw.instances, ratio))


@pytest.mark.parametrize("seed", SEEDS)
def test_seesaw(seed):
    draw = Draw(seed)
    constants = draw.random.choice([(0.8, 2.0, 0.01), (0.8, 0.0, 0.01), (0.0, 2.0, 0.2), (1.0, 1.0, 0.5)])
    loss = SeesawLoss(**draw.counts, **dict(zip("pq", constants, strict=False)), eps=constants[2])
    seen = [0] * (draw.num_classes + 1)
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 2)
        seen = [n + batch.labels.count(c) for c, n in enumerate(seen)]
        before = loss.cum_samples.clone()
        for part, name in enumerate(("loss_cls_classes", "loss_cls_objectness")):
            loss.cum_samples.copy_(before)
            compare(
                loss,
                batch,
                lambda z, b=batch, n=tuple(seen), p=part: slow.seesaw(z, b.labels, n, *constants)[p],
                lambda found, name=name: found[name],
            )
        assert loss.cum_samples.tolist() == seen


@pytest.mark.parametrize("seed", SEEDS)
def test_bags_with_its_draw_given(seed):
    draw = Draw(seed)
    splits = draw.random.choice([(10, 100, 1000), (100,), (1, 2, 50, 5000)])
    loss = GroupSoftmaxLoss(**draw.counts, bin_split=splits)
    width = loss.get_cls_channels(draw.num_classes)
    assert width == draw.num_classes + len(splits) + 3
    for _ in range(STEPS):
        batch = draw.batch(width, weighted=False)
        batch.avg_factor, batch.reduction = 1, None
        number, groups = len(batch.labels), loss.positions.shape[0]
        group_labels = loss.positions[:, torch.tensor(batch.labels, dtype=torch.int64)]
        orders = torch.stack([torch.randperm(number, generator=draw.generator) for _ in range(groups - 1)])
        members = draw_members(group_labels, torch.ones(number, dtype=torch.bool), 2, orders)
        own = (group_labels[:-1] > 0).sum(dim=1)
        assert ((members[:-1] & (group_labels[:-1] == 0)).sum(dim=1) == (2 * own).minimum(number - own)).all()

        def ours(z, *_, labels=group_labels, members=members):
            return group_losses(z, labels, members, loss.sizes).sum()

        compare(ours, batch, lambda z, b=batch, m=members: slow.bags(z, b.labels, draw.instances, splits, m))


@pytest.mark.parametrize("seed", SEEDS)
def test_acsl_with_its_draw_given(seed):
    draw = Draw(seed)
    letters = ["rcf"[(n > 10) + (n > 100)] for n in draw.images]
    frequency = ACSLLoss(**draw.counts).frequency
    assert frequency.equal(ACSLLoss(draw.num_classes, frequency=letters).frequency)
    threshold = draw.random.choice([0.7, 0.3])
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 1, weighted=False)
        batch.avg_factor, batch.reduction = None, None
        drawn = torch.rand(3, len(batch.labels), generator=draw.generator) < 0.5

        def ours(z, labels, *_, drawn=drawn):
            spared = spared_columns(z, labels, drawn, frequency, threshold)
            return acsl_losses(z, labels, spared).sum() / max(1, len(labels))

        compare(ours, batch, lambda z, b=batch, d=drawn: slow.acsl(z, b.labels, letters, d, threshold))


@pytest.mark.parametrize("seed", SEEDS)
def test_pcb(seed):
    draw = Draw(seed)
    alpha, momentum = draw.random.choice([0.4, 1.0]), draw.random.choice([0.99, 0.5])
    loss = PCBLoss(draw.num_classes, alpha=alpha, momentum=momentum, start_epoch=2, n_iter=3)
    confusion = [torch.zeros(draw.num_classes, dtype=torch.float64) for _ in range(draw.num_classes)]
    seen = [0] * (draw.num_classes + 1)
    for number in range(3 * STEPS):
        loss.epoch, loss.iter_id = 1 + number // 3, number % 3
        batch = draw.batch(draw.num_classes + 1, weighted=False)
        slow.pcb_confusion(confusion, batch.logits.double(), batch.labels, momentum)
        seen = [n + batch.labels.count(c) for c, n in enumerate(seen)]
        is_on = loss.epoch >= 2 and all(seen[:-1])
        strength = alpha * loss.iter_id / 2 if is_on else 0.0
        rows = [row.clone() for row in confusion]
        if not is_on:
            rows = [torch.ones_like(row) for row in rows]  # unused, but 0 x NaN is NaN
        batch.logits = batch.logits.float()  # Q is a float32 buffer
        compare(loss, batch, lambda z, b=batch, q=rows, a=strength: slow.pcb(z, b.labels, q, a))
        wanted = torch.stack(confusion) if confusion else torch.zeros(0)
        torch.testing.assert_close(loss.confusion.double(), wanted, rtol=1e-4, atol=1e-6)
        assert loss.num_inst_cnt.tolist() == seen[:-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_loce(seed):
    draw = Draw(seed)
    scores = [draw.random.choice([0.01, 0.5, 1e-4, 1.0]) for _ in range(draw.num_classes + 1)]
    loss = EquilibriumLoss(**draw.counts, mean_score=scores)
    scores = loss.mean_score.double().tolist()  # a float32 buffer
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 1)
        compare(loss, batch, lambda z, b=batch: slow.loce(z, b.labels, scores))


@pytest.mark.parametrize("seed", SEEDS)
def test_bacl(seed):
    draw = Draw(seed)
    alpha, threshold = draw.random.choice([0.85, 1.0, 0.0]), draw.random.choice([0.7, 0.2])
    loss = FCBLLoss(**draw.counts, alpha=alpha, prob_thr=threshold)
    sums = torch.zeros(draw.num_classes, draw.num_classes, dtype=torch.float64)
    number = torch.zeros(draw.num_classes, dtype=torch.float64)
    for step in range(STEPS):
        loss.reweight = step > 0
        batch = draw.batch(draw.num_classes + 1, weighted=False)
        state = (sums.clone(), number.clone(), alpha, threshold, loss.reweight)
        batch.logits = batch.logits.float()
        compare(loss, batch, lambda z, b=batch, s=state: slow.bacl(z, b.labels, *s))
        slow.bacl_counts(sums, number, batch.logits.double(), batch.labels)
        torch.testing.assert_close(loss.cm_numerator.double(), sums, rtol=1e-4, atol=1e-5)
        assert loss.num_gt.tolist() == number.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_rog(seed):
    draw = Draw(seed)
    constants = {"gamma": draw.random.choice([1.0, 0.5, 0.0]), "lam": draw.random.choice([0.1, 1.0])}
    delta = draw.random.choice([0.5, 0.25])
    loss = GAPLoss(**draw.counts, **constants, delta_RS=delta)
    seen = [0] * (draw.num_classes + 1)
    for _ in range(STEPS):
        batch = draw.batch(draw.num_classes + 1, weighted=False)
        seen = [n + batch.labels.count(c) for c, n in enumerate(seen)]
        logits = batch.logits.clone().requires_grad_()
        found = loss(logits, *batch.arguments)
        found.sum().backward()
        classes = batch.logits[:, :-1].double()
        value, gradient = slow.rog(classes, batch.labels, seen, **constants, delta=delta)
        assert math.isclose(float(found.detach().sum()), value, rel_tol=1e-4, abs_tol=1e-6)
        torch.testing.assert_close(logits.grad[:, :-1].double(), gradient, rtol=1e-3, atol=1e-5)
        assert not logits.grad[:, -1].any()
        assert loss.num_samples.tolist() == seen


VECTORS = Path(__file__).parent / "reference/vectors"
OF_VECTORS = {
    "acsl": ACSLLoss,
    "bacl_fcbl": FCBLLoss,
    "bags": GroupSoftmaxLoss,
    "droploss": DropLoss,
    "ecm": ECMLoss,
    "eql_v1": EQLLoss,
    "eqlv2": EQLv2Loss,
    "loce_ebl": EquilibriumLoss,
    "pcb_ce": PCBLoss,
    "rog_gap": GAPLoss,
    "seesaw": SeesawLoss,
}


@pytest.mark.parametrize("name", OF_VECTORS)
def test_constructors_take_the_configs_of_the_vectors_and_buffers_their_names(name):
    content = json.loads((VECTORS / f"{name}.json").read_text())
    for case in content.get("cases", [content]):
        config = case.get("config") or {k: v for k, v in case.items() if k != "steps"}
        loss = OF_VECTORS[name](**{"num_classes": 6, **config})
        after = {key.removesuffix("_after") for key in case["steps"][0] if key.endswith("_after")}
        assert after <= set(dict(loss.named_buffers()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupSoftmaxLoss(2, None, [1, 2], group_cls_ids=[[0], [1], [], [], [2]]), "make"),
        (lambda: GroupSoftmaxLoss(2, None, [1, 2], num_columns=3), "num_columns 3, but"),
        (lambda: ACSLLoss(2, frequency_of_category_1_to_3=["r", "c", "f"]), "no argument"),
        (lambda: ACSLLoss(1, frequency=["r"], frequency_of_category_1_to_1=["r"]), "both"),
        (lambda: ECMLoss(1, instance_counts=[1], toy_instance_counts=[2]), "toy_instance_counts"),
    ],
)
def test_contradictory_settings_are_refused(make, message):
    with pytest.raises((UsageError, MismatchedInput), match=message):
        make()
