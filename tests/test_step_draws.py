"""Draws that depend on seed and step only (for processes see test_bags.py), and exact random choices."""

import pytest
import torch

from pipeline.finetune.step_draws import LEVELS, StepDraws, choose, draw_levels, seeded_generator

CPU = torch.device("cpu")


def numbers(draws):
    return torch.rand(50, generator=draws.generator())


def test_generators_follow_seed_and_step_alone():
    first, same, other = StepDraws(3), StepDraws(3), StepDraws(4)
    torch.manual_seed(5)
    drawn = [numbers(first) for _ in range(3)]
    before = torch.get_rng_state()
    assert all(torch.equal(found, numbers(same)) for found in drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], numbers(other))


def test_levels_are_all_alike_and_independent():
    levels = draw_levels((501, 401), seeded_generator("levels"))
    assert levels.shape == (501, 401) and levels.dtype == torch.float32
    assert levels.min() >= 0 and levels.max() < LEVELS and torch.equal(levels, levels.round())
    counts = torch.histc(levels, bins=64, min=0, max=LEVELS)
    expected = levels.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * (2 * 63) ** 0.5  # chi squared
    flat = levels.flatten() / LEVELS - 0.5
    for lag in (1, 2, 3, 4, 5, 401):
        correlation = 12 * (flat[lag:] * flat[:-lag]).mean().item()
        assert abs(correlation) < 5 / len(flat) ** 0.5
    low = (levels % 256).flatten()  # of the lower byte too
    assert low.mean().item() == pytest.approx(127.5, abs=1)


def test_levels_do_not_depend_on_how_many_rows_are_drawn_at_once():
    generator, same = seeded_generator("levels"), seeded_generator("levels")
    parts = [draw_levels((rows, 7), same) for rows in (3, 1, 0, 6)]
    assert torch.equal(draw_levels((10, 7), generator), torch.cat(parts))


def test_keys_do_not_overlap():
    """As they would if parts were added, or only 32 bits of a number counted."""
    keys = [(1, 2), (2, 1), (12,), (1, 2 + 2**32), (0, 3), ("1", 22), (122,)]
    drawn = {tuple(torch.rand(2, generator=seeded_generator(*key)).tolist()) for key in keys}
    assert len(drawn) == len(keys)


def test_orders_follow_seed_and_step_alone():
    first, same, other = StepDraws(3), StepDraws(3), StepDraws(4)
    torch.manual_seed(5)
    drawn = [first.orders(2, 50, CPU) for _ in range(3)]
    torch.manual_seed(6)
    assert all(torch.equal(orders, same.orders(2, 50, CPU)) for orders in drawn)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], other.orders(2, 50, CPU))


def test_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    StepDraws().orders(3, 7, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_is_an_order_of_its_own():
    orders = StepDraws().orders(3, 40, CPU)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(40).expand(3, 40))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[1], orders[2])
    assert StepDraws().orders(3, 0, CPU).shape == (3, 0)


def test_evaluation_repeats_the_next_draw():
    draws = StepDraws().eval()
    assert torch.equal(numbers(draws), numbers(draws))
    assert torch.equal(draws.orders(1, 90, CPU), draws.orders(1, 90, CPU))
    assert draws.step.item() == 0


def test_resume_continues_with_the_next_draw():
    draws, resumed = StepDraws(7), StepDraws(7)
    for _ in range(5):
        draws.orders(1, 90, CPU)
    resumed.load_state_dict(draws.state_dict())
    assert list(draws.state_dict()) == ["step"] and resumed.step.item() == 5
    assert torch.equal(resumed.orders(1, 90, CPU), draws.orders(1, 90, CPU))
    assert torch.equal(numbers(resumed), numbers(draws))


@pytest.mark.parametrize("num_chosen", [0, 1, 3, 6, 100])
def test_choice_takes_the_first_candidates_in_the_order(num_chosen):
    orders = StepDraws(2).orders(2, 10, CPU)
    candidates = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 1, 0, 0, 1]]).bool()
    found = choose(candidates, torch.tensor([num_chosen, num_chosen]), orders)
    for row in range(2):
        ranked = [i for i in orders[row].tolist() if candidates[row, i]]
        assert found[row].nonzero().flatten().tolist() == sorted(ranked[:num_chosen])


def test_choice_of_nothing():
    none, orders = torch.zeros(1, 5, dtype=torch.bool), torch.arange(5)[None]
    assert not choose(none, torch.tensor([2]), orders).any()
    assert choose(none[:, :0], torch.zeros(1), orders[:, :0]).shape == (1, 0)


def test_choice_is_fair():
    orders = StepDraws(1).orders(4000, 6, CPU)
    candidates = torch.tensor([True, True, False, True, True, True]).expand(4000, 6)
    share = choose(candidates, torch.full((4000,), 2), orders).float().mean(dim=0)
    torch.testing.assert_close(share, torch.tensor([0.4, 0.4, 0, 0.4, 0.4, 0.4]), atol=0.03, rtol=0)
