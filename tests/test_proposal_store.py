"""Reading proposals: the checks of the Parquet contract, the cache of arrays, and reads from workers."""

import json
import multiprocessing
import os
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.errors import EnvironmentProblem, InputError, MismatchedInput, MissingInput
from pipeline.proposals import contract, store
from pipeline.proposals.store import ProposalStore
from pipeline.proposals.writer import write_proposals

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


def rewrite(folder: Path, columns: dict[str, np.ndarray], part: str = "proposals/part-00000.parquet") -> None:
    """Replace columns of one file, keeping its metadata: how another program could break the contract."""
    table = pq.read_table(folder / part)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, folder / part)


def column(folder: Path, name: str, part: str = "proposals/part-00000.parquet") -> np.ndarray:
    return pq.read_table(folder / part)[name].to_numpy().copy()


def test_round_trip_returns_the_boxes_best_first(folder: Path, annotations: Annotations) -> None:
    opened = open_store(folder, annotations.digest)
    assert len(opened) == len(COUNTS) and opened.image_ids.tolist() == sorted(COUNTS)
    for image_id, (boxes, scores) in random_proposals().items():
        found_boxes, found_scores = opened.of_image(image_id)
        best_first = sorted(range(len(scores)), key=lambda k: -scores[k])
        assert found_boxes.dtype == found_scores.dtype == np.float32
        assert found_boxes.shape == (len(boxes), 4)
        np.testing.assert_array_equal(found_boxes, boxes[best_first])
        np.testing.assert_array_equal(found_scores, scores[best_first])


def test_results_are_copies_that_may_be_changed(folder: Path) -> None:
    opened = open_store(folder)
    boxes, _ = opened.of_image(7)
    boxes[:] = -1
    assert (opened.of_image(7)[0] >= 0).all()


def test_split_without_any_proposal(tmp_path: Path, annotations: Annotations) -> None:
    write_proposals(tmp_path / "none", annotations, {}, "oln", "w")
    opened = open_store(tmp_path / "none")
    assert len(opened) == len(COUNTS) and opened.of_image(5)[0].shape == (0, 4)


def test_unknown_image_is_named(folder: Path) -> None:
    opened = open_store(folder)
    for image_id in (8, -1, 2**40):
        with pytest.raises(InputError, match=f"the proposals do not list image {image_id}") as missing:
            opened.of_image(image_id)
        assert "this split" in missing.value.hint


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
        ("score", 6, np.nan, "images 7 have proposals that are NaN or infinite"),
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


@pytest.mark.parametrize(
    ("part", "message"), [(0, "images 5, 7 have not as many rows"), (1, "images 11, 2147483648 have not")]
)
def test_missing_part_is_noticed(folder: Path, part: int, message: str) -> None:
    (folder / f"proposals/part-0000{part}.parquet").unlink()
    with pytest.raises(InputError, match=message):
        open_store(folder)


def test_fewer_boxes_than_listed(folder: Path) -> None:
    path = folder / "proposals/part-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 7), path)
    with pytest.raises(InputError, match="images 7 have not as many rows as num_proposals says") as broken:
        open_store(folder)
    assert "images.parquet" in broken.value.message and "--fresh" in broken.value.hint


def test_images_with_few_or_no_proposals_are_read_and_counted(folder: Path) -> None:
    found = open_store(folder)
    boxes, scores = found.of_image(3)
    assert boxes.shape == (0, 4) and scores.shape == (0,)
    assert found.remarks(4) == [
        "1 of 5 images have no proposal",
        "2 of 5 images have fewer than 4 proposals",
    ]
    assert found.remarks(1) == ["1 of 5 images have no proposal"]


def test_normalised_coordinates_are_refused(tmp_path: Path, annotations: Annotations) -> None:
    boxes = np.random.default_rng(0).uniform(1, 50, (20, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    write_proposals(tmp_path / "n", annotations, {7: (boxes, np.ones(20))}, "oln", "w")
    columns = {n: column(tmp_path / "n", n) for n in contract.COORDINATES}
    rewrite(tmp_path / "n", {n: values / np.float32(100) for n, values in columns.items()})
    with pytest.raises(
        InputError, match=r"looks normalised to \[0, 1\]; multiply by the image size"
    ) as broken:
        open_store(tmp_path / "n")
    assert "part-00000.parquet" in broken.value.message and "pixels" in broken.value.hint


def test_image_ids_as_strings(folder: Path) -> None:
    rewrite(folder, {"image_id": column(folder, "image_id").astype(str)})
    with pytest.raises(InputError, match=r"image_id is (large_)?string, not int64"):
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


def test_empty_row_groups_are_nothing_special(folder: Path) -> None:
    path = folder / "proposals/part-00000.parquet"
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for rows in (table.slice(0, 0), table.slice(0, 6), table.slice(0, 0), table.slice(6)):
            writer.write_table(rows)
    np.testing.assert_array_equal(open_store(folder).of_image(5)[1], table["score"].to_numpy()[:4])


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

    digest_of = store.file_digest
    monkeypatch.setattr(contract.pq, "ParquetFile", refuse)
    monkeypatch.setattr(contract.pq, "read_metadata", refuse)
    digested = []
    monkeypatch.setattr(store, "file_digest", lambda path: digested.append(path.suffix) or digest_of(path))
    again = open_store(folder)
    assert set(digested) == {".parquet"}  # what file_digest remembers; never the arrays
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
    found = open_store(folder)
    packed = pickle.dumps(found)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).of_image(7)[0], found.of_image(7)[0])


