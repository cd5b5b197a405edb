"""From a COCO or LVIS json to columns, in one pass over the file and in bounded memory.

Shapes: I images in the file's order, C categories in ascending id, A annotations by image and, within an
image, in the file's order.
"""

import contextlib
import gc
import hashlib
import itertools
import logging
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from pipeline import user_cache
from pipeline.data import annotation_records as fields
from pipeline.data import id_lookup
from pipeline.data.annotation_records import AnnotationRecord, ImageRecord
from pipeline.data.boxes import are_corners, corner_votes
from pipeline.data.json_records import Chunk, stream
from pipeline.data.twin_keys import TwinKeys
from pipeline.errors import InputError, first_ten

LOG = logging.getLogger(__name__)


def parsed(path: Path, digest: str) -> dict[str, Any]:
    """As `parse`; a large file is parsed once, then its columns are kept in the user's cache.

    Raises:
        MissingInput, InputError: see `read_annotations`.

    Args:
        digest: of the file.
    """
    if path.stat().st_size < user_cache.LARGE:
        return parse(path)
    name = f"annotations-{digest[:32]}-{_own_digest()}"

    def read() -> dict[str, np.ndarray]:
        LOG.info(
            "reading %s, %.0f MB; the next time its columns are at hand", path, path.stat().st_size / 1e6
        )
        return _as_arrays(parse(path))

    columns: dict[str, Any] = user_cache.kept_arrays(name, read)
    texts = msgspec.json.decode(columns.pop("texts").tobytes())
    return columns | texts


