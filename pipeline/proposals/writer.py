"""Writing proposals as Parquet: image by image or in whole stretches, the same bytes either way.

Detectors deliver a hundred boxes at a time, where every numpy call costs more than its work: so rows are only
collected, and checked, sorted and clipped together when a part is full.  Where a part ends depends on the
rows alone, hence so do its bytes.

Shapes: n rows of one call, P of one part.  Boxes are xyxy float32 in pixels of the stored image.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import replacing
from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, first_ten
from pipeline.proposals.contract import (
    COORDINATES,
    IMAGES,
    METADATA,
    ROWS,
    SCHEMA_VERSION,
    check_units,
    check_values,
    runs,
)

ROWS_PER_PART = 4_000_000  # about 65 MB
ROWS_PER_GROUP = 65_536  # the unit of decoding


class ProposalWriter:
    """Writes `proposals/part-*.parquet` and `images.parquet` into `folder`.

    Memory holds one part at a time.  A file appears when it is whole; `images.parquet` comes last, and no
    reader opens a folder without it.
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
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # ids, boxes, scores
        self._num_pending = 0
        self._num_parts = 0
        (folder / "proposals").mkdir(parents=True)

    def add(self, image_id: int, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Append the proposals of one image, in any order; images come in ascending id, each at most once.

        Args:
            boxes: (n, 4) xyxy; what reaches over the border (detectors overshoot by rounding) is cut.
            scores: (n,), of any range; equal ones stay in the order given.

        Raises:
            InputError: the image is unknown; or, when the part is written, a box or score of any image of it
                is not finite or turned inside out, or all boxes look normalised.
        """
        self._begin(np.array([image_id]))
        self._append(np.full(len(boxes), image_id, dtype=np.int64), boxes, scores)

    def add_rows(self, ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Append all rows of several images at once: what `add` does to each of them, vectorised.

        Args:
            ids: (n,) integers, ascending; rows of an image in any order.
            boxes: (n, 4) as for `add`.
            scores: (n,) as for `add`.

        Raises:
            InputError: as `add`.
        """
        assert ids.ndim == 1 and ids.dtype.kind in "iu", f"ids of shape {ids.shape}, type {ids.dtype}"
        if len(ids):
            self._begin(ids[runs(ids)[0]])
            self._append(ids, boxes, scores)

    def close(self) -> None:
        """Write what is pending, and `images.parquet` with every image of the annotations.

        Raises:
            InputError: as `add`, of the images not yet written.
        """
        if self._pending or not self._num_parts:
            self._write_part()
        columns = [self._ids, self._file_names, self._sizes[:, 0], self._sizes[:, 1], self._counts]
        self._write(self._folder / "images.parquet", columns, IMAGES)

    def _begin(self, image_ids: np.ndarray) -> None:
        """Check that images (m,) are known, and come after each other and after those before."""
        positions = self._ids.searchsorted(image_ids)
        unknown = self._ids.take(positions, mode="clip") != image_ids
        if unknown.any():
            missing = first_ten(image_ids[unknown].tolist())
            raise InputError(f"proposals for image {missing}, which the annotations do not list")
        late = np.append(self._last, positions[:-1]) >= positions
        assert not late.any(), f"image {image_ids[late][0]} comes after a larger id, or twice"
        self._last = int(positions[-1])

    def _append(self, ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Collect copies of whole images' rows; write a part with each image that fills one."""
        rows = (ids.astype(np.int64), _float32(boxes).reshape(-1, 4), _float32(scores))
        shapes = [r.shape for r in rows]
        assert shapes == [(len(ids),), (len(ids), 4), (len(ids),)], f"rows of shapes {shapes}"
        begin = 0
        while begin < len(ids):
            full = begin + self._rows_per_part - self._num_pending  # a part may end here or later
            end = len(ids) if full > len(ids) else int(ids.searchsorted(ids[full - 1], side="right"))
            self._pending.append((rows[0][begin:end], rows[1][begin:end], rows[2][begin:end]))
            self._num_pending += end - begin
            begin = end
            if self._num_pending >= self._rows_per_part:
                self._write_part()

    def _write_part(self) -> None:
        empty = (np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        ids, boxes, scores = (np.concatenate(c) for c in zip(empty, *self._pending, strict=True))
        self._pending, self._num_pending = [], 0
        path = self._folder / "proposals" / f"part-{self._num_parts:05d}.parquet"
        check_values(ids, boxes, scores, path)
        check_units(len(ids), boxes[:, 2:].max(initial=0), path)
        starts, lengths = runs(ids)
        positions = self._ids.searchsorted(ids[starts])
        self._counts[positions] = lengths
        order = best_first(np.arange(len(starts)).repeat(lengths), scores)
        limits = self._sizes[positions].repeat(lengths, axis=0).astype(np.float32)  # (images, 2) -> (P, 2)
        # `order` stays within images, so `limits` fit sorted rows too
        columns = [np.clip(boxes[order, k], 0, limits[:, k % 2]) for k in range(4)]
        self._write(path, [ids, *columns, scores[order]], ROWS)
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


def _float32(values: np.ndarray) -> np.ndarray:
    """A copy: the caller may use its array again.  What overflows becomes infinite, refused when written."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def best_first(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(P,) stable order by group ascending, then score descending: as `lexsort((-scores, groups))`.

    One 64-bit key sorts ten times as fast as two columns.

    Args:
        groups: (P,) int64 in [0, 2^32), ascending.
        scores: (P,) float32, finite.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 equals 0
    # IEEE floats order as their bits do, negative ones backwards; ours shall descend
    descending = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    key = groups.astype(np.uint64) << np.uint64(32) | descending
    return np.argsort(key, kind="stable")


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
