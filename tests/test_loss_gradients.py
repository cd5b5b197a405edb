"""Gradients that the losses write by hand, against autograd on the definition."""

import pytest
import torch
from test_row_losses import LABELS, random_numbers

from pipeline.finetune import bacl, object_rows, pcb, seesaw
from pipeline.finetune.acsl import spared_columns
from pipeline.finetune.bacl import kept_columns
from pipeline.finetune.object_rows import ObjectRows
from pipeline.finetune.pcb import soft_target_losses


def gradient_of_the_sum(function, logits):
    """The losses, and what the functions here return beside them."""
    logits = logits.clone().requires_grad_()
    losses = function(logits)
    losses.sum().backward()
    return losses.detach(), logits.grad


def test_soft_target_losses_equal_autograd():
    logits, targets = 3 * random_numbers(8, 7), random_numbers(7, 7, seed=1).softmax(dim=1)
    targets[3] *= 0.4  # a column of Q that nothing was taken for leaves a part of the target out
    targets[6] = torch.eye(7)[6]
    entropies = torch.tensor([0.5, 0.2, 0, 1, 0, 0.1, 0], dtype=torch.float64)

    def definition(z):
        return -(targets[LABELS] * z.log_softmax(dim=1)).sum(dim=1) - entropies[LABELS]

    objects = ObjectRows(LABELS, 6)
    assert objects.classes.tolist() == [0, 1, 3, 5]
    tables = (table[[0, 1, 3, 5, 6]] for table in (targets, entropies))
    found = soft_target_losses(logits, LABELS, objects, *tables)
    torch.testing.assert_close(found, gradient_of_the_sum(definition, logits))


def test_object_rows_of_blocks():
    objects = ObjectRows(LABELS, 6)
    found = [objects.within(slice(first, first + 3), number) for first, number in ((0, 3), (3, 3), (6, 2))]
    assert [at.tolist() for at, _ in found] == [[0, 1, 2], [0], [1]]
    assert [objects.classes[places].tolist() for _, places in found] == [[0, 3, 3], [5], [1]]


def test_spared_columns_equal_a_loop():
    logits = 2 * random_numbers(8, 7)
    suppressors = random_numbers(3, 8, seed=1) > 0
    frequency = torch.tensor([0, 1, 2, 2, 1, 0])
    found = spared_columns(logits, LABELS, suppressors, frequency, 0.7)(slice(None))
    for row, label in enumerate(LABELS.tolist()):
        for column in (c for c in range(7) if c != label):
            is_sure = bool(logits[row, column].sigmoid() >= 0.7)
            expected = bool(suppressors[frequency[column], row]) if label == 6 else is_sure
            assert bool(found[row, column]) is not expected


def test_kept_columns_equal_a_loop():
    logits = 2 * random_numbers(8, 7)
    found = kept_columns(logits, LABELS, 0.7)
    scores = logits.sigmoid() * (1 - logits[:, -1:].sigmoid())
    for row, label in enumerate(LABELS.tolist()):
        for column in range(7):
            enough = bool(scores[row, column] >= min(float(scores[row, label]), 0.7))
            assert bool(found[row, column]) is (label == 6 or column == 6 or column == label or enough)


@pytest.mark.parametrize(
    ("module", "make"),
    [
        (seesaw, lambda: seesaw.SeesawLoss(6)),
        (object_rows, lambda: pcb.PCBLoss(6, start_epoch=0)),
        (object_rows, lambda: bacl.FCBLLoss(6, reweight=True)),
        (object_rows, lambda: bacl.FCBLLoss(6)),
    ],
)
def test_rows_of_objects_alone_give_the_numbers_of_all_rows(monkeypatch, module, make):
    """A CPU works on the rows of objects, a GPU on all of them: here both on the CPU."""
    found = []
    for on_all_rows in (False, True):
        if on_all_rows:
            monkeypatch.setattr(module, "rows_with_objects", lambda labels, num_classes: None)
            monkeypatch.setattr(pcb, "rows_with_objects", lambda labels, num_classes: None)
        loss = make()
        for seed in range(3):
            logits = 2 * random_numbers(8, loss.get_cls_channels(6), seed=seed).requires_grad_()
            logits.retain_grad()
            value = loss(logits, LABELS)
            total = sum(value.values()) if isinstance(value, dict) else value
            total.backward()
            found.append((total.detach(), logits.grad, dict(loss.named_buffers())))
    half = len(found) // 2
    for first, second in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(first, second)
