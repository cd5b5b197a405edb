"""The epoch sampler: expectation, determinism, lengths, orientation, and the edges."""

import time
from collections import Counter

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.stats.frequencies import CategoryFrequencies, ImageCategories, frequency_letters
from pipeline.stats.repeat_factors import irfs_factors, repeat_factors, rfs_factors
from pipeline.stats.sampler import EpochSampler, build_sampler, category_factors, expected_draws


def csr_of(images: list[list[int]]) -> ImageCategories:
    offsets = np.cumsum([0] + [len(image) for image in images])
    return ImageCategories(offsets, np.array([c for image in images for c in image], dtype=np.int64))


def frequencies_of(
    image_count: np.ndarray, instance_count: np.ndarray, num_images: int
) -> CategoryFrequencies:
    return CategoryFrequencies(
        annotations_digest="0" * 64,
        num_images=num_images,
        category_ids=np.arange(len(image_count)) + 1,
        names=[f"thing {c}" for c in range(len(image_count))],
        frequency=frequency_letters(image_count),
        image_count=image_count,
        instance_count=instance_count,
        proposal_count=None,
        f_image=image_count / num_images,
        f_instance=instance_count / instance_count.sum(),
    )


def long_tail(
    seed: int, num_images: int = 80, num_categories: int = 7
) -> tuple[CategoryFrequencies, ImageCategories]:
    """Random images over a falling distribution; some images are empty, the last category is nowhere."""
    rng = np.random.default_rng(seed)
    chance = np.append(0.7 / (1 + np.arange(num_categories - 1)) ** 1.5, 0)
    present = rng.random((num_images, num_categories)) < chance
    instances = present * rng.integers(1, 6, size=present.shape)
    images = [np.flatnonzero(row).tolist() for row in present]
    return frequencies_of(present.sum(axis=0), instances.sum(axis=0), num_images), csr_of(images)


def drb(seed: int = 0, batch_size: int = 8, **more: object) -> EpochSampler:
    frequencies, categories = long_tail(3)
    return build_sampler("drb", frequencies, categories, 5, 0.3, batch_size, seed, **more)


def test_schemes_use_their_category_factors() -> None:
    frequencies, _ = long_tail(0)
    f_im, f_in = frequencies.f_image, frequencies.f_instance
    for epoch in range(4):
        found = {s: category_factors(s, frequencies, 4, 0.3)[epoch] for s in ("random", "rfs", "irfs", "drb")}
        assert (found["random"] == 1).all()
        np.testing.assert_array_equal(found["rfs"], rfs_factors(f_im, 0.3))
        np.testing.assert_array_equal(found["irfs"], irfs_factors(f_im, f_in, 0.3))
        np.testing.assert_array_equal(found["drb"], repeat_factors(f_im, f_in, epoch / 4, 0.3))
    shifted = category_factors("drb", frequencies, 4, 0.3, first_epoch=1)
    np.testing.assert_array_equal(shifted[3], rfs_factors(f_in, 0.3))
    with pytest.raises(ValueError, match="epochs"):
        category_factors("random", frequencies, 0, 0.3)


def test_random_draws_every_image_exactly_once() -> None:
    frequencies, categories = long_tail(1)
    sampler = build_sampler("random", frequencies, categories, 2, 0.3, 8, seed=0)
    assert sorted(sampler.draws(0)) == list(range(80))
    assert not np.array_equal(sampler.draws(0), sampler.draws(1)) and sampler.all_ones


def test_copies_are_the_floor_or_the_next_number() -> None:
    for seed in range(10):
        sampler = drb(seed)
        for epoch in range(sampler.epochs):
            copies = np.bincount(sampler.draws(epoch), minlength=80)
            factors = sampler.image_factors(epoch)
            assert ((copies >= np.floor(factors)) & (copies <= np.ceil(factors))).all()


def test_mean_copies_over_many_seeds_approach_the_factor() -> None:
    num_seeds = 600
    copies = sum(np.bincount(drb(seed).draws(4), minlength=80) for seed in range(num_seeds))
    factors = drb().image_factors(4)
    fraction = factors - np.floor(factors)
    assert (fraction > 0.05).any()
    deviation = np.sqrt(fraction * (1 - fraction) / num_seeds)
    assert (np.abs(copies / num_seeds - factors) <= 5 * deviation + 1e-9).all()


