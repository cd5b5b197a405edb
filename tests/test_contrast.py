"""InfoNCE (eq. 1, eq. 2): closed forms, fixed float64 vectors, and a loop."""

import math

import pytest
import torch

from pipeline.pretrain.contrast import at_least_float32, info_nce, unit_rows
from pipeline.pretrain.key_queue import KeyQueue
from pipeline.pretrain.measures import similarities


def wave(rows, columns, a, b, c):
    """M[i, j] = sin(a + b i + c j + 0.01 i j), rows l2-normalised, float64."""
    i = torch.arange(rows, dtype=torch.float64)[:, None]
    j = torch.arange(columns, dtype=torch.float64)[None]
    values = torch.sin(a + b * i + c * j + 0.01 * i * j)
    return values / values.norm(dim=1, keepdim=True)


def vectors():
    return wave(4, 8, 0.1, 0.7, 1.3), wave(4, 8, 0.3, 0.6, 1.2), wave(16, 8, 1.0, 0.9, 0.5)


def nothing(queries, rows):
    return torch.zeros(queries, rows, dtype=torch.bool)


def random_unit(rows, width, seed, dtype=torch.float64):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values / values.norm(dim=1, keepdim=True)


def slow_info_nce(query, key, queue, excluded, temperature):
    losses = []
    for q, row in enumerate(query.tolist()):
        positive = math.exp(sum(a * b for a, b in zip(row, key[q].tolist(), strict=True)) / temperature)
        total = positive
        for i, negative in enumerate(queue.tolist()):
            if not excluded[q, i]:
                total += math.exp(sum(a * b for a, b in zip(row, negative, strict=True)) / temperature)
        losses.append(-math.log(positive / total))
    return torch.tensor(losses, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


ROWS = {
    "query": "0.05280955 0.52127997 0.22607401 -0.4003309 -0.4402501 0.16479813 0.52841672 0.11790358",
    "key": "0.42081825 -0.09130695 -0.4818547 -0.23080109 0.32756984 0.44977349 -0.0269073 -0.46776036",
    "queue": "0.49203224 0.2786528 -0.04837028 -0.35566639 -0.51791022 -0.46893348 -0.22871048 0.10478807",
}


def test_inputs_of_the_vectors():
    query, key, queue = vectors()
    for row, name in ((query[0], "query"), (key[3], "key"), (queue[15], "queue")):
        assert close(row, [float(number) for number in ROWS[name].split()], 1e-8)


@pytest.mark.parametrize(
    ("temperature", "mean", "each"),
    [
        (0.07, 1.47610750e-4, None),
        (0.2, 0.181003609535, [0.19208524, 0.18306836, 0.16281776, 0.18604308]),
        (1.0, 2.005024019079, [1.98792802, 2.00564069, 2.00507775, 2.02144962]),
    ],
)
def test_vectors(temperature, mean, each):
    losses = info_nce(*vectors(), nothing(4, 16), temperature)
    assert losses.mean().item() == pytest.approx(mean, rel=1e-7)
    if each is not None:
        assert close(losses, each, 1e-7)


@pytest.mark.parametrize(
    ("temperature", "norm", "first"),
    [(0.2, 0.413907757845, 0.011864786555), (1.0, 0.431051830603, -0.013195337098)],
)
def test_gradient_of_the_vectors(temperature, norm, first):
    query, key, queue = vectors()
    query.requires_grad_()
    info_nce(query, key, queue, nothing(4, 16), temperature).mean().backward()
    assert query.grad.norm().item() == pytest.approx(norm, rel=1e-9)
    assert query.grad[0, 0].item() == pytest.approx(first, rel=1e-8)


@pytest.mark.parametrize(
    ("rows", "loss"), [(16, 2.8332133441), (128, 4.8598124044), (4096, 8.3180102775), (65536, 11.0903701476)]
)
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equal_similarities_give_ln_of_rows_plus_one(rows, loss, temperature):
    one = torch.ones(2, 1, dtype=torch.float64)
    assert close(info_nce(one, one, one[:1].expand(rows, 1), nothing(2, rows), temperature), [loss, loss])


@pytest.mark.parametrize(
    ("temperature", "rows", "loss"),
    [
        (0.2, 16, 0.1023825226),
        (0.2, 128, 0.6218966997),
        (0.2, 4096, 3.3533588463),
        (0.2, 65536, 6.0926169337),
        (0.07, 65536, 0.0401354915),
    ],
)
def test_perfect_positive_and_orthogonal_negatives(temperature, rows, loss):
    axes = torch.eye(2, dtype=torch.float64)
    assert close(
        info_nce(axes[:1], axes[:1], axes[1:].expand(rows, 2), nothing(1, rows), temperature), [loss]
    )


def test_opposite_positive_and_equal_negatives():
    one = torch.ones(1, 1, dtype=torch.float64)
    found = info_nce(one, -one, one.expand(65536, 1), nothing(1, 65536), 0.2)
    assert found.item() == pytest.approx(21.090355, abs=1e-6)


@pytest.mark.parametrize(("width", "same", "other"), [(256, 6.1413, 11.1392), (128, 6.1900, 11.1880)])
def test_random_keys_start_where_they_should(width, same, other):
    """K = 65,536, t = 0.2: identical views against random keys, and two random views.

    -log(e^(s / t) / (e^(s / t) + K E)) with E = 1.05003 for 256 channels, 1.10250 for 128; a key and its
    opposite take the spread of s out of the mean.
    """
    query, queue = random_unit(8, width, 0, torch.float32), random_unit(65536, width, 1, torch.float32)
    excluded, key = nothing(8, 65536), random_unit(8, width, 2, torch.float32)
    losses = [info_nce(query, k, queue, excluded, 0.2).mean().item() for k in (query, key, -key)]
    assert losses[0] == pytest.approx(same, abs=0.01)
    assert sum(losses[1:]) / 2 == pytest.approx(other, abs=0.01)


# the same equation as other libraries arrange it


def nt_xent(query, key, temperature):
    """SimCLR's loss: every row of both views against its partner, all other rows are negatives."""
    rows, partners = torch.cat([query, key]), torch.cat([key, query])  # 2 x (N, D) -> (2 N, D)
    own = torch.eye(len(rows), dtype=torch.bool)
    return info_nce(rows, partners, rows, own | own.roll(len(query), dims=1), temperature).mean()


@pytest.mark.parametrize(("temperature", "loss"), [(0.5, 1.308681593490), (0.1, 0.691815109073)])
def test_nt_xent_of_the_vectors(temperature, loss):
    query, key, _ = vectors()
    assert nt_xent(query, key, temperature).item() == pytest.approx(loss, rel=1e-10)
    assert nt_xent(key, query, temperature).item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(("rows", "loss"), [(4, 1.9459101491), (1, 0.0), (8, math.log(15))])
def test_nt_xent_of_identical_embeddings_is_ln_of_the_others(rows, loss):
    """ln(2 N - 1), the value that lightly's own tests have."""
    same = random_unit(1, 5, 0).expand(rows, 5)
    assert nt_xent(same, same, 0.3).item() == pytest.approx(loss, abs=1e-9)


def test_byols_loss_follows_from_the_similarity_that_history_has():
    query, key, queue = vectors()
    empty = KeyQueue(len(queue), queue.shape[1])
    found = similarities(query, key, empty, torch.full((4,), 0.25, dtype=torch.float64))
    assert 2 - 2 * found["positive"].item() == pytest.approx(0.14409193608, rel=1e-9)


def test_rows_are_taken_as_they_come():
    """Nothing is normalised here: twice the query is half the temperature."""
    query, key, queue = vectors()
    assert close(
        info_nce(2 * query, key, queue, nothing(4, 16), 0.4), info_nce(query, key, queue, nothing(4, 16), 0.2)
    )


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_equals_a_loop(temperature):
    query, key, queue = random_unit(5, 6, 2), random_unit(5, 6, 3), random_unit(9, 6, 4)
    excluded = torch.rand(5, 9, generator=torch.Generator().manual_seed(5)) < 0.4
    excluded[3] = True
    found = info_nce(query, key, queue, excluded, temperature)
    assert close(found, slow_info_nce(query, key, queue, excluded, temperature), 1e-12)


def test_gradient_equals_its_closed_form_and_finite_differences():
    query, key, queue = random_unit(3, 5, 6), random_unit(3, 5, 7), random_unit(7, 5, 8)
    excluded = nothing(3, 7)
    excluded[1, :4] = True
    query.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, queue, excluded, 0.3), query)
    info_nce(query, key, queue, excluded, 0.3).sum().backward()
    for q in range(3):  # (sum_j p_j k_j - k+) / t
        rows = torch.cat([key[q : q + 1], queue[~excluded[q]]])
        p = torch.softmax(rows @ query[q].detach() / 0.3, dim=0)
        assert close(query.grad[q], (p @ rows - key[q]) / 0.3, 1e-12)


