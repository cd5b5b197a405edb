"""Projection networks: batch norm over the valid rows of all processes, against torch's and one process."""

import pytest
import torch
from processes import together
from torch import nn

from pipeline.pretrain.projection import MaskedBatchNorm, ProjectionMLP


def random_rows(rows, width, seed=0, dtype=torch.float64):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def all_valid(rows):
    return torch.ones(rows, dtype=torch.bool)


def shaped(norm, seed=0):
    """A norm whose weight and bias are not 1 and 0."""
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * random_rows(1, len(norm.weight), seed)[0])
        norm.bias.copy_(random_rows(1, len(norm.bias), seed + 1)[0])
    return norm


def test_equals_torch_batch_norm_with_gradients_and_running_statistics():
    own, torch_own = shaped(MaskedBatchNorm(5).double()), shaped(nn.BatchNorm1d(5).double())
    for step in range(3):
        rows = random_rows(7, 5, seed=step) * 2 + 3
        a, b = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        found, expected = own(a, all_valid(7)), torch_own(b)
        torch.testing.assert_close(found, expected)
        for module, output in ((own, found), (torch_own, expected)):
            module.zero_grad()
            (output * random_rows(7, 5, seed=9)).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(own.weight.grad, torch_own.weight.grad)
        torch.testing.assert_close(own.bias.grad, torch_own.bias.grad)


def test_two_rows_map_to_plus_and_minus_one():
    """Why statistics must come from all processes: two rows lose everything but their order."""
    norm = MaskedBatchNorm(2).double()
    found = norm(torch.tensor([[0.3, 70.0], [0.7, -30.0]], dtype=torch.float64), all_valid(2))
    assert found[:, 0].tolist() == [pytest.approx(-0.999875, abs=1e-6), pytest.approx(0.999875, abs=1e-6)]
    assert found[0, 1].item() == pytest.approx(1.0, abs=1e-6)


def test_invalid_rows_do_not_count():
    rows, valid = random_rows(6, 4), torch.tensor([True, False, True, True, False, True])
    masked, plain = MaskedBatchNorm(4).double(), nn.BatchNorm1d(4).double()
    inputs = rows.clone().requires_grad_()
    found = masked(inputs, valid)
    torch.testing.assert_close(found[valid], plain(rows[valid]))
    found[valid].square().sum().backward()
    assert inputs.grad[~valid].abs().max().item() == 0.0
    changed = masked(torch.where(valid[:, None], rows, 1e3), valid)
    torch.testing.assert_close(changed[valid], found[valid].detach())


