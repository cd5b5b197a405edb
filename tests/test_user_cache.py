"""The user's cache: kept, found again, made again when damaged, and never a reason to fail."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import user_cache
from pipeline.artifacts import file_digest
from pipeline.data import annotation_columns
from pipeline.data.annotations import Annotations, read_annotations

LVIS = {
    "images": [
        {
            "id": 10 - i, "file_name": f"{i} \u00e9.jpg", "width": 50, "height": 40,
            "neg_category_ids": [i], "not_exhaustive_category_ids": [],
        }
        for i in range(3)
    ],
    "categories": [{"id": 7, "name": "a", "frequency": "r"}, {"id": 2, "name": "b", "frequency": "f"}],
    "annotations": [
        {"id": i, "image_id": 10 - i % 3, "category_id": 7, "bbox": [i, 0, 5, 5], "iscrowd": i % 2,
         "segmentation": [[0, 0, i, 0, i, 9.5]] if i else None}
        for i in range(9)
    ],
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that takes small files too."""
    monkeypatch.setenv("TWODRCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(user_cache, "LARGE", 0)
    return tmp_path / "cache/2drcl"


def old_file(path: Path, text: str) -> Path:
    """A file that was written a minute ago, as a later change would show."""
    path.write_text(text)
    os.utime(path, (time.time() - 60, time.time() - 60))
    return path


def assert_equal(found: Annotations, expected: Annotations) -> None:
    for name in Annotations.__dataclass_fields__:
        mine, theirs = getattr(found, name), getattr(expected, name)
        if isinstance(theirs, np.ndarray):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert list(mine) == list(theirs) if name == "segmentations" else mine == theirs


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWODRCL_CACHE", "/own")
    assert user_cache.folder() == Path("/own/2drcl")
    monkeypatch.delenv("TWODRCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert user_cache.folder() == Path("/xdg/2drcl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache.folder() == Path.home() / ".cache" / "2drcl"


def test_annotations_read_a_second_time_are_equal_and_not_parsed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_file(tmp_path / "a.json", json.dumps(LVIS))
    first = read_annotations(path)
    assert first.segmentations[1] == [[0, 0, 3, 0, 3, 9.5]]  # rows are by image
    monkeypatch.setattr(annotation_columns, "parse", None)  # calling it would fail
    assert_equal(read_annotations(path), first)
    for entry in cache.glob("*.npz"):  # a disk's fault
        entry.write_bytes(entry.read_bytes()[:-9])
    monkeypatch.undo()
    monkeypatch.setenv("TWODRCL_CACHE", str(cache.parent))
    assert_equal(read_annotations(path), first)


def test_a_changed_file_is_another_entry(cache: Path, tmp_path: Path) -> None:
    path = old_file(tmp_path / "a.json", json.dumps(LVIS))
    before = read_annotations(path)
    changed = {**LVIS, "annotations": LVIS["annotations"][:4]}
    old_file(path, json.dumps(changed))
    assert len(read_annotations(path).boxes) == 4
    with pytest.raises(Exception, match="has changed since it was read"):
        before.segmentations[0]


def test_digests_are_remembered_while_nothing_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_file(tmp_path / "a", "one")
    one = file_digest(path)
    assert len(list(cache.iterdir())) == 1

    def no_hashing(*_: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", no_hashing)
        assert file_digest(path) == one
    inode = path.stat().st_ino
    old_file(path, "two")  # same size, same inode, set back to the same age
    assert path.stat().st_ino == inode and file_digest(path) != one
    (tmp_path / "fresh").write_text("a file whose clock may still stand still")
    file_digest(tmp_path / "fresh")
    assert len(list(cache.iterdir())) == 2


def test_small_files_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWODRCL_CACHE", str(tmp_path / "cache"))
    path = old_file(tmp_path / "a.json", json.dumps(LVIS))
    assert read_annotations(path).segmentations[1]
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(cache: Path, tmp_path: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    path = old_file(tmp_path / "a.json", json.dumps(LVIS))
    assert len(read_annotations(path).boxes) == 9 and read_annotations(path).segmentations[1]


def test_what_no_one_uses_goes_and_no_file_of_others(cache: Path) -> None:
    (cache / "thesis").mkdir(parents=True)
    ages = {
        "digest-0a": 10, "digest-0b": 61, "annotations-0c-1.npz": 61, ".masks-0d-1.npz.7.tmp": 2,
        ".masks-0e-1.npz.7.tmp": 0, "notes.txt": 400, "digest-notes": 400, "thesis": 400,
    }  # fmt: skip
    for name, days in ages.items():
        if name != "thesis":
            (cache / name).write_text("x")
        os.utime(cache / name, (time.time() - days * 86400,) * 2)
    user_cache.kept_arrays("annotations-ff", lambda: {"a": np.arange(3)})
    left = {"digest-0a", ".masks-0e-1.npz.7.tmp", "notes.txt", "digest-notes", "thesis", "annotations-ff.npz"}
    assert {p.name for p in cache.iterdir()} == left


@pytest.mark.parametrize("damage", ["", "abc", "g" * 64])
def test_a_damaged_digest_is_not_believed(cache: Path, tmp_path: Path, damage: str) -> None:
    path = old_file(tmp_path / "a", "one")
    right = file_digest(path)
    (entry,) = cache.iterdir()
    entry.write_text(damage)
    assert file_digest(path) == right and entry.read_text() == right


def test_the_same_arrays_come_back(cache: Path) -> None:
    made = {"a": np.arange(3), "b": np.zeros((0, 4), np.float32)}
    for make in (lambda: made, lambda: {"never": np.zeros(1)}):
        found = user_cache.kept_arrays("x", make)
        assert found.keys() == made.keys()
        assert all(found[k].dtype == made[k].dtype and (found[k] == made[k]).all() for k in made)
