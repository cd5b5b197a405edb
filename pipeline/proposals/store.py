"""Proposals on disk: Parquet between programs, memory-mapped arrays for the training loop.

A random image costs a Parquet reader milliseconds (it decodes a whole row group), a memory map microseconds.
So Parquet is the contract, checked once, while a cache of plain arrays is made from it; later openings only
compare digests.  Rows are sorted by (image_id, score descending), across the parts too: an image is a slice.

Shapes: I images in ascending id, n proposals of one image, P of all.  Boxes are xyxy float32 in pixels of the
stored image.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import file_digest, fingerprint, replacing, write_json
from pipeline.data.annotations import Annotations
from pipeline.data.boxes import clip
from pipeline.errors import InputError, MismatchedInput, MissingInput
from pipeline.proposals.contract import (
    COORDINATES,
    IMAGES,
    METADATA,
    ROWS,
    SCHEMA_VERSION,
    check_values,
    checked_rows,
    read_images,
    read_metadata,
)

ROWS_PER_PART = 4_000_000  # about 65 MB
ROWS_PER_GROUP = 65_536  # the unit of decoding


class ProposalWriter:
    """Writes `proposals/part-*.parquet` and `images.parquet` into `folder`, image by image.

    Memory holds one part at a time; the same content gives the same bytes.
    """

    def __init__(
        self,
        folder: Path,
        annotations: Annotations,
        source: str,
        weights_digest: str,
        rows_per_part: int = ROWS_PER_PART,
    ) -> None:
        values = (SCHEMA_VERSION, source, annotations.digest, weights_digest)
        self._metadata = dict(zip(METADATA, values, strict=True))
        self._folder, self._rows_per_part = folder, rows_per_part
        order = np.argsort(annotations.image_ids)
        self._ids, self._sizes = annotations.image_ids[order], annotations.sizes_wh[order]
        self._file_names = [annotations.file_names[i] for i in order]
        self._counts = np.zeros(len(self._ids), dtype=np.int64)
        self._last = -1  # position of the image added last
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # ids, boxes, scores per image
        self._num_pending = 0
        self._num_parts = 0
        (folder / "proposals").mkdir(parents=True)

    def add(self, image_id: int, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Append the proposals of one image, in any order; images come in ascending id, each at most once.

        Args:
            boxes: (n, 4) xyxy; what reaches over the border (detectors overshoot by rounding) is cut.
            scores: (n,).

        Raises:
            InputError: the image is unknown, or a box or score is not finite or turned inside out.
        """
        position = int(np.searchsorted(self._ids, image_id))
        if position == len(self._ids) or self._ids[position] != image_id:
            raise InputError(f"proposals for image {image_id}, which the annotations do not list")
        assert position > self._last, f"image {image_id} comes after a larger id, or twice"
        boxes, scores = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32)
        assert scores.shape == (len(boxes),), f"{len(boxes)} boxes, but scores of shape {scores.shape}"
        order = np.argsort(-scores, kind="stable")
        boxes, scores = boxes[order], scores[order]
        ids = np.full(len(boxes), image_id, dtype=np.int64)
        check_values(ids, boxes, scores, self._folder)
        width, height = self._sizes[position].tolist()
        self._pending.append((ids, clip(boxes, width, height), scores))
        self._last, self._counts[position] = position, len(boxes)
        self._num_pending += len(boxes)
        if self._num_pending >= self._rows_per_part:
            self._write_part()

    def close(self) -> None:
        """Write what is pending, and `images.parquet` with every image of the annotations."""
        if self._pending or not self._num_parts:
            self._write_part()
        columns = [self._ids, self._file_names, self._sizes[:, 0], self._sizes[:, 1], self._counts]
        self._write(self._folder / "images.parquet", columns, IMAGES)

    def _write_part(self) -> None:
        empty = (np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        ids, boxes, scores = (np.concatenate(c) for c in zip(empty, *self._pending, strict=True))
        path = self._folder / "proposals" / f"part-{self._num_parts:05d}.parquet"
        self._write(path, [ids, *boxes.T, scores], ROWS)
        self._pending, self._num_pending = [], 0
        self._num_parts += 1

    def _write(self, path: Path, columns: list[Any], schema: pa.Schema) -> None:
        with replacing(path) as temporary:
            pq.write_table(
                pa.table(columns, schema=schema.with_metadata(self._metadata)),
                temporary,
                row_group_size=ROWS_PER_GROUP,
                compression="zstd",
                use_dictionary=[n for n in ("image_id", "file_name") if n in schema.names],
                use_byte_stream_split=[n for n in (*COORDINATES, "score") if n in schema.names],
                write_page_checksum=True,
            )


def write_proposals(
    folder: Path,
    annotations: Annotations,
    boxes_per_image: Mapping[int, tuple[np.ndarray, np.ndarray]]
    | Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]],
    source: str,
    weights_digest: str,
    rows_per_part: int = ROWS_PER_PART,
) -> None:
    """Write the proposals of a whole split; images that are not mentioned have none.

    Args:
        folder: gets `proposals/part-*.parquet` and `images.parquet`; must not hold proposals yet.
        boxes_per_image: image id -> (boxes (n, 4), scores (n,)); an iterable of such pairs is streamed and
            must come in ascending image id, a mapping may be in any order.
        source: what made the boxes, e.g. "oln".
        weights_digest: SHA-256 of the weights that made them.

    Raises:
        InputError: see `ProposalWriter.add`.
    """
    writer = ProposalWriter(folder, annotations, source, weights_digest, rows_per_part)
    if isinstance(boxes_per_image, Mapping):
        boxes_per_image = sorted(boxes_per_image.items(), key=lambda pair: pair[0])
    for image_id, (boxes, scores) in boxes_per_image:
        writer.add(image_id, boxes, scores)
    writer.close()


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
    def open(cls, folder: Path, annotations_digest: str | None, cache: Path) -> "ProposalStore":
        """Open what `write_proposals` (or another program that keeps the contract) wrote into `folder`.

        Args:
            annotations_digest: SHA-256 of the annotations the caller works with; None accepts any.
            cache: folder for the arrays; safe to delete, and for several processes to share.

        Raises:
            MissingInput: there are no proposals.
            MismatchedInput: they were made for other annotations.
            InputError: a file is damaged or breaks the contract; names it and the first image ids.
        """
        parts = sorted((folder / "proposals").glob("part-*.parquet"))
        if not parts or not (folder / "images.parquet").is_file():
            missing = folder / ("images.parquet" if parts else "proposals/part-*.parquet")
            raise MissingInput(
                f"{missing} does not exist", "run `2drcl proposals` first, or name --proposals"
            )
        digests = {p.name: file_digest(p) for p in [*parts, folder / "images.parquet"]}
        digest = fingerprint(digests)
        cached = cache / digest
        metadata = _metadata_of_cache(cached)
        intact = metadata is not None
        if metadata is None:
            metadata = read_metadata([folder / "images.parquet", *parts])
        _refuse_foreign(folder, metadata, annotations_digest)
        if not intact:
            _build_cache(cached, metadata, parts, folder / "images.parquet")
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


