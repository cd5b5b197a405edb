"""The Parquet contract of proposals, its checks, and the memory-mapped reader."""

import json
import multiprocessing
import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import InputError, MismatchedInput, MissingInput
from pipeline.proposals import contract
from pipeline.proposals.store import ProposalStore, write_proposals

COUNTS = {7: 5, 3: 0, 11: 2, 2_147_483_648: 3, 5: 4}  # image id -> proposals; not ascending, past int32


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 100 + k, "height": 60} for k, i in enumerate(COUNTS)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return read_annotations(path)


def random_proposals(seed: int = 0) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    made = {}
    for image_id, count in COUNTS.items():
        corner = generator.uniform(0, 30, size=(count, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(1, 29, size=(count, 2))], axis=1)
        made[image_id] = (boxes.astype(np.float32), generator.random(count, dtype=np.float32))
    return made


@pytest.fixture
def folder(tmp_path: Path, annotations: Annotations) -> Path:
    write_proposals(tmp_path / "made", annotations, random_proposals(), "oln", "w" * 64, rows_per_part=6)
    return tmp_path / "made"


def open_store(folder: Path, digest: str | None = None) -> ProposalStore:
    return ProposalStore.open(folder, digest, folder.parent / "cache")


def read_rows(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted((folder / "proposals").iterdir())])


def rewrite(folder: Path, columns: dict[str, np.ndarray], part: str = "proposals/part-00000.parquet") -> None:
    """Replace columns of one file, keeping its metadata: how another program could break the contract."""
    table = pq.read_table(folder / part)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, folder / part)


def column(folder: Path, name: str, part: str = "proposals/part-00000.parquet") -> np.ndarray:
    return pq.read_table(folder / part)[name].to_numpy().copy()


def test_files_columns_and_types_are_the_contract(folder: Path, annotations: Annotations) -> None:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert names == ["images.parquet", "proposals/part-00000.parquet", "proposals/part-00001.parquet"]
    rows, images = read_rows(folder), pq.read_table(folder / "images.parquet")
    floats = [(c, "float") for c in ("x1", "y1", "x2", "y2", "score")]
    assert [(f.name, str(f.type)) for f in rows.schema] == [("image_id", "int64"), *floats]
    assert images.column_names == ["image_id", "file_name", "width", "height", "num_proposals"]
    listed = dict(zip(images["image_id"].to_pylist(), images["num_proposals"].to_pylist(), strict=True))
    assert listed == COUNTS  # those without proposals too
    assert images["file_name"].to_pylist() == [f"{i}.jpg" for i in sorted(COUNTS)]
    assert images["width"].to_pylist() == [100 + list(COUNTS).index(i) for i in sorted(COUNTS)]


def test_metadata_names_source_annotations_and_weights(folder: Path, annotations: Annotations) -> None:
    wanted = {"schema": "1", "source": "oln", "annotations": annotations.digest, "weights": "w" * 64}
    for path in [folder / "images.parquet", *(folder / "proposals").iterdir()]:
        stored = pq.read_metadata(path).metadata
        assert {k: stored[f"2drcl.{k}".encode()].decode() for k in wanted} == wanted


def test_rows_are_sorted_across_parts_and_compressed_with_zstd(folder: Path) -> None:
    rows = read_rows(folder)
    keys = list(zip(rows["image_id"].to_pylist(), (-rows["score"].to_numpy()).tolist(), strict=True))
    assert keys == sorted(keys) and len(keys) == sum(COUNTS.values())
    chunk = pq.read_metadata(folder / "proposals/part-00000.parquet").row_group(0).column(1)
    assert chunk.compression == "ZSTD" and "BYTE_STREAM_SPLIT" in chunk.encodings


def test_row_groups_hold_65536_rows(tmp_path: Path, annotations: Annotations) -> None:
    count = 70_000
    boxes = np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (count, 1))
    write_proposals(tmp_path / "big", annotations, {7: (boxes, np.ones(count, np.float32))}, "oln", "w")
    stored = pq.read_metadata(tmp_path / "big/proposals/part-00000.parquet")
    assert [stored.row_group(i).num_rows for i in range(stored.num_row_groups)] == [65_536, 4_464]
    assert len(open_store(tmp_path / "big").of_image(7)[1]) == count


