"""Reading COCO and LVIS json: columns against slow dictionaries, every fault by its message, mutations."""

import copy
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import file_digest
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError, MissingInput, TwoDRCLError

WIDTH, HEIGHT = 100, 80
TRIANGLE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0]]


def image(image_id: int, **changes: Any) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "width": WIDTH, "height": HEIGHT} | changes


def record(annotation_id: int, **changes: Any) -> dict[str, Any]:
    base = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": TRIANGLE}
    return {"id": annotation_id} | base | changes


def small(*records: dict[str, Any], **parts: Any) -> dict[str, Any]:
    base = {"images": [image(1), image(2)], "categories": [{"id": 1, "name": "cup"}]}
    return base | {"annotations": list(records)} | parts


def read(folder: Path, content: Any) -> Annotations:
    path = folder / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_annotations(path)


def refused(folder: Path, content: Any) -> str:
    """The message of the error that `content` must raise."""
    with pytest.raises(InputError) as caught:
        read(folder, content)
    assert caught.value.exit_code == 3 and str(folder / "split.json") in caught.value.message
    return caught.value.message


def random_content(seed: int) -> dict[str, Any]:
    """A valid LVIS-like file in random order, with crowds, boxes on and beyond borders, gaps in the ids."""
    rng = random.Random(seed)
    images = [
        image(7 * i + 3, width=rng.randint(1, 90), height=rng.randint(1, 90))
        for i in range(rng.randint(1, 8))
    ]
    for one in images:
        one |= {"neg_category_ids": rng.sample([2, 5, 11], 2), "not_exhaustive_category_ids": []}
    categories = [{"id": c, "name": f"thing {c}", "frequency": rng.choice("rcf")} for c in (11, 2, 5)]
    records = [
        record(
            1000 - n,
            image_id=rng.choice(images)["id"],
            category_id=rng.choice((2, 5, 11)),
            bbox=[rng.uniform(-20, 80), rng.uniform(-20, 80), rng.choice([0, 9, 50]), rng.uniform(0, 60)],
            iscrowd=int(rng.random() < 0.2),
        )
        for n in range(rng.randint(0, 25))
    ]
    rng.shuffle(images)
    rng.shuffle(records)
    return {"images": images, "categories": categories, "annotations": records}


def test_columns_equal_a_slow_reading_of_random_files(tmp_path: Path) -> None:
    for seed in range(20):
        content = random_content(seed)
        found = read(tmp_path, content)
        assert found.image_ids.tolist() == [i["id"] for i in content["images"]]
        assert found.category_ids.tolist() == [2, 5, 11]
        letters = {c["id"]: c["frequency"] for c in content["categories"]}
        assert found.frequency == [letters[c] for c in (2, 5, 11)]
        assert found.category_names == ["thing 2", "thing 5", "thing 11"]
        for position, one in enumerate(content["images"]):
            assert found.file_names[position] == one["file_name"]
            assert found.sizes_wh[position].tolist() == [one["width"], one["height"]]
            assert found.neg_category_ids and found.neg_category_ids[position] == one["neg_category_ids"]
            rows = found.of_image(position)
            mine = [r for r in content["annotations"] if r["image_id"] == one["id"]]  # file order
            assert found.annotation_ids[rows].tolist() == [r["id"] for r in mine]
            assert found.category_ids[found.labels[rows]].tolist() == [r["category_id"] for r in mine]
            assert found.is_crowd[rows].tolist() == [bool(r["iscrowd"]) for r in mine]
            for row, r in zip(range(rows.start, rows.stop), mine, strict=True):
                x, y, w, h = r["bbox"]
                np.testing.assert_array_equal(found.boxes[row], np.float32([x, y, x + w, y + h]))
                left, right = (min(max(v, 0), one["width"]) for v in found.boxes[row, ::2])
                top, bottom = (min(max(v, 0), one["height"]) for v in found.boxes[row, 1::2])
                np.testing.assert_array_equal(
                    found.clipped_boxes[row], np.float32([left, top, right, bottom])
                )
                assert found.trainable[row] == (right > left and bottom > top and not r["iscrowd"])