def _own_digest() -> str:
    """Of the modules that decide what the columns are: columns that another version kept are not these."""
    sources = [Path(module) for module in (__file__, fields.__file__, id_lookup.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


def _as_arrays(columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns that are lists, as the bytes of one JSON text."""
    arrays = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
    texts = {name: column for name, column in columns.items() if name not in arrays}
    return arrays | {"texts": np.frombuffer(msgspec.json.encode(texts), dtype=np.uint8)}


def parse(path: Path) -> dict[str, Any]:
    """Every column of `Annotations`, and `file_order` (A,) int64: each row's position in the file.

    Raises:
        MissingInput, InputError: see `read_annotations`.
    """
    images, categories = _Images(path), _Categories(path)
    annotations = _Annotations(path)
    parts: dict[str, _Images | _Categories | _Annotations] = {
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }
    twins = TwinKeys(path)
    with _no_garbage_collection():
        for chunk in stream(path, fields.DECODERS, fields.explain(path)):
            twins.refuse(chunk)
            parts[chunk.key].add(chunk)
    if not images.ids or not categories.records:
        raise InputError(
            f"{path} has {len(images.ids)} images and {len(categories.records)} categories: nothing to do"
        )
    found = images.columns() | categories.columns()
    return found | annotations.columns(found["image_ids"], found["sizes_wh"], found["category_ids"])


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A million records hold no cycles; looking for some takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Images:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.names: list[str] = []
        self.federated: list[tuple[list[int] | UnsetType, list[int] | UnsetType]] = []

    def add(self, chunk: Chunk) -> None:
        """Append the images of one chunk."""
        records: list[ImageRecord] = chunk.records
        self.ids += [r.id for r in records]
        self.sizes += [(r.width, r.height) for r in records]
        self.names += fields.file_names([(r.id, r.file_name, r.coco_url) for r in records], self.path)
        self.federated += [(r.neg_category_ids, r.not_exhaustive_category_ids) for r in records]

    def columns(self) -> dict[str, Any]:
        """The columns of the images."""
        lacking = [i for i, both in zip(self.ids, self.federated, strict=True) if UNSET in both]
        columns = list(zip(*self.federated, strict=True)) if not lacking else [None, None]
        _refuse_shared(self.names, self.ids, self.path)
        return {
            "image_ids": _unique(self.ids, "image", self.path),
            "file_names": self.names,
            "sizes_wh": np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            "neg_category_ids": columns[0] and list(columns[0]),
            "not_exhaustive_category_ids": columns[1] and list(columns[1]),
            "half_federated": lacking if len(lacking) < len(self.ids) else [],
        }


class _Categories:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def add(self, chunk: Chunk) -> None:
        """Append the categories of one chunk."""
        fields.check_ids(chunk.records, "category", chunk.first, self.path)
        self.records += chunk.records

    def columns(self) -> dict[str, Any]:
        """The columns of the categories."""
        ids = _unique([r["id"] for r in self.records], "category", self.path)
        records = [self.records[i] for i in np.argsort(ids)]
        return {
            "category_ids": np.sort(ids),
            "category_names": fields.category_names(records, self.path),
            "frequency": fields.frequency_letters(records, self.path),
        }


class _Annotations:
    """Arrays of each chunk; the json's numbers are gone when the next one is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, list[np.ndarray]] = {
            "ids": [np.zeros(0, np.int64)],
            "images": [np.zeros(0, np.int64)],
            "categories": [np.zeros(0, np.int64)],
            "xywh": [np.zeros((0, 4))],
            "areas": [np.zeros(0)],
            "crowds": [np.zeros(0, bool)],
        }

    def add(self, chunk: Chunk) -> None:
        """Append the annotations of one chunk."""
        records: list[AnnotationRecord] = chunk.records
        ids = _whole(r.id for r in records)
        numbers = itertools.chain.from_iterable(r.bbox for r in records)
        columns = {
            "ids": ids,
            "images": _whole(r.image_id for r in records),
            "categories": _whole(r.category_id for r in records),
            "xywh": np.fromiter(numbers, np.float64, 4 * len(records)).reshape(-1, 4),
            "areas": np.array([r.area for r in records], dtype=np.float64),  # None is NaN
            "crowds": fields.check_crowd_flags([r.iscrowd for r in records], ids, self.path),
        }
        for name, column in columns.items():
            self.parts[name].append(column)

    def columns(
        self, image_ids: np.ndarray, sizes_wh: np.ndarray, category_ids: np.ndarray
    ) -> dict[str, Any]:
        """The columns of the annotations, with positions for ids."""
        found = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        ids = _unique(found["ids"], "annotation", self.path)
        images = _positions(found["images"], image_ids, "image_id", ids, self.path)
        labels = _positions(found["categories"], category_ids, "category_id", ids, self.path)
        boxes = fields.boxes_xyxy(found["xywh"], ids, self.path)
        _refuse_corners(found["xywh"], sizes_wh[images], ids, self.path)
        order = np.argsort(images, kind="stable")
        return {
            "annotation_ids": ids[order],
            "box_images": images[order],
            "labels": labels[order],
            "boxes": boxes[order],
            "areas": found["areas"][order],
            "is_crowd": found["crowds"][order],
            "file_order": order,
        }


def _refuse_shared(names: list[str], ids: list[int], path: Path) -> None:
    """Refuse two images of one file: they would count twice, and may lie on both sides of a split."""
    paths = [posixpath.normpath(name) for name in names]  # ./a.jpg is a.jpg
    first = dict(zip(reversed(paths), reversed(ids), strict=True))  # path -> the first image that has it
    shared = [i for i, name in zip(ids, paths, strict=True) if first[name] != i]
    if shared:
        raise InputError(
            f"{path}: images {first_ten(shared)} have the file_name of an image before them",
            "keep one image record per file",
        )


def _whole(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _refuse_corners(xywh: np.ndarray, sizes_wh: np.ndarray, ids: np.ndarray, path: Path) -> None:
    """Refuse boxes that are corners (x1, y1, x2, y2), to judge by all of them."""
    votes = corner_votes(xywh, sizes_wh)
    if are_corners(votes.sum(axis=0), len(ids)):
        is_outside = votes[:, 0]
        raise InputError(
            f"{path}: bbox looks like x1, y1, x2, y2: read as x, y, width, height, {is_outside.mean():.0%} "
            f"of the boxes leave their image, such as annotations {first_ten(ids[is_outside].tolist())}",
            "write x, y, width, height",
        )


def _unique(ids: list[int] | np.ndarray, what: str, path: Path) -> np.ndarray:
    """(N,) int64, if no id is there twice."""
    found = np.asarray(ids, dtype=np.int64)
    values, counts = np.unique(found, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{path}: {what} ids appear more than once: {first_ten(values[counts > 1].tolist())}"
        )
    return found


def _positions(wanted: np.ndarray, known: np.ndarray, key: str, ids: np.ndarray, path: Path) -> np.ndarray:
    """(A,) int64 position in `known` of each wanted id."""
    found = id_lookup.positions(wanted, known)
    unknown = ids[found == id_lookup.UNKNOWN].tolist()
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} annotations name an unknown {key} (annotation ids {first_ten(unknown)})",
            "annotations must only point to images and categories listed in the same file",
        )
    return found