def test_round_trip_returns_the_boxes_best_first(folder: Path, annotations: Annotations) -> None:
    store = open_store(folder, annotations.digest)
    assert len(store) == len(COUNTS) and store.image_ids.tolist() == sorted(COUNTS)
    for image_id, (boxes, scores) in random_proposals().items():
        found_boxes, found_scores = store.of_image(image_id)
        best_first = sorted(range(len(scores)), key=lambda k: -scores[k])
        assert found_boxes.dtype == found_scores.dtype == np.float32
        assert found_boxes.shape == (len(boxes), 4)
        np.testing.assert_array_equal(found_boxes, boxes[best_first])
        np.testing.assert_array_equal(found_scores, scores[best_first])


def test_results_are_copies_that_may_be_changed(folder: Path) -> None:
    store = open_store(folder)
    boxes, _ = store.of_image(7)
    boxes[:] = -1
    assert (store.of_image(7)[0] >= 0).all()


def test_bytes_are_deterministic_and_order_of_the_mapping_does_not_matter(
    tmp_path: Path, folder: Path, annotations: Annotations
) -> None:
    shuffled = dict(reversed(random_proposals().items()))
    write_proposals(tmp_path / "b", annotations, shuffled, "oln", "w" * 64, rows_per_part=6)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(folder)).read_bytes()


def test_iterable_is_streamed_in_ascending_order(tmp_path: Path, annotations: Annotations) -> None:
    pairs = sorted(random_proposals().items())
    write_proposals(tmp_path / "a", annotations, iter(pairs), "oln", "w")
    np.testing.assert_array_equal(open_store(tmp_path / "a").of_image(11)[1], sorted(pairs[3][1][1])[::-1])
    with pytest.raises(AssertionError, match="larger id"):
        write_proposals(tmp_path / "b", annotations, iter(pairs[::-1]), "oln", "w")


def test_split_without_any_proposal(tmp_path: Path, annotations: Annotations) -> None:
    write_proposals(tmp_path / "none", annotations, {}, "oln", "w")
    store = open_store(tmp_path / "none")
    assert len(store) == len(COUNTS) and store.of_image(5)[0].shape == (0, 4)


def test_writer_cuts_boxes_at_the_border(tmp_path: Path, annotations: Annotations) -> None:
    boxes = np.array([[-0.001, 10, 100.002, 60.5]])
    write_proposals(tmp_path / "cut", annotations, {7: (boxes, np.ones(1))}, "oln", "w")
    np.testing.assert_array_equal(open_store(tmp_path / "cut").of_image(7)[0], [[0, 10, 100, 60]])


@pytest.mark.parametrize(
    ("box", "score", "message"),
    [
        ([0, 0, np.inf, 9], 0.5, "NaN or infinite"),
        ([0, np.nan, 9, 9], 0.5, "NaN or infinite"),
        ([0, 0, 9, 9], np.nan, "NaN or infinite"),
        ([9, 0, 8, 9], 0.5, "x2 < x1"),
    ],
)
def test_writer_refuses_broken_boxes(
    tmp_path: Path, annotations: Annotations, box: list[float], score: float, message: str
) -> None:
    with pytest.raises(InputError, match=f"images 7 .*{message}"):
        write_proposals(tmp_path / "x", annotations, {7: (np.array([box]), np.array([score]))}, "oln", "w")


def test_writer_refuses_an_unknown_image_and_a_used_folder(folder: Path, annotations: Annotations) -> None:
    with pytest.raises(InputError, match="image 8,"):
        write_proposals(folder / "new", annotations, {8: (np.zeros((0, 4)), np.zeros(0))}, "oln", "w")
    with pytest.raises(FileExistsError):
        write_proposals(folder, annotations, {}, "oln", "w")


def test_unknown_image_is_named(folder: Path) -> None:
    store = open_store(folder)
    for image_id in (8, -1, 2**40):
        with pytest.raises(InputError, match=f"image {image_id}"):
            store.of_image(image_id)