def test_ceil_rounds_every_factor_up() -> None:
    sampler = drb(rounding="ceil")
    for epoch in range(5):
        copies = np.bincount(sampler.draws(epoch), minlength=80)
        np.testing.assert_array_equal(copies, np.ceil(sampler.image_factors(epoch)))


def test_expected_draws_are_the_mean_length() -> None:
    frequencies, categories = long_tail(3)
    factors = category_factors("drb", frequencies, 5, 0.3)
    lengths = [[len(drb(seed).draws(epoch)) for epoch in range(5)] for seed in range(200)]
    np.testing.assert_allclose(np.mean(lengths, axis=0), expected_draws(factors, categories), atol=1.5)
    upward = [len(drb(rounding="ceil").draws(epoch)) for epoch in range(5)]
    assert expected_draws(factors, categories, "ceil").tolist() == upward


def test_epochs_of_the_dynamic_scheme_start_as_rfs_and_grow() -> None:
    frequencies, categories = long_tail(3)
    dynamic = expected_draws(category_factors("drb", frequencies, 5, 0.3), categories)
    fixed = expected_draws(category_factors("rfs", frequencies, 5, 0.3), categories)
    assert dynamic[0] == fixed[0] and (np.diff(fixed) == 0).all() and (np.diff(dynamic) > 0).all()


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    portrait = np.arange(80) % 3 == 0
    first, second = drb(7, is_portrait=portrait), drb(7, is_portrait=portrait)
    second.lengths(), second.steps(4), second.draws(0)  # asking for something else first changes nothing
    for epoch in (2, 0):
        np.testing.assert_array_equal(first.draws(epoch), second.draws(epoch))
        np.testing.assert_array_equal(first.steps(epoch), second.steps(epoch))
    assert not np.array_equal(drb(7).draws(1)[:20], drb(8).draws(1)[:20])
    assert not np.array_equal(drb(7).draws(1)[:20], drb(7).draws(2)[:20])


