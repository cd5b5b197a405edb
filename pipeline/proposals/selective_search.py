"""Source selective-search: regions that an image falls into, merged by colour, texture, size and fill.

Uijlings et al. 2013 as OpenCV contrib implements it (modules/ximgproc/src/selectivesearchsegmentation.cpp):
no training, no annotations.  Contrib comes with the optional extra `selective-search`, whose package replaces
the `cv2` of opencv-python-headless by one that can all that and more.

Shapes: n boxes of one image.
"""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.data.annotations import Annotations
from pipeline.data.boxes import clip
from pipeline.data.images import read_image
from pipeline.errors import EnvironmentProblem
from pipeline.proposals.settings import ProposalsSettings, SearchSettings
from pipeline.proposals.sources import Boxes, Source

LARGEST_ASPECT = (
    10  # width / height of the image searched: a strip of 5000 x 1 px would become a million wide
)


def searched(annotations: Annotations, images: Path, settings: ProposalsSettings) -> Source:
    """A source of the best `settings.keep` boxes that selective search finds in each image.

    OpenCV gives an order, no score: the box in place i (from 0) of n has the score 1 - i / n.  The order is
    drawn from an image's id alone.

    Args:
        annotations: names and sizes of the images; their boxes are not looked at.
        images: their folder.
        settings: `search` and `keep`.

    Raises:
        EnvironmentProblem: OpenCV comes without contrib; and from the source:
        MissingInput, InputError: an image is missing, broken, or of another size than annotated.
    """
    if not hasattr(cv2, "ximgproc"):
        raise EnvironmentProblem(
            f"selective search needs OpenCV's contrib modules, which OpenCV {cv2.__version__} lacks here",
            "install the extra `selective-search`: pip install -e '.[selective-search]' (its "
            "opencv-contrib-python-headless replaces the cv2 of opencv-python-headless)",
        )

    def source(positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        for position in positions:
            image_id = int(annotations.image_ids[position])
            width, height = annotations.sizes_wh[position].tolist()
            image = read_image(images / annotations.file_names[position], (width, height))
            boxes, scores = _search(image, settings.search, image_id)
            yield image_id, (boxes[: settings.keep], scores[: settings.keep])

    return source


def _search(image: np.ndarray, settings: SearchSettings, key: int) -> Boxes:
    """All boxes of one (H, W, 3) RGB image in its own pixels, best first."""
    height, width = image.shape[:2]
    small_wh = _small_wh(width, height, settings.height)
    shrinks = small_wh[0] * small_wh[1] < width * height
    small = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    opencv: Any = cv2  # whose stubs lack contrib
    search = opencv.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(small[:, :, ::-1]))  # BGR
    if settings.mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    with _one_thread():
        # The order comes from the C library's rand(), which neither cv2.setRNGSeed nor numpy reaches.
        ctypes.CDLL(None).srand(key % 2**32)
        xywh = np.asarray(search.process(), dtype=np.float64).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = clip(xyxy * np.tile(np.array([width, height]) / small_wh, 2), width, height)
    scores = 1 - np.arange(len(boxes)) / max(len(boxes), 1)
    return boxes.astype(np.float32), scores.astype(np.float32)


def _small_wh(width: int, height: int, working: int) -> tuple[int, int]:
    """Size of the image that is searched."""
    return min(max(round(width * working / height), 1), LARGEST_ASPECT * working), working


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV's own threads would share the random numbers in any order; processes are the parallel part."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
