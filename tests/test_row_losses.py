"""Losses that bring their derivative along: against autograd on the definition, in one block and in many."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.finetune import row_losses
from pipeline.finetune.row_losses import LEFT_OUT, attach_gradients, binary_losses, softmax_losses

LABELS = torch.tensor([0, 3, 3, 5, 6, 6, 6, 1])


def random_numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_autograd(function, logits):
    logits = logits.clone().requires_grad_()
    losses = function(logits)
    (losses * torch.arange(1.0, len(losses) + 1)).sum().backward()
    return losses.detach(), logits.grad


@pytest.fixture(params=[1 << 18, 21, 1], ids=["one block", "blocks of three rows", "row by row"])
def block(request, monkeypatch):
    monkeypatch.setattr(row_losses, "BLOCK", request.param)


@pytest.mark.parametrize("columns", [7, 6], ids=["with", "without a background column"])
@pytest.mark.parametrize("is_weighted", [True, False])
def test_binary_losses_equal_autograd(block, is_weighted, columns):
    logits, target = 3 * random_numbers(8, columns), F.one_hot(LABELS, 7)[:, :columns].double()
    negative, positive = random_numbers(2, columns, seed=1).abs() if is_weighted else (None, None)
    weights = positive * target + negative * (1 - target) if is_weighted else 1

    def definition(z):
        return (weights * F.binary_cross_entropy_with_logits(z, target, reduction="none")).sum(dim=1)

    found = by_autograd(lambda z: binary_losses(z, LABELS, negative, positive), logits)
    torch.testing.assert_close(found, by_autograd(definition, logits))


@pytest.mark.parametrize("columns", [7, 6], ids=["with", "without a background column"])
def test_what_is_shifted_or_left_out(block, columns):
    logits, target = 3 * random_numbers(8, columns), F.one_hot(LABELS, 7)[:, :columns].double()
    shift, is_left_out = random_numbers(8, columns, seed=1), random_numbers(8, columns, seed=2) > 0
    weights = 1 - (1 - target) * is_left_out

    def definition(z):
        elements = F.binary_cross_entropy_with_logits(z + (1 - target) * shift, target, reduction="none")
        return (weights * elements).sum(dim=1)

    def shifted(rows):
        return (logits + shift + LEFT_OUT * is_left_out)[rows]

    found = by_autograd(lambda z: binary_losses(z, LABELS, shifted=shifted), logits)
    torch.testing.assert_close(found, by_autograd(definition, logits))
    assert (found[1][(target == 0) & is_left_out] == 0).all()  # exactly


def test_softmax_losses_equal_cross_entropy(block):
    logits, shift = 3 * random_numbers(8, 7), random_numbers(8, 7, seed=1)
    expected = by_autograd(lambda z: F.cross_entropy(z, LABELS, reduction="none"), logits)
    torch.testing.assert_close(by_autograd(lambda z: softmax_losses(z, LABELS), logits), expected)
    expected = by_autograd(lambda z: F.cross_entropy(z + shift, LABELS, reduction="none"), logits)
    found = by_autograd(lambda z: softmax_losses(z, LABELS, lambda rows: (logits + shift)[rows]), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("function", [binary_losses, softmax_losses])
def test_no_digit_of_float32_is_lost(function, columns):
    """Where the answer is sure and right, sure and wrong, one of two, and no answer at all."""
    answers = F.pad(torch.tensor([[9.0, -9, -9], [9, -9, -9], [3, 3, -9], [0, 0, 0]]), (0, columns - 3))
    for scale in (1e-3, 1.0, 2.0, 9.0):
        logits = scale * answers
        found, gradients = by_autograd(lambda z: function(z, torch.tensor([0, 1, 0, 2])), logits)
        expected, exact = by_autograd(lambda z: function(z, torch.tensor([0, 1, 0, 2])), logits.double())
        torch.testing.assert_close(found.double(), expected, rtol=5e-7, atol=1e-7)
        torch.testing.assert_close(gradients.double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)])
def test_the_sum_of_softplus_is_as_exact_as_the_operator(dtype, tolerance):
    """One number a row, beside a partner that counts nothing."""
    x = torch.linspace(-80, 80, 4001, dtype=torch.float64).to(dtype)
    rows = torch.stack([x, torch.full_like(x, LEFT_OUT), x], dim=1)
    column = torch.full((len(x), 1), 2)
    expected = F.softplus(x.double(), threshold=800)
    for weights in (None, torch.ones(3, dtype=dtype)):
        found = row_losses._sum_softplus(rows, rows.sigmoid(), column, weights)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)


def test_autocast_leaves_float32_alone():
    logits = random_numbers(8, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = by_autograd(lambda z: binary_losses(z, LABELS, torch.ones(7)), logits)
    expected = by_autograd(lambda z: binary_losses(z, LABELS, torch.ones(7)), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_backward_keeps_one_matrix():
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    logits = random_numbers(8, 7).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        binary_losses(logits, LABELS, torch.ones(7)).sum()
    assert [tuple(t.shape) for t in kept if t.ndim == 2] == [(8, 7)]


def test_a_graph_may_be_walked_twice_but_not_differentiated():
    logits = random_numbers(8, 7).requires_grad_()
    total = attach_gradients(logits, torch.ones(8), torch.full((8, 7), 2.0, dtype=torch.float64)).sum()
    first, second = (torch.autograd.grad(total, logits, retain_graph=True)[0] for _ in range(2))
    assert (first == 2).all() and torch.equal(first, second)
    weight = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(weight * total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_rois():
    logits = torch.zeros(0, 7, requires_grad=True)
    losses = binary_losses(logits, torch.zeros(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,) and logits.grad.shape == (0, 7)
