"""The records of COCO and LVIS files: their types, and the account of those that do not have them.

The types are checked while decoding, at no cost.  Where they do not hold, `explain` looks at the records of
that neighbourhood as plain dictionaries and says what is wrong, with the first ten ids.

Shapes: I images, C categories, A annotations, all in the order of the records given.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from pipeline.errors import InputError, first_ten

LARGEST_PIXEL = 2**24  # float32 counts whole pixels exactly up to here
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
Records = list[dict[str, Any]]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_PIXEL)]


class ImageRecord(Struct, gc=False):
    """An element of `images`."""

    id: Whole
    width: Side
    height: Side
    file_name: Any = None
    coco_url: Any = None
    neg_category_ids: list[Whole] | UnsetType = UNSET
    not_exhaustive_category_ids: list[Whole] | UnsetType = UNSET


class AnnotationRecord(Struct, gc=False):
    """An element of `annotations`."""

    id: Whole
    image_id: Whole
    category_id: Whole
    bbox: tuple[float, float, float, float]  # x, y, width, height
    area: float | None = None
    iscrowd: bool | int | None = None


DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "images": msgspec.json.Decoder(list[ImageRecord]),
    "categories": msgspec.json.Decoder(list[dict[str, Any]]),
    "annotations": msgspec.json.Decoder(list[AnnotationRecord]),
}


def explain(path: Path) -> Callable[[str, Records, int], None]:
    """For `json_records.stream`: raises InputError for the first fault in the types of records, if any."""

    def find_fault(key: str, records: Records, first: int) -> None:
        check_ids(records, {"images": "image", "categories": "category"}.get(key, "annotation"), first, path)
        if key == "images":
            _check_sizes(records, path)
            file_names([(r["id"], r.get("file_name"), r.get("coco_url")) for r in records], path)
            _check_federated(records, path)
        elif key == "categories":
            category_names(records, path)
        else:
            _check_references(records, "image_id", path)
            _check_references(records, "category_id", path)
            _check_boxes(records, path)
            _check_areas(records, path)
            flags = [r.get("iscrowd") for r in records]
            check_crowd_flags(flags, [r["id"] for r in records], path)

    return find_fault


def check_ids(records: Records, what: str, first: int, path: Path) -> None:
    """Refuse records whose `id` is no whole number."""
    bad = [first + i for i, r in enumerate(records) if not _is_whole(r.get("id"))]
    if bad:
        raise InputError(f"{path}: {what} without a whole-number id at positions {first_ten(bad)}")


def _check_references(records: Records, key: str, path: Path) -> None:
    bad = [r["id"] for r in records if not _is_whole(r.get(key))]
    if bad:
        raise InputError(f"{path}: annotations without a whole-number {key}: {first_ten(bad)}")


def _check_boxes(records: Records, path: Path) -> None:
    bad = [r["id"] for r in records if not _is_quadruple(r.get("bbox"))]
    if bad:
        raise InputError(f"{path}: bbox is not four numbers in annotations {first_ten(bad)}")
    xywh = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    boxes_xyxy(xywh, [r["id"] for r in records], path)


def _check_areas(records: Records, path: Path) -> None:
    bad = [r["id"] for r in records if not (r.get("area") is None or type(r["area"]) in (int, float))]
    if bad:
        raise InputError(f"{path}: area is not a number in annotations {first_ten(bad)}")


def boxes_xyxy(xywh: np.ndarray, ids: Any, path: Path) -> np.ndarray:
    """(A, 4) float32 xyxy from the file's xywh.

    Args:
        xywh: (A, 4) float64.
        ids: (A,) of the annotations.

    Raises:
        InputError: a number is not finite or too large, or a size negative.
    """
    impossible = ~(np.abs(xywh) <= LARGEST_PIXEL).all(axis=1)  # also NaN
    negative = (xywh[:, 2:] < 0).any(axis=1)
    for bad, what in (
        (impossible, f"NaN, infinite or beyond {LARGEST_PIXEL} pixels"),
        (negative, "of negative size (is it xyxy instead of xywh?)"),
    ):
        if bad.any():
            found = [int(ids[i]) for i in np.flatnonzero(bad)]
            raise InputError(f"{path}: bbox is {what} in annotations {first_ten(found)}")
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)


def check_crowd_flags(flags: list[Any], ids: Any, path: Path) -> np.ndarray:
    """(A,) bool; absent and null mean no."""
    bad = [int(i) for i, flag in zip(ids, flags, strict=True) if flag not in (0, 1, None)]
    if bad:
        raise InputError(f"{path}: iscrowd is neither 0 nor 1 in annotations {first_ten(bad)}")
    return np.array(flags, dtype=bool)  # None is False


def _check_sizes(records: Records, path: Path) -> None:
    bad = [r["id"] for r in records if not (_is_side(r.get("width")) and _is_side(r.get("height")))]
    if bad:
        raise InputError(
            f"{path}: width or height is not a whole number from 1 to {LARGEST_PIXEL} in images "
            f"{first_ten(bad)}"
        )


def file_names(images: list[tuple[int, Any, Any]], path: Path) -> list[str]:
    """(I,) paths below the image folder, for (id, file_name, coco_url) of each image."""
    names = [_file_name(name, url) for _, name, url in images]
    nameless = [i for (i, _, _), name in zip(images, names, strict=True) if not name]
    if nameless:
        raise InputError(f"{path}: neither file_name nor coco_url in images {first_ten(nameless)}")
    unsafe = [(i, name) for (i, _, _), name in zip(images, names, strict=True) if not _stays_below(name)]
    if unsafe:
        raise InputError(
            f"{path}: file_name leaves the image folder, or no file can have it, in images "
            f"{first_ten([i for i, _ in unsafe])}: {unsafe[0][1]!r}",
            "file names are relative, with forward slashes and without `..`",
        )
    return names


def _file_name(name: Any, url: Any) -> str:
    """`file_name`, or the last two parts of `coco_url` (LVIS: val holds train2017 images too), or nothing."""
    if not name and isinstance(url, str):
        name = "/".join(url.split("/")[-2:])
    return name if isinstance(name, str) else ""


def _stays_below(name: str) -> bool:
    below = "\\" not in name and not name.startswith("/") and ".." not in name.split("/")
    return below and _is_storable(name)


def _is_storable(text: str) -> bool:
    """Without NUL and lone surrogates, which neither file systems nor Parquet take."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


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


def _check_federated(images: Records, path: Path) -> None:
    for key in FEDERATED:
        bad = [i["id"] for i in images if key in i and not _is_list_of_ids(i[key])]
        if bad:
            raise InputError(f"{path}: {key} is not a list of ids in images {first_ten(bad)}")


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
    return min(polygon) >= -LARGEST_PIXEL and max(polygon) <= LARGEST_PIXEL


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_PIXEL


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _is_quadruple(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(v) is float or _is_whole(v) for v in box)
