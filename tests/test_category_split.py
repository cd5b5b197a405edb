"""Seen categories by name, and what is left to train on."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.category_split import (
    VOC,
    absent_names,
    images_with_objects,
    names_file,
    only_seen,
    seen_categories,
)
from pipeline.errors import InputError, MissingInput

# image, category, crowd
RECORDS = [(1, 10, 0), (1, 20, 0), (2, 20, 0), (3, 10, 1), (3, 30, 0), (5, 10, 0), (5, 10, 0)]


def split(folder: Path, *names: str) -> Annotations:
    """Images 1 to 5, categories 10, 20, ... of these names, and the `RECORDS` of these categories."""
    ids = [10 * (i + 1) for i in range(len(names))]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40} for i in range(1, 6)],
        "categories": [{"id": i, "name": n} for i, n in zip(ids, names, strict=True)],
        "annotations": [
            {
                "id": k,
                "image_id": image,
                "category_id": category,
                "bbox": [5, 5, 10, 10],
                "area": 100,
                "iscrowd": crowd,
            }
            for k, (image, category, crowd) in enumerate(RECORDS)
            if category in ids
        ],
    }
    path = folder / "split.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


def write_names(folder: Path, *lines: str) -> str:
    path = folder / "names.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_voc_has_twenty_names() -> None:
    assert len(VOC) == len(set(VOC)) == 20 and "couch" in VOC and "sofa" not in VOC


def test_voc_by_name(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "cat", "tv")
    assert seen_categories("voc", annotations).tolist() == [False, True, True]
    assert absent_names("voc", annotations) == sorted(set(VOC) - {"cat", "tv"})


def test_all_is_all(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "cat")
    assert seen_categories("all", annotations).tolist() == [True, True]
    assert absent_names("all", annotations) == []


def test_a_file_of_names(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "hot dog", "bush-baby")
    seen = write_names(tmp_path, "bush-baby  ", "", "zebra", "zebra")
    assert seen_categories(seen, annotations).tolist() == [True, False, True]
    assert absent_names(seen, annotations) == []
    assert names_file(seen) == Path(seen) and names_file("voc") is None and names_file("all") is None


def test_names_that_the_annotations_lack(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "cat")
    seen = write_names(tmp_path, "cat", "Zebra", *(f"thing {i:02}" for i in range(15)))
    with pytest.raises(InputError, match=r"lacks: Zebra, thing 00, .*thing 08 and 6 more") as refused:
        seen_categories(seen, annotations)
    assert seen in refused.value.message and refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("names", "seen", "covers"),
    [
        (("zebra", "giraffe"), "voc", "none of the 2 categories"),
        (("cat", "dog"), "voc", "all of the 2 categories"),
        (("cat", "dog"), ["dog", "cat"], "all of the 2 categories"),
        (("cat", "dog"), [], "none of the 2 categories"),
    ],
)
def test_splits_without_two_sides(
    tmp_path: Path, names: tuple[str, ...], seen: str | list[str], covers: str
) -> None:
    annotations = split(tmp_path, *names)
    given = seen if isinstance(seen, str) else write_names(tmp_path, *seen)
    with pytest.raises(InputError, match=covers):
        seen_categories(given, annotations)


def test_no_such_file(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "cat")
    with pytest.raises(MissingInput, match="VOC is neither all nor voc, nor a file"):
        seen_categories("VOC", annotations)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00cat")
    with pytest.raises(InputError, match="cannot be read"):
        seen_categories(str(tmp_path / "names.txt"), annotations)
    with pytest.raises(InputError, match="cannot be read"):
        absent_names(str(tmp_path), annotations)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "cat")
    path = tmp_path / "names.txt"
    path.write_text("zebra\n", encoding="utf-8-sig")
    assert seen_categories(str(path), annotations).tolist() == [True, False]
    assert absent_names(str(path), annotations) == []


@contextlib.contextmanager
def pipe(path: Path) -> Iterator[None]:
    """A named pipe that gives nothing to whoever opens it, as often as that happens: nobody hangs."""
    os.mkfifo(path)
    writer = subprocess.Popen(["sh", "-c", 'while :; do : > "$0"; done', path])
    try:
        yield
    finally:
        writer.kill()
        writer.wait()


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    annotations = split(tmp_path, "zebra", "cat")
    match = r"names\.txt cannot be read: it is not a regular file"
    with pipe(tmp_path / "names.txt"), pytest.raises(InputError, match=match):
        seen_categories(str(tmp_path / "names.txt"), annotations)


def test_unseen_objects_are_not_trainable(tmp_path: Path) -> None:
    annotations = split(tmp_path, "cat", "zebra", "dog")
    seen = seen_categories("voc", annotations)
    kept = only_seen(annotations, seen)
    wanted = [category != 20 and not crowd for _, category, crowd in sorted(RECORDS, key=lambda r: r[0])]
    assert kept.trainable.tolist() == wanted
    assert np.array_equal(kept.image_ids, annotations.image_ids) and kept.digest == annotations.digest
    assert annotations.trainable.sum() == 6  # left as they were
    assert annotations.image_ids[images_with_objects(annotations)].tolist() == [1, 2, 3, 5]
    assert kept.image_ids[images_with_objects(kept)].tolist() == [1, 3, 5]


def test_no_torch_is_imported() -> None:
    code = "import sys, pipeline.data.category_split; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
