"""The files of boxes that source import reads: JSON and Parquet, never a pickle.

JSON: see `import_json`.  Parquet, a file or a folder of them, also of `2drcl proposals`: columns image_id,
x1, y1, x2, y2 or image_id, x, y, w, h (also width, height), and score.  Boxes are pixels of the stored image;
a missing score is 1.

Shapes: N boxes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, MissingInput, first_ten
from pipeline.proposals.contract import checked_rows, read_images, read_metadata
from pipeline.proposals.import_json import json_rows
from pipeline.proposals.import_rows import Rows

# What these suffixes and first bytes announce is unpickled by its readers, or may hold a pickle.
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pth", ".pt", ".npy", ".npz")
PICKLE_STARTS = (*(bytes([0x80, protocol]) for protocol in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
CORNERS = ("x1", "y1", "x2", "y2")
SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"))


def read_rows(path: Path) -> Iterator[Rows]:
    """All rows of a file or folder, in batches.

    Raises:
        MissingInput: there is nothing at `path`.
        InputError: a pickle, neither JSON nor Parquet, damaged, no regular file, or boxes that are not four
            numbers; a folder that is not what its images.parquet says.
    """
    if not path.exists():
        raise MissingInput(f"boxes {path} do not exist", "check proposals.file in params.yaml")
    if path.is_dir():
        parts = _parts(path)
        _check_product(path, parts)
        for part in parts:
            yield from _parquet_rows(part)
        return
    _refuse_endless(path)
    _refuse_pickle(path)
    start = _start(path)
    if start.startswith(b"PAR1"):
        yield from _parquet_rows(path)
    elif start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        yield json_rows(path)
    else:
        raise InputError(f"{path} is neither JSON nor Parquet", "write the boxes into one of these")


def _parts(folder: Path) -> list[Path]:
    parts = sorted(folder.glob("proposals/part-*.parquet")) or sorted(
        p for p in folder.glob("*.parquet") if p.name != "images.parquet"
    )
    if not parts:
        raise MissingInput(f"the folder {folder} holds no Parquet file of boxes")
    for part in parts:
        _refuse_endless(part)
    return parts


def _check_product(folder: Path, parts: list[Path]) -> None:
    """Refuse parts that are not all that the images.parquet beside them lists: boxes would be missing.

    A folder without that file is somebody's, and whatever is in it is all.
    """
    images = folder / "images.parquet"
    if not images.exists() and folder.resolve().name == "proposals" and parts[0].name.startswith("part-"):
        images = folder.resolve().parent / "images.parquet"  # the folder of the parts themselves was named
    if not images.exists():
        return
    _refuse_endless(images)
    try:
        read_metadata([images, *parts])
        for _ in checked_rows(parts, read_images(images)):
            pass
    except InputError as problem:
        raise InputError(
            problem.message, f"is {folder} a whole copy? {images.name} says what belongs to it"
        ) from None


def _refuse_endless(path: Path) -> None:
    """Pipes and devices would be waited for, and cannot be read by every process."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file", "write the boxes into a file first")


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
                    np.stack(numbers[:4], axis=1),  # 4 x (N,) -> (N, 4)
                    names[1:5] != CORNERS,
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
