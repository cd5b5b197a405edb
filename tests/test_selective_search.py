"""Selective search on drawn images; OpenCV's contrib modules are an optional extra."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.boxes import iou
from pipeline.errors import EnvironmentProblem, InputError, MissingInput
from pipeline.proposals.selective_search import searched
from pipeline.proposals.settings import ProposalsSettings, SearchSettings
from pipeline.proposals.sources import Boxes

HAS_CONTRIB = hasattr(cv2, "ximgproc")
needs_contrib = pytest.mark.skipif(
    not HAS_CONTRIB, reason="OpenCV without contrib: the extra selective-search is not installed"
)
SIZES = {8: (160, 120), -5: (80, 120), 3: (30, 1)}  # id -> width, height
OBJECTS = np.array([[20, 30, 70, 90], [100, 20, 140, 60]], dtype=np.float32)  # of image 8


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in SIZES.items()
        ],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [],
    }
    (tmp_path / "split.json").write_text(json.dumps(content))
    random = np.random.default_rng(0)
    for i, (width, height) in SIZES.items():
        pixels = random.integers(0, 30, (height, width, 3), dtype=np.uint8) * np.uint8(height > 1)
        for k, (x1, y1, x2, y2) in enumerate(OBJECTS.astype(int)):
            pixels[y1:y2, x1:x2, k] += 180
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return read_annotations(tmp_path / "split.json")


def settings(keep: int = 10_000, **search: Any) -> ProposalsSettings:
    return ProposalsSettings(
        source="selective-search", keep=keep, search=SearchSettings(**({"height": 60} | search))
    )


def made(annotations: Annotations, wanted: ProposalsSettings, positions: Any = range(3)) -> dict[int, Boxes]:
    return dict(searched(annotations, annotations.path.parent, wanted)(positions))


@needs_contrib
@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("height", [60, 120, 200])
def test_objects_are_found_in_stored_pixels(annotations: Annotations, mode: str, height: int) -> None:
    boxes, scores = made(annotations, settings(mode=mode, height=height), [0])[8]
    assert boxes.dtype == scores.dtype == np.float32 and boxes.shape == (len(scores), 4)
    assert (iou(OBJECTS, boxes).max(axis=1) > 0.85).all()


@needs_contrib
def test_scores_are_the_rank(annotations: Annotations) -> None:
    found = made(annotations, settings())
    assert list(found) == [8, -5, 3]
    for image_id, (boxes, scores) in found.items():
        count, (width, height) = len(scores), SIZES[image_id]
        np.testing.assert_allclose(scores, 1 - np.arange(count) / count, rtol=1e-6)
        assert count > 0 and (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and len(np.unique(boxes, axis=0)) == count


@needs_contrib
def test_any_share_gives_the_same_boxes_in_the_same_order(annotations: Annotations) -> None:
    whole = made(annotations, settings())
    assert len(whole[8][0]) > 10
    for share in ([2], [1, 0], [0, 2, 1]):
        for image_id, (boxes, scores) in made(annotations, settings(), share).items():
            assert np.array_equal(boxes, whole[image_id][0])
            assert np.array_equal(scores, whole[image_id][1])


@needs_contrib
def test_the_order_is_drawn_for_each_id(annotations: Annotations) -> None:
    renamed = dataclasses.replace(annotations, image_ids=np.array([9, -5, 3]))
    one, other = made(annotations, settings(), [0])[8][0], made(renamed, settings(), [0])[9][0]
    assert not np.array_equal(one, other)
    assert np.array_equal(np.unique(one, axis=0), np.unique(other, axis=0))


@needs_contrib
def test_the_best_are_kept(annotations: Annotations) -> None:
    everything, some = (made(annotations, settings(keep=k), [0])[8] for k in (10_000, 5))
    assert len(some[0]) == 5
    assert np.array_equal(some[0], everything[0][:5]) and np.array_equal(some[1], everything[1][:5])


@needs_contrib
def test_number_of_threads_is_left_as_it_was(annotations: Annotations) -> None:
    before = cv2.getNumThreads()
    made(annotations, settings(), [0])
    assert cv2.getNumThreads() == before


@needs_contrib
def test_missing_and_broken_images(annotations: Annotations) -> None:
    (annotations.path.parent / "8.png").unlink()
    (annotations.path.parent / "-5.png").write_bytes(b"no image")
    source = searched(annotations, annotations.path.parent, settings())
    with pytest.raises(MissingInput, match=r"8\.png does not exist"):
        next(source([0]))
    with pytest.raises(InputError, match=r"-5\.png cannot be decoded"):
        next(source([1]))


@pytest.mark.skipif(HAS_CONTRIB, reason="OpenCV's contrib modules are installed")
def test_without_contrib_the_extra_is_named(annotations: Annotations) -> None:
    with pytest.raises(EnvironmentProblem, match="contrib modules") as refused:
        searched(annotations, annotations.path.parent, settings())
    assert "selective-search" in refused.value.hint and refused.value.exit_code == 4
