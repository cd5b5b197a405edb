"""The Parquet contract of proposals: columns, metadata, and the checks that every file passes once.

`proposals/part-*.parquet` hold one row per box, sorted by (image_id, score descending) across the parts too;
`images.parquet` lists every image, those without proposals as well.

Shapes: I images in ascending id, P rows of one batch.  Boxes are xyxy float32 in pixels of the stored image.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, first_ten

SCHEMA_VERSION = "1"
METADATA = ("2drcl.schema", "2drcl.source", "2drcl.annotations", "2drcl.weights")
COORDINATES = ("x1", "y1", "x2", "y2")
ROWS = pa.schema([("image_id", pa.int64()), *((c, pa.float32()) for c in (*COORDINATES, "score"))])
IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("num_proposals", pa.int64()),
    ]
)
FEW_BOXES = 10  # up to here, boxes of at most one pixel are believed
RUN_AGAIN = "run `2drcl proposals --fresh` again"


@dataclass(frozen=True)
class Images:
    """`images.parquet` in ascending image id."""

    path: Path
    ids: np.ndarray  # (I,) int64
    sizes_wh: np.ndarray  # (I, 2) int64
    counts: np.ndarray  # (I,) int64 proposals


def read_metadata(paths: list[Path]) -> dict[str, str]:
    """The key-value metadata that all files of one product share.

    Raises:
        InputError: a file is damaged, of another schema, or of another product than the first.
    """
    found = []
    for path in paths:
        with _parquet_errors(path):
            raw = pq.read_metadata(path).metadata or {}
        metadata = {k: raw.get(k.encode(), b"").decode() for k in METADATA}
        version = metadata["2drcl.schema"]
        if version != SCHEMA_VERSION:
            raise InputError(f"{path} has 2drcl.schema={version or 'none'}, not {SCHEMA_VERSION}", RUN_AGAIN)
        found.append(metadata)
        if metadata != found[0]:
            raise InputError(f"{path} and {paths[0]} come from different runs", RUN_AGAIN)
    return found[0]


def read_images(path: Path) -> Images:
    """Read and check `images.parquet`.

    Raises:
        InputError: damaged, wrong columns, no image, an id twice, or a size or count that cannot be.
    """
    names = ["image_id", "width", "height", "num_proposals"]
    batches = list(_batches(path, names, IMAGES))
    if not batches:
        raise InputError(f"{path} lists no image", RUN_AGAIN)
    ids, width, height, counts = (np.concatenate([b[n] for b in batches]) for n in names)
    order = np.argsort(ids, kind="stable")
    images = Images(path, ids[order], np.stack([width, height], axis=1)[order], counts[order])
    again = np.append(False, images.ids[1:] == images.ids[:-1])
    _refuse(again, images.ids, "appear more than once", path)
    impossible = (images.sizes_wh <= 0).any(axis=1) | (images.counts < 0)
    _refuse(impossible, images.ids, "have an empty size or a negative num_proposals", path)
    return images


def checked_rows(parts: list[Path], images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boxes (P, 4) and scores (P,) batch by batch, each checked; the counts are checked after the last.

    Raises:
        InputError: names the file, what is wrong and the first image ids.
    """
    found = np.zeros_like(images.counts)
    last_id, last_score = images.ids[:1] - 1, np.zeros(1, dtype=np.float32)  # before every image
    for path in parts:
        num_rows, farthest = 0, 0.0
        for batch in _batches(path, ROWS.names, ROWS):
            ids, scores = batch["image_id"], batch["score"]
            boxes = np.stack([batch[c] for c in COORDINATES], axis=1)  # 4 x (P,) -> (P, 4)
            starts, lengths = runs(ids)
            position = images.ids.searchsorted(ids[starts]).clip(max=len(images.ids) - 1)
            unknown = np.not_equal(images.ids[position], ids[starts])
            _refuse(unknown, ids[starts], "are not in images.parquet", path)
            check_values(ids, boxes, scores, path)
            limits = images.sizes_wh[position].repeat(lengths, axis=0).T.astype(np.float32)  # (2, P)
            _refuse(_outside(boxes, limits), ids, "have proposals outside the image", path)
            # each row against the row before it, which may lie in another batch or part
            id_before, score_before = np.append(last_id, ids[:-1]), np.append(last_score, scores[:-1])
            unsorted = (ids < id_before) | ((ids == id_before) & (scores > score_before))
            _refuse(unsorted, ids, "are not sorted by (image_id, score descending)", path)
            last_id, last_score = ids[-1:], scores[-1:]
            found[position] += lengths  # sorted, so each run is another image
            num_rows, farthest = num_rows + len(ids), max(farthest, float(boxes[:, 2:].max()))
            yield boxes, scores
        check_units(num_rows, farthest, path)
    _refuse(found != images.counts, images.ids, "have not as many rows as num_proposals says", images.path)


def runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal image ids (P,) begins, and how long it is: two of (runs,) int64."""
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: len(ids)])
    return starts, np.diff(np.append(starts, len(ids)))


def check_values(ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray, path: Path) -> None:
    """Refuse boxes (P, 4) and scores (P,) that are not finite, and boxes turned inside out.

    Raises:
        InputError: names `path` and the first of the image ids (P,).
    """
    # column by column: reducing the short axis of millions of rows takes ten times as long
    x1, y1, x2, y2 = boxes.T
    finite = np.isfinite(scores)
    for column in (x1, y1, x2, y2):
        finite = finite & np.isfinite(column)
    _refuse(~finite, ids, "have proposals that are NaN or infinite", path)
    _refuse((x2 < x1) | (y2 < y1), ids, "have proposals with x2 < x1 or y2 < y1", path)


def check_units(num_rows: int, farthest: float, path: Path) -> None:
    """Refuse a file whose boxes all end within one pixel of the corner: they are fractions of the image.

    Args:
        num_rows: boxes in the file; a few may really be that small.
        farthest: largest x2 or y2 of them.

    Raises:
        InputError: names `path` and what to multiply by.
    """
    if num_rows > FEW_BOXES and farthest <= 1:
        raise InputError(
            f"{path}: x2 and y2 of its {num_rows} boxes are at most {farthest:g}: "
            "looks normalised to [0, 1]; multiply by the image size",
            "boxes are x1, y1, x2, y2 in pixels of the stored image",
        )


def _outside(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(P,) bool: whether boxes (P, 4) leave the image of widths and heights (2, P)."""
    x1, y1, x2, y2 = boxes.T
    found: np.ndarray = (x1 < 0) | (y1 < 0) | (x2 > limits[0]) | (y2 > limits[1])
    return found


def _refuse(bad: np.ndarray, ids: np.ndarray, what: str, path: Path) -> None:
    if bad.any():
        raise InputError(f"{path}: images {first_ten(np.unique(ids[bad]).tolist())} {what}", RUN_AGAIN)


def _batches(path: Path, names: list[str], schema: pa.Schema) -> Iterator[dict[str, np.ndarray]]:
    """The named columns, row group by row group, as arrays of exactly the contract's types."""
    with _parquet_errors(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        present = {f.name: f.type for f in file.schema_arrow}
        wrong = [n for n in names if present.get(n) != schema.field(n).type]
        if wrong:
            kinds = ", ".join(
                f"{n} is {present.get(n, 'missing')}, not {schema.field(n).type}" for n in wrong
            )
            raise InputError(f"{path}: {kinds}", RUN_AGAIN)
        for batch in file.iter_batches(columns=names):
            if any(column.null_count for column in batch.columns):
                raise InputError(f"{path} has empty cells", RUN_AGAIN)
            yield {n: batch.column(n).to_numpy() for n in names}


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{path} is not a whole Parquet file: {problem}", RUN_AGAIN) from None
