"""COCO's json and COCO-LT: in as columns of ids, out as the same text without the records that do not stay.

The file is streamed twice, so memory does not grow with its polygons.  Everything that is no image and no
annotation (info, licenses, categories, the order of the keys) is copied byte by byte, and so is every record.

Shapes: I images, A annotations, both in file order.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from pipeline.data import id_lookup
from pipeline.data.coco_lt import TRAIN2017, Columns, Id, Selection
from pipeline.data.coco_lt_counts import PublishedSplit
from pipeline.data.json_records import stream
from pipeline.errors import InputError, MismatchedInput, first_ten

BLOCK = 2**20  # bytes copied at once


class _Image(msgspec.Struct, gc=False):
    id: Id


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: str


class _Annotation(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    iscrowd: int | None = None


DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "images": msgspec.json.Decoder(list[_Image]),
    "categories": msgspec.json.Decoder(list[_Category]),
    "annotations": msgspec.json.Decoder(list[_Annotation]),
}


def read_columns(path: Path, published: PublishedSplit) -> Columns:
    """Read what decides about each annotation.

    Raises:
        MissingInput: no such file.
        InputError: not JSON, not COCO, ids repeat or point nowhere.
        MismatchedInput: its categories are not those of `published`, by id and name.
    """
    columns: dict[str, list[np.ndarray]] = {key: [] for key in DECODERS}
    names: list[str] = []
    for chunk in stream(path, DECODERS):
        columns[chunk.key].append(_columns_of(chunk.key, chunk.records))
        if chunk.key == "categories":
            names += [record.name for record in chunk.records]
    images, categories, annotations = (_joined(columns[key]) for key in DECODERS)
    for what, rows in (("image", images), ("category", categories), ("annotation", annotations)):
        _refuse_repeated(path, what, rows[:, 0])
    _check_categories(path, dict(zip(categories[:, 0].tolist(), names, strict=True)), published)
    ids = annotations[:, 0]
    return Columns(
        path=path,
        image_ids=images[:, 0],
        annotation_ids=ids,
        images=_positions(path, "image", annotations[:, 1], images[:, 0], ids),
        labels=_positions(path, "category", annotations[:, 2], published.category_ids, ids),
        is_crowd=annotations[:, 3] == 1,
    )


def write_split(columns: Columns, selection: Selection, path: Path) -> None:
    """Write the split: the images that keep an annotation, and the annotations that stay.

    Args:
        columns: of the file that is copied.
        selection: what stays; at least one annotation.
        path: the json to write.
    """
    has_any = np.zeros(len(columns.image_ids), dtype=bool)
    has_any[columns.images[selection.keep]] = True
    masks = {"images": has_any, "annotations": selection.keep}
    decoder = msgspec.json.Decoder(list[msgspec.Raw])
    with columns.path.open("rb") as source, path.open("wb") as out:
        key, copied, separator = "", 0, b""
        for chunk in stream(columns.path, dict.fromkeys(masks, decoder)):
            if chunk.key != key:
                _copy(source, out, copied, chunk.start + 1)  # up to and with the bracket that opens the list
                key, separator = chunk.key, b""
            stay = masks[key][chunk.first : chunk.first + len(chunk.records)].tolist()
            kept = [bytes(record) for record, is_kept in zip(chunk.records, stay, strict=True) if is_kept]
            if kept:
                out.write(separator + b",".join(kept))
                separator = b","
            copied = chunk.start + len(chunk.text) - 1
        _copy(source, out, copied, columns.path.stat().st_size)


def _copy(source: BinaryIO, out: BinaryIO, begin: int, end: int) -> None:
    """Append the bytes [begin, end) of `source`."""
    source.seek(begin)
    while begin < end:
        block = source.read(min(BLOCK, end - begin))
        assert block, "the file became shorter"
        out.write(block)
        begin += len(block)


def _columns_of(key: str, records: list[Any]) -> np.ndarray:
    """(N, 4) int64 of annotations: id, image, category, crowd; (N, 1) of others: id."""
    if key != "annotations":
        return _table(((r.id,) for r in records), 1)
    return _table(((r.id, r.image_id, r.category_id, r.iscrowd == 1) for r in records), 4)


def _table(rows: Iterable[tuple[int, ...]], width: int) -> np.ndarray:
    return np.fromiter((v for row in rows for v in row), dtype=np.int64).reshape(-1, width)  # (N*W) -> (N, W)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, 4), dtype=np.int64)


def _refuse_repeated(path: Path, what: str, ids: np.ndarray) -> None:
    if not len(ids):
        raise InputError(f"{path} has no {what} at all", TRAIN2017)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        repeated = values[counts > 1].tolist()
        raise InputError(f"{path}: {what} ids appear more than once: {first_ten(repeated)}")


def _check_categories(path: Path, found: dict[int, str], published: PublishedSplit) -> None:
    expected = {c.category_id: c.name for c in published.classes}
    differ = sorted(i for i in found.keys() | expected.keys() if found.get(i) != expected.get(i))
    if differ:
        shown = [f"{i} is {found.get(i, 'missing')}, not {expected.get(i, 'there')}" for i in differ]
        raise MismatchedInput(f"{path} has other categories than COCO-LT: {first_ten(shown)}", TRAIN2017)


def _positions(
    path: Path, what: str, wanted: np.ndarray, known: np.ndarray, annotation_ids: np.ndarray
) -> np.ndarray:
    """(A,) int64 positions of the ids `wanted` (A,) in `known`."""
    found = id_lookup.positions(wanted, known)
    bad = annotation_ids[found == id_lookup.UNKNOWN]
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} annotations name an unknown {what}_id: {first_ten(bad.tolist())}"
        )
    return found
