"""The learning rate, step by step, against a formula that counts; and where epochs begin and end."""

from fractions import Fraction

import pytest

from pipeline.engine.schedule import Schedule, extended, resolve_milestones
from pipeline.errors import SettingsError, UsageError
from pipeline.finetune.settings import FinetuneSettings
from pipeline.pretrain.settings import PretrainSettings
from pipeline.settings import build


def slow_lr(
    step: int,
    epoch_steps: tuple[int, ...],
    milestones: tuple[int, ...],
    base: float,
    warmup: int,
    factor: float,
    drop: float,
) -> float:
    """Walk through the run and count finished epochs, in exact arithmetic."""
    done, finished = 0, 0
    for length in epoch_steps:
        done += length
        if done <= step:
            finished += 1
    rate = Fraction(base)
    for milestone in milestones:
        if finished >= milestone:
            rate *= Fraction(drop)
    if step < warmup:
        start = rate * Fraction(factor)
        rate = start + (rate - start) * step / warmup
    return float(rate)


@pytest.mark.parametrize(
    ("epoch_steps", "milestones", "warmup", "factor"),
    [
        ((5, 5, 5, 5), (2, 3), 0, 0.001),
        ((3, 4, 6, 9), (2, 3), 4, 0.001),  # epochs grow
        ((3, 4, 6, 9), (1,), 7, 0.1),  # a milestone inside the warm-up
        ((3, 4, 6, 9), (3, 4, 9), 0, 0.001),  # milestones at and past the end are never reached
        ((3, 4, 6, 9), (), 100, 0.5),  # a warm-up longer than the run
        ((3, 4, 6, 9), (0, 2), 1, 0.001),  # low from the start
        ((3, 4, 6, 9), (2, 2), 0, 0.001),  # twice at once
        ((1,), (1,), 0, 0.001),
    ],
)
def test_lr_step_by_step(
    epoch_steps: tuple[int, ...], milestones: tuple[int, ...], warmup: int, factor: float
) -> None:
    schedule = Schedule(epoch_steps, milestones, 0.02, warmup, factor, drop=0.1)
    assert schedule.total == sum(epoch_steps)
    for step in range(schedule.total):
        expected = slow_lr(step, epoch_steps, milestones, 0.02, warmup, factor, 0.1)
        assert schedule.lr(step) == pytest.approx(expected, rel=1e-12, abs=0), step


def test_lr_by_hand() -> None:
    schedule = Schedule((2, 3, 5), (1, 2), 1.0, warmup_steps=2, warmup_factor=0.5)
    assert [schedule.lr(s) for s in range(10)] == pytest.approx([0.5, 0.75] + [0.1] * 3 + [0.01] * 5)


def test_paper_schedule_drops_at_8_and_11_of_12() -> None:
    schedule = Schedule((10,) * 12, (8, 11), 0.02)
    changes = [s for s in range(1, schedule.total) if schedule.lr(s) != schedule.lr(s - 1)]
    assert changes == [80, 110]
    assert [schedule.lr(s) for s in (0, 80, 119)] == pytest.approx([0.02, 0.002, 0.0002])


def test_epoch_of_edges() -> None:
    lengths = (3, 1, 6)
    schedule = Schedule(lengths, (), 0.1)
    assert [schedule.epoch_of(s) for s in range(10)] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2]
    for outside in (-1, 10, 100):
        with pytest.raises(AssertionError, match=f"step {outside} is not one of the 10 steps"):
            schedule.epoch_of(outside)


def test_budget_ends_the_run_and_changes_no_rate() -> None:
    whole = Schedule((4, 5, 6), (1, 2), 0.1, warmup_steps=3)
    for budget, total in ((1, 1), (7, 7), (15, 15), (99, 15)):
        short = Schedule((4, 5, 6), (1, 2), 0.1, warmup_steps=3, budget=budget)
        assert short.total == total
        assert [short.lr(s) for s in range(total)] == [whole.lr(s) for s in range(total)]
        assert [short.epoch_of(s) for s in range(total)] == [whole.epoch_of(s) for s in range(total)]


@pytest.mark.parametrize("epoch_steps", [(), (3, 0, 2), (0,), (5, -1)])
def test_epochs_without_steps_are_refused(epoch_steps: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="an epoch has no step") as caught:
        Schedule(epoch_steps, (), 0.1)
    assert caught.value.hint == "lower the batch size"


