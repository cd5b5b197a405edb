"""The JSON that source import reads.

COCO results `[{"image_id", "bbox": [x, y, w, h], "score"?}, ...]`, or `{"image": [[x1, y1, x2, y2, score?],
...], ...}`.  A typed decoder reads a hundred megabytes in a second.  What it refuses is read once more by
Python's, ten times slower, which takes NaN and says which images are at fault.

Shapes: N boxes.
"""

import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from pipeline.errors import InputError, first_ten
from pipeline.proposals.import_rows import Rows

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAPPING_HINT = "a mapping goes from image to a list of [x1, y1, x2, y2] or [x1, y1, x2, y2, score]"
RECORDS_HINT = 'records are {"image_id": ..., "bbox": [x, y, width, height], "score": ...}'


class _Record(msgspec.Struct, gc=False):
    image_id: int | float | str  # float: 4.0 stays what it is, and no image has it
    bbox: tuple[float, float, float, float]
    score: float | UnsetType = UNSET


RECORDS = msgspec.json.Decoder(list[_Record])
MAPPING = msgspec.json.Decoder(dict[str, list[list[float]]])


def json_rows(path: Path) -> Rows:
    """All rows of a JSON file.

    Raises:
        InputError: not JSON, or boxes and scores that are not the numbers they should be; lists the first
            ten images.
    """
    try:
        text = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    is_mapping = text.lstrip()[:1] == b"{"
    rows = _typed_mapping(text) if is_mapping else _typed_records(text)
    return _any_rows(text, path) if rows is None else rows


# --- what is as it should be


def _typed_records(text: bytes) -> Rows | None:
    """The rows of a list of records; None if anything about it is odd."""
    records = _decoded(RECORDS, text)
    if records is None:
        return None
    scores = [record.score for record in records if record.score is not UNSET]
    counts = {b"image_id": len(records), b"bbox": len(records), b"score": len(scores)}
    if any(text.count(b'"%s"' % key) != count for key, count in counts.items()):
        return None  # perhaps a key twice in a record: the decoder would take the last one
    return Rows(
        keys=[record.image_id for record in records],
        numbers=_table((record.bbox for record in records), len(records), 4),
        has_sizes=True,
        scores=np.array([1.0 if record.score is UNSET else record.score for record in records], np.float64),
    )


def _typed_mapping(text: bytes) -> Rows | None:
    """The rows of a mapping; None if anything about it is odd."""
    found = _decoded(MAPPING, text)
    if found is None or text.count(b'"') != 2 * len(found):  # perhaps a key is there twice
        return None
    lengths = {len(row) for row in itertools.chain.from_iterable(found.values())}
    return _rows_of_mapping(found) if lengths <= {4, 5} else None


def _rows_of_mapping(content: dict[str, list[list[float]]]) -> Rows:
    rows = list(itertools.chain.from_iterable(content.values()))
    return Rows(
        keys=[key for key, boxes in content.items() for _ in boxes],
        numbers=_table((row[:4] for row in rows), len(rows), 4),
        has_sizes=False,
        scores=np.array([row[4] if len(row) == 5 else 1.0 for row in rows], dtype=np.float64),
    )


def _decoded(decoder: msgspec.json.Decoder[Any], text: bytes) -> Any:
    try:
        if not text.isascii():
            text.decode()  # strings that nobody asks for are not looked at below
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _table(rows: Iterable[Iterable[float]], num_rows: int, width: int) -> np.ndarray:
    numbers = itertools.chain.from_iterable(rows)
    return np.fromiter(numbers, np.float64, num_rows * width).reshape(-1, width)  # (N W) -> (N, W)


# --- what is not, or cannot be told from it


def _any_rows(text: bytes, path: Path) -> Rows:
    """The rows of any JSON, or the error that says what is wrong with it."""
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is not valid JSON: {problem}", "is the download complete?") from None
    if isinstance(content, dict):
        _check_mapping(content, path)
        return _rows_of_mapping(content)
    odd = [
        i for i, r in enumerate(content) if not isinstance(r, dict) or not {"image_id", "bbox"} <= r.keys()
    ]
    if odd:
        raise InputError(
            f"{path}: no record with image_id and bbox at positions {first_ten(odd)}", RECORDS_HINT
        )
    keys = [record["image_id"] for record in content]
    boxes = [record["bbox"] for record in content]
    _refuse_odd(keys, [not _are_numbers(box, (4,)) for box in boxes], path, RECORDS_HINT)
    scores = [record.get("score", 1.0) for record in content]
    _refuse_odd(keys, [not _are_numbers([score], (1,)) for score in scores], path, RECORDS_HINT)
    return Rows(keys, _table(boxes, len(boxes), 4), True, np.array(scores, dtype=np.float64))


def _check_mapping(content: dict[str, Any], path: Path) -> None:
    _refuse_odd(list(content), [not isinstance(b, list) for b in content.values()], path, MAPPING_HINT)
    keys = [key for key, boxes in content.items() for _ in boxes]
    odd = [not _are_numbers(row, (4, 5)) for boxes in content.values() for row in boxes]
    _refuse_odd(keys, odd, path, MAPPING_HINT)


def _refuse_odd(keys: list[Any], odd: list[bool], path: Path, hint: str) -> None:
    """Refuse entries of the wrong form, with the images they belong to."""
    if any(odd):
        ids = list(dict.fromkeys(str(key) for key, is_odd in zip(keys, odd, strict=True) if is_odd))
        raise InputError(
            f"{path}: boxes or scores are not the numbers they should be in images {first_ten(ids)}", hint
        )


def _are_numbers(values: Any, lengths: tuple[int, ...]) -> bool:
    """A list of that many numbers; not of texts or truth values, which numpy would turn into numbers."""
    if not isinstance(values, list) or len(values) not in lengths:
        return False
    return all(type(v) is float or (type(v) is int and abs(v) <= sys.float_info.max) for v in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):  # JSON would keep the last one of a key without a word
        names = [name for name, _ in pairs]
        raise ValueError(f"a key appears twice: {first_ten([n for n in made if names.count(n) > 1])}")
    return made
