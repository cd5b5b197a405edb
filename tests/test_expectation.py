"""Whom an epoch shows: instances by group, and their expected shares, against loops and simulation."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.stats.expectation import GROUPS, group_shares, instances_by_group
from pipeline.stats.frequencies import categories_of_images
from pipeline.stats.sampler import EpochSampler

LETTERS = ["r", "c", "f", "f"]


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """30 images, four categories, crowds and empty images among them."""
    rng = np.random.default_rng(0)
    records = [
        {
            "id": i + 1,
            "image_id": int(rng.integers(1, 31)),
            "category_id": int(rng.choice(4, p=[0.05, 0.15, 0.3, 0.5])) + 1,
            "bbox": [1, 1, 5, 5],
            "iscrowd": int(rng.random() < 0.1),
        }
        for i in range(60)
    ]
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": 20, "height": 20} for i in range(30)],
        "annotations": records,
        "categories": [{"id": c + 1, "name": str(c)} for c in range(4)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    return read_annotations(tmp_path / "a.json")


def test_instances_by_group_equal_a_loop(annotations: Annotations) -> None:
    expected = np.zeros((30, 3), dtype=int)
    for image, label, crowd in zip(
        annotations.box_images, annotations.labels, annotations.is_crowd, strict=True
    ):
        if not crowd:
            expected[image, GROUPS.index(LETTERS[label])] += 1
    found = instances_by_group(annotations, LETTERS)
    np.testing.assert_array_equal(found, expected)
    assert (found.sum(axis=1) == 0).any() and annotations.is_crowd.any()


@pytest.mark.parametrize("length", ["growing", "images"])
def test_group_shares_are_what_many_epochs_show(annotations: Annotations, length: str) -> None:
    instances = instances_by_group(annotations, LETTERS)
    factors = np.array([[1.0, 1.0, 1.0, 1.0], [5.4, 2.3, 1.0, 1.0]])
    categories = categories_of_images(annotations)
    sampler = EpochSampler(categories, factors, 1, 0, length=length)
    shares = group_shares(sampler, instances)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(shares[0], instances.sum(axis=0) / instances.sum(), rtol=1e-12)
    assert shares[1, 0] > shares[0, 0]
    shown = sum(
        instances[EpochSampler(categories, factors, 1, seed, length=length).draws(1)].sum(axis=0)
        for seed in range(400)
    )
    np.testing.assert_allclose(shown / shown.sum(), shares[1], atol=0.01)