def test_other_annotations_are_refused_before_and_after_the_cache_exists(
    folder: Path, annotations: Annotations
) -> None:
    for _ in range(2):
        with pytest.raises(MismatchedInput) as refused:
            open_store(folder, "f" * 64)
        assert refused.value.exit_code == 3
        assert annotations.digest[:12] in refused.value.message and "f" * 12 in refused.value.message
        assert "2drcl proposals" in refused.value.hint
        open_store(folder, annotations.digest)


def test_missing_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MissingInput, match="part-") as missing:
        open_store(tmp_path / "nowhere")
    assert "2drcl proposals" in missing.value.hint
    (folder / "images.parquet").unlink()
    with pytest.raises(MissingInput, match=r"images\.parquet"):
        open_store(folder)


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [  # part 0 holds images 5 (rows 0-3) and 7 (rows 4-8); 7 is 100 x 60
        ("x1", 4, np.nan, "images 7 have proposals that are NaN or infinite"),
        ("score", 0, np.inf, "images 5 have proposals that are NaN or infinite"),
        ("x1", 4, 99.0, "images 7 have proposals with x2 < x1"),
        ("y2", 5, -1.0, "images 7 have proposals with x2 < x1 or y2 < y1"),
        ("x1", 6, -0.5, "images 7 have proposals outside the image"),
        ("x2", 6, 100.5, "images 7 have proposals outside the image"),
        ("y2", 6, 60.5, "images 7 have proposals outside the image"),
        ("image_id", 4, 8, "images 8 are not in images.parquet"),
        ("image_id", 2, 3, "images 3 are not sorted"),
        ("score", 8, 1.5, "images 7 are not sorted"),
    ],
)
def test_every_broken_value_is_found_and_its_image_named(
    folder: Path, name: str, row: int, value: float, message: str
) -> None:
    values = column(folder, name)
    values[row] = value
    rewrite(folder, {name: values})
    with pytest.raises(InputError, match=message) as broken:
        open_store(folder)
    assert "part-00000.parquet" in broken.value.message and broken.value.exit_code == 3
    assert not list((folder.parent / "cache").rglob("*.npy"))  # nothing half-made stays


def test_order_is_checked_across_parts(folder: Path) -> None:
    first, second = (folder / f"proposals/part-0000{k}.parquet" for k in range(2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00001.parquet: images 5 are not sorted"):
        open_store(folder)


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [  # images.parquet: 3, 5, 7, 11, 2**31
        ("num_proposals", 1, 3, "images 5 have not as many rows as num_proposals says"),
        ("num_proposals", 0, 2, "images 3 have not as many rows"),
        ("num_proposals", 0, -1, "images 3 have an empty size or a negative num_proposals"),
        ("width", 2, 0, "images 7 have an empty size"),
        ("image_id", 2, 5, "images 5 appear more than once"),
        ("image_id", 3, 12, "images 11 are not in images.parquet"),
    ],
)
def test_every_fault_of_the_image_list_is_found(
    folder: Path, name: str, row: int, value: int, message: str
) -> None:
    values = column(folder, name, "images.parquet")
    values[row] = value
    rewrite(folder, {name: values}, "images.parquet")
    with pytest.raises(InputError, match=message):
        open_store(folder)


def test_missing_part_is_noticed(folder: Path) -> None:
    (folder / "proposals/part-00001.parquet").unlink()
    with pytest.raises(InputError, match="images 11, 2147483648 have not as many rows"):
        open_store(folder)


def test_wrong_and_missing_columns_and_nulls(folder: Path) -> None:
    rewrite(folder, {"x1": column(folder, "x1").astype(np.float64)})
    with pytest.raises(InputError, match="x1 is double, not float"):
        open_store(folder)
    rewrite(folder, {"x1": pa.array([None] * len(column(folder, "y1")), pa.float32())})
    with pytest.raises(InputError, match="empty cells"):
        open_store(folder)
    table = pq.read_table(folder / "proposals/part-00000.parquet").drop_columns(["score"])
    pq.write_table(table, folder / "proposals/part-00000.parquet")
    with pytest.raises(InputError, match="score is missing, not float"):
        open_store(folder)


def test_empty_image_list(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "images.parquet").slice(0, 0), folder / "images.parquet")
    with pytest.raises(InputError, match="lists no image"):
        open_store(folder)


