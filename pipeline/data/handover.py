"""From a loader process to its consumer: arrays in shared memory, everything else through the pipe.

A DataLoader pickles numpy arrays into a pipe: three copies in 64 KiB pieces, half of them in the process that
trains.  torch's own shared memory is a new block for every tensor: its file descriptor is sent through a
socket, and both processes fault in each of its pages and give them back.  Here each loader has a few places
that it shares with its consumer from its start, and which are used again: a batch's arrays are written side
by side into a free one, which the consumer's arrays then are; pickle's protocol 5 keeps them apart from the
rest.  A place is free when the last of these arrays is gone.

The places have neither names nor files, so that nothing is left of them however their processes end, and
/dev/shm may be as small as a container's.
"""

import ctypes
import mmap
import os
import pickle
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

ALIGNMENT = 64  # bytes: a cache line
LEAST = 1 << 14  # bytes: below, the pipe is as fast
PLACES = 4  # per loader: two batches ahead (DataLoader's prefetch), one in use, one about to be dropped
SIZE = 1 << 30  # bytes of a place: addresses only, memory is taken where a batch has been
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python 3.11 has no name for


@dataclass(frozen=True)
class Packed:
    """A batch on its way."""

    rest: bytes  # pickled, without the arrays' bytes
    starts: tuple[int, ...]  # of each array in its place
    lengths: tuple[int, ...]  # bytes of each array
    place: int


class Handover:
    """For one pass of a DataLoader whose processes are forked after this is made: `packed` is its collate_fn,
    `unpacked` is for what arrives.

    Args:
        loaders: number of loader processes.
    """

    def __init__(self, loaders: int) -> None:
        try:
            self._places = [_shared(SIZE) for _ in range(0 if _are_addresses_memory() else loaders * PLACES)]
        except OSError:  # a limit on addresses: the pipe takes the batches
            self._places = []
        self._taken = _shared(max(1, len(self._places)))  # a byte each: loaders set them, the consumer clears
        self._lease = ctypes.c_uint8 * SIZE

    def __reduce__(self) -> tuple[type["Handover"], tuple[int]]:
        return Handover, (0,)  # what is pickled to a process that is not forked shares no place

    def packed(self, samples: Any) -> Any:
        """Samples with numpy arrays -> what travels.

        Samples stay as they are where they do not travel, where they are small, and where the consumer
        still holds every place: then the pipe takes them.
        """
        info = get_worker_info()
        if info is None:
            return samples
        buffers: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(samples, protocol=5, buffer_callback=buffers.append)
        pieces = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
        lengths = tuple(len(piece) for piece in pieces)
        ends = np.cumsum([-(-length // ALIGNMENT) * ALIGNMENT for length in lengths], dtype=np.int64).tolist()
        place = self._free_place(info.id) if pieces and LEAST <= ends[-1] <= SIZE else None
        if place is None:
            return samples
        starts = (0, *ends[:-1])
        shared = np.frombuffer(self._places[place], dtype=np.uint8)
        for piece, start in zip(pieces, starts, strict=True):
            shared[start : start + len(piece)] = piece
        self._taken[place] = 1
        return Packed(rest, starts, lengths, place)

    def _free_place(self, loader: int) -> int | None:
        """The first: what has been used before is in memory already."""
        mine = range(loader * PLACES, (loader + 1) * PLACES)
        return next((p for p in mine if p < len(self._places) and not self._taken[p]), None)

    def unpacked(self, batch: Any) -> Any:
        """What `packed` was given; its arrays lie in shared memory, for as long as one of them lives."""
        if not isinstance(batch, Packed):
            return batch
        lease = self._lease.from_buffer(self._places[batch.place])  # every array refers to it in the end
        weakref.finalize(lease, _give_back, self._taken, batch.place, os.getpid()).atexit = False
        shared = np.frombuffer(memoryview(lease), dtype=np.uint8)
        spans = zip(batch.starts, batch.lengths, strict=True)
        return pickle.loads(batch.rest, buffers=[shared[a : a + n] for a, n in spans])


def _give_back(taken: mmap.mmap, place: int, consumer: int) -> None:
    """Of the consumer's arrays: those of a process forked from it go too, and say nothing about it."""
    if os.getpid() == consumer:
        taken[place] = 0


def _are_addresses_memory() -> bool:
    """Whether Linux counts what is mapped as if it were in use: then the places would take it from others."""
    return OVERCOMMIT.exists() and OVERCOMMIT.read_text(encoding="ascii").strip() == "2"


def _shared(size: int) -> mmap.mmap:
    """Zeros that this process and those it forks share."""
    return mmap.mmap(-1, size, flags=mmap.MAP_SHARED | NO_RESERVE)