_CACHE_FILES = ("image_ids.npy", "offsets.npy", "boxes.npy", "scores.npy")


def _refuse_foreign(folder: Path, metadata: dict[str, str], annotations_digest: str | None) -> None:
    made_for = metadata["2drcl.annotations"]
    if annotations_digest is not None and made_for != annotations_digest:
        raise MismatchedInput(
            f"{folder} was made for annotations {made_for[:12]}, but these are {annotations_digest[:12]}",
            "run `2drcl proposals` for these annotations, or name the folder made for them with --proposals",
        )


def _metadata_of_cache(cached: Path) -> dict[str, str] | None:
    """What `_build_cache` noted last, or None unless every byte of the arrays is as it wrote them."""
    try:
        content = json.loads((cached / "cache.json").read_text(encoding="utf-8"))
        intact = all(content["files"][n] == file_digest(cached / n) for n in _CACHE_FILES)
        return {k: str(content["metadata"][k]) for k in METADATA} if intact else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def _build_cache(cached: Path, metadata: dict[str, str], parts: list[Path], images: Path) -> None:
    """Check everything once and write the arrays; `cache.json`, written last, vouches for them."""
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
                boxes_file.write(boxes.tobytes())
                scores_file.write(scores.tobytes())
    digests = {n: file_digest(cached / n) for n in _CACHE_FILES}
    write_json(cached / "cache.json", {"metadata": metadata, "files": digests})


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
