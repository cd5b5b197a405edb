"""The momentum encoder's update against its closed form."""

import pytest
import torch
from torch import nn

from pipeline.pretrain.momentum import average_parameters, momentum_copy, momentum_update


def constant(value, dtype=torch.float64):
    """A module with one parameter."""
    module = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(module.weight, value)
    return module


@pytest.mark.parametrize(
    ("momentum", "steps", "expected"),
    [
        (0.999, 1, 0.001),
        (0.999, 10, 0.009955119790),
        (0.999, 100, 0.095207852886),
        (0.999, 1000, 0.632304575229),
        (0.99, 10, 0.095617924991),
        (0.99, 100, 0.633967658727),
        (0.996, 100, 0.330217428727),
    ],
)
def test_average_of_a_constant_one_from_zero(momentum, steps, expected):
    key, query = constant(0.0), constant(1.0)
    for _ in range(steps):
        momentum_update(key, query, momentum)
    assert key.weight.item() == pytest.approx(expected, abs=1e-12)
    assert query.weight.item() == 1.0


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 3.0), (1.0, 1.0), (0.25, 2.5)])
def test_ends_of_the_range(momentum, expected):
    key, query = constant(1.0), constant(3.0)
    momentum_update(key, query, momentum)
    assert key.weight.item() == expected


def test_equals_a_loop_over_parameters():
    torch.manual_seed(0)
    query = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6))
    key = momentum_copy(query)
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = [0.9 * k + 0.1 * q for k, q in zip(key.parameters(), query.parameters(), strict=True)]
    momentum_update(key, query, 0.9)
    for found, wanted in zip(key.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted.detach())


def test_buffers_are_copied():
    query = nn.BatchNorm1d(3)
    key = momentum_copy(query)
    query.train()(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5)
    momentum_update(key, query, 0.999)
    assert torch.equal(key.running_mean, query.running_mean)
    assert torch.equal(key.running_var, query.running_var)
    assert key.num_batches_tracked.item() == 1
    query.running_mean.zero_()
    assert key.running_mean.abs().min().item() > 0  # a copy, not the same memory


def test_average_of_parameters_leaves_the_buffers():
    query = nn.BatchNorm1d(3)
    key = momentum_copy(query)
    with torch.no_grad():
        query.weight.fill_(3.0)
    query.running_mean.fill_(5.0)
    average_parameters(key, query, 0.75)
    assert key.weight.tolist() == [1.5] * 3 and key.running_mean.tolist() == [0.0] * 3


def test_small_steps_are_not_lost_in_float32():
    key, query = constant(1.0, torch.float32), constant(1.001, torch.float32)
    for _ in range(1000):
        momentum_update(key, query, 0.999)
    assert key.weight.item() - 1 == pytest.approx(0.001 * 0.632304575, rel=0.01)


def test_copy_is_frozen_in_eval_and_apart():
    query = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    key = momentum_copy(query)
    assert not key.training and not any(p.requires_grad for p in key.parameters())
    assert query.training and all(p.requires_grad for p in query.parameters())
    for own, source in zip(key.parameters(), query.parameters(), strict=True):
        assert torch.equal(own, source) and own.data_ptr() != source.data_ptr()


def test_another_architecture_is_refused():
    with pytest.raises(RuntimeError):
        momentum_update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)
