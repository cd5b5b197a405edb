"""The figures of proposals: drawn for every kind of store, with the same bytes, and they show the boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError
from pipeline.proposals.figures import examples_figure, summary_figure
from pipeline.proposals.store import ProposalStore
from pipeline.proposals.writer import write_proposals

GREY, ORANGE = (90, 90, 90), np.array([213, 94, 0])
Boxes = dict[int, tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def split(tmp_path: Path) -> Annotations:
    """Five grey images, one object in each."""
    ids = range(1, 6)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in ids],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 30, 20]} for i in ids],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    for i in ids:
        Image.new("RGB", (80, 60), GREY).save(tmp_path / f"{i}.png")
    return read_annotations(tmp_path / "a.json")


def store_of(split: Annotations, boxes: Boxes, name: str) -> ProposalStore:
    folder = split.path.parent / name
    write_proposals(folder, split, boxes, "test", "")
    return ProposalStore.open(folder, split.digest, split.path.parent / "cache")


def some_boxes(rows: int) -> tuple[np.ndarray, np.ndarray]:
    corners = np.float32([5, 5, 60, 40]) + np.arange(rows, dtype=np.float32)[:, None] % 9
    return corners, np.linspace(1, 0, rows, dtype=np.float32)


def test_drawn_for_any_store_with_the_same_bytes(split: Annotations, tmp_path: Path) -> None:
    cases: list[Boxes] = [{}, {2: some_boxes(1)}, {i: some_boxes(40 * i) for i in range(1, 6)}]
    for number, boxes in enumerate(cases):
        store = store_of(split, boxes, f"case-{number}")
        for name in ("first", "second"):
            summary_figure(store, tmp_path / f"summary-{name}.png")
            examples_figure(store, split, tmp_path, [0, 1, 4], tmp_path / f"examples-{name}.png")
        for kind in ("summary", "examples"):
            first, second = (tmp_path / f"{kind}-{name}.png" for name in ("first", "second"))
            assert first.read_bytes() == second.read_bytes()
            assert np.asarray(Image.open(first).convert("L")).std() > 1


def test_batches_hold_every_row_once(split: Annotations) -> None:
    store = store_of(split, {i: some_boxes(7 * i) for i in (1, 3, 5)}, "all")
    assert store.counts.tolist() == [7, 0, 21, 0, 35]
    pieces = list(store.batches(10))
    assert [len(scores) for _, scores in pieces] == [10] * 6 + [3]
    rows = [store.of_image(i) for i in range(1, 6)]
    for part in (0, 1):
        found, expected = (np.concatenate([both[part] for both in side]) for side in (pieces, rows))
        np.testing.assert_array_equal(found, expected)


def test_boxes_are_where_they_should_be(split: Annotations, tmp_path: Path) -> None:
    """Orange pixels, and none without proposals."""
    shown = {}
    for name, boxes in {"none": {}, "one": {1: some_boxes(1)}}.items():
        examples_figure(store_of(split, boxes, name), split, tmp_path, [0], tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        shown[name] = (abs(pixels - ORANGE).sum(axis=2) < 30).sum()
    assert shown["none"] == 0 and shown["one"] > 100


def test_a_damaged_image_is_named(split: Annotations, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3\.png cannot be decoded"):
        examples_figure(store_of(split, {}, "x"), split, tmp_path, [2], tmp_path / "x.png")
