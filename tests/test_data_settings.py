"""Where the data is, and that validation images are not trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.settings import DataSettings, Split, refuse_overlap
from pipeline.errors import MismatchedInput, SettingsError
from pipeline.settings import build


def split(folder: Path, name: str, *images: tuple[int, str], **more: Any) -> Annotations:
    """A json with these (id, file name) images of 8 x 6 pixels."""
    records = [{"id": i, "file_name": n, "width": 8, "height": 6} | more for i, n in images]
    content = {"images": records, "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_annotations(path)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_defaults_are_the_sample_and_both_splits_can_be_named() -> None:
    found = build(DataSettings, None, "data")
    assert found.train.annotations.parts[:2] == found.val.images.parts[:2] == ("artifacts", "sample")
    assert found.train != found.val
    named = build(DataSettings, {"train": {"annotations": "a.json", "images": "/photos"}}, "data")
    assert named.train == Split(Path("a.json"), Path("/photos")) and named.val == found.val


@pytest.mark.parametrize(
    "values, message",
    [
        ({"train": {"annotations": "a.json"}}, "missing key: data.train.images"),
        ({"test": {}}, "unknown key: data.test"),
        ({"val": {"annotations": 5, "images": "x"}}, "data.val.annotations must be a path"),
        ({"val": "a.json"}, "data.val must be a section"),
    ],
)
def test_wrong_settings_name_their_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(DataSettings, values, "data")
    assert message in caught.value.message


def test_one_file_under_two_names_is_refused_and_the_first_ten_are_listed(tmp_path: Path) -> None:
    train = split(tmp_path, "train", *[(i, f"{i}.jpg") for i in range(20)])
    val = split(
        tmp_path, "val", *[(100 + i, f"train2017/{i}.jpg") for i in range(5, 17)], (203, "val2017/3.jpg")
    )
    with pytest.raises(MismatchedInput) as caught:
        refuse_overlap(train, tmp_path / "train2017", val, tmp_path)
    assert caught.value.exit_code == 3
    ids = "105, 106, 107, 108, 109, 110, 111, 112, 113, 114 and 2 more"
    assert caught.value.message == f"12 validation images are in the training set (ids {ids})"
    refuse_overlap(train, tmp_path / "val2017", val, tmp_path / "elsewhere")


def test_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.jpg", b"pixels")
    (tmp_path / "linked").symlink_to(tmp_path / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "b.jpg").symlink_to(tmp_path / "train" / "a.jpg")
    train = split(tmp_path, "train", (1, "a.jpg"))
    for name, folder in (("a.jpg", "linked"), ("b.jpg", "val"), ("train/a.jpg", ".")):
        with pytest.raises(MismatchedInput, match=r"\(ids 7\)"):
            refuse_overlap(train, tmp_path / "train", split(tmp_path, "val", (7, name)), tmp_path / folder)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")  # leads nowhere, hence to no training image
    refuse_overlap(train, tmp_path / "train", split(tmp_path, "val", (7, "a.jpg")), tmp_path / "loop")


def test_names_from_coco_url_are_compared_too(tmp_path: Path) -> None:
    url = "http://images.cocodataset.org/train2017/000000000009.jpg"
    train = split(tmp_path, "train", (9, "000000000009.jpg"))
    val = split(tmp_path, "val", (9, ""), coco_url=url)
    with pytest.raises(MismatchedInput):
        refuse_overlap(train, tmp_path / "coco" / "train2017", val, tmp_path / "coco")


def test_copies_are_refused_but_splits_numbered_alike_are_not(tmp_path: Path) -> None:
    train = split(tmp_path, "train", (1, "1.jpg"), (2, "2.jpg"))
    val = split(tmp_path, "val", (1, "1.jpg"), (2, "2.jpg"))
    folders = tmp_path / "train", tmp_path / "val"
    for number in (1, 2):
        write(folders[0] / f"{number}.jpg", b"train %d" % number)
        write(folders[1] / f"{number}.jpg", b"valid %d" % number)  # as long, but different
    refuse_overlap(train, folders[0], val, folders[1])
    write(folders[1] / "2.jpg", b"train 2")
    with pytest.raises(MismatchedInput, match=r"1 validation images .* \(ids 2\)"):
        refuse_overlap(train, folders[0], val, folders[1])


def test_copies_that_cannot_be_compared_are_refused_by_id_name_and_size(tmp_path: Path) -> None:
    train = split(tmp_path, "train", (1, "a/1.jpg"))
    folders = tmp_path / "train", tmp_path / "absent"
    with pytest.raises(MismatchedInput):
        refuse_overlap(train, folders[0], split(tmp_path, "val", (1, "b/1.jpg")), folders[1])
    write(folders[1] / "b" / "1.jpg", b"only one of the two is there")
    with pytest.raises(MismatchedInput):
        refuse_overlap(train, folders[0], split(tmp_path, "val", (1, "b/1.jpg")), folders[1])
    for other in (
        split(tmp_path, "other id", (2, "b/1.jpg")),
        split(tmp_path, "other name", (1, "b/2.jpg")),
        split(tmp_path, "other size", (1, "b/1.jpg"), width=9),
    ):
        refuse_overlap(train, folders[0], other, folders[1])
