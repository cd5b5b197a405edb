"""Masks of annotations, left in the json until one is wanted.

Polygons are nine tenths of an LVIS file; as Python numbers they would take several gigabytes.  So what is
kept of each is its place in the file, found when the first is asked for; then it is decoded in microseconds.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from pipeline import user_cache
from pipeline.data.json_records import Chunk, stream
from pipeline.errors import InputError


class _Mask(Struct, gc=False):
    segmentation: Raw | UnsetType = UNSET


class Segmentations(Sequence[Any]):
    """(A,) polygons, run-length encodings or None, as in the file.

    Args:
        path: the json; each process opens it for itself.
        file_order: (A,) int64 position in the file of each row.
        digest: of the file.
    """

    def __init__(self, path: Path, file_order: np.ndarray, digest: str) -> None:
        self.path, self.file_order, self.digest = path, file_order, digest

    def __len__(self) -> int:
        return len(self.file_order)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        """The value of one row.

        Raises:
            InputError: the file has changed since its annotations were read.
        """
        if isinstance(row, slice):
            return [self[i] for i in range(len(self))[row]]
        start, length = self._places[:, row].tolist()
        if not length:
            return None
        try:
            return msgspec.json.decode(os.pread(self._file, length, start))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._changed() from None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_file"}

    @functools.cached_property
    def _file(self) -> int:
        """Open as long as the process lives."""
        return os.open(self.path, os.O_RDONLY)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """(2, A) int64: the byte where each begins, and its length; 0 where there is none."""
        if self.path.stat().st_size < user_cache.LARGE:
            places = _find(self.path)
        else:
            name = f"masks-{self.digest[:32]}-1"
            places = user_cache.kept_arrays(name, lambda: {"places": _find(self.path)})["places"]
        if places.shape[1] != len(self):
            raise self._changed()
        return places[:, self.file_order]

    def _changed(self) -> InputError:
        return InputError(f"{self.path} has changed since it was read", "run the command again")


def _find(path: Path) -> np.ndarray:
    """(2, A) begin and length of every mask, in the order of the file."""
    decoders = {"annotations": msgspec.json.Decoder(list[_Mask])}
    return np.concatenate([np.zeros((2, 0), np.int64), *map(_places, stream(path, decoders))], axis=1)


def _places(chunk: Chunk) -> np.ndarray:
    """(2, n) begin and length of the masks in one chunk.

    The decoder leaves a mask's text where it is, inside the chunk's: the distance of two addresses is its
    place.
    """
    before = _address(np.frombuffer(chunk.text, dtype=np.uint8)) - chunk.start
    places = np.zeros((2, len(chunk.records)), np.int64)
    for i, record in enumerate(chunk.records):
        if record.segmentation is not UNSET:
            text = np.frombuffer(record.segmentation, dtype=np.uint8)
            places[:, i] = _address(text) - before, len(text)
    return places


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
