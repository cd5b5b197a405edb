"""Splitting categories into seen and unseen: OLN's cross-category protocol (Kim et al. 2022, Sec. 4.1).

A detector is trained on the boxes of the seen categories alone and asked to find the others.

Shapes: I images, A annotations, C categories of the annotations, ascending id.
"""

import dataclasses
from pathlib import Path

import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.errors import InputError, MissingInput, first_ten

# PASCAL VOC's categories under COCO's names (mmdet/datasets/coco_split.py of object_localization_network).
VOC = (
    "airplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorcycle",
    "person",
    "potted plant",
    "sheep",
    "couch",
    "train",
    "tv",
)


def seen_categories(seen: str, annotations: Annotations) -> np.ndarray:
    """Which categories are seen.

    Args:
        seen: all, voc, or the path of a UTF-8 file of category names, one a line.
        annotations: whose categories are asked about.

    Returns:
        (C,) bool.

    Raises:
        MissingInput: there is no such file.
        InputError: the file names categories that the annotations lack; none of `voc` is there; or a split
            other than `all` leaves no category on one side.
    """
    if seen == "all":
        return np.ones(len(annotations.category_ids), dtype=bool)
    absent = absent_names(seen, annotations)
    if absent and seen != "voc":
        raise InputError(
            f"{seen} names categories that {annotations.path} lacks: {first_ten(absent)}",
            "one name a line, spelled as in the annotations",
        )
    found = np.isin(annotations.category_names, _names(seen))
    if found.all() or not found.any():
        raise InputError(
            f"the seen split {seen} covers {'all' if found.all() else 'none'} of the {len(found)} categories "
            f"of {annotations.path}",
            "write the names of the seen categories into a file, one a line, and name that file",
        )
    return found


def absent_names(seen: str, annotations: Annotations) -> list[str]:
    """The names of the split that the annotations lack: seven of `voc` in LVIS (`car_(automobile)`).

    Raises:
        MissingInput, InputError: the file of names is not there, or is no text.
    """
    return [] if seen == "all" else sorted(set(_names(seen)) - set(annotations.category_names))


def names_file(seen: str) -> Path | None:
    """The file that `seen` names, an input like any other; None for all and voc."""
    return None if seen in ("all", "voc") else Path(seen)


def only_seen(annotations: Annotations, seen: np.ndarray) -> Annotations:
    """The annotations with all objects of unseen categories turned into crowds: never trained on.

    Args:
        seen: (C,) bool.
    """
    return dataclasses.replace(annotations, is_crowd=annotations.is_crowd | ~seen[annotations.labels])


def images_with_objects(annotations: Annotations) -> np.ndarray:
    """(I',) int64 ascending positions of the images with at least one trainable object."""
    return np.unique(annotations.box_images[annotations.trainable])


def _names(seen: str) -> tuple[str, ...]:
    file = names_file(seen)
    if file is None:
        return VOC
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise InputError(f"the names of the seen split {seen} cannot be read: it is not a regular file")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors begin with an invisible mark
    except FileNotFoundError:
        raise MissingInput(f"the seen split {seen} is neither all nor voc, nor a file that exists") from None
    except (OSError, ValueError) as problem:  # ValueError: not UTF-8
        raise InputError(f"the names of the seen split {seen} cannot be read: {problem}") from None
    return tuple(line.strip() for line in lines if line.strip())
