"""Anybody's boxes: every accepted form means the same, and every fault is refused by name."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_category_split import pipe

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError, MissingInput
from pipeline.proposals import import_json
from pipeline.proposals.importing import Imported, imported
from pipeline.proposals.writer import write_proposals

WIDTH, HEIGHT = 100, 80
CORNERS = ("x1", "y1", "x2", "y2")
# id -> file name; not in the order of the ids
NAMES = {9: "a/0009.jpg", 4: "b/second.jpg", 30: "third.png", 2: "fourth.jpg"}
# image, xyxy, score; in no order
ROWS = [
    (4, [10, 10, 30, 20], 0.5),
    (9, [0, 0, 50, 60], 0.25),
    (4, [5, 6, 7, 9.5], 0.75),
    (2, [20, 10, 100, 80], 1.0),
    (4, [1, 1, 11, 12], 0.5),
]
WANTED: dict[int, tuple[list[list[float]], list[float]]] = {
    9: ([[0, 0, 50, 60]], [0.25]),
    4: ([[5, 6, 7, 9.5], [10, 10, 30, 20], [1, 1, 11, 12]], [0.75, 0.5, 0.5]),
    30: ([], []),
    2: ([[20, 10, 100, 80]], [1.0]),
}


def annotations_of(folder: Path, names: dict[int, str]) -> Annotations:
    content = {
        "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in names.items()],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [],
    }
    path = folder / "split.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return annotations_of(tmp_path, NAMES)


def xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def write_json(folder: Path, content: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_parquet(folder: Path, columns: dict[str, Any], name: str = "boxes.parquet") -> Path:
    path = folder / name
    pq.write_table(pa.table(columns), path)
    return path


def columns_of(names: str, key: Callable[[int], Any] = int) -> dict[str, Any]:
    values = [box if names.startswith("x1") else xywh(box) for _, box, _ in ROWS]
    boxes = {n: [float(v[k]) for v in values] for k, n in enumerate(names.split())}
    return {"image_id": [key(i) for i, _, _ in ROWS], **boxes, "score": [s for _, _, s in ROWS]}


def coco(key: Callable[[int], Any] = int) -> list[dict[str, Any]]:
    return [
        {"image_id": key(i), "category_id": 77, "bbox": xywh(box), "score": score} for i, box, score in ROWS
    ]


def mapping(key: Callable[[int], str] = str) -> dict[str, list[list[float]]]:
    made: dict[str, list[list[float]]] = {key(i): [] for i in NAMES}
    for i, box, score in ROWS:
        made[key(i)].append([*box, score])
    return made


def assert_wanted(found: Imported, wanted: dict[int, Any] = WANTED) -> None:
    order = [i for i in NAMES if i in wanted]
    made = list(found([list(NAMES).index(i) for i in order]))
    assert [image_id for image_id, _ in made] == order
    for image_id, (boxes, scores) in made:
        assert boxes.dtype == scores.dtype == np.float32 and boxes.shape == (len(scores), 4)
        assert boxes.tolist() == wanted[image_id][0] and scores.tolist() == wanted[image_id][1]


def refusal_of(path: Path, annotations: Annotations) -> InputError:
    """What importing a file ends with: the file is named, whatever is wrong."""
    with pytest.raises(InputError) as caught:
        imported(path, annotations)
    assert str(path) in caught.value.message and caught.value.exit_code == 3
    return caught.value


# --- what is accepted -------------------------------------------------------------------------------------


def test_coco_results(tmp_path: Path, annotations: Annotations) -> None:
    assert_wanted(imported(write_json(tmp_path, coco()), annotations))


def test_a_mapping_from_image_to_boxes(tmp_path: Path, annotations: Annotations) -> None:
    assert_wanted(imported(write_json(tmp_path, mapping()), annotations))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path, annotations: Annotations) -> None:
    path = tmp_path / "boxes.json"
    path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(coco()).encode())
    assert_wanted(imported(path, annotations))


@pytest.mark.parametrize("names", ["x1 y1 x2 y2", "x y w h", "x y width height"])
def test_parquet(tmp_path: Path, annotations: Annotations, names: str) -> None:
    assert_wanted(imported(write_parquet(tmp_path, columns_of(names)), annotations))


def test_parquet_of_other_types(tmp_path: Path, annotations: Annotations) -> None:
    columns = columns_of("x1 y1 x2 y2")
    columns["image_id"] = pa.array(columns["image_id"], pa.int16())
    columns["x1"] = pa.array([int(v) for v in columns["x1"]], pa.int32())
    columns["score"] = pa.array(columns["score"], pa.float32())
    assert_wanted(imported(write_parquet(tmp_path, columns), annotations))


@pytest.mark.parametrize(
    "key",
    [
        lambda i: NAMES[i],
        lambda i: NAMES[i].rsplit(".", 1)[0],
        lambda i: NAMES[i].rsplit("/", 1)[-1],
        lambda i: NAMES[i].rsplit("/", 1)[-1].rsplit(".", 1)[0],
        lambda i: f"data/train/{NAMES[i]}",  # DumpProposals: the folder before the name
        lambda i: str(i),
    ],
)
def test_images_by_name(tmp_path: Path, annotations: Annotations, key: Callable[[int], str]) -> None:
    assert_wanted(imported(write_json(tmp_path, coco(key)), annotations))
    assert_wanted(imported(write_json(tmp_path, mapping(key)), annotations))
    assert_wanted(imported(write_parquet(tmp_path, columns_of("x y w h", key)), annotations))
    encoded = columns_of("x y w h", key)
    encoded["image_id"] = pa.array(encoded["image_id"]).dictionary_encode()
    assert_wanted(imported(write_parquet(tmp_path, encoded), annotations))


def test_a_missing_score_is_one(tmp_path: Path, annotations: Annotations) -> None:
    plain = {i: (boxes, [1.0] * len(boxes)) for i, (boxes, _) in WANTED.items()}
    plain[4] = ([ROWS[0][1], ROWS[2][1], ROWS[4][1]], [1.0] * 3)  # equal scores: in the file's order
    records = [{k: v for k, v in r.items() if k != "score"} for r in coco()]
    assert_wanted(imported(write_json(tmp_path, records), annotations), plain)
    short = {k: [row[:4] for row in rows] for k, rows in mapping().items()}
    assert_wanted(imported(write_json(tmp_path, short), annotations), plain)
    columns = columns_of("x1 y1 x2 y2")
    del columns["score"]
    assert_wanted(imported(write_parquet(tmp_path, columns), annotations), plain)


def test_a_folder_of_parquet_files(tmp_path: Path, annotations: Annotations) -> None:
    folder, columns = tmp_path / "parts", columns_of("x1 y1 x2 y2")
    folder.mkdir()
    write_parquet(folder, {k: v[:2] for k, v in columns.items()}, "one.parquet")
    write_parquet(folder, {k: v[2:] for k, v in columns.items()}, "two.parquet")
    assert_wanted(imported(folder, annotations))


def test_our_own_product(tmp_path: Path, annotations: Annotations) -> None:
    boxes = {
        i: (np.array(b, np.float32).reshape(-1, 4), np.array(s, np.float32)) for i, (b, s) in WANTED.items()
    }
    write_proposals(tmp_path / "product", annotations, boxes, "oln", "0" * 64, rows_per_part=2)
    assert len(list((tmp_path / "product" / "proposals").iterdir())) > 1
    assert_wanted(imported(tmp_path / "product", annotations))


def test_any_share_of_the_images(tmp_path: Path, annotations: Annotations) -> None:
    found = imported(write_json(tmp_path, coco()), annotations)
    assert_wanted(found, {i: WANTED[i] for i in (4, 2)})
    assert [i for i, _ in found([3, 0])] == [2, 9] and list(found([])) == []


def test_boxes_are_clipped_dropped_and_counted(tmp_path: Path, annotations: Annotations) -> None:
    rows = {
        "4": [[-5, -5, 10, 10], [90, 70, 110, 90, 0.5], [120, 10, 130, 20], [3, 3, 3, 9], [2, 2, 4, 4, 0.1]]
    }
    found = imported(write_json(tmp_path, rows), annotations)
    assert_wanted(found, {4: ([[0, 0, 10, 10], [90, 70, 100, 80], [2, 2, 4, 4]], [1, 0.5, np.float32(0.1)])})
    assert found.remarks() == [
        "boxes.json: 3 images have no box",
        "boxes.json: 2 boxes reach over the image border: clipped",
        "boxes.json: 2 boxes are empty or outside their image: dropped",
    ]
    assert imported(write_json(tmp_path, coco()), annotations).remarks() == [
        "boxes.json: 1 images have no box"
    ]


# --- what is refused --------------------------------------------------------------------------------------


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "run")


@pytest.mark.parametrize(
    "name", ["boxes.pkl", "boxes.pickle", "boxes.PTH", "boxes.npy", "boxes.json", "boxes"]
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_is_never_run(tmp_path: Path, annotations: Annotations, name: str, protocol: int) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=protocol))
    refusal = refusal_of(path, annotations)
    assert "can run any code when it is read: it was not read" in refusal.message
    assert "pickle.load" in refusal.hint and ".to_parquet(" in refusal.hint
    assert not (tmp_path / "ran").exists()


def test_arrays_of_objects_and_checkpoints_are_refused(tmp_path: Path, annotations: Annotations) -> None:
    import torch

    np.save(tmp_path / "array.npy", np.array([Payload(tmp_path / "ran")]), allow_pickle=True)
    (tmp_path / "array.npy").rename(tmp_path / "array.txt")
    torch.save({"boxes": torch.zeros(1, 4)}, tmp_path / "checkpoint.bin")
    for name in ("array.txt", "checkpoint.bin"):
        assert re.search("can run any code", refusal_of(tmp_path / name, annotations).message)
    assert not (tmp_path / "ran").exists()


def test_the_hint_converts_what_mmdetection_dumps(tmp_path: Path, annotations: Annotations) -> None:
    from mmengine.structures import InstanceData

    dumped = {
        f"train/{NAMES[i]}": InstanceData(
            bboxes=np.array(boxes, np.float32).reshape(-1, 4), scores=np.array(scores, np.float32)
        )
        for i, (boxes, scores) in WANTED.items()
    }
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(dumped))
    snippet = refusal_of(path, annotations).hint.split("\n", 1)[1]
    assert len(snippet.splitlines()) == 3
    exec(snippet, {})
    assert_wanted(imported(tmp_path / "proposals.parquet", annotations))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "NaN or infinite in images 4"),
        ({"bbox": [1, 2, float("inf"), 4]}, "NaN or infinite in images 4"),
        ({"score": float("nan")}, "NaN or infinite in images 4"),
        ({"bbox": [10, 10, -5, 4]}, "a negative size in images 4"),
        ({"bbox": [1, 2, 3]}, "not the numbers they should be in images 4"),
        ({"bbox": [1, 2, 3, 4, 5]}, "not the numbers they should be in images 4"),
        ({"bbox": [1, 2, 3, "4"]}, "not the numbers they should be in images 4"),
        ({"bbox": [1, 2, 3, True]}, "not the numbers they should be in images 4"),
        ({"bbox": [1, 2, 3, 10**400]}, "not the numbers they should be in images 4"),
        ({"bbox": None}, "not the numbers they should be in images 4"),
        ({"score": None}, "not the numbers they should be in images 4"),
        ({"score": "0.5"}, "not the numbers they should be in images 4"),
        ({"image_id": 5}, r"1 boxes name images that are not in .*split\.json: 5"),
        ({"image_id": 10**30}, "not in .*: 1000"),
        ({"image_id": 4.0}, r"not in .*: 4\.0"),
        ({"image_id": True}, "not in .*: True"),
        ({"image_id": [4]}, r"not in .*: \[4\]"),
        ({"image_id": None}, "not in .*: None"),
        ({"image_id": "c/second.jpg"}, r"not in .*: c/second\.jpg"),
        ({"image_id": "second.png"}, r"not in .*: second\.png"),
    ],
)
def test_bad_records(tmp_path: Path, annotations: Annotations, change: dict[str, Any], match: str) -> None:
    records = coco()
    records[0] |= change
    assert re.search(match, refusal_of(write_json(tmp_path, records), annotations).message)


def test_the_first_ten_are_named(tmp_path: Path, annotations: Annotations) -> None:
    records = [{"image_id": i, "bbox": [1, 2, 3, 4]} for i in range(100, 115)]
    match = "15 boxes .*: 100, 101, .*109 and 5 more"
    assert re.search(match, refusal_of(write_json(tmp_path, records), annotations).message)
    assert re.search(
        match,
        refusal_of(
            write_parquet(tmp_path, {"image_id": list(range(100, 115)), **{c: [1.0] * 15 for c in "xywh"}}),
            annotations,
        ).message,
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"4": [[30, 10, 20, 40]]}, "a negative size in images 4"),
        ({"4": [[1, 2, 3, 4, 5, 6]]}, "not the numbers .* in images 4"),
        ({"4": [1, 2, 3, 4]}, "not the numbers .* in images 4"),
        ({"4": {"boxes": []}}, "not the numbers .* in images 4"),
        ({"4": [], "9": []}, "holds no box"),
        ([], "holds no box"),
        ([4], "no record with image_id and bbox at positions 0"),
        ([{"image_id": 4}], "no record with image_id and bbox at positions 0"),
        ('{"4": [[1, 2, 3, 4]], "4": []}', "a key appears twice: 4"),
        ('[{"image_id": 4, ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("image,x,y", "neither JSON nor Parquet"),
        ("", "neither JSON nor Parquet"),
        ({"4": [[0.1, 0.2, 0.5, 1.0]], "9": [[0, 0, 1, 0.5]]}, "look normalised"),
    ],
)
def test_bad_json(tmp_path: Path, annotations: Annotations, content: Any, match: str) -> None:
    assert re.search(match, refusal_of(write_json(tmp_path, content), annotations).message)


def test_normalised_boxes_get_the_remedy(tmp_path: Path, annotations: Annotations) -> None:
    records = [{"image_id": 4, "bbox": [0.1, 0.1, 0.2, 0.3]}]
    refusal = refusal_of(write_json(tmp_path, records), annotations)
    assert "normalised to " in refusal.message
    assert "multiply x by the width" in refusal.hint
    records.append({"image_id": 4, "bbox": [10, 10, 20, 30]})
    assert len(imported(write_json(tmp_path, records), annotations).boxes) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x2": None}, "columns image_id, x1, y1, y2, score"),
        ({"image_id": None}, "columns x1, y1, x2, y2, score"),
        ({"image_id": [1.0] * 5}, "image_id is double, neither whole numbers nor file names"),
        ({"x1": ["1"] * 5}, "x1 is string, not a number"),
        ({"score": ["high"] * 5}, "score is string, not a number"),
        ({"y1": [1.0, None, 1.0, 1.0, 1.0]}, "has empty cells"),
        ({"y1": [1.0, float("nan"), 1.0, 1.0, 1.0]}, "NaN or infinite in images 9"),
        ({"x2": [200.0, -5.0, 200.0, 200.0, 200.0]}, "a negative size in images 9"),
        ({"score": [1.0, 1.0, 1.0, float("-inf"), 1.0]}, "NaN or infinite in images 2"),
        ({"image_id": [4, 5, 4, 9, 6]}, "2 boxes name images that are not in .*: 5, 6"),
    ],
)
def test_bad_parquet(tmp_path: Path, annotations: Annotations, change: dict[str, Any], match: str) -> None:
    columns = {k: v for k, v in (columns_of("x1 y1 x2 y2") | change).items() if v is not None}
    assert re.search(match, refusal_of(write_parquet(tmp_path, columns), annotations).message)


def test_damaged_parquet(tmp_path: Path, annotations: Annotations) -> None:
    path = write_parquet(tmp_path, columns_of("x1 y1 x2 y2"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert re.search("not a whole Parquet file", refusal_of(path, annotations).message)


def test_nothing_there(tmp_path: Path, annotations: Annotations) -> None:
    with pytest.raises(MissingInput, match="do not exist"):
        imported(tmp_path / "none.json", annotations)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match="no Parquet file of boxes"):
        imported(tmp_path / "empty", annotations)


def test_names_that_fit_several_images(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, {1: "a/x.jpg", 2: "b/x.jpg", 12: "c/y.jpg", 5: "d/12.jpg"})
    record = {"bbox": [1, 2, 3, 4]}
    for name in ("x.jpg", "x", "12"):
        path = write_json(tmp_path, [record | {"image_id": name}])
        assert re.search(
            f"1 boxes name images that fit several images of .*: {name}$",
            refusal_of(path, annotations).message,
        )
    path = write_json(tmp_path, [record | {"image_id": i} for i in ("a/x.jpg", 12, "12.jpg")])
    found = imported(path, annotations)
    assert np.diff(found.offsets).tolist() == [1, 0, 1, 1]


def test_pandas_writes_what_is_read(tmp_path: Path, annotations: Annotations) -> None:
    frame = pd.DataFrame(columns_of("x1 y1 x2 y2")).sort_values("x1")  # leaves an index column
    frame.to_parquet(tmp_path / "boxes.parquet")
    found = dict(imported(tmp_path / "boxes.parquet", annotations)(range(4)))
    assert sorted(map(tuple, found[4][0].tolist())) == sorted(map(tuple, WANTED[4][0]))


# --- corners in place of sizes ----------------------------------------------------------------------------


def corners(count: int) -> list[list[float]]:
    """Boxes of the right half of an image: x1, y1, x2, y2."""
    return [[40 + i, 30, 70 + i, 75] for i in range(count)]


@pytest.mark.parametrize("form", ["json", "x y w h", "x y width height", "folder"])
def test_corners_in_place_of_sizes(tmp_path: Path, annotations: Annotations, form: str) -> None:
    def write(boxes: list[list[float]]) -> Path:
        keys = [4 if i % 2 else 9 for i in range(len(boxes))]
        if form == "json":
            return write_json(
                tmp_path, [{"image_id": k, "bbox": b} for k, b in zip(keys, boxes, strict=True)]
            )
        names = "xywh" if form == "folder" else form.split()
        columns = {n: [float(b[k]) for b in boxes] for k, n in enumerate(names)} | {"image_id": keys}
        if form != "folder":
            return write_parquet(tmp_path, columns)
        (tmp_path / "parts").mkdir(exist_ok=True)
        for part, rows in (("a", slice(0, 6)), ("b", slice(6, None))):  # each too few to judge
            write_parquet(tmp_path / "parts", {n: v[rows] for n, v in columns.items()}, f"{part}.parquet")
        return tmp_path / "parts"

    refusal = refusal_of(write(corners(12)), annotations)
    assert re.search("look like x1, y1, x2, y2.* 100% .* in images 9, 4$", refusal.message)
    assert "write x, y, width, height" in refusal.hint and "columns x1, y1, x2, y2" in refusal.hint
    assert len(imported(write(corners(9)), annotations).boxes) == 9  # too few to tell
    assert len(imported(write([xywh(b) for b in corners(12)]), annotations).boxes) == 12


def test_forms_that_are_corners_are_not_judged(tmp_path: Path, annotations: Annotations) -> None:
    path = write_json(tmp_path, {"4": corners(12)})
    assert len(imported(path, annotations).boxes) == 12
    far = [[90, 70, 99, 79]] * 12  # as sizes they would leave the image
    path = write_parquet(
        tmp_path, {"image_id": [4] * 12, **{c: [float(b[k]) for b in far] for k, c in enumerate(CORNERS)}}
    )
    assert len(imported(path, annotations).boxes) == 12


# --- folders that say what belongs to them ----------------------------------------------------------------


@pytest.fixture
def product(tmp_path: Path, annotations: Annotations) -> Path:
    boxes = {
        i: (np.array(b, np.float32).reshape(-1, 4), np.array(s, np.float32)) for i, (b, s) in WANTED.items()
    }
    write_proposals(tmp_path / "product", annotations, boxes, "oln", "0" * 64, rows_per_part=2)
    return tmp_path / "product"


@pytest.mark.parametrize("place", [".", "proposals"])
def test_a_missing_part_is_noticed(product: Path, annotations: Annotations, place: str) -> None:
    assert_wanted(imported(product / place, annotations))
    (product / "proposals/part-00001.parquet").unlink()
    with pytest.raises(InputError, match="images 9 have not as many rows as num_proposals") as caught:
        imported(product / place, annotations)
    assert "a whole copy?" in caught.value.hint and caught.value.exit_code == 3


def test_a_flat_copy_is_checked_alike(product: Path, tmp_path: Path, annotations: Annotations) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in product.rglob("*.parquet"):
        (flat / file.name).write_bytes(file.read_bytes())
    assert_wanted(imported(flat, annotations))
    (flat / "part-00000.parquet").unlink()
    assert re.search("have not as many rows as num_proposals says", refusal_of(flat, annotations).message)


def test_parts_of_another_run(product: Path, tmp_path: Path, annotations: Annotations) -> None:
    boxes = {4: (np.array([[1, 2, 30, 40]], np.float32), np.ones(1, np.float32))}
    write_proposals(tmp_path / "other", annotations, boxes, "oln", "1" * 64)
    part = product / "proposals/part-00000.parquet"
    part.write_bytes((tmp_path / "other/proposals/part-00000.parquet").read_bytes())
    assert re.search("come from different runs", refusal_of(product, annotations).message)


def test_parts_alone_are_taken_as_they_are(product: Path, annotations: Annotations) -> None:
    (product / "images.parquet").unlink()
    assert_wanted(imported(product, annotations))


# --- what would be waited for for ever --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["boxes.json", "boxes.pkl", "parts/boxes.parquet", "parts/images.parquet"])
def test_pipes_are_not_opened(tmp_path: Path, annotations: Annotations, name: str) -> None:
    (tmp_path / "parts").mkdir()
    write_parquet(tmp_path / "parts", columns_of("x1 y1 x2 y2"), "one.parquet")
    with pipe(tmp_path / name), pytest.raises(InputError, match=f"{name} is not a regular file"):
        imported(tmp_path / "parts" if "/" in name else tmp_path / name, annotations)


# --- numbers beyond the types -----------------------------------------------------------------------------


def test_scores_beyond_float32(tmp_path: Path, annotations: Annotations) -> None:
    records = coco()
    records[1]["score"] = 1e39
    refusal = refusal_of(write_json(tmp_path, records), annotations)
    assert re.search("too large for 32-bit floats .* images 9$", refusal.message)
    assert "scale the scores" in refusal.hint
    columns = columns_of("x1 y1 x2 y2")
    columns["score"][3] = -1e39
    parquet = write_parquet(tmp_path, columns)
    assert re.search("too large for 32-bit floats .* images 2$", refusal_of(parquet, annotations).message)
    records[1]["score"] = 3.4e38
    assert imported(write_json(tmp_path, records), annotations).scores.max() == np.float32(3.4e38)


def test_sizes_beyond_float64(tmp_path: Path, annotations: Annotations) -> None:
    records = coco()
    records[1]["bbox"] = [1e308, 1, 1e308, 5]
    assert re.search(
        "NaN or infinite in images 9$", refusal_of(write_json(tmp_path, records), annotations).message
    )


# --- the two readers of JSON ------------------------------------------------------------------------------


@pytest.fixture
def only_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow reader fails."""

    def slow(*_: Any) -> None:
        raise AssertionError("read by the slow reader")

    monkeypatch.setattr(import_json, "_any_rows", slow)


