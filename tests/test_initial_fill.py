"""The images that LOCE's memory is shown first, against a slow choice, and the pass over them."""

import json
from pathlib import Path

import numpy as np

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.finetune.initial_fill import images_of_classes


def split(folder: Path, seed: int) -> Annotations:
    """Twelve images, four classes of which the last is in one image, one crowd, one image without objects."""
    rng = np.random.default_rng(seed)
    labels = [(int(i), int(c)) for i in range(11) for c in rng.integers(1, 4, size=2)] + [(5, 4), (5, 4)]
    records = [
        {"id": n, "image_id": i, "category_id": c, "bbox": [1, 1, 9, 9], "iscrowd": int(n == 0)}
        for n, (i, c) in enumerate(labels)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 20} for i in range(12)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, 6)],
        "annotations": records,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return read_annotations(folder / "a.json")


def test_every_class_is_shown_in_as_many_images_as_it_can(tmp_path: Path) -> None:
    for seed in range(20):
        annotations = split(tmp_path, seed)
        shown = annotations.box_images[annotations.trainable], annotations.labels[annotations.trainable]
        images_of = {label: set(shown[0][shown[1] == label].tolist()) for label in range(5)}
        for per_class in (1, 2, 5):
            found = images_of_classes(annotations, per_class, seed)
            assert found.tolist() == sorted(set(found.tolist()))
            for images in images_of.values():
                assert len(images & set(found.tolist())) >= min(per_class, len(images))
            order = np.random.default_rng(seed).permutation(12).tolist()
            slow = {i for images in images_of.values() for i in sorted(images, key=order.index)[:per_class]}
            assert set(found.tolist()) == slow


def test_the_choice_depends_on_the_seed_alone(tmp_path: Path) -> None:
    annotations = split(tmp_path, 0)
    choices = {tuple(images_of_classes(annotations, 1, seed).tolist()) for seed in range(9) for _ in range(2)}
    assert 1 < len(choices) <= 9