def test_column_types_digest_and_absent_fields(tmp_path: Path) -> None:
    found = read(tmp_path, small(record(1, segmentation=None)))
    assert found.boxes.dtype == np.float32 and found.boxes.shape == (1, 4)
    assert found.labels.dtype == found.box_images.dtype == found.image_ids.dtype == np.int64
    assert found.digest == file_digest(found.path) and found.frequency is None
    assert found.neg_category_ids is None and not found.is_lvis
    assert list(found.segmentations) == [None] and found.without_polygons == [1]


def test_file_without_annotations_is_valid_and_says_so(tmp_path: Path) -> None:
    found = read(tmp_path, small())
    assert found.boxes.shape == found.clipped_boxes.shape == (0, 4) and found.offsets.tolist() == [0, 0, 0]
    assert found.remarks() == [
        "split.json: 2 images have no annotation",
        "split.json: 1 categories have no instance",
    ]


def test_remarks_count_what_is_not_trained_on(tmp_path: Path) -> None:
    records = [
        record(1, bbox=[90, 70, 20, 20]),  # partly outside
        record(2, bbox=[5, 5, 0, 10]),  # no width
        record(3, bbox=[100, 10, 5, 5]),  # wholly outside, touching the border
        record(4, bbox=[-30, -30, 20, 20]),  # wholly outside
        record(5, iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": [8000]}),
        record(6, bbox=[0, 0, WIDTH, HEIGHT]),  # the whole image, inside
    ]
    categories = [{"id": 1, "name": "cup"}, {"id": 4, "name": "unseen"}]
    found = read(tmp_path, small(*records, categories=categories))
    assert found.trainable.tolist() == [True, False, False, False, False, True]
    assert found.clipped_boxes[0].tolist() == [90, 70, 100, 80] and found.boxes[0].tolist() == [
        90,
        70,
        110,
        90,
    ]
    assert found.remarks() == [
        "split.json: 1 boxes reach over the image border: clipped",
        "split.json: 3 boxes are empty or outside their image: not trained on, still counted by stats",
        "split.json: 1 crowd regions: not trained on, not counted",
        "split.json: 1 images have no annotation",
        "split.json: 1 categories have no instance",
    ]


def test_areas_are_kept_and_unlikely_ones_counted(tmp_path: Path) -> None:
    areas = [200.5, None, 0, -3, 500, 441]  # the boxes have 400, their next pixels included 484
    found = read(
        tmp_path, small(*[record(i, area=a) for i, a in enumerate(areas)], record(6), images=[image(1)])
    )
    np.testing.assert_array_equal(found.areas, [200.5, np.nan, 0, -3, 500, 441, np.nan])
    assert found.remarks() == [
        "split.json: 3 areas are 0, negative or larger than their box: used as they are, by size groups alone"
    ]
    for bad in ("5", True, [1]):
        assert "area is not a number in annotations 8" in refused(tmp_path, small(record(8, area=bad)))


def test_masks_that_do_not_fit_their_box_are_counted(tmp_path: Path) -> None:
    fits = [[10, 10, 30, 12], [11, 9, 31, 30, 10, 30]]  # two parts together, off by a pixel
    smaller, beyond = [[12.5, 10, 30, 10, 30, 30]], [[10, 10, 33, 10, 30, 30]]
    records = [record(i, segmentation=m) for i, m in enumerate([fits, smaller, beyond, TRIANGLE, None])]
    found = read(tmp_path, small(*records, record(9, iscrowd=1, segmentation=beyond)))
    assert found.mask_remarks() == ["split.json: 2 of 4 masks looked at do not fit their bbox: 1, 2"]
    assert read(tmp_path, small(record(1))).mask_remarks() == []
    assert read(tmp_path, small(record(1, segmentation=None))).mask_remarks() == []


def test_category_with_crowds_alone_has_no_instance(tmp_path: Path) -> None:
    found = read(tmp_path, small(record(1, iscrowd=1), images=[image(1)]))
    assert found.remarks()[-1] == "split.json: 1 categories have no instance"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="do not exist") as caught:
        read_annotations(tmp_path / "none.json")
    assert "--annotations" in caught.value.hint
    with pytest.raises(InputError, match="is a folder, where a file is needed"):
        read_annotations(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingInput, match="do not exist"):
        read_annotations(tmp_path / "file" / "split.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"images": [',
        "<html><body>404</body></html>",
        "[" * 200_000,  # deeper than the parser goes
        '{"info": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
    ids=["empty", "truncated", "html", "nested", "nested in a value"],
)
def test_what_is_not_json(tmp_path: Path, text: str) -> None:
    assert "is not valid JSON" in refused(tmp_path, text)