def shares(schedule: Schedule) -> list[float]:
    """Where the rate drops, as shares of the run."""
    steps = range(max(schedule.warmup_steps, 1), schedule.total)
    return [s / schedule.total for s in steps if schedule.lr(s) < schedule.lr(s - 1)]


@pytest.mark.parametrize("steps", [120, 121, 150, 240, 333, 1000])
@pytest.mark.parametrize("growth", [0, 1])
def test_extended_keeps_total_exactly_and_shares_to_half_an_epoch(steps: int, growth: int) -> None:
    base = Schedule(tuple(8 + growth * e // 2 for e in range(12)), (8, 11), 0.02, 12)
    lengths = tuple(8 + growth * e // 4 for e in range(200))
    longer = extended(base, steps, lengths)
    assert longer.total == steps
    assert longer.epoch_steps == lengths
    assert [longer.lr(steps - 1)] == pytest.approx([base.lr(base.total - 1)])
    found, wanted = shares(longer), shares(base)
    assert len(found) == len(wanted) == 2
    for new, old in zip(found, wanted, strict=True):
        nearby = longer.epoch_of(min(round(old * steps), steps - 1))
        assert abs(new - old) * steps <= max(lengths[nearby : nearby + 2]) / 2 + 1
    assert longer.warmup_steps / steps == pytest.approx(12 / base.total, abs=0.5 / steps)
    assert (longer.base_lr, longer.warmup_factor, longer.drop) == (0.02, 0.001, 0.1)


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [
        (6, (4, 5)),
        (12, (8, 11)),
        (24, (16, 22)),
        (36, (28, 34)),
        (48, (40, 46)),
        (18, (12, 16)),
        (4, (3,)),
        (3, (2,)),
        (2, (1,)),
        (1, ()),
    ],
)
def test_milestones_by_the_number_of_epochs(epochs: int, milestones: tuple[int, ...]) -> None:
    assert resolve_milestones("auto", epochs) == milestones


@pytest.mark.parametrize("section", [PretrainSettings, FinetuneSettings])
def test_schedules_have_names(section: type[PretrainSettings] | type[FinetuneSettings]) -> None:
    for name, epochs, milestones in (("1x", 12, (8, 11)), ("2x", 24, (16, 22)), ("4x", 48, (40, 46))):
        named = build(section, {"epochs": name}, "stage")
        assert named == build(section, {"epochs": epochs}, "stage")  # the same run, the same fingerprint
        assert resolve_milestones(named.milestones, named.epochs) == milestones
    with pytest.raises(
        SettingsError, match=r"stage.epochs must be a whole number or 1x or 2x or 3x or 4x, but"
    ):
        build(section, {"epochs": "5x"}, "stage")
    assert resolve_milestones((3, 7), epochs) == (3, 7)
    schedule = Schedule((10,) * epochs, milestones, 1.0)
    rates = sorted({round(schedule.lr(step), 9) for step in range(schedule.total)}, reverse=True)
    assert rates == [10.0**-n for n in range(len(milestones) + 1)]


def test_extended_by_nothing_is_the_same_run() -> None:
    base = Schedule((4, 5, 6, 7), (2, 3), 0.1, warmup_steps=3)
    same = extended(base, base.total, base.epoch_steps)
    assert [same.lr(s) for s in range(same.total)] == [base.lr(s) for s in range(base.total)]


def test_extended_does_not_drop_where_the_original_never_did() -> None:
    base = Schedule((10,) * 4, (3, 4, 9), 0.1)
    longer = extended(base, 98, (19,) * 6)  # the fifth epoch ends at 95: near the end, and not a milestone
    assert shares(base) == [0.75] and shares(longer) == [76 / 98]


def test_what_lies_behind_the_end_is_told() -> None:
    assert Schedule((5, 5, 5), (2, 3), 0.1, warmup_steps=15).unreached() == []
    drop, warmup = Schedule((5, 5, 5), (2, 4), 0.1, warmup_steps=16).unreached()
    assert "drops after epoch 4, but the run has 3" in drop
    assert "warm-up takes 16 steps, but the run has 15" in warmup


def test_extended_of_a_budget_counts_what_is_run() -> None:
    base = Schedule((10,) * 4, (1, 3), 0.1, budget=20)  # the second drop at 30 is never reached
    assert shares(extended(base, 40, (10,) * 4)) == [0.5]


def test_extended_refuses_epochs_that_do_not_hold_the_steps() -> None:
    with pytest.raises(AssertionError, match="99 steps of the epochs do not hold 100"):
        extended(Schedule((10,) * 4, (3,), 0.1), 100, (33,) * 3)
