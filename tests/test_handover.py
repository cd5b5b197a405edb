"""What a loader process hands over arrives as it was: in shared memory, used again, or through the pipe."""

import gc
import os
import pickle
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data import handover
from pipeline.data.handover import PLACES, Handover, Packed
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
    """One of `batches` as a whole."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


@pytest.fixture(autouse=True)
def _small_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "LEAST", 1)


def arriving(exchange: Handover, workers: int, batches: list[Any] = SAMPLES) -> Iterator[Any]:
    """What comes out of the loader, before it is unpacked."""
    return iter(
        DataLoader(Batches(batches), batch_size=None, num_workers=workers, collate_fn=exchange.packed)
    )


def handed_over(workers: int, batches: list[Any] = SAMPLES) -> list[Any]:
    exchange = Handover(workers)
    return [exchange.unpacked(batch) for batch in arriving(exchange, workers, batches)]


def taken(exchange: Handover) -> int:
    return sum(exchange._taken[:])


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
    exchange = Handover(2)
    arrived = list(arriving(exchange, 2))
    assert [type(batch) is Packed for batch in arrived] == [True, True, True, True, False, False]
    assert all(len(batch.rest) < 1500 for batch in arrived[:4])
    assert len({batch.place for batch in arrived[:4]}) == 4  # nothing was dropped: none is used again
    found = [exchange.unpacked(batch) for batch in arrived]
    assert_same(found, SAMPLES)
    image, shared = found[0][1].image, np.frombuffer(exchange._places[arrived[0].place], np.uint8)
    assert np.shares_memory(image, shared)


@pytest.mark.parametrize("kept", ["image", "polygon", "slice", "tensor", "all"])
def test_a_place_is_used_again_only_when_the_last_of_its_arrays_is_gone(kept: str) -> None:
    batches = [[sample(seed % 7), sample(seed % 5)] for seed in range(20)]
    exchange = Handover(1)
    arrived = arriving(exchange, 1, batches)
    first = exchange.unpacked(next(arrived))
    held: Any = {
        "image": first[1].image,
        "polygon": first[0].polygons[0][1],
        "slice": first[0].image[3:5, ::2, 1],
        "tensor": torch.from_numpy(first[0].image)[2:],
        "all": first,
    }[kept]
    del first
    before = pickle.dumps(held)
    places = []
    for number, batch in enumerate(arrived, start=1):
        places.append(batch.place)  # and never the pipe: there is always a free one
        assert_same(exchange.unpacked(batch), batches[number])
    assert pickle.dumps(held) == before and 0 not in places and len(set(places)) < PLACES
    assert taken(exchange) == 1
    del held
    assert taken(exchange) == 0


def test_a_forked_process_that_drops_its_arrays_frees_no_place_of_the_consumer() -> None:
    exchange = Handover(1)
    held = [exchange.unpacked(next(arriving(exchange, 1)))]
    child = os.fork()
    if not child:
        held.clear()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert taken(exchange) >= 1 and exchange._taken[0] == 1
    held.clear()
    assert exchange._taken[0] == 0


def test_what_arrived_may_be_written_to_and_outlives_loader_and_handover() -> None:
    first, second = handed_over(workers=1)[0]
    first.image[:] = 255
    first.polygons[0][1][:] = -1
    gc.collect()
    assert_same(second, sample(1))
    assert_same(first.polygons[0][0], sample(0).polygons[0][0])  # type: ignore[index]
    np.add(second.image, 1, out=second.image)
    np.testing.assert_array_equal(second.image, sample(1).image + 1)


def test_a_consumer_that_holds_every_place_gets_the_rest_through_the_pipe() -> None:
    batches = [[sample(seed)] for seed in range(3 * PLACES)]
    exchange, kinds, found = Handover(1), [], []
    for batch in arriving(exchange, 1, batches):
        kinds.append(type(batch) is Packed)
        found.append(exchange.unpacked(batch))
    assert kinds == [True] * PLACES + [False] * 2 * PLACES
    assert_same(found, batches)


def test_a_consumer_that_holds_two_batches_never_waits_for_the_pipe() -> None:
    batches = [[sample(seed % 7)] for seed in range(30)]
    exchange, held = Handover(2), []
    for number, batch in enumerate(arriving(exchange, 2, batches)):
        assert type(batch) is Packed and batch.place // PLACES == number % 2  # each loader has its own
        held = [*held[-1:], exchange.unpacked(batch)]
        assert_same(held[-1], batches[number])


def test_what_does_not_travel_stays_itself() -> None:
    for found, expected in zip(handed_over(workers=0), SAMPLES, strict=True):
        assert found is expected


@pytest.mark.parametrize("limit", ["LEAST", "SIZE"])
def test_batches_too_small_or_too_large_for_a_place_take_the_pipe(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [sum(s.image.nbytes for s in batch if isinstance(s, Sample)) for batch in SAMPLES[:2]]
    assert sizes[1] + 1000 < sizes[0]
    monkeypatch.setattr(handover, limit, sizes[1] + 1000)
    exchange = Handover(1)
    arrived = list(arriving(exchange, 1))
    assert [type(batch) is Packed for batch in arrived[:2]] == [limit == "LEAST", limit == "SIZE"]
    assert_same([exchange.unpacked(batch) for batch in arrived], SAMPLES)


@pytest.mark.parametrize("reason", ["a process has fewer", "they count as memory"])
def test_without_addresses_the_pipe_takes_it(
    reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if reason == "a process has fewer":
        monkeypatch.setattr(handover, "SIZE", 1 << 50)
    else:
        (tmp_path / "overcommit_memory").write_text("2\n")
        monkeypatch.setattr(handover, "OVERCOMMIT", tmp_path / "overcommit_memory")
    exchange = Handover(1)
    arrived = list(arriving(exchange, 1))
    assert not any(isinstance(batch, Packed) for batch in arrived)
    assert_same(arrived, SAMPLES)


def test_a_process_that_is_not_forked_shares_no_place() -> None:
    copied = pickle.loads(pickle.dumps(Handover(2)))
    assert copied._places == [] and copied._free_place(1) is None


def test_torch_takes_an_array_that_was_handed_over_without_a_copy() -> None:
    image = handed_over(workers=1)[0][0].image
    torch.from_numpy(image)[0, 0, 0] = 77
    assert image[0, 0, 0] == 77


@pytest.mark.parametrize("end", ["to its end", "killed", "given up"])
def test_nothing_is_left_of_the_places(end: str) -> None:
    """Neither files nor memory, also where batches were on their way that nobody took."""
    files, open_files = os.listdir("/dev/shm"), len(os.listdir("/proc/self/fd"))
    exchange = Handover(1)
    places = [weakref.ref(place) for place in exchange._places]
    arrived: Any = arriving(exchange, 1, [[sample(seed % 7)] for seed in range(30)])
    held = exchange.unpacked(next(arrived))
    assert sorted(os.listdir("/dev/shm")) == sorted(files)
    if end == "killed":
        os.kill(arrived._workers[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(arrived)
    elif end == "to its end":
        assert len(list(arrived)) == 29
    del arrived
    assert_same(held, [sample(0)])
    del held, exchange
    gc.collect()
    assert [place() for place in places] == [None] * PLACES
    assert len(os.listdir("/proc/self/fd")) <= open_files + 3  # torch keeps a few of its own
    assert sorted(os.listdir("/dev/shm")) == sorted(files)
