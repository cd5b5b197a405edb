"""The published numbers of COCO-LT, and how a split is compared with them.

Source: SimCal (twangnh/SimCal, commit e5f3076, Apache-2.0), class_to_imageid_and_inscount_coco_sampled.pt:
instances and images of each class of its training split, a sample of COCO train2017.  2DRCL's appendix names
the same four bins of classes, by training instances: below 20, 400, 8,000, and from there up.

Crowd regions are counted: the 20 classes of the last bin stand at COCO's totals with crowds (person 262,465;
without them it has 257,253), so no sample of objects alone could reach them.

Shapes: C classes in COCO's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

EDGES = (20, 400, 8000)  # instances at which the second, third and fourth bin begin
NUM_BINS = len(EDGES) + 1


class PublishedClass(NamedTuple):
    """One class of the published split."""

    category_id: int  # COCO's, 1..90 with gaps
    name: str
    instances: int
    images: int


@dataclass(frozen=True)
class PublishedSplit:
    """What a split should have."""

    classes: tuple[PublishedClass, ...]
    num_images: int  # with at least one instance

    @property
    def category_ids(self) -> np.ndarray:
        """(C,) int64."""
        return np.array([c.category_id for c in self.classes], dtype=np.int64)

    @property
    def instances(self) -> np.ndarray:
        """(C,) int64."""
        return np.array([c.instances for c in self.classes], dtype=np.int64)

    @property
    def images(self) -> np.ndarray:
        """(C,) int64."""
        return np.array([c.images for c in self.classes], dtype=np.int64)


class Difference(NamedTuple):
    """One number that is not as published."""

    subject: str  # a class, a bin, or all classes together
    quantity: str
    found: int
    expected: int


def bins_of(instances: np.ndarray) -> np.ndarray:
    """(C,) instances -> (C,) bin of each class, 1 (below 20) to 4 (8,000 and more)."""
    return np.searchsorted(EDGES, instances, side="right") + 1


def bin_sizes(instances: np.ndarray) -> list[int]:
    """Number of classes in each of the four bins; COCO-LT has 4, 24, 32 and 20."""
    return np.bincount(bins_of(instances), minlength=NUM_BINS + 1)[1:].tolist()


def differences(
    published: PublishedSplit, instances: np.ndarray, images: np.ndarray | None, num_images: int | None
) -> list[Difference]:
    """Everything that is not as published, classes first.

    Args:
        published: what a split should have.
        instances: (C,) what it has.
        images: (C,) images with each class; None where they need not agree.
        num_images: images with any class; None where they need not agree.
    """
    names = [c.name for c in published.classes]
    found = _unequal(names, "instances", instances, published.instances)
    if images is not None:
        found += _unequal(names, "images", images, published.images)
    if num_images is not None:
        found += _unequal(["all classes"], "images", [num_images], [published.num_images])
    bins = [f"bin {i}" for i in range(1, NUM_BINS + 1)]
    return found + _unequal(bins, "classes", bin_sizes(instances), bin_sizes(published.instances))


def _unequal(
    subjects: Sequence[str],
    quantity: str,
    found: Sequence[int] | np.ndarray,
    expected: Sequence[int] | np.ndarray,
) -> list[Difference]:
    rows = zip(subjects, found, expected, strict=True)
    return [Difference(name, quantity, int(a), int(b)) for name, a, b in rows if a != b]


CLASSES = (
    PublishedClass(1, "person", 262_465, 64_115),
    PublishedClass(2, "bicycle", 3_530, 2_084),
    PublishedClass(3, "car", 43_867, 12_251),
    PublishedClass(4, "motorcycle", 8_725, 3_502),
    PublishedClass(5, "airplane", 686, 608),
    PublishedClass(6, "bus", 248, 242),
    PublishedClass(7, "train", 408, 393),
    PublishedClass(8, "truck", 9_973, 6_127),
    PublishedClass(9, "boat", 10_759, 3_025),
    PublishedClass(10, "traffic light", 12_884, 4_139),
    PublishedClass(11, "fire hydrant", 11, 11),
    PublishedClass(13, "stop sign", 22, 22),
    PublishedClass(14, "parking meter", 12, 12),
    PublishedClass(15, "bench", 9_838, 5_570),
    PublishedClass(16, "bird", 10_806, 3_237),
    PublishedClass(17, "cat", 198, 194),
    PublishedClass(18, "dog", 167, 166),
    PublishedClass(19, "horse", 1_518, 1_102),
    PublishedClass(20, "sheep", 9_509, 1_529),
    PublishedClass(21, "cow", 7_079, 1_873),
    PublishedClass(22, "elephant", 374, 320),
    PublishedClass(23, "bear", 61, 58),
    PublishedClass(24, "zebra", 420, 363),
    PublishedClass(25, "giraffe", 383, 351),
    PublishedClass(27, "backpack", 8_720, 5_528),
    PublishedClass(28, "umbrella", 11_431, 3_968),
    PublishedClass(31, "handbag", 12_354, 6_841),
    PublishedClass(32, "tie", 6_112, 3_644),
    PublishedClass(33, "suitcase", 5_360, 2_212),
    PublishedClass(34, "frisbee", 14, 14),
    PublishedClass(35, "skis", 2_902, 1_870),
    PublishedClass(36, "snowboard", 22, 21),
    PublishedClass(37, "sports ball", 6_221, 4_193),
    PublishedClass(38, "kite", 9_076, 2_261),
    PublishedClass(39, "baseball bat", 67, 66),
    PublishedClass(40, "baseball glove", 52, 52),
    PublishedClass(41, "skateboard", 547, 501),
    PublishedClass(42, "surfboard", 4_678, 2_872),
    PublishedClass(43, "tennis racket", 793, 729),
    PublishedClass(44, "bottle", 24_342, 8_501),
    PublishedClass(46, "wine glass", 5_047, 2_050),
    PublishedClass(47, "cup", 20_650, 9_189),
    PublishedClass(48, "fork", 774, 713),
    PublishedClass(49, "knife", 7_190, 4_113),
    PublishedClass(50, "spoon", 1_025, 889),
    PublishedClass(51, "bowl", 14_358, 7_111),
    PublishedClass(52, "banana", 9_458, 2_243),
    PublishedClass(53, "apple", 589, 434),
    PublishedClass(54, "sandwich", 657, 568),
    PublishedClass(55, "orange", 4_042, 1_411),
    PublishedClass(56, "broccoli", 6_394, 1_839),
    PublishedClass(57, "carrot", 2_746, 1_186),
    PublishedClass(58, "hot dog", 48, 46),
    PublishedClass(59, "pizza", 100, 97),
    PublishedClass(60, "donut", 6_594, 1_449),
    PublishedClass(61, "cake", 4_684, 2_383),
    PublishedClass(62, "chair", 38_491, 12_774),
    PublishedClass(63, "couch", 629, 610),
    PublishedClass(64, "potted plant", 2_689, 1_958),
    PublishedClass(65, "bed", 51, 51),
    PublishedClass(67, "dining table", 15_714, 11_837),
    PublishedClass(70, "toilet", 73, 73),
    PublishedClass(72, "tv", 710, 672),
    PublishedClass(73, "laptop", 286, 278),
    PublishedClass(74, "mouse", 52, 52),
    PublishedClass(75, "remote", 765, 683),
    PublishedClass(76, "keyboard", 21, 21),
    PublishedClass(77, "cell phone", 4_699, 3_711),
    PublishedClass(78, "microwave", 52, 52),
    PublishedClass(79, "oven", 65, 65),
    PublishedClass(80, "toaster", 47, 46),
    PublishedClass(81, "sink", 114, 113),
    PublishedClass(82, "refrigerator", 50, 50),
    PublishedClass(84, "book", 24_715, 5_332),
    PublishedClass(85, "clock", 4_004, 3_204),
    PublishedClass(86, "vase", 1_473, 1_170),
    PublishedClass(87, "scissors", 24, 23),
    PublishedClass(88, "teddy bear", 693, 529),
    PublishedClass(89, "hair drier", 71, 70),
    PublishedClass(90, "toothbrush", 15, 14),
)

COCO_LT = PublishedSplit(CLASSES, num_images=99_411)