def test_bytes_that_are_no_text_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    for text in (b'"coco_url": "\xff"', b'"flickr_url": "\xff"'):  # read, and passed over
        images = json.dumps([image(1)]).encode().replace(b'"width"', text + b', "width"')
        content = b'{"images": ' + images + b', "annotations": [], "categories": []}'
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"not UTF-8.*byte {content.index(0xFF)} "):
            read_annotations(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(small(record(1))).encode())
    assert len(read_annotations(path).boxes) == 1


@pytest.mark.parametrize("content", [[], "text", 3, None])
def test_json_that_is_no_mapping(tmp_path: Path, content: Any) -> None:
    assert "not the images, annotations and categories" in refused(tmp_path, json.dumps(content))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", ["absent", None, {}, [1], [[]]])
def test_lists_that_are_missing_or_hold_no_records(tmp_path: Path, key: str, value: Any) -> None:
    content = small(record(1)) | {key: value}
    if value == "absent":
        del content[key]
    assert f"has no list `{key}`" in refused(tmp_path, content)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_nothing_to_do(tmp_path: Path, key: str) -> None:
    assert "nothing to do" in refused(tmp_path, small(**{key: []}))


@pytest.mark.parametrize(
    "key, what", [("images", "image"), ("annotations", "annotation"), ("categories", "category")]
)
@pytest.mark.parametrize("bad", ["absent", None, "7", 7.0, True, 2**63, -(2**63) - 1, [1]])
def test_ids_that_are_no_whole_numbers(tmp_path: Path, key: str, what: str, bad: Any) -> None:
    content = copy.deepcopy(small(record(1), record(2), images=[image(1), image(2)]))
    content["categories"].append({"id": 2, "name": "mug"})
    content[key][1]["id"] = bad
    if bad == "absent":
        del content[key][1]["id"]
    assert f"{what} without a whole-number id at positions 1" in refused(tmp_path, content)


def test_duplicate_ids_list_the_first_ten(tmp_path: Path) -> None:
    records = [record(i) for i in [*range(12), *range(12)]]
    message = refused(tmp_path, small(*records))
    assert message.endswith("annotation ids appear more than once: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")
    assert "image ids appear more than once: 1" in refused(tmp_path, small(images=[image(1), image(1)]))
    twice = [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]
    assert "category ids appear more than once: 3" in refused(tmp_path, small(categories=twice))


def test_two_images_of_one_file(tmp_path: Path) -> None:
    for prefix in ("", "./"):
        images = [image(i, file_name=f"{prefix if i > 4 else ''}{i % 4}.jpg") for i in range(6)]
        message = refused(tmp_path, small(images=images))
        assert message.endswith("images 4, 5 have the file_name of an image before them")


def test_corners_in_place_of_sizes_are_seen_in_many_boxes(tmp_path: Path) -> None:
    corners = [record(i, bbox=[50 + i, 40, 90, 70], image_id=1) for i in range(12)]
    message = refused(tmp_path, small(*corners))
    assert "bbox looks like x1, y1, x2, y2" in message and "100% of the boxes" in message
    assert message.endswith("annotations 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")
    assert len(read(tmp_path, small(*corners[:9])).boxes) == 9  # too few to tell
    large = [record(i, bbox=[5, 5, 90, 70]) for i in range(12)]  # inside either way
    assert len(read(tmp_path, small(*large)).boxes) == 12


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_annotations_that_point_nowhere(tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, small(record(99), *[record(i, **{key: 50 + i}) for i in range(30)]))
    assert f"30 annotations name an unknown {key}" in message
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more" in message
    for bad in (None, "1", 1.0, True, 2**70):
        assert f"without a whole-number {key}: 5" in refused(tmp_path, small(record(5, **{key: bad})))


