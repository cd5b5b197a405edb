"""From a loader process to its consumer: arrays in shared memory, everything else through the pipe.

A DataLoader pickles numpy arrays into a pipe: three copies in 64 KiB pieces, half of them in the process that
trains.  Here a batch's arrays are written once, side by side, into one block of shared memory, which the
consumer's arrays then are; pickle's protocol 5 keeps them apart from the rest.
"""

import os
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

ALIGNMENT = 64  # bytes: a cache line
LEAST = 1 << 18  # bytes: below, opening shared memory takes longer than the pipe
SHARED = "/dev/shm"  # where Linux keeps shared memory


@dataclass(frozen=True)
class Packed:
    """A batch on its way."""

    rest: bytes  # pickled, without the arrays' bytes
    starts: tuple[int, ...]  # of each array in the block
    lengths: tuple[int, ...]  # bytes of each array
    block: Tensor  # uint8, in shared memory


def packed(samples: Any) -> Any:
    """For a DataLoader's `collate_fn`, before `unpacked`: samples with numpy arrays -> what travels.

    Samples stay as they are where they do not travel, where they are small, and where the shared memory left
    does not hold them twice: then the pipe takes them.
    """
    if get_worker_info() is None:
        return samples
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(samples, protocol=5, buffer_callback=buffers.append)
    pieces = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    lengths = tuple(len(piece) for piece in pieces)
    ends = np.cumsum([-(-length // ALIGNMENT) * ALIGNMENT for length in lengths], dtype=np.int64)
    total = int(ends[-1]) if pieces else 0
    if total < LEAST or not _has_room(2 * total):
        return samples
    starts = (0, *ends[:-1].tolist())
    block = torch.tensor([], dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(total))
    shared = block.numpy()
    for piece, start in zip(pieces, starts, strict=True):
        shared[start : start + len(piece)] = piece
    return Packed(rest, starts, lengths, block)


def unpacked(batch: Any) -> Any:
    """What `packed` was given; its arrays lie in shared memory, for as long as one of them lives."""
    if not isinstance(batch, Packed):
        return batch
    shared = batch.block.numpy()
    spans = zip(batch.starts, batch.lengths, strict=True)
    return pickle.loads(batch.rest, buffers=[shared[a : a + n] for a, n in spans])


def _has_room(needed: int) -> bool:
    """Whether shared memory has this many bytes left: a process that writes beyond them is killed."""
    try:
        left = os.statvfs(SHARED)
    except OSError:
        return True  # not Linux's way of sharing: torch reports what is wrong with its own
    return left.f_bavail * left.f_frsize >= needed
