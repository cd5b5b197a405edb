"""COCO-LT, the long-tailed split of COCO train2017: which annotations stay.

SimCal's repository tells the images and the instance count of each class, not the annotations.  Its list of
images per class (`Membership`) therefore settles most of the split: the classes it does not list keep all
their annotations, a listed class only those in its images, and an image stays with any of them.  Where the
listed images hold more boxes of a class than its count, which of them stayed is open: a seeded draw decides,
so that the count is met and each listed image keeps at least one.  Without a list, the split is a seeded
sample of annotations to the published counts.

Nothing but ids enters the draw: one key for each annotation, in the order of their ids, whatever the order of
the file.  Of each class the smallest keys stay, so samples of one seed to smaller counts are parts of larger
ones.

Shapes: I images, A annotations (both in file order), C classes in COCO's order, P listed pairs of a class and
an image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from pipeline.data.coco_lt_counts import NUM_BINS, PublishedSplit, bins_of
from pipeline.errors import InputError, MismatchedInput, MissingInput, first_ten

TRAIN2017 = "COCO-LT is made from COCO's instances_train2017.json"
LISTS = "the list of images per class is coco_lt_tail_class_image_ids.json"
Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


@dataclass(frozen=True)
class Columns:
    """What decides about the annotations of one file."""

    path: Path
    image_ids: np.ndarray  # (I,) int64
    annotation_ids: np.ndarray  # (A,) int64
    images: np.ndarray  # (A,) int64, positions in `image_ids`
    labels: np.ndarray  # (A,) int64, positions in the published classes
    is_crowd: np.ndarray  # (A,) bool

    def pairs(self, labels: np.ndarray, images: np.ndarray) -> np.ndarray:
        """(N,) labels and image positions -> (N,) one number for each (class, image)."""
        return labels * len(self.image_ids) + images


@dataclass(frozen=True)
class Membership:
    """The images and the instance count of the classes that are not kept whole."""

    path: Path
    labels: np.ndarray  # (P,) int64
    image_ids: np.ndarray  # (P,) int64
    instances: np.ndarray  # (C,) int64; -1 for a class without a list

    @property
    def is_listed(self) -> np.ndarray:
        """(C,) bool."""
        return self.instances >= 0


@dataclass(frozen=True)
class Selection:
    """Which annotations stay."""

    keep: np.ndarray  # (A,) bool
    drawn: np.ndarray  # (A,) bool, the part of `keep` that another seed may not have kept


class _ListedClass(msgspec.Struct):
    coco_category_id: Id
    instance_count: Id
    image_ids: list[Id]


class _Lists(msgspec.Struct):
    classes: dict[str, _ListedClass]


def read_membership(path: Path, published: PublishedSplit) -> Membership:
    """Read the image ids and instance counts per class.

    Raises:
        MissingInput: no such file.
        InputError: it holds something else (the list of all images, the counts), or contradicts itself.
        MismatchedInput: it lists unknown classes, or lacks one below the last bin.
    """
    try:
        classes = msgspec.json.decode(path.read_bytes(), type=_Lists).classes
    except FileNotFoundError:
        raise MissingInput(f"membership {path} does not exist", LISTS) from None
    except OSError as problem:
        raise InputError(f"membership {path} cannot be read: {problem.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} does not list image ids per class: {problem}", LISTS) from None
    known = {c.category_id: label for label, c in enumerate(published.classes)}
    unknown = [name for name, c in classes.items() if c.coco_category_id not in known]
    if unknown:
        raise MismatchedInput(f"{path} lists classes that COCO-LT does not have: {first_ten(unknown)}", LISTS)
    if len({c.coco_category_id for c in classes.values()}) < len(classes):
        raise InputError(f"{path} lists a category id under two names", LISTS)
    instances = np.full(len(known), -1, dtype=np.int64)
    for name, listed in classes.items():
        _check_listed_class(path, name, listed)
        instances[known[listed.coco_category_id]] = listed.instance_count
    lacking = np.flatnonzero((instances < 0) & (bins_of(published.instances) < NUM_BINS))
    if len(lacking):
        names = [published.classes[i].name for i in lacking]
        raise MismatchedInput(f"{path} lacks {len(names)} classes of COCO-LT: {first_ten(names)}", LISTS)
    lengths = [len(c.image_ids) for c in classes.values()]
    labels = np.repeat([known[c.coco_category_id] for c in classes.values()], lengths)
    image_ids = np.array([i for c in classes.values() for i in c.image_ids], dtype=np.int64)
    return Membership(path, labels.astype(np.int64), image_ids, instances)


def _check_listed_class(path: Path, name: str, listed: _ListedClass) -> None:
    """A class cannot name an image twice, nor have fewer instances than images."""
    if len(set(listed.image_ids)) < len(listed.image_ids):
        raise InputError(f"{path} lists images of {name} twice", LISTS)
    if listed.instance_count < len(listed.image_ids):
        raise InputError(
            f"{path} lists {len(listed.image_ids)} images of {name} but {listed.instance_count} instances",
            LISTS,
        )


def draw_sample(columns: Columns, published: PublishedSplit, seed: int) -> Selection:
    """A seeded sample of annotations to the published counts.

    Raises:
        MismatchedInput: classes have fewer instances than published; names all of them.
    """
    found = np.bincount(columns.labels, minlength=len(published.classes))
    _refuse_shortage(columns.path, published, found, published.instances)
    rows = np.arange(len(columns.labels))
    keep = _smallest(columns.labels, _keys(columns.annotation_ids, seed), rows, published.instances)
    return Selection(keep, keep & (found > published.instances)[columns.labels])


def select_listed(
    columns: Columns, membership: Membership, published: PublishedSplit, seed: int
) -> Selection:
    """The canonical split up to what the membership leaves open.

    The draw is not uniform over the possible choices: each listed image first keeps the box of its smallest
    key, then the smallest keys of the class fill up its count.

    Raises:
        MismatchedInput: the annotations lack listed images, or boxes in them, or instances of a class.
    """
    pairs = columns.pairs(columns.labels, columns.images)
    is_listed = membership.is_listed
    candidate = np.isin(pairs, _listed_pairs(columns, membership, published)) | ~is_listed[columns.labels]
    found = np.bincount(columns.labels[candidate], minlength=len(published.classes))
    wanted = np.where(is_listed, membership.instances, published.instances)
    _refuse_shortage(columns.path, published, found, wanted)
    wanted[~is_listed] = found[~is_listed]  # whole, even where the file has more than published
    rows = np.flatnonzero(candidate)  # (R,)
    keys = _keys(columns.annotation_ids, seed)
    order = rows[np.lexsort((keys[rows], pairs[rows]))]
    later = np.zeros(len(pairs), dtype=bool)
    later[order[1:]] = pairs[order[1:]] == pairs[order[:-1]]  # every box of a pair but that of smallest key
    keep = _smallest(columns.labels, keys, rows, wanted, later)
    _, position, boxes_of = np.unique(pairs[rows], return_inverse=True, return_counts=True)
    is_open = np.zeros(len(pairs), dtype=bool)
    is_open[rows] = (boxes_of[position] > 1) & (found > wanted)[columns.labels[rows]]
    return Selection(keep, keep & is_open)


def _keys(annotation_ids: np.ndarray, seed: int) -> np.ndarray:
    """(A,) uint64 random keys, a function of the seed and the set of ids.

    Raw words of Philox: numpy promises them for ever, unlike what its generators make of them.
    """
    keys = np.empty(len(annotation_ids), dtype=np.uint64)
    stream = np.random.Philox(np.random.SeedSequence(seed))
    keys[np.argsort(annotation_ids)] = stream.random_raw(len(annotation_ids))
    return keys


def _smallest(
    labels: np.ndarray,
    keys: np.ndarray,
    rows: np.ndarray,
    wanted: np.ndarray,
    later: np.ndarray | None = None,
) -> np.ndarray:
    """(A,) bool: of each class the `wanted` (C,) rows with the smallest keys, those marked `later` last."""
    levels = (keys[rows], labels[rows]) if later is None else (keys[rows], later[rows], labels[rows])
    order = rows[np.lexsort(levels)]
    begins = np.searchsorted(labels[order], np.arange(len(wanted)))  # (C,)
    rank = np.arange(len(order)) - begins[labels[order]]
    keep = np.zeros(len(labels), dtype=bool)
    keep[order[rank < wanted[labels[order]]]] = True
    return keep


def _listed_pairs(columns: Columns, membership: Membership, published: PublishedSplit) -> np.ndarray:
    """(P,) the listed (class, image) pairs, each with at least one annotation."""
    order = np.argsort(columns.image_ids)
    at = np.searchsorted(columns.image_ids, membership.image_ids, sorter=order)
    images = order[at.clip(max=len(order) - 1)]
    unknown = np.unique(membership.image_ids[columns.image_ids[images] != membership.image_ids])
    if len(unknown):
        raise MismatchedInput(
            f"{columns.path} lacks {len(unknown)} images that {membership.path} lists: "
            f"{first_ten(unknown.tolist())}",
            TRAIN2017,
        )
    pairs = columns.pairs(membership.labels, images)
    empty = np.flatnonzero(~np.isin(pairs, columns.pairs(columns.labels, columns.images)))
    if len(empty):
        places = [
            f"{published.classes[membership.labels[i]].name} in {membership.image_ids[i]}" for i in empty
        ]
        raise MismatchedInput(
            f"{columns.path} has no box where {membership.path} lists one: {first_ten(places)}", TRAIN2017
        )
    return pairs


def _refuse_shortage(path: Path, published: PublishedSplit, found: np.ndarray, wanted: np.ndarray) -> None:
    short = np.flatnonzero(found < wanted)
    if len(short):
        names = ", ".join(f"{published.classes[i].name} {found[i]} of {wanted[i]}" for i in short)
        raise MismatchedInput(f"{path} has too few instances of {len(short)} classes: {names}", TRAIN2017)