def test_huge_and_negative_ids_are_kept_exactly(tmp_path: Path) -> None:
    big, low = 2**63 - 1, -(2**63)
    content = small(
        record(big, image_id=big, category_id=low),
        images=[image(big), image(low)],
        categories=[{"id": big, "name": "a"}, {"id": low, "name": "b"}],
    )
    found = read(tmp_path, content)
    assert found.image_ids.tolist() == [big, low] and found.category_ids.tolist() == [low, big]
    assert found.labels.tolist() == [0] and found.box_images.tolist() == [0]


@pytest.mark.parametrize(
    "box",
    [
        None,
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [[1, 2, 3, 4]],
        [1, 2, None, 4],
        [1, 2, "3", 4],
        [1, 2, True, 4],
        "1234",
        {"x": 1},
        7,
        [1, 2, 10**400, 4],
    ],
)
def test_boxes_that_are_not_four_numbers(tmp_path: Path, box: Any) -> None:
    message = refused(tmp_path, small(record(1), record(42, bbox=box)))
    assert message.endswith("bbox is not four numbers in annotations 42")
    absent = record(8)
    del absent["bbox"]
    assert "bbox is not four numbers in annotations 8" in refused(tmp_path, small(absent))


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "1e9", "-16777217"])
@pytest.mark.parametrize("place", range(4))
def test_numbers_that_are_not_finite_or_too_large(tmp_path: Path, literal: str, place: int) -> None:
    box = ["5"] * 4
    box[place] = literal
    text = json.dumps(small(record(1), record(42, bbox=[]))).replace("[]", f"[{', '.join(box)}]")
    assert "beyond 16777216 pixels in annotations 42" in refused(tmp_path, text)


def test_negative_sizes_list_the_first_ten(tmp_path: Path) -> None:
    records = [record(i, bbox=[50, 50, -1 if i % 2 else 10, -1e-9 if not i % 2 else 3]) for i in range(11)]
    message = refused(tmp_path, small(*records))
    assert message.endswith(
        "(is it xyxy instead of xywh?) in annotations 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"
    )


def test_bytes_that_are_no_text_in_a_field_that_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    content = json.dumps(small(record(1))).encode().replace(b"2.jpg", b"\xff.jpg")
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"not UTF-8 \(byte {content.index(0xFF)} "):
        read_annotations(path)


@pytest.mark.parametrize(
    "kind, encode",
    [("UTF-16", lambda t: t.encode("utf-16")), ("compressed with gzip", lambda t: gzip.compress(t.encode()))],
)
def test_files_in_another_dress_are_named(tmp_path: Path, kind: str, encode: Callable[[str], bytes]) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(encode(json.dumps(small(record(1)))))
    with pytest.raises(InputError, match=f"is {kind}, not JSON in UTF-8"):
        read_annotations(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        read_annotations(tmp_path / "pipe")


def test_numbers_that_json_does_not_know_name_their_byte(tmp_path: Path) -> None:
    for literal in ("NaN", "Infinity", "?"):
        text = json.dumps(small(record(1), record(2, area="X"))).replace('"X"', literal)
        byte = text.index(literal)
        assert f"is not valid JSON: '{literal}" in refused(tmp_path, text)
        assert f"(byte {byte} of {len(text)})" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "key, twice",
    [("annotations", '"bbox": [0, 0, 1, 1]'), ("images", '"width": 3'), ("categories", '"id": 1')],
)
def test_a_key_twice_in_a_record(tmp_path: Path, key: str, twice: str) -> None:
    text = json.dumps(small(record(1)))
    begin = text.index("{", text.index(f'"{key}"')) + 1
    message = refused(tmp_path, text[:begin] + twice + ", " + text[begin:])
    assert (
        f"{twice.split(':')[0].strip(chr(34))!s}` appears twice in a record of `{key}` with id 1" in message
    )


def test_keys_of_objects_inside_a_record_are_no_twins(tmp_path: Path) -> None:
    found = read(tmp_path, small(record(1, attributes={"id": 5, "bbox": [1]}), record(2)))
    assert found.annotation_ids.tolist() == [1, 2]


def test_crowd_flags(tmp_path: Path) -> None:
    records = [record(i, iscrowd=flag) for i, flag in enumerate([0, 1, None, False, True])]
    assert read(tmp_path, small(*records)).is_crowd.tolist() == [False, True, False, False, True]
    for bad in ("0", 2, -1, [], {}):
        assert "iscrowd is neither 0 nor 1 in annotations 6" in refused(
            tmp_path, small(record(6, iscrowd=bad))
        )