def test_a_small_variance_beside_a_large_mean_survives_float32():
    rows = (300 + 0.01 * random_rows(64, 3)).float()
    found = MaskedBatchNorm(3)(rows, all_valid(64))
    expected = MaskedBatchNorm(3).double()(rows.double(), all_valid(64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)


def test_running_statistics_start_as_a_plain_average_and_then_follow():
    norm = MaskedBatchNorm(2).double()
    means, variances = [], []
    for step in range(10):
        rows = random_rows(6, 2, seed=step) * 1e-3 + step
        norm(rows, all_valid(6))
        means.append(rows.mean(0))
        variances.append(rows.var(0))
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    rows = random_rows(6, 2, seed=99)
    expected = 0.9 * norm.running_mean + 0.1 * rows.mean(0)
    norm(rows, all_valid(6))
    torch.testing.assert_close(norm.running_mean, expected)


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_rows_the_running_statistics_stay(count):
    norm = MaskedBatchNorm(3)
    norm(random_rows(8, 3, dtype=torch.float32), all_valid(8))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    rows = random_rows(4, 3, seed=1, dtype=torch.float32).requires_grad_()
    found = norm(rows, torch.arange(4) < count)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(rows.grad).all()
    for name, value in norm.named_buffers():
        assert torch.equal(value, before[name]), name


def test_eval_mode_uses_the_running_statistics_row_by_row():
    norm = shaped(MaskedBatchNorm(3).double())
    norm(random_rows(8, 3) * 4 + 2, all_valid(8))
    norm.eval()
    rows = random_rows(5, 3, seed=1)
    expected = (rows - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(rows, ~all_valid(5)), expected)
    torch.testing.assert_close(norm(rows[:1], all_valid(1)), expected[:1])


def test_tracking_changes_the_statistics_and_not_the_rows_of_now():
    torch.manual_seed(0)
    network = ProjectionMLP(6, 5, 4).double().eval()
    rows, valid = random_rows(9, 6), torch.arange(9) < 7
    before = network(rows, valid)
    network.track(rows, valid)
    hidden = network.first(rows[valid]).detach()
    torch.testing.assert_close(network.norm.running_mean, hidden.mean(0))
    torch.testing.assert_close(network.norm.running_var, hidden.var(0))
    assert not network.norm.running_mean.requires_grad
    after = network(rows, valid)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(("width_in", "parameters"), [(2048, 590848), (1024, 328704), (256, 132096)])
def test_layers_of_the_paper(width_in, parameters):
    """A.1: linear (256), batch norm, ReLU, linear (256); without the 256 biases that the norm takes away."""
    network = ProjectionMLP(width_in)
    assert sum(p.numel() for p in network.parameters()) == parameters - 256
    assert network(random_rows(3, width_in, dtype=torch.float32), all_valid(3)).shape == (3, 256)


def test_network_equals_the_stock_layers():
    torch.manual_seed(0)
    network = ProjectionMLP(6, 5, 4).double()
    stock = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).double()
    with torch.no_grad():
        for own, other in zip(stock.parameters(), network.parameters(), strict=True):
            own.copy_(other)
    rows = random_rows(9, 6)
    torch.testing.assert_close(network(rows, all_valid(9)), stock(rows))


def test_network_runs_in_float32_under_autocast():
    network, rows = ProjectionMLP(6, 5, 4), random_rows(9, 6, dtype=torch.float32).bfloat16()
    expected = network(rows.float(), all_valid(9))
    with torch.autocast("cpu", torch.bfloat16):
        found = network(rows, all_valid(9))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


# two processes

ROWS, WIDTH = 4, 6
CASES = {
    "equal shares": [True] * 8,
    "unequal shares": [True, False, True, True, False, True, False, False],
    "one process without a valid row": [True] * 4 + [False] * 4,
    "no valid row anywhere": [False] * 8,
}


def one_step(rows, valid):
    """Weighted sum of the valid outputs: gradients of rows and parameters, outputs, running statistics."""
    torch.manual_seed(0)
    network = ProjectionMLP(WIDTH, 5, 4).double()
    inputs = rows.clone().requires_grad_()
    output = network(inputs, valid)
    weights = torch.arange(1, 1 + output.numel(), dtype=torch.float64).view_as(output) / 10
    (output.square() * weights[:1] * valid[:, None]).sum().backward()
    gradients = [p.grad for p in network.parameters()]
    return output.detach(), inputs.grad, gradients, network.norm.running_mean, network.norm.running_var


def every_case(rank, world):
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    return {
        name: one_step(random_rows(2 * ROWS, WIDTH)[mine], torch.tensor(valid)[mine])
        for name, valid in CASES.items()
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return together(2, every_case, tmp_path_factory.mktemp("projection"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(two_processes, name):
    output, row_gradients, gradients, mean, variance = one_step(
        random_rows(2 * ROWS, WIDTH), torch.tensor(CASES[name])
    )
    shares = [result[name] for result in two_processes]
    torch.testing.assert_close(torch.cat([s[0] for s in shares]), output)
    torch.testing.assert_close(torch.cat([s[1] for s in shares]), row_gradients)
    for found, expected in zip(zip(*(s[2] for s in shares), strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(found), expected)
    for share in shares:
        torch.testing.assert_close(share[3], mean)
        torch.testing.assert_close(share[4], variance)