def test_steps_are_the_draws_in_order_without_the_last_incomplete_batch() -> None:
    sampler = drb(batch_size=8)
    draws, steps = sampler.draws(1), sampler.steps(1)
    assert steps.shape == (len(draws) // 8, 8) and steps.dtype == np.int64
    np.testing.assert_array_equal(steps.ravel(), draws[: steps.size])
    assert len(draws) - steps.size < 8


def test_lengths_are_known_in_advance_for_every_epoch() -> None:
    portrait = np.arange(80) % 3 == 0
    for seed in range(10):
        for sampler in (drb(seed), drb(seed, is_portrait=portrait), drb(seed, rounding="ceil")):
            lengths = sampler.lengths()
            assert lengths.tolist() == [len(sampler.steps(epoch)) for epoch in range(5)]
            lengths[:] = 0  # a copy: the plan itself stays
            assert sampler.lengths().all()


def test_orientations_share_at_most_one_batch_and_keep_the_draws() -> None:
    mixed_seen = dropped_seen = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        portrait = rng.random(80) < rng.choice([0.0, 0.1, 0.5, 1.0])
        sampler = drb(seed, batch_size=int(rng.integers(1, 30)), is_portrait=portrait)
        draws, steps = sampler.draws(2), sampler.steps(2)
        share = portrait[steps].mean(axis=1)
        mixed = ((share > 0) & (share < 1)).sum()
        dropped = Counter(draws.tolist()) - Counter(steps.ravel().tolist())
        assert not Counter(steps.ravel().tolist()) - Counter(draws.tolist())
        assert mixed <= 1 and dropped.total() == len(draws) % sampler.batch_size
        mixed_seen, dropped_seen = mixed_seen + mixed, dropped_seen + dropped.total()
    assert mixed_seen and dropped_seen


def test_orientation_batches_come_in_mixed_order() -> None:
    portrait = np.arange(80) < 40
    steps = drb(batch_size=4, is_portrait=portrait).steps(0)
    kinds = portrait[steps].all(axis=1)
    assert np.abs(np.diff(kinds.astype(int))).sum() > 2


def test_neither_orientation_is_dropped_more_often() -> None:
    """18 and 18 images in batches of 10 leave 8 of each: 10 make the mixed batch, 6 are dropped."""
    portrait = np.arange(36) >= 18
    lost = np.zeros(36)
    for seed in range(400):
        steps = EpochSampler(csr_of([[0]] * 36), np.ones((1, 1)), 10, seed, portrait).steps(0)
        lost[np.setdiff1d(np.arange(36), steps)] += 1
    assert lost.sum() == 400 * 6
    # Hypergeometric: of 6 drawn from 8 + 8, the portraits number 3 with variance 0.9.
    assert abs(lost[18:].sum() - 1200) < 5 * np.sqrt(0.9 * 400)


def test_empty_images_are_drawn_once() -> None:
    categories = csr_of([[], [0], [], [], [1, 0], []])
    sampler = EpochSampler(categories, np.array([[1.0, 3.0]]), 2, seed=0)
    assert np.bincount(sampler.draws(0)).tolist() == [1, 1, 1, 1, 3, 1]


def test_a_data_set_of_empty_images_is_drawn_once() -> None:
    sampler = EpochSampler(csr_of([[], [], []]), np.array([[9.0]]), 3, seed=0)
    assert sorted(sampler.draws(0)) == [0, 1, 2] and sampler.all_ones


def test_all_ones_sees_only_categories_that_are_present() -> None:
    factors = np.array([[1.0, 1.0, 5.0], [1.0, 2.0, 5.0]])
    assert EpochSampler(csr_of([[0], [0]]), factors, 1, seed=0).all_ones
    assert not EpochSampler(csr_of([[0], [0, 1]]), factors, 1, seed=0).all_ones
    assert EpochSampler(csr_of([[0], [0, 1]]), factors[:1], 1, seed=0).all_ones


def test_fewer_draws_than_a_batch_is_a_usage_error() -> None:
    sampler = EpochSampler(csr_of([[0]] * 5), np.ones((2, 1)), 6, seed=0)
    for ask in (sampler.lengths, lambda: sampler.steps(1)):
        with pytest.raises(UsageError, match="5 draws does not fill one batch of 6") as caught:
            ask()
        assert "at most 5" in caught.value.hint
    assert EpochSampler(csr_of([[0]] * 5), np.ones((2, 1)), 5, seed=0).lengths().tolist() == [1, 1]


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"seed": -1}, {"is_portrait": np.zeros(79, dtype=bool)}]
)
def test_misuse_is_refused(wrong: dict) -> None:
    frequencies, categories = long_tail(3)
    with pytest.raises(ValueError):
        build_sampler("rfs", frequencies, categories, 2, 0.3, **{"batch_size": 8, "seed": 0, **wrong})


@pytest.mark.parametrize("epoch", [-1, 5])
def test_an_epoch_that_was_not_planned_is_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        drb().draws(epoch)


def test_an_lvis_epoch_is_drawn_in_milliseconds() -> None:
    """100,170 images, 361,000 pairs, 1,203 categories: below 20 ms of processor time."""
    rng = np.random.default_rng(0)
    chance = 1 / (1 + np.arange(1203))
    labels = rng.choice(1203, size=361_000, p=chance / chance.sum())
    pairs = np.unique(rng.integers(99_388, size=361_000) * 1203 + labels)
    images, labels = np.divmod(pairs, 1203)
    categories = ImageCategories(np.searchsorted(images, np.arange(100_171)), labels)
    counts = np.bincount(labels, minlength=1203)
    sampler = build_sampler("drb", frequencies_of(counts, counts * 3, 99_388), categories, 12, 1e-3, 16, 0)
    spent = []
    for _ in range(5):
        begin = time.process_time()
        draws = sampler.draws(11)
        spent.append(time.process_time() - begin)
    assert len(draws) >= 100_170 and min(spent) < 0.020
