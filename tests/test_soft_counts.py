"""Soft counts above thresholds against the comparison of every pair."""

import pytest
import torch

from pipeline.finetune import soft_counts
from pipeline.finetune.soft_counts import SoftCounts, intervals


@pytest.fixture(autouse=True)
def as_of_many_values(monkeypatch):
    """Grid and blocks as they are for millions of values."""
    monkeypatch.setattr(soft_counts, "CELLS", 256)
    monkeypatch.setattr(soft_counts, "BLOCK", 111)


def soft_step(difference, delta):
    if delta == 0:
        return (difference >= 0).to(difference.dtype)
    return (difference / (2 * delta) + 0.5).clamp(0, 1)


def numbers(count, seed, dtype=torch.float64, decimals=None):
    values = 3 * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values if decimals is None else values.round(decimals=decimals)).to(dtype)


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.5, 20.0])
@pytest.mark.parametrize("decimals", [0, None], ids=["ties", "distinct"])
def test_equals_every_pair(delta, decimals):
    values, thresholds = numbers(300, 0, decimals=decimals), numbers(40, 1, decimals=decimals)
    ignored, weights = numbers(300, 2) > 2, numbers(40, 3).abs()
    pairs = soft_step(values[:, None] - thresholds, delta) * ~ignored[:, None]  # (300, 40)
    found = SoftCounts(values, thresholds, ignored, delta)
    torch.testing.assert_close(found.at_thresholds(), pairs.sum(dim=0), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(found.at_values(weights), pairs @ weights, rtol=1e-12, atol=1e-11)
    assert (found.at_values(weights)[ignored] == 0).all()


def test_float32_values_far_from_0_keep_their_digits():
    values, thresholds = numbers(2000, 0, torch.float32) + 100, numbers(200, 1, torch.float32) + 100
    weights = numbers(200, 3).abs()
    found = SoftCounts(values, thresholds, torch.zeros(2000, dtype=torch.bool), 0.5)
    pairs = soft_step(values.double()[:, None] - thresholds.double(), 0.5)
    torch.testing.assert_close(found.at_thresholds(), pairs.sum(dim=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.at_values(weights).double(), pairs @ weights, rtol=1e-5, atol=1e-3)


def test_nan_is_not_lost():
    values, thresholds = numbers(10, 0), numbers(4, 1)
    nothing = torch.zeros(10, dtype=torch.bool)
    values[3] = torch.nan
    assert SoftCounts(values, thresholds, nothing, 0.5).at_thresholds().isnan().all()
    values[3], thresholds[1] = 0.0, torch.nan
    assert SoftCounts(values, thresholds, nothing, 0.5).at_thresholds()[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["spread", "equal", "heaped", "round"])
def test_intervals_equal_a_binary_search(dtype, kind):
    generator = torch.Generator().manual_seed(0)
    edges = 3 * torch.randn(600, generator=generator, dtype=dtype)
    values = 4 * torch.randn(5000, generator=generator, dtype=dtype)
    if kind == "equal":
        edges[100:400] = 0.5
    elif kind == "heaped":
        edges[0] = 1e6  # all others in one cell
    elif kind == "round":
        edges, values = edges.round(), values.round()
    values[:600] = edges
    values[600:603] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    edges = edges.sort().values
    expected = torch.searchsorted(edges, values, right=True, out_int32=True)
    assert torch.equal(intervals(values, edges), expected)