@pytest.mark.parametrize("side", [0, -3, None, "640", 640.0, True, 2**24 + 1, 10**30])
@pytest.mark.parametrize("key", ["width", "height"])
def test_image_sizes(tmp_path: Path, key: str, side: Any) -> None:
    message = refused(tmp_path, small(images=[image(1), image(6, **{key: side})]))
    assert message.endswith("in images 6") and "width or height is not a whole number from 1" in message
    without = image(6)
    del without[key]
    assert refused(tmp_path, small(images=[without])).endswith("in images 6")


def test_file_names_from_coco_url(tmp_path: Path) -> None:
    url = "http://images.cocodataset.org/train2017/000000000009.jpg"
    images = [image(1, file_name=None, coco_url=url), image(2, file_name="a b/\u00e9 'q'.jpg", coco_url=url)]
    assert read(tmp_path, small(images=images)).file_names == [
        "train2017/000000000009.jpg",
        "a b/\u00e9 'q'.jpg",
    ]
    for bad in ({"file_name": ""}, {"file_name": 5}, {"file_name": None, "coco_url": 3}):
        assert "neither file_name nor coco_url in images 4" in refused(
            tmp_path, small(images=[image(4, **bad)])
        )


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "a/..", "..\\x.jpg", "a\0.jpg", "a\ud800.jpg"]
)
def test_file_names_that_leave_the_folder_or_cannot_exist(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path, small(images=[image(1), image(4, file_name=name)]))
    assert "file_name leaves the image folder" in message and "in images 4: " in message


def test_coco_url_that_leaves_the_folder(tmp_path: Path) -> None:
    for url in ("http://host/../x.jpg", "http://host/..", "http://host/a\\..\\..\\x.jpg"):
        images = [image(4, file_name=None, coco_url=url)]
        assert "leaves the image folder" in refused(tmp_path, small(images=images))


def test_category_names(tmp_path: Path) -> None:
    categories = [{"id": 1}, {"id": 2, "name": None}, {"id": 3, "name": 5}, {"id": 4, "name": "\u8336"}]
    assert read(tmp_path, small(categories=categories)).category_names == ["1", "2", "5", "\u8336"]
    assert "name is not valid text in categories 9" in refused(
        tmp_path, small(categories=[{"id": 9, "name": "a\udfff"}])
    )


@pytest.mark.parametrize("letter", ["R", "", "rare", None, 1, ["r"]])
def test_frequency_letters(tmp_path: Path, letter: Any) -> None:
    categories = [{"id": 1, "frequency": "r"}, {"id": 2, "frequency": letter}]
    assert "frequency is not r, c or f in categories 2" in refused(tmp_path, small(categories=categories))


def test_federated_fields(tmp_path: Path) -> None:
    full = {"neg_category_ids": [1, 900], "not_exhaustive_category_ids": []}
    found = read(tmp_path, small(images=[image(1, **full), image(2, **full)]))
    assert found.is_lvis and found.neg_category_ids == [[1, 900]] * 2
    assert found.not_exhaustive_category_ids == [[], []]
    assert not read(tmp_path, small(images=[image(1, neg_category_ids=[1])])).is_lvis
    mixed = read(tmp_path, small(images=[image(1, **full), image(2), image(3, neg_category_ids=[])]))
    assert mixed.neg_category_ids is None  # good enough to train on; only an evaluation needs to know
    with pytest.raises(InputError, match="others not: 2, 3"):
        assert mixed.is_lvis
    for key in full:
        for bad in (None, "12", 5, ["1"], [1.0], [True], {"1": 1}, [2**64]):
            message = refused(tmp_path, small(images=[image(1, **full), image(7, **full | {key: bad})]))
            assert message.endswith(f"{key} is not a list of ids in images 7")


