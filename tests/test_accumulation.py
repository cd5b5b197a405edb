"""Cutting a step into parts, and what to say of it; the step itself is in test_pretrain_model."""

import numpy as np
import pytest
import torch
from toy_detector import tiny_settings

from pipeline.data.photometric_draws import Photometric, PhotometricSettings, draw_photometric
from pipeline.data.targets import Target
from pipeline.pretrain.accumulation import in_order, part_statistics, parts_of
from pipeline.pretrain.views import PairedBoxes, PretrainSample


def sample(image_id: int, boxes: int) -> PretrainSample:
    rows, view = np.zeros((3, 4), dtype=np.float32), np.zeros((32, 32, 3), dtype=np.uint8)
    colours: Photometric = draw_photometric(PhotometricSettings(), False, np.random.default_rng(0))
    return PretrainSample(
        image_id=image_id,
        canvas_wh=(32, 32),
        query=view,
        key=view,
        photometric=(colours, colours),
        homographies=(np.eye(3), np.eye(3)),
        boxes=PairedBoxes(rows, rows, np.arange(3) < boxes, rows.astype(np.int64)),
        target=Target(rows[:0], np.zeros(0, dtype=np.int64), (32, 32), key=0),
    )


SHARE = [sample(image_id, boxes) for image_id, boxes in enumerate((3, 0, 2, 1, 0, 0))]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_parts_are_every_so_manieth_image_and_know_all_boxes(count: int) -> None:
    parts = parts_of(SHARE, count)
    ids = [[s.image_id for s in part.samples] for part in parts]
    assert ids == [list(range(first, 6, count)) for first in range(count)]
    assert [part.boxes for part in parts] == [6] * count


@pytest.mark.parametrize("world", [2, 3])
def test_a_part_has_the_same_images_on_any_number_of_processes(world: int) -> None:
    """Of 12 images in two parts."""
    images = [sample(number, 1) for number in range(12)]
    size = len(images) // world
    shares = [images[rank * size :][:size] for rank in range(world)]
    for number, whole in enumerate(parts_of(images, 2)):
        found = [s.image_id for share in shares for s in parts_of(share, 2)[number].samples]
        assert found == [s.image_id for s in whole.samples]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_of_the_parts_come_back_in_order(count: int) -> None:
    rows = torch.arange(6 * 2 * 5).reshape(6, 2, 5)  # (images, rows of an image, width)
    parts = [rows[number::count].flatten(0, 1) for number in range(count)]
    assert torch.equal(in_order(parts, per_image=2), rows.flatten(0, 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"accumulate": 4}, ["batch norm of the projectors", "L_det", "4 images at a time"]),
        ({"accumulate": 4, "contrast": {"norm": "none"}}, ["normalisers of L_det see 4 images"]),
        ({"accumulate": 2, "terms": ("hcl", "lcl")}, ["batch norm of the projectors", "8 images"]),
        ({"accumulate": 2, "terms": ("ar", "sr")}, []),
        ({"accumulate": 2, "terms": ("hcl",), "contrast": {"norm": "none"}}, []),
    ],
)
def test_what_differs_is_said(changes: dict[str, object], said: list[str]) -> None:
    found = part_statistics(tiny_settings(**changes))
    assert len(found) == bool(said)
    assert all(words in found[0] for words in said)