def test_no_gradient_reaches_keys_or_queue():
    query, key, queue = (random_unit(3, 4, seed).requires_grad_() for seed in (1, 2, 3))
    info_nce(query, key, queue, nothing(3, 3), 0.2).sum().backward()
    assert query.grad is not None
    assert key.grad is None and queue.grad is None


@pytest.mark.parametrize("rows", [0, 6])
def test_nothing_to_contrast_with_is_exactly_zero(rows):
    """An empty queue, or one of the query's own keys alone: no loss, no gradient, no NaN."""
    query = random_unit(3, 4, 9).requires_grad_()
    losses = info_nce(query, random_unit(3, 4, 10), random_unit(rows, 4, 11), ~nothing(3, rows), 0.2)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0, 0.0]
    assert query.grad.abs().max().item() == 0.0


def test_losses_are_not_negative_where_the_positive_dominates():
    query = random_unit(64, 8, 12, torch.float32)
    losses = info_nce(query, query, -query, nothing(64, 64), 0.01)
    assert losses.min().item() >= 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_under_autocast(dtype):
    query, key, queue = (random_unit(n, 64, n, torch.float32).to(dtype) for n in (4, 5, 50))
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(query, key[:4], queue, nothing(4, 50), 0.2)
    assert found.dtype == torch.float32
    exact = info_nce(query.double(), key[:4].double(), queue.double(), nothing(4, 50), 0.2)
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


def test_unit_rows():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-7, 0.0]])
    assert unit_rows(rows)[:2].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    half = unit_rows(rows.half())
    assert half.dtype == torch.float32 and half[2, 0].item() == pytest.approx(1.0)
    assert unit_rows(rows.double()).dtype == torch.float64
    zero = torch.zeros(1, 4, requires_grad=True)
    unit_rows(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_at_least_float32():
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == expected