def test_polygons_of_annotations(tmp_path: Path) -> None:
    line = [1.0, 1.0, 5.0, 5.0]
    masks = [
        TRIANGLE,
        [line, *TRIANGLE],  # COCO holds polygons of two corners: no area, left out
        [line],
        [],
        None,
        {"size": [80, 100], "counts": [8000]},
        [[0, 0, 5, 0, 5, 5, 0]],
        [[0, 0, 5, 0, 5, 1e30]],
        [[0, 0, 5, 0, 5, 10**400]],
        [["0", 0, 5, 0, 5, 5]],
        [TRIANGLE],
        TRIANGLE[0],
        "polygon",
    ]
    found = read(tmp_path, small(*[record(i, segmentation=m) for i, m in enumerate(masks)]))
    assert found.polygons(0) == found.polygons(1) == TRIANGLE
    assert found.without_polygons == list(range(2, len(masks)))
    harmless = [record(1, iscrowd=1, segmentation=None), record(2, bbox=[5, 5, 0, 0], segmentation=None)]
    assert read(tmp_path, small(*harmless)).without_polygons == []


EVIL = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.0, -0.5, 1e30, 1e308, -1e308,
    float("nan"), "", "1", "NaN", "../x", "/x", "a\0b", "\ud800", "x" * 5000,
    [], [[]], [None], [1, 2, 3, 4], ["a"] * 4, {}, {"id": 1}, {"size": [1, 1], "counts": "x"},
]  # fmt: skip


def mutated(content: dict[str, Any], rng: random.Random) -> str:
    """The text of `content` after one or two random injuries to its values, keys, order or characters."""
    for _ in range(rng.choice([1, 1, 2])):
        spot: Any = content
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            key = rng.choice(keys) if keys else None
            if key is None or rng.random() < 0.15 or not isinstance(spot[key], dict | list) or not spot[key]:
                break
            spot = spot[key]
        action = rng.choice(["replace", "replace", "replace", "remove", "repeat", "borrow"])
        if key is None:
            continue
        if action == "remove":
            del spot[key]
        elif action == "repeat" and isinstance(spot, list):
            spot.append(copy.deepcopy(spot[key]))
        elif action == "borrow":  # another value of the same container: duplicate ids, swapped types
            spot[key] = copy.deepcopy(
                spot[rng.choice(list(spot) if isinstance(spot, dict) else range(len(spot)))]
            )
        else:
            spot[key] = copy.deepcopy(rng.choice(EVIL))
    text = json.dumps(content)
    if rng.random() < 0.15:
        at = rng.randrange(len(text))
        text = rng.choice([text[:at], text[:at] + rng.choice('{}[]",:0-eN\\') + text[at + 1 :]])
    return text


def check_columns(found: Annotations) -> None:
    """What every other module takes for granted."""
    num_images, num_categories, count = len(found.image_ids), len(found.category_ids), len(found.boxes)
    assert num_images and num_categories
    assert len(found.file_names) == len(found.sizes_wh) == num_images
    assert len(found.category_names) == num_categories and (np.diff(found.category_ids) > 0).all()
    assert found.frequency is None or set(found.frequency) <= {"r", "c", "f"}
    columns = (found.annotation_ids, found.box_images, found.labels, found.is_crowd, found.segmentations)
    assert all(len(c) == count for c in columns) and found.boxes.shape == (count, 4)
    assert (found.sizes_wh > 0).all() and np.isfinite(found.boxes).all()
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert ((found.labels >= 0) & (found.labels < num_categories)).all()
    assert (np.diff(found.box_images) >= 0).all() and found.offsets[-1] == count
    limits = np.tile(found.sizes_wh[found.box_images], 2)
    assert ((found.clipped_boxes >= 0) & (found.clipped_boxes <= limits)).all()
    trained = found.clipped_boxes[found.trainable]
    assert (trained[:, 2:] > trained[:, :2]).all() and not found.is_crowd[found.trainable].any()
    "".join([*found.file_names, *found.category_names]).encode()  # raises for what no file can hold
    assert set(found.without_polygons) <= set(found.annotation_ids[found.trainable].tolist())
    assert all(isinstance(remark, str) for remark in found.remarks())


def test_random_mutations_give_an_error_of_ours_or_valid_columns(tmp_path: Path) -> None:
    rng, outcomes = random.Random(0), {"valid": 0, "refused": 0}
    for trial in range(600):
        text = mutated(random_content(trial), rng)
        try:
            check_columns(read(tmp_path, text))
            outcomes["valid"] += 1
        except TwoDRCLError as problem:
            assert problem.exit_code == 3 and problem.message
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 60, outcomes  # the mutations are neither harmless nor hopeless
