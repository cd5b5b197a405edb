"""Proposals read by the training loop: memory-mapped arrays, made once from the Parquet files.

A random image costs a Parquet reader milliseconds (it decodes a whole row group), a memory map microseconds.
So Parquet is the contract, checked once, while a cache of plain arrays is made from it; later openings
compare digests of the Parquet files, and sizes and times of the arrays.  The pages of a map belong to no
process: however many workers read them, memory holds them once.

Shapes: I images in ascending id, n proposals of one image, P of all.  Boxes are xyxy float32 in pixels of the
stored image.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline import user_cache
from pipeline.artifacts import disk_errors, file_digest, fingerprint, replacing, write_json
from pipeline.errors import EnvironmentProblem, InputError, MismatchedInput, MissingInput
from pipeline.proposals.contract import METADATA, checked_rows, read_images, read_metadata

NAME = re.compile("[0-9a-f]{16}")  # of the cache of one product
_CACHE_FILES = ("image_ids.npy", "offsets.npy", "boxes.npy", "scores.npy")


class ProposalStore:
    """The proposals of one split, read through memory maps; pickles as a path, so workers re-open it.

    Attributes:
        image_ids: (I,) int64, ascending.
        metadata: the key-value metadata of the files (`2drcl.source`, ...).
        digest: 16 digits that change when any byte of the Parquet files does.
    """

    def __init__(self, cached: Path, metadata: dict[str, str], digest: str) -> None:
        self._cached, self.metadata, self.digest = cached, metadata, digest
        # plain views: indexing a numpy.memmap costs several times as much
        maps = {n: np.asarray(np.load(cached / n, mmap_mode="r")) for n in _CACHE_FILES}
        self.image_ids, self._offsets = maps["image_ids.npy"], maps["offsets.npy"]
        self._boxes, self._scores = maps["boxes.npy"], maps["scores.npy"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._cached, self.metadata, self.digest)

    @classmethod
    def open(cls, folder: Path, annotations_digest: str | None, cache: Path | None = None) -> "ProposalStore":
        """Open what `write_proposals` (or another program that keeps the contract) wrote into `folder`.

        Args:
            annotations_digest: SHA-256 of the annotations the caller works with; None accepts any.
            cache: folder for the arrays, by default in the user's cache; safe to delete, and for several
                processes to share.

        Raises:
            MissingInput: there are no proposals.
            MismatchedInput: they were made for other annotations.
            InputError: a file is damaged or breaks the contract; names it and the first image ids.
            EnvironmentProblem: the cache cannot be written.
        """
        parts, images = sorted((folder / "proposals").glob("part-*.parquet")), folder / "images.parquet"
        if not parts or not images.is_file():
            missing = images if parts else folder / "proposals/part-*.parquet"
            raise MissingInput(
                f"{missing} does not exist", "run `2drcl proposals` first, or name --proposals"
            )
        digest = fingerprint({p.name: file_digest(p) for p in [*parts, images]})
        cache = cache or user_cache.folder() / "proposals"
        cached = cache / digest
        metadata = _metadata_of_cache(cached)
        intact = metadata is not None
        if metadata is None:
            metadata = read_metadata([images, *parts])
        _refuse_foreign(folder, metadata, annotations_digest)
        if not intact:
            _make_cache(cached, metadata, parts, images)
        with contextlib.suppress(OSError):  # somebody else's cache can be read, but not marked as used
            os.utime(cached / "cache.json")
        return cls(cached, metadata, digest)

    def __len__(self) -> int:
        return len(self.image_ids)

    def of_image(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) float32 xyxy and scores (n,) float32 of one image, best first; fresh copies.

        Raises:
            InputError: the files do not list the image.
        """
        position = int(self.image_ids.searchsorted(image_id))
        if position == len(self.image_ids) or self.image_ids[position] != image_id:
            raise InputError(f"the proposals do not list image {image_id}", "were they made for this split?")
        rows = slice(self._offsets[position], self._offsets[position + 1])
        return self._boxes[rows].copy(), self._scores[rows].copy()

    @property
    def counts(self) -> np.ndarray:
        """(I,) int64 proposals of each image."""
        return np.diff(self._offsets)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Boxes (n, 4) and scores (n,) of all images, `size` rows at a time; views, not copies."""
        for begin in range(0, len(self._boxes), size):
            yield self._boxes[begin : begin + size], self._scores[begin : begin + size]

    def remarks(self, wanted: int) -> list[str]:
        """How many images have no proposal, or fewer than `wanted`: one sentence each, for the log."""
        counts = self.counts
        none, few = int((counts == 0).sum()), int(((counts > 0) & (counts < wanted)).sum())
        counted = [(none, "no proposal"), (few, f"fewer than {wanted} proposals")]
        return [f"{count} of {len(self)} images have {text}" for count, text in counted if count]


def _refuse_foreign(folder: Path, metadata: dict[str, str], annotations_digest: str | None) -> None:
    made_for = metadata["2drcl.annotations"]
    if annotations_digest is not None and made_for != annotations_digest:
        raise MismatchedInput(
            f"{folder} was made for annotations {made_for[:12]}, but these are {annotations_digest[:12]}",
            "run `2drcl proposals` for these annotations, or name the folder made for them with --proposals",
        )


def _metadata_of_cache(cached: Path) -> dict[str, str] | None:
    """What `_build_cache` noted last, or None unless the arrays are the files that it wrote."""
    try:
        content = json.loads((cached / "cache.json").read_text(encoding="utf-8"))
        intact = content["files"] == _marks(cached)
        return {k: str(content["metadata"][k]) for k in METADATA} if intact else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _marks(cached: Path) -> dict[str, list[int]]:
    """Size and time of last change (ns) of each array: two gigabytes cannot be digested at every opening."""
    found = {n: (cached / n).stat() for n in _CACHE_FILES}
    return {n: [s.st_size, s.st_mtime_ns] for n, s in found.items()}


def _make_cache(cached: Path, metadata: dict[str, str], parts: list[Path], images: Path) -> None:
    """Build the cache, unless another process does so meanwhile; caches that nobody uses any more go.

    Raises:
        InputError: a file is damaged or breaks the contract.
        EnvironmentProblem: the cache cannot be written.
    """
    try:
        with _alone(cached):
            if _metadata_of_cache(cached) is None:  # else another process built it while this one waited
                _build_cache(cached, metadata, parts, images)
        for other in cached.parent.iterdir():
            if NAME.fullmatch(other.name) and user_cache.is_unused(other / "cache.json"):
                shutil.rmtree(other, ignore_errors=True)
    except (OSError, EnvironmentProblem) as problem:
        raise EnvironmentProblem(
            f"proposals are read through a cache, and {cached} cannot be written: {problem}",
            "name a folder for it with the environment variable TWODRCL_CACHE",
        ) from None


@contextlib.contextmanager
def _alone(cached: Path) -> Iterator[None]:
    """Wait until no other process builds this cache; a dead one's hold is gone with it."""
    with disk_errors(cached):
        cached.mkdir(parents=True, exist_ok=True)
        file = (cached / "lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_cache(cached: Path, metadata: dict[str, str], parts: list[Path], images: Path) -> None:
    """Check everything once and write the arrays, a batch at a time; `cache.json`, written last, vouches."""
    listed = read_images(images)
    offsets = np.append(0, np.cumsum(listed.counts))
    with contextlib.ExitStack() as stack:
        files = {n: stack.enter_context(replacing(cached / n)) for n in _CACHE_FILES}
        for name, array in (("image_ids.npy", listed.ids), ("offsets.npy", offsets)):
            with files[name].open("wb") as file:
                np.save(file, array)
        # appended, not mapped: on a full disk a map kills the process, a write raises
        with files["boxes.npy"].open("wb") as boxes_file, files["scores.npy"].open("wb") as scores_file:
            _write_header(boxes_file, (int(offsets[-1]), 4))
            _write_header(scores_file, (int(offsets[-1]),))
            for boxes, scores in checked_rows(parts, listed):
                boxes_file.write(boxes.data)
                scores_file.write(scores.data)
    write_json(cached / "cache.json", {"metadata": metadata, "files": _marks(cached)})


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