@pytest.mark.parametrize("name", ["image_ids.npy", "offsets.npy", "boxes.npy", "scores.npy"])
def test_array_of_another_time_is_rebuilt(folder: Path, name: str) -> None:
    """Same size, other bytes: only the time of the change tells."""
    wanted = open_store(folder).of_image(7)
    (path,) = (folder.parent / "cache").rglob(name)
    made, before = path.stat().st_mtime_ns, path.read_bytes()
    path.write_bytes(bytes(len(before)))
    os.utime(path, ns=(made + 1, made + 1))
    found = open_store(folder).of_image(7)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    assert path.read_bytes() == before


def _open_at_once(folder: Path, log: Path, barrier: Any, die: bool) -> None:
    """Open when all others do; note each building.  `die`: killed in the middle of it."""
    build = store._build_cache

    def noted(*arguments: Any) -> None:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.2)  # long enough for the others to come
        if die:
            (arguments[0] / f".boxes.npy.{os.getpid()}.tmp").write_bytes(b"half")
            os.kill(os.getpid(), 9)
        build(*arguments)

    store._build_cache = noted
    barrier.wait()
    opened = open_store(folder)
    assert [len(opened.of_image(i)[1]) for i in sorted(COUNTS)] == [COUNTS[i] for i in sorted(COUNTS)]


@pytest.mark.parametrize("die", [False, True])
def test_one_of_many_processes_builds_the_cache(folder: Path, tmp_path: Path, die: bool) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    if die:  # alone: its lock must not outlive it
        first = context.Process(target=_open_at_once, args=(folder, log, context.Barrier(1), True))
        first.start()
        first.join(30)
        assert first.exitcode == -9
    barrier = context.Barrier(4)
    processes = [context.Process(target=_open_at_once, args=(folder, log, barrier, False)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0] * 4
    assert log.read_text().count("built") == 1 + die
    assert not list((tmp_path / "cache").rglob("*.tmp"))  # what the killed one left is gone


def test_building_takes_memory_for_a_batch_only(tmp_path: Path, annotations: Annotations) -> None:
    """Four times the rows, the same peak of numpy's arrays."""
    peaks = []
    for count in (250_000, 1_000_000):
        boxes = np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (count, 1))
        scores = np.sort(np.random.default_rng(0).random(count, dtype=np.float32))
        folder = tmp_path / str(count)
        write_proposals(folder, annotations, {7: (boxes, scores)}, "oln", "w", rows_per_part=count)
        del boxes, scores
        tracemalloc.start()
        open_store(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 20e6


class _Reads:
    """A data set whose samples say how reading went in the worker that made them."""

    def __init__(self, opened: ProposalStore, image_ids: list[int]) -> None:
        self.opened, self.image_ids = opened, image_ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, dict[str, int]]:
        boxes, _ = self.opened.of_image(self.image_ids[index])
        for image_id in self.image_ids:
            self.opened.of_image(image_id)
        return os.getpid(), boxes, memory_of_map("boxes.npy")


def memory_of_map(name: str) -> dict[str, int]:
    """KiB that this process holds of a mapped file, by the names of /proc/PID/smaps."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            inside = fields[-1].endswith(name)
        elif inside and fields[-1] == "kB":
            found[fields[0][:-1]] = found.get(fields[0][:-1], 0) + int(fields[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory of a map is asked of Linux")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_without_a_copy(tmp_path: Path, start: str) -> None:
    from torch.utils.data import DataLoader

    ids = list(range(1, 201))
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in ids]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    generator = np.random.default_rng(0)
    boxes = generator.uniform(0, 480, (len(ids), 1000, 4)).astype(np.float32)
    boxes[..., 2:] = np.maximum(boxes[..., :2], boxes[..., 2:])
    made = {i: (boxes[k], np.ones(1000)) for k, i in enumerate(ids)}
    write_proposals(tmp_path / "made", read_annotations(path), made, "oln", "w")
    reads = _Reads(open_store(tmp_path / "made"), ids)
    loader = DataLoader(reads, batch_size=None, num_workers=1, multiprocessing_context=start)
    pid, got, memory = next(iter(loader))
    assert pid != os.getpid()
    np.testing.assert_array_equal(got, boxes[0])
    assert memory["Rss"] > 3000  # 200 x 1,000 boxes are mapped here ...
    assert memory["Private_Dirty"] == memory["Anonymous"] == 0  # ... and none is this process's own


def test_a_cache_that_cannot_be_written_names_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWODRCL_CACHE", str(folder / "images.parquet"))  # a file, not a folder
    with pytest.raises(EnvironmentProblem, match="cannot be written") as caught:
        ProposalStore.open(folder, None)
    assert caught.value.exit_code == 4 and "TWODRCL_CACHE" in caught.value.hint


def test_caches_that_nobody_uses_go_when_another_is_built(folder: Path) -> None:
    cache = folder.parent / "cache"
    open_store(folder)
    (used,) = cache.iterdir()
    for name, days in {"0" * 16: 61, "1" * 16: 59, "my-own-things": 400}.items():
        (cache / name).mkdir()
        (cache / name / "cache.json").write_text("{}")
        os.utime(cache / name / "cache.json", (time.time() - days * 86400,) * 2)
    (used / "boxes.npy").unlink()  # has to be built again
    open_store(folder)
    assert {p.name for p in cache.iterdir()} == {used.name, "1" * 16, "my-own-things"}
    os.utime(used / "cache.json", (0, 0))
    open_store(folder)
    assert time.time() - (used / "cache.json").stat().st_mtime < 60  # opening is using
