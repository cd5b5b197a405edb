"""What a loader process hands over arrives as it was: in shared memory, or through the pipe."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data import handover
from pipeline.data.handover import Packed, packed, unpacked
from pipeline.errors import InputError


@dataclass(frozen=True)
class Sample:
    image: np.ndarray
    polygons: list[list[np.ndarray]] | None
    name: str


def sample(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (30 + seed, 41, 3)).astype(np.uint8)
    corners = rng.random(30)
    views = [[corners[:7], corners[7:30]], []]
    return Sample(image, views, f"number {seed}")


SAMPLES: list[Any] = [
    [sample(0), sample(1)],
    [InputError("image 3.jpg cannot be decoded", "fetch it again"), sample(2)],
    [np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros((0, 4)), np.arange(20)[::3], np.float32(2.5)],
    [np.array([True, False])[:, None], np.zeros((2, 0, 3), np.uint8), np.array(7)],
    [],
    ["no array"],
]


class Batches(Dataset[Any]):
    """One of SAMPLES as a whole."""

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, index: int) -> Any:
        return SAMPLES[index]


@pytest.fixture(autouse=True)
def _small_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "LEAST", 1)


def handed_over(workers: int) -> list[Any]:
    return list(DataLoader(Batches(), batch_size=None, num_workers=workers, collate_fn=packed))


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, expected, strict=True)
    elif isinstance(expected, Sample | InputError):
        assert_same(vars(found), vars(expected))
    elif isinstance(expected, dict):
        assert_same(list(found.items()), list(expected.items()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def test_arrays_arrive_in_shared_memory_as_they_were() -> None:
    arrived = handed_over(workers=2)
    assert [type(batch) is Packed for batch in arrived] == [True, True, True, True, False, False]
    for batch in arrived[:4]:
        assert batch.block.is_shared() and len(batch.rest) < 1500
    found = [unpacked(batch) for batch in arrived]
    assert_same(found, SAMPLES)
    image, block = found[0][1].image, arrived[0].block
    assert image.base is not None and np.shares_memory(image, block.numpy())
    del arrived, block
    image += 1  # the memory lives as long as its arrays
    np.testing.assert_array_equal(image, sample(1).image + 1)


def test_arrays_of_a_batch_do_not_overlap() -> None:
    first, second = unpacked(handed_over(workers=1)[0])
    first.image[:] = 255
    first.polygons[0][1][:] = -1
    assert_same(second, sample(1))
    assert_same(first.polygons[0][0], sample(0).polygons[0][0])  # type: ignore[index]


def test_what_does_not_travel_stays_itself() -> None:
    for found, expected in zip(handed_over(workers=0), SAMPLES, strict=True):
        assert unpacked(found) is expected


def test_small_batches_take_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [sum(s.image.nbytes for s in batch if isinstance(s, Sample)) for batch in SAMPLES[:2]]
    assert sizes[1] + 1000 < sizes[0]
    monkeypatch.setattr(handover, "LEAST", sizes[1] + 1000)
    found = handed_over(workers=1)
    assert [type(batch) is Packed for batch in found[:3]] == [True, False, False]
    assert_same(found[1], SAMPLES[1])


def test_without_room_the_pipe_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handover._has_room(1) and not handover._has_room(2**60)
    monkeypatch.setattr(handover, "SHARED", "/proc")  # a file system that never has room
    assert not handover._has_room(1)
    found = handed_over(workers=1)
    assert not any(isinstance(batch, Packed) for batch in found)
    assert_same(found[:2], SAMPLES[:2])


def test_torch_takes_an_array_that_was_handed_over_without_a_copy() -> None:
    image = unpacked(handed_over(workers=1)[0])[0].image
    torch.from_numpy(image)[0, 0, 0] = 77
    assert image[0, 0, 0] == 77
