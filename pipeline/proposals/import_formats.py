"""The files of boxes that source import reads: JSON and Parquet, never a pickle.

JSON: COCO results `[{"image_id", "bbox": [x, y, w, h], "score"?}, ...]`, or `{"image": [[x1, y1, x2, y2,
score?], ...], ...}`.  Parquet, a file or a folder of them, also of `2drcl proposals`: columns image_id, x1,
y1, x2, y2 or image_id, x, y, w, h (also width, height), and score.  Boxes are pixels of the stored image; a
missing score is 1.

Shapes: N boxes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, MissingInput, first_ten

# What these suffixes and first bytes announce is unpickled by its readers, or may hold a pickle.
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pth", ".pt", ".npy", ".npz")
PICKLE_STARTS = (*(bytes([0x80, protocol]) for protocol in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
CORNERS = ("x1", "y1", "x2", "y2")
SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"))
MAPPING_HINT = "a mapping goes from image to a list of [x1, y1, x2, y2] or [x1, y1, x2, y2, score]"
RECORDS_HINT = 'records are {"image_id": ..., "bbox": [x, y, width, height], "score": ...}'


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a file."""

    keys: np.ndarray | list[Any]  # (N,) int64 ids of images, or N ids and names
    boxes: np.ndarray  # (N, 4) float64 xyxy
    scores: np.ndarray  # (N,) float64


def read_rows(path: Path) -> Iterator[Rows]:
    """All rows of a file or folder, in batches.

    Raises:
        MissingInput: there is nothing at `path`.
        InputError: a pickle, neither JSON nor Parquet, damaged, or boxes that are not four numbers.
    """
    if not path.exists():
        raise MissingInput(f"boxes {path} do not exist", "check proposals.file in params.yaml")
    if path.is_dir():
        for part in _parts(path):
            yield from _parquet_rows(part)
        return
    _refuse_pickle(path)
    start = _start(path)
    if start.startswith(b"PAR1"):
        yield from _parquet_rows(path)
    elif start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        yield _json_rows(path)
    else:
        raise InputError(f"{path} is neither JSON nor Parquet", "write the boxes into one of these")


def _parts(folder: Path) -> list[Path]:
    parts = sorted(folder.glob("proposals/part-*.parquet")) or sorted(
        p for p in folder.glob("*.parquet") if p.name != "images.parquet"
    )
    if not parts:
        raise MissingInput(f"the folder {folder} holds no Parquet file of boxes")
    return parts


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLE_SUFFIXES or _start(path).startswith(PICKLE_STARTS):
        raise InputError(
            f"{path} is, or may hold, a pickle, which can run any code when it is read: it was not read",
            "if you trust it, convert it yourself; what MMDetection's DumpProposals wrote becomes Parquet by:"
            f"\n{_conversion(path)}",
        )


def _conversion(path: Path) -> str:
    """Three lines of Python, for an environment that the user trusts."""
    parquet = path.with_suffix(".parquet")
    return (
        f"import pandas, pickle; found = pickle.load(open({str(path)!r}, 'rb'))\n"
        "rows = [(k, *b, s) for k, v in found.items() "
        "for b, s in zip(v.bboxes.tolist(), v.scores.tolist())]\n"
        "pandas.DataFrame(rows, columns=['image_id', 'x1', 'y1', 'x2', 'y2', 'score'])"
        f".to_parquet({str(parquet)!r})"
    )


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as problem:
        raise InputError(f"boxes {path} cannot be read: {problem.strerror}") from None


def _parquet_rows(path: Path) -> Iterator[Rows]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = _columns(file.schema_arrow, path)
            for batch in file.iter_batches(columns=list(names)):
                if any(column.null_count for column in batch.columns):
                    raise InputError(f"{path} has empty cells")
                keys = batch.column("image_id")
                numbers = [batch.column(n).to_numpy().astype(np.float64) for n in names[1:]]
                yield Rows(
                    keys.to_numpy().astype(np.int64) if pa.types.is_integer(keys.type) else keys.to_pylist(),
                    _xyxy(np.stack(numbers[:4], axis=1), corners=names[1] == "x1"),  # 4 x (N,) -> (N, 4)
                    numbers[4] if len(numbers) == 5 else np.ones(len(batch)),
                )
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{path} is not a whole Parquet file: {problem}") from None


def _columns(schema: pa.Schema, path: Path) -> tuple[str, ...]:
    """image_id, the four of the box, and score if there is one."""
    present = {field.name: field.type for field in schema}
    boxes = [names for names in (CORNERS, *SIZES) if all(n in present for n in names)]
    if "image_id" not in present or not boxes:
        raise InputError(
            f"{path} has the columns {first_ten(list(present))}",
            "name them image_id, x1, y1, x2, y2 or image_id, x, y, w, h, and score",
        )
    names = ("image_id", *boxes[0], *(["score"] if "score" in present else []))
    kind = present["image_id"]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{path}: image_id is {kind}, neither whole numbers nor file names")
    numeric = (pa.types.is_integer, pa.types.is_floating)
    wrong = [n for n in names[1:] if not any(is_kind(present[n]) for is_kind in numeric)]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} is {present[wrong[0]]}, not a number")
    return names


def _json_rows(path: Path) -> Rows:
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is not valid JSON: {problem}", "is the download complete?") from None
    if isinstance(content, dict):
        return _mapping_rows(content, path)
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
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Rows(keys, _xyxy(xywh, corners=False), np.array(scores, dtype=np.float64))


def _mapping_rows(content: dict[str, Any], path: Path) -> Rows:
    lists = list(content.items())
    _refuse_odd(list(content), [not isinstance(boxes, list) for _, boxes in lists], path, MAPPING_HINT)
    keys = [key for key, boxes in lists for _ in boxes]
    rows = [row for _, boxes in lists for row in boxes]
    _refuse_odd(keys, [not _are_numbers(row, (4, 5)) for row in rows], path, MAPPING_HINT)
    boxes = np.array([row[:4] for row in rows], dtype=np.float64).reshape(-1, 4)
    scores = np.array([row[4] if len(row) == 5 else 1.0 for row in rows], dtype=np.float64)
    return Rows(keys, boxes, scores)


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
    return all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):  # JSON would keep the last one of a key without a word
        names = [name for name, _ in pairs]
        raise ValueError(f"a key appears twice: {first_ten([n for n in made if names.count(n) > 1])}")
    return made


def _xyxy(boxes: np.ndarray, corners: bool) -> np.ndarray:
    """(N, 4) xyxy of (N, 4) corners or xywh."""
    return boxes if corners else np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