@pytest.mark.parametrize(
    "content",
    [
        coco(),
        coco(lambda i: NAMES[i]),
        mapping(),
        mapping(lambda i: f"d\u00e4ta/{NAMES[i]}"),
        [{k: v for k, v in r.items() if k != "score"} for r in coco()],
        [coco()[0], {"bbox": [1, 2, 3, 4], "image_id": 9, "segmentation": {"counts": "[{"}}],
        {k: [row[:4] for row in rows] for k, rows in mapping().items()},
    ],
)
@pytest.mark.usefixtures("only_typed")
def test_files_as_they_should_be_are_read_fast(
    tmp_path: Path, annotations: Annotations, content: Any
) -> None:
    for text in (json.dumps(content), json.dumps(content, indent=1, ensure_ascii=False)):
        path = tmp_path / "boxes.json"
        path.write_text(text, encoding="utf-8-sig")
        assert len(imported(path, annotations).boxes)


@pytest.mark.parametrize("form", ["records", "mapping"])
def test_both_readers_read_the_same(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = rng.uniform(0, 1e3, (50, 4)).tolist(), rng.normal(size=50).tolist()
    keys = rng.integers(0, 20, 50).tolist()
    content: Any = {}
    if form == "records":
        content = [
            {"image_id": k, "bbox": b, **({"score": s} if k % 3 else {})}
            for k, b, s in zip(keys, boxes, scores, strict=True)
        ]
    else:
        for k, b, s in zip(keys, boxes, scores, strict=True):
            content.setdefault(str(k), []).append([*b, s] if k % 3 else b)
    fast = import_json.json_rows(write_json(tmp_path, content))
    slow = import_json._any_rows(json.dumps(content).encode(), tmp_path)
    assert fast.keys == slow.keys and fast.has_sizes == slow.has_sizes == (form == "records")
    assert np.array_equal(fast.numbers, slow.numbers) and np.array_equal(fast.scores, slow.scores)
    assert fast.numbers.shape == (50, 4) and (fast.scores == 1).sum() == sum(k % 3 == 0 for k in keys)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('[{"image_id": 4, "bbox": [1, 2, 3, 4], "image_id": 9}]', "a key appears twice: image_id"),
        ('[{"image_id": 4, "bbox": [1, 2, 3, 4], "bbox": [1, 2, 3, 5]}]', "a key appears twice: bbox"),
        ('[{"image_id": 4, "bbox": [1, 2, 3, 4], "score": 1, "score": 2}]', "a key appears twice: score"),
        ('[{"image_id": 4, "bbox": [1, 2, 3, 4], "name": "\xff"}]', "not valid JSON: .*codec"),
        ('[{"image_id": 4, "bbox": [1, 2, 3, 4]}] []', "not valid JSON: Extra data"),
    ],
)
def test_what_the_typed_reader_would_overlook(
    tmp_path: Path, annotations: Annotations, text: str, match: str
) -> None:
    path = tmp_path / "boxes.json"
    path.write_bytes(text.encode("latin-1"))
    assert re.search(match, refusal_of(path, annotations).message)


def test_nan_in_what_nobody_reads(tmp_path: Path, annotations: Annotations) -> None:
    records = [record | {"area": float("nan"), "about": {"bbox": 1, "score": 2}} for record in coco()]
    assert_wanted(imported(write_json(tmp_path, records), annotations))