def test_files_without_or_of_different_metadata_are_refused(
    tmp_path: Path, folder: Path, annotations: Annotations
) -> None:
    write_proposals(tmp_path / "b", annotations, random_proposals(), "oln", "v" * 64, rows_per_part=6)
    part = "proposals/part-00001.parquet"
    (folder / part).write_bytes((tmp_path / "b" / part).read_bytes())
    with pytest.raises(InputError, match="different runs"):
        open_store(folder)
    table = pq.read_table(folder / part).replace_schema_metadata(None)
    pq.write_table(table, folder / part)
    with pytest.raises(InputError, match=r"2drcl\.schema=none"):
        open_store(folder)


@pytest.mark.parametrize("part", ["images.parquet", "proposals/part-00001.parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_truncated_parquet_is_a_clear_error(folder: Path, part: str, kept: float) -> None:
    content = (folder / part).read_bytes()
    (folder / part).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match="not a whole Parquet file") as broken:
        open_store(folder)
    assert part.split("/")[-1] in broken.value.message and broken.value.hint


def test_flipped_byte_in_a_page_is_caught_by_its_checksum(folder: Path) -> None:
    path = folder / "proposals/part-00000.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(5)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 0xFF  # last byte of the scores
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a whole Parquet file"):
        open_store(folder)


def test_second_opening_reads_no_parquet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(folder)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("Parquet was read again")

    monkeypatch.setattr(contract.pq, "ParquetFile", refuse)
    monkeypatch.setattr(contract.pq, "read_metadata", refuse)
    again = open_store(folder)
    assert again.metadata == first.metadata and again.digest == first.digest
    np.testing.assert_array_equal(again.of_image(5)[0], first.of_image(5)[0])


def test_changed_parquet_makes_a_new_cache(tmp_path: Path, annotations: Annotations, folder: Path) -> None:
    before = open_store(folder)
    write_proposals(tmp_path / "b", annotations, random_proposals(seed=1), "oln", "w" * 64)
    after = open_store(tmp_path / "b")
    assert after.digest != before.digest
    np.testing.assert_array_equal(after.of_image(7)[1], np.sort(random_proposals(seed=1)[7][1])[::-1])


@pytest.mark.parametrize("name", ["image_ids.npy", "offsets.npy", "boxes.npy", "scores.npy", "cache.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_cache_is_rebuilt(folder: Path, name: str, damage: str) -> None:
    wanted = open_store(folder).of_image(7)
    (path,) = (folder.parent / "cache").rglob(name)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0xFF
    path.unlink()
    if damage != "delete":
        path.write_bytes(content if damage == "flip" else content[:-3])
    found = open_store(folder).of_image(7)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_pickle_holds_no_arrays(folder: Path) -> None:
    store = open_store(folder)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).of_image(7)[0], store.of_image(7)[0])


def _sum_of(job: tuple[ProposalStore, int]) -> float:
    store, image_id = job
    return float(store.of_image(image_id)[0].sum())


def test_two_spawned_workers_read_the_same(folder: Path) -> None:
    store = open_store(folder)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(_sum_of, [(store, i) for i in COUNTS], chunksize=1)
    assert found == [float(store.of_image(i)[0].sum()) for i in COUNTS]


def test_of_image_takes_microseconds(tmp_path: Path, annotations: Annotations) -> None:
    generator = np.random.default_rng(0)
    made = {i: (np.tile([0, 0, 9, 9], (100, 1)), generator.random(100)) for i in COUNTS}
    write_proposals(tmp_path / "fast", annotations, made, "oln", "w")
    store = open_store(tmp_path / "fast")
    times = []
    for _ in range(200):
        start = time.perf_counter()
        store.of_image(7)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 50e-6
