"""The fields of COCO and LVIS records, one function each: columns, or an error that lists the first ten ids.

Shapes: I images, A annotations, C categories, all in the order of the records given.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.errors import InputError, first_ten

LARGEST_PIXEL = 2**24  # float32 counts whole pixels exactly up to here
Records = list[dict[str, Any]]


def unique_ids(records: Records, what: str, path: Path) -> np.ndarray:
    """(N,) int64 ids."""
    bad = [i for i, r in enumerate(records) if not _is_whole(r.get("id"))]
    if bad:
        raise InputError(f"{path}: {what} without a whole-number id at positions {first_ten(bad)}")
    ids = np.array([r["id"] for r in records], dtype=np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{path}: {what} ids appear more than once: {first_ten(values[counts > 1].tolist())}"
        )
    return ids


def positions(records: Records, key: str, known: np.ndarray, path: Path) -> np.ndarray:
    """(A,) int64 position in `known` of the id under `key`."""
    wrong_type = [r["id"] for r in records if not _is_whole(r.get(key))]
    if wrong_type:
        raise InputError(f"{path}: annotations without a whole-number {key}: {first_ten(wrong_type)}")
    wanted = np.array([r[key] for r in records], dtype=np.int64)
    order = np.argsort(known, kind="stable")
    found = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
    unknown = np.flatnonzero(known[found] != wanted)
    if len(unknown):
        ids = [records[i]["id"] for i in unknown]
        raise InputError(
            f"{path}: {len(ids)} annotations name an unknown {key} (annotation ids {first_ten(ids)})",
            "annotations must only point to images and categories listed in the same file",
        )
    return found.astype(np.int64)


def boxes_xyxy(records: Records, path: Path) -> np.ndarray:
    """(A, 4) float32 xyxy from the file's xywh."""
    malformed = [r["id"] for r in records if not _is_quadruple(r.get("bbox"))]
    if malformed:
        raise InputError(f"{path}: bbox is not four numbers in annotations {first_ten(malformed)}")
    xywh = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    impossible = ~(np.abs(xywh) <= LARGEST_PIXEL).all(axis=1)
    negative = (xywh[:, 2:] < 0).any(axis=1)
    for bad, what in (
        (impossible, f"NaN, infinite or beyond {LARGEST_PIXEL} pixels"),
        (negative, "of negative size (is it xyxy instead of xywh?)"),
    ):
        if bad.any():
            ids = [records[i]["id"] for i in np.flatnonzero(bad)]
            raise InputError(f"{path}: bbox is {what} in annotations {first_ten(ids)}")
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)


def crowd_flags(records: Records, path: Path) -> np.ndarray:
    """(A,) bool; absent and null mean no."""
    flags = [r.get("iscrowd") for r in records]
    bad = [r["id"] for r, flag in zip(records, flags, strict=True) if flag not in (0, 1, None)]
    if bad:
        raise InputError(f"{path}: iscrowd is neither 0 nor 1 in annotations {first_ten(bad)}")
    return np.array([bool(flag) for flag in flags], dtype=bool)


def file_names(images: Records, path: Path) -> list[str]:
    """(I,) paths below the image folder."""
    names = [_file_name(image) for image in images]
    nameless = [i["id"] for i, name in zip(images, names, strict=True) if not name]
    if nameless:
        raise InputError(f"{path}: neither file_name nor coco_url in images {first_ten(nameless)}")
    unsafe = [i["id"] for i, name in zip(images, names, strict=True) if not _stays_below(name)]
    if unsafe:
        example = next(name for name in names if not _stays_below(name))
        raise InputError(
            f"{path}: file_name leaves the image folder, or no file can have it, in images "
            f"{first_ten(unsafe)}: {example!r}",
            "file names are relative, with forward slashes and without `..`",
        )
    return names


def _file_name(image: dict[str, Any]) -> str:
    """`file_name`, or the last two parts of `coco_url` (LVIS: val holds train2017 images too), or nothing."""
    name, url = image.get("file_name"), image.get("coco_url")
    if not name and isinstance(url, str):
        name = "/".join(url.split("/")[-2:])
    return name if isinstance(name, str) else ""


def _stays_below(name: str) -> bool:
    pure = PurePosixPath(name)
    return _is_storable(name) and "\\" not in name and not pure.is_absolute() and ".." not in pure.parts


def _is_storable(text: str) -> bool:
    """Without NUL and lone surrogates, which neither file systems nor Parquet take."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def sizes_wh(images: Records, path: Path) -> np.ndarray:
    """(I, 2) int64 pixels."""
    sizes = [(i.get("width"), i.get("height")) for i in images]
    bad = [i["id"] for i, wh in zip(images, sizes, strict=True) if not all(_is_side(side) for side in wh)]
    if bad:
        raise InputError(
            f"{path}: width or height is not a whole number from 1 to {LARGEST_PIXEL} in images "
            f"{first_ten(bad)}"
        )
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def category_names(categories: Records, path: Path) -> list[str]:
    """(C,) names; a category without one is called by its id."""
    names = [str(c["id"]) if c.get("name") is None else str(c["name"]) for c in categories]
    bad = [c["id"] for c, name in zip(categories, names, strict=True) if not _is_storable(name)]
    if bad:
        raise InputError(f"{path}: name is not valid text in categories {first_ten(bad)}")
    return names


def frequency_letters(categories: Records, path: Path) -> list[str] | None:
    """(C,) r, c or f; None where no category says."""
    letters = [c.get("frequency") for c in categories]
    if all(letter is None for letter in letters):
        return None
    wrong = [c["id"] for c in categories if c.get("frequency") not in ("r", "c", "f")]
    if wrong:
        raise InputError(f"{path}: frequency is not r, c or f in categories {first_ten(wrong)}")
    return [str(letter) for letter in letters]


def federated_ids(images: Records, path: Path) -> tuple[list[list[int]], list[list[int]]] | None:
    """LVIS's neg_category_ids and not_exhaustive_category_ids, (I,) lists each; None: not an LVIS file."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    lacking = [i["id"] for i in images if not all(key in i for key in keys)]
    if len(lacking) == len(images):
        return None
    if lacking:
        raise InputError(f"{path}: some images have {' and '.join(keys)}, others not: {first_ten(lacking)}")
    for key in keys:
        bad = [i["id"] for i in images if not isinstance(i[key], list) or not all(map(_is_whole, i[key]))]
        if bad:
            raise InputError(f"{path}: {key} is not a list of ids in images {first_ten(bad)}")
    return [i[keys[0]] for i in images], [i[keys[1]] for i in images]


def polygons(segmentation: Any) -> list[list[float]]:
    """The polygons of one mask that have an area, [x, y, ...] with three corners or more (COCO holds others).

    Empty where the mask is none, is run-length encoded, or holds anything but finite numbers in pairs.
    """
    if not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
        return []
    return [polygon for polygon in segmentation if len(polygon) >= 6]


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or not polygon or len(polygon) % 2:
        return False
    if not set(map(type, polygon)) <= {int, float}:
        return False
    bounded = min(polygon) >= -LARGEST_PIXEL and max(polygon) <= LARGEST_PIXEL
    return bounded and sum(polygon) == sum(polygon)  # min and max may pass over a NaN, a sum does not


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_PIXEL


def _is_quadruple(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(v) is float or _is_whole(v) for v in box)
