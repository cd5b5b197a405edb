"""Proposals while they are made: one Parquet file for each fixed run of images, in a scratch folder.

The images in ascending id are cut into chunks of `CHUNK`, whatever the number of processes, and a chunk's
content depends on nothing but its images.  So processes share the chunks out, a killed run continues with
those that are missing, and the product, which is the chunks one after another, is the same to the byte.

Shapes: I images, n rows of one chunk.  Boxes are xyxy float32 in pixels of the stored image.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import disk_errors, fingerprint, replacing
from pipeline.errors import InputError
from pipeline.proposals.contract import COORDINATES, ROWS

LOG = logging.getLogger(__name__)
CHUNK = 128  # images; a multiple of detected.BATCH: what a kill can cost each process
MARK = "2drcl.chunk"
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids (n,), boxes (n, 4), scores (n,)


class ChunkFolder:
    """The chunks of one split.

    Args:
        folder: where they lie.
        image_ids: (I,) in any order.
        origin: what made the boxes; chunks of another origin are not this run's.
        size: images of a chunk.
    """

    def __init__(self, folder: Path, image_ids: np.ndarray, origin: str, size: int = CHUNK) -> None:
        self.folder, self.image_ids, self.origin, self.size = folder, image_ids, origin, size
        self._order = np.argsort(image_ids, kind="stable")
        self._number = np.empty(len(image_ids), dtype=np.int64)
        self._number[self._order] = np.arange(len(image_ids)) // size

    def __len__(self) -> int:
        return -(-len(self._order) // self.size)

    def positions(self, number: int) -> list[int]:
        """Positions of the images of a chunk, by ascending image id."""
        found: list[int] = self._order[number * self.size : (number + 1) * self.size].tolist()
        return found

    def ids(self, number: int) -> np.ndarray:
        """Ascending ids of the images of a chunk."""
        return self.image_ids[self.positions(number)]

    def number_of(self, position: int) -> int:
        """The chunk that the image at `position` is in."""
        return int(self._number[position])

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """Numbers of the chunks that process `rank` of `world` has yet to make."""
        return [n for n in range(rank, len(self), world) if not self._path(n).exists()]

    def num_done(self, rank: int, world: int) -> int:
        """Images in the chunks that process `rank` of `world` need not make any more."""
        left = set(self.missing(rank, world))
        return sum(len(self.positions(n)) for n in range(rank, len(self), world) if n not in left)

    def discard_damaged(self) -> None:
        """Remove, loudly, chunks that cannot be read whole or are not this run's: they are made again."""
        for number in range(len(self)):
            if self._path(number).exists():
                try:
                    self.read(number)
                except InputError as problem:
                    LOG.warning("%s: made again", problem)
                    self._path(number).unlink()

    def write(self, number: int, ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Write one chunk, whole or not at all; ids (n,) ascending, boxes (n, 4), scores (n,).

        Raises:
            EnvironmentProblem: the disk is full or the folder cannot be written.
        """
        columns = [ids, *boxes.T, scores]  # (n, 4) -> 4 x (n,)
        table = pa.table(columns, schema=ROWS.with_metadata({MARK: self._mark(number)}))
        path = self._path(number)
        with replacing(path) as temporary:
            pq.write_table(
                table, temporary, compression="none", use_dictionary=["image_id"], write_page_checksum=True
            )

    def read(self, number: int) -> Rows:
        """Rows of one chunk.

        Raises:
            InputError: it is absent, damaged or not this run's.
        """
        path = self._path(number)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
        except (pa.ArrowException, OSError) as problem:
            raise InputError(
                f"{path} is not a whole Parquet file: {problem}", "run the command again"
            ) from None
        if (table.schema.metadata or {}).get(MARK.encode()) != self._mark(number).encode():
            raise InputError(f"{path} was made by another run", "run the command again")
        ids, *sides, scores = (table[name].to_numpy() for name in ("image_id", *COORDINATES, "score"))
        return ids, np.stack(sides, axis=1), scores  # 4 x (n,) -> (n, 4)

    def __iter__(self) -> Iterator[Rows]:
        """Rows of all chunks, in order."""
        return (self.read(number) for number in range(len(self)))

    def _mark(self, number: int) -> str:
        return fingerprint({"origin": self.origin, "images": self.ids(number).tolist()})

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.parquet"


class Tally:
    """How many images each process has done: for the progress line, and the sign that it is alive.

    Args:
        folder: shared by the processes.
        rank, world: of this process.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder, self.rank = folder, rank
        self._known = [0] * world

    def clear(self) -> None:
        """Forget what an earlier run noted, before any process notes anything."""
        for path in self.folder.glob("done-*"):
            path.unlink()

    def note(self, done: int) -> None:
        """Say how many images this process has done."""
        path = self._path(self.rank)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{done}\n")

    def of_all(self) -> list[int]:
        """Images done by each process, as far as they said."""
        for rank, before in enumerate(self._known):
            with contextlib.suppress(OSError, ValueError):  # not there yet, or being written
                self._known[rank] = max(before, int(self._path(rank).read_text()))
        return list(self._known)

    def _path(self, rank: int) -> Path:
        return self.folder / f"done-{rank}"
