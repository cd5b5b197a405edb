"""Where the data is: one split for training, one for validation."""

import filecmp
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.annotations import Annotations
from pipeline.errors import MismatchedInput, first_ten
from pipeline.settings import setting


@dataclass(frozen=True)
class Split:
    """A COCO or LVIS json and the folder its file names start from."""

    annotations: Path = setting(why="COCO or LVIS v1 json")
    images: Path = setting(why="folder that file_name (or the last two parts of coco_url) is relative to")


@dataclass(frozen=True)
class DataSettings:
    """Section `data` of params.yaml."""

    train: Split = setting(
        Split(Path("artifacts/sample/train_lvis.json"), Path("artifacts/sample/train")),
        "what every stage trains on; default: the sample data set",
    )
    val: Split = setting(
        Split(Path("artifacts/sample/val_lvis.json"), Path("artifacts/sample/val")),
        "what evaluate and analyze look at; default: the sample data set",
    )


def refuse_overlap(train: Annotations, train_images: Path, val: Annotations, val_images: Path) -> None:
    """Refuse a validation image inside the training set (LVIS val holds COCO train2017 images).

    Two images are one when they are one file, or when they carry the same id, name and size, and their files
    do not differ.  (Splits that are both numbered from 1 share ids and names, but not pixels.)

    Raises:
        MismatchedInput: listing the first ten ids.
    """
    files = {os.path.realpath(train_images / name) for name in train.file_names}
    copies = {_signature(train, i): train_images / name for i, name in enumerate(train.file_names)}
    shared = []
    for i, name in enumerate(val.file_names):
        file, copy = val_images / name, copies.get(_signature(val, i))
        if os.path.realpath(file) in files or (copy is not None and not _differ(file, copy)):
            shared.append(int(val.image_ids[i]))
    if shared:
        raise MismatchedInput(
            f"{len(shared)} validation images are in the training set (ids {first_ten(shared)})",
            "remove them from data.train; LVIS val holds COCO train2017 images: train on LVIS train alone",
        )


def _signature(annotations: Annotations, index: int) -> tuple[int, str, int, int]:
    """Id, name without folders, width and height of the image at position `index`."""
    width, height = annotations.sizes_wh[index]
    return (
        int(annotations.image_ids[index]),
        Path(annotations.file_names[index]).name,
        int(width),
        int(height),
    )


def _differ(one: Path, other: Path) -> bool:
    """Whether both files are there and hold different bytes."""
    return one.is_file() and other.is_file() and not filecmp.cmp(one, other, shallow=False)
