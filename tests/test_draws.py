"""Draws are functions of their numbers: not of workers, processes or where a run was resumed."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pipeline.data.draws import PURPOSES, Draw, GlobalBatches, generator, images_of_step, key_of
from pipeline.data.loading import BatchSource
from pipeline.data.views import canvas_wh, draw_geometry
from pipeline.engine.distributed import Process
from pipeline.engine.schedule import Schedule
from pipeline.errors import InputError

SIZES = np.array([[30, 20], [20, 30], [25, 25], [40, 10], [12, 48]])
STEPS = (3, 4, 6)
BATCH = 4


class TableSampler:
    """Epoch e has STEPS[e] batches of BATCH positions, drawn from a fixed table."""

    def steps(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(100 + epoch)
        return rng.integers(len(SIZES), size=(STEPS[epoch], BATCH))


class Views(Dataset[Any]):
    """Draw -> everything random that a sample is made of, and the pixels of its view."""

    def __getitem__(self, draw: Draw) -> tuple[Any, ...]:  # type: ignore[override]
        width, height = (int(v) for v in SIZES[draw.image])
        pixels = np.random.default_rng(draw.image).integers(0, 256, (height, width, 3)).astype(np.uint8)
        view = draw_geometry((width, height), (16, 24), 40, generator(7, draw, "view_query"), crop=(0.5, 1.0))
        numbers = generator(7, draw, "masks").random(3).tolist()
        return draw, view, view.apply(pixels).tobytes(), key_of(7, draw, "roi_samples"), numbers


class FaultyViews(Views):
    """Image 3 is broken."""

    def __getitem__(self, draw: Draw) -> tuple[Any, ...]:  # type: ignore[override]
        if draw.image == 3:
            raise InputError("image 3.jpg cannot be decoded", "fetch it again")
        return super().__getitem__(draw)


def source(
    workers: int = 0, rank: int = 0, world: int = 1, dataset: Dataset[Any] | None = None
) -> BatchSource:
    return BatchSource(
        dataset or Views(),
        TableSampler(),
        Schedule(STEPS, (), 0.1),
        SIZES,
        (16, 24),
        40,
        process=Process(rank, world, torch.device("cpu")),
        workers=workers,
    )


def batches(start: int = 0, stop: int = sum(STEPS), rank: int = 0, world: int = 1) -> list[list[Draw]]:
    def canvas(images: np.ndarray) -> tuple[int, int]:
        return canvas_wh(SIZES[images], (16, 24), 40)

    found = GlobalBatches(TableSampler(), STEPS, canvas, start=start, stop=stop, rank=rank, world=world)
    listed = list(found)
    assert len(listed) == len(found)
    return listed


def test_generators_repeat_and_differ_between_all_their_numbers() -> None:
    def numbers(seed: int, epoch: int, index: int, purpose: str) -> tuple[float, ...]:
        return tuple(generator(seed, Draw(epoch, index, 9, (1, 1)), purpose).random(2))

    cases = list(itertools.product((0, 1, 2**32), (0, 1), (0, 1, 70_000), PURPOSES))
    found = [numbers(*case) for case in cases]
    assert len(set(found)) == len(cases)
    assert found == [numbers(*case) for case in cases]


def test_generators_do_not_depend_on_image_or_canvas() -> None:
    one, other = Draw(1, 2, 3, (32, 32)), Draw(1, 2, 8, (64, 32))
    assert generator(5, one, "masks").random() == generator(5, other, "masks").random()
    assert key_of(5, one, "roi_samples") == key_of(5, other, "roi_samples")


def test_generators_look_independent() -> None:
    drawn = np.array([generator(0, Draw(0, i, 0, (1, 1)), "view_query").random(2) for i in range(2000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.03)
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.07


def test_generators_are_part_of_the_contract() -> None:
    """Renumbered purposes would change the draws of unfinished runs without a word."""
    draw = Draw(2, 11, 0, (1, 1))
    expected = [np.random.SeedSequence([3, 2, 11, purpose]) for purpose in range(7)]
    for name, sequence in zip(
        ("view_query", "view_key", "roi_samples", "box_choice", "masks", "photo_query", "photo_key"),
        expected,
        strict=True,
    ):
        assert generator(3, draw, name).random() == np.random.Generator(np.random.Philox(sequence)).random()
        assert key_of(3, draw, name) == int(sequence.generate_state(1, np.uint64)[0]) // 4


def test_keys_fit_into_a_torch_seed() -> None:
    keys = [key_of(0, Draw(e, i, 0, (1, 1)), "roi_samples") for e in range(5) for i in range(200)]
    assert len(set(keys)) == len(keys) and min(keys) >= 0 and max(keys) < 2**62
    assert max(keys) > 2**60  # all bits are used
    torch.Generator().manual_seed(max(keys))


def test_batches_follow_the_sampler_with_running_numbers() -> None:
    found = iter(batches())
    for epoch, count in enumerate(STEPS):
        table = TableSampler().steps(epoch)
        for step in range(count):
            draws = next(found)
            assert [d.epoch for d in draws] == [epoch] * BATCH
            assert [d.index for d in draws] == [step * BATCH + i for i in range(BATCH)]
            assert [d.image for d in draws] == table[step].tolist()
            assert {d.canvas_wh for d in draws} == {canvas_wh(SIZES[table[step]], (16, 24), 40)}
    assert next(found, None) is None


def test_images_of_a_step_are_those_of_its_batch() -> None:
    for step, batch in enumerate(batches()):
        assert images_of_step(TableSampler(), STEPS, step).tolist() == [draw.image for draw in batch]
    with pytest.raises(IndexError, match="ends 1 steps before"):
        images_of_step(TableSampler(), STEPS, sum(STEPS))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_of_all_processes_make_up_the_global_batches(world: int) -> None:
    shares = [batches(rank=rank, world=world) for rank in range(world)]
    together = [[d for share in step for d in share] for step in zip(*shares, strict=True)]
    assert together == batches()
    assert {len(step) for share in shares for step in share} == {BATCH // world}


def test_every_part_of_a_run_is_that_part_of_the_whole() -> None:
    whole = batches()
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert batches(start, stop) == whole[start:stop]
    assert batches(5, 3) == []


@pytest.mark.parametrize("world", [1, 2])
def test_samples_do_not_depend_on_workers_resume_or_processes(world: int) -> None:
    whole = list(source()(0))
    assert len(whole) == sum(STEPS) and len({s[4][0] for batch in whole for s in batch}) == len(whole) * BATCH
    parts = [list(source(workers=2, rank=rank, world=world)(5)) for rank in range(world)]
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole[5:]


def test_schedule_budget_ends_the_batches() -> None:
    short = source()
    short.schedule = Schedule(STEPS, (), 0.1, budget=5)
    assert list(short(0)) == list(source()(0))[:5] and list(short(5)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_the_users_one_line_with_its_hint(workers: int) -> None:
    broken_step = next(i for i, batch in enumerate(batches()) if any(d.image == 3 for d in batch))
    loaded = source(workers, dataset=FaultyViews())(0)
    whole = list(itertools.islice(loaded, broken_step))
    assert whole == list(source()(0))[:broken_step]
    with pytest.raises(InputError) as caught:
        next(loaded)
    assert caught.value.message == "image 3.jpg cannot be decoded" and caught.value.hint == "fetch it again"


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(workers: int) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  the global generator is what is tested
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(source(workers)(8))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
