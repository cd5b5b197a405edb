"""Which image a name in somebody's file means: an id, a file name, or what is left of one.

Shapes: N names, I images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import id_lookup
from pipeline.data.annotations import Annotations
from pipeline.data.id_lookup import UNKNOWN
from pipeline.errors import InputError, first_ten

AMBIGUOUS = UNKNOWN - 1


def positions_of(keys: np.ndarray | list[Any], annotations: Annotations, path: Path) -> np.ndarray:
    """The image of each key.

    An image is called by its id, its file_name, the last part of that, either without its suffix, or a longer
    path that ends in its file_name (MMDetection's DumpProposals puts the folder before it).

    Args:
        keys: (N,) int64 ids, or N ids and names.
        annotations: the images.
        path: where the keys are from, for messages.

    Returns:
        (N,) int64 positions.

    Raises:
        InputError: a key that no image has, or several; lists the first ten.
    """
    if isinstance(keys, list):
        positions = _by_key(keys, annotations)
    else:
        positions = id_lookup.positions(keys, annotations.image_ids)
    for kind, what in ((UNKNOWN, "are not in"), (AMBIGUOUS, "fit several images of")):
        bad = np.flatnonzero(positions == kind).tolist()
        if bad:
            names: list[object] = list(dict.fromkeys(str(keys[i]) for i in bad))
            raise InputError(
                f"{path}: {len(bad)} boxes name images that {what} {annotations.path}: {first_ten(names)}",
                "name images by their id or file_name in the annotations",
            )
    return positions


def _by_key(keys: list[Any], annotations: Annotations) -> np.ndarray:
    """Whole numbers are ids, whatever the files are called; texts may be either."""
    known: dict[Any, int] = {image_id: i for i, image_id in enumerate(annotations.image_ids.tolist())}
    texts = {key for key in keys if isinstance(key, str)}
    if texts:
        spelled = _spellings(annotations)
        known |= {text: _lookup(text, spelled, annotations.file_names) for text in texts}
    found = [known.get(key, UNKNOWN) if type(key) in (int, str) else UNKNOWN for key in keys]
    return np.array(found, dtype=np.int64)


def _spellings(annotations: Annotations) -> dict[str, int]:
    """Every name of an image without folders of its own -> position, or AMBIGUOUS."""
    spelled: dict[str, int] = {}
    for position, (image_id, name) in enumerate(
        zip(annotations.image_ids.tolist(), annotations.file_names, strict=True)
    ):
        base = name.rpartition("/")[2]
        for text in {str(image_id), name, _stem(name), base, _stem(base)}:
            spelled[text] = position if spelled.get(text, position) == position else AMBIGUOUS
    return spelled


def _lookup(text: str, spelled: dict[str, int], file_names: list[str]) -> int:
    if text in spelled:
        return spelled[text]
    for tail in _tails(text):
        position = spelled.get(tail, UNKNOWN)
        if position == AMBIGUOUS:
            return AMBIGUOUS
        # the whole file_name: `val/1.jpg` does not mean the image `train/1.jpg`
        if position != UNKNOWN and tail in (file_names[position], _stem(file_names[position])):
            return position
    return UNKNOWN


def _tails(text: str) -> Iterator[str]:
    """`a/b/c` -> `b/c`, `c`."""
    while "/" in text:
        text = text.partition("/")[2]
        yield text


def _stem(name: str) -> str:
    """The name without its suffix: `a.b/c.jpg` -> `a.b/c`."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)
