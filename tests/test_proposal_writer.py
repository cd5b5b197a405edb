"""Writing proposals: the files' form, equal bytes whatever the calls, refusals that name the image."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.boxes import clip
from pipeline.errors import InputError, MissingInput
from pipeline.proposals.store import ProposalStore
from pipeline.proposals.writer import ProposalWriter, best_first, write_proposals

COUNTS = {7: 5, 3: 0, 11: 2, 2_147_483_648: 3, 5: 4}  # image id -> proposals; not ascending, past int32
Made = dict[int, tuple[np.ndarray, np.ndarray]]


def annotations_of(path: Path, image_ids: list[int]) -> Annotations:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 60} for i in image_ids]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return read_annotations(path)


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return annotations_of(tmp_path / "annotations.json", list(COUNTS))


def random_proposals(counts: dict[int, int] = COUNTS, seed: int = 0) -> Made:
    """Boxes of which some reach over the border or have a coordinate of -0, and scores with ties."""
    generator = np.random.default_rng(seed)
    made = {}
    for image_id, count in counts.items():
        corner = generator.uniform(-3, 60, size=(count, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(1, 50, size=(count, 2))], axis=1)
        boxes[::3, 0] = -0.0
        made[image_id] = boxes, generator.integers(-2, 3, size=count) / 4
    return made


def read_rows(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted((folder / "proposals").iterdir())])


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path, annotations: Annotations) -> Path:
    write_proposals(tmp_path / "made", annotations, random_proposals(), "oln", "w" * 64, rows_per_part=6)
    return tmp_path / "made"


def test_files_columns_and_types_are_the_contract(folder: Path) -> None:
    names = ["images.parquet", "proposals/part-00000.parquet", "proposals/part-00001.parquet"]
    assert sorted(files_of(folder)) == names
    rows, images = read_rows(folder), pq.read_table(folder / "images.parquet")
    floats = [(c, "float") for c in ("x1", "y1", "x2", "y2", "score")]
    assert [(f.name, str(f.type)) for f in rows.schema] == [("image_id", "int64"), *floats]
    assert images.column_names == ["image_id", "file_name", "width", "height", "num_proposals"]
    listed = dict(zip(images["image_id"].to_pylist(), images["num_proposals"].to_pylist(), strict=True))
    assert listed == COUNTS  # those without proposals too
    assert images["file_name"].to_pylist() == [f"{i}.jpg" for i in sorted(COUNTS)]
    assert images["width"].to_pylist() == [100] * 5 and images["height"].to_pylist() == [60] * 5


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


def test_rows_equal_a_slow_sort_and_clip(folder: Path) -> None:
    wanted = []
    for image_id, (boxes, scores) in sorted(random_proposals().items()):
        inside = clip(boxes.astype(np.float32), 100, 60)
        for k in sorted(range(len(scores)), key=lambda k: -scores[k]):  # stable, as Python's sort is
            wanted.append([image_id, *inside[k].tolist(), scores[k]])
    rows = read_rows(folder)
    assert [list(row.values()) for row in rows.to_pylist()] == wanted
    assert not np.signbit(rows["x1"].to_numpy()).any()


def test_row_groups_hold_65536_rows(tmp_path: Path, annotations: Annotations) -> None:
    boxes = np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (70_000, 1))
    write_proposals(tmp_path / "big", annotations, {7: (boxes, np.ones(70_000, np.float32))}, "oln", "w")
    stored = pq.read_metadata(tmp_path / "big/proposals/part-00000.parquet")
    assert [stored.row_group(i).num_rows for i in range(stored.num_row_groups)] == [65_536, 4_464]


def test_order_of_a_mapping_does_not_matter(tmp_path: Path, folder: Path, annotations: Annotations) -> None:
    shuffled = dict(reversed(random_proposals().items()))
    write_proposals(tmp_path / "b", annotations, shuffled, "oln", "w" * 64, rows_per_part=6)
    assert files_of(folder) == files_of(tmp_path / "b")


def test_iterable_is_streamed_in_ascending_order(tmp_path: Path, annotations: Annotations) -> None:
    pairs = sorted(random_proposals().items())
    write_proposals(tmp_path / "a", annotations, iter(pairs), "oln", "w")
    assert read_rows(tmp_path / "a").num_rows == sum(COUNTS.values())
    with pytest.raises(AssertionError, match="image 11 comes after a larger id"):
        write_proposals(tmp_path / "b", annotations, iter(pairs[::-1]), "oln", "w")


def test_split_without_any_proposal(tmp_path: Path, annotations: Annotations) -> None:
    write_proposals(tmp_path / "none", annotations, {}, "oln", "w")
    assert read_rows(tmp_path / "none").num_rows == 0
    assert pq.read_table(tmp_path / "none/images.parquet")["num_proposals"].to_pylist() == [0] * 5


def test_best_first_is_a_stable_lexsort() -> None:
    generator = np.random.default_rng(0)
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.0, -1.0, 0.5], dtype=np.float32)
    for _ in range(50):
        groups = np.sort(generator.integers(0, 6, 200)) + generator.integers(2**31)
        scores = generator.choice(special, 200)
        np.testing.assert_array_equal(best_first(groups, scores), np.lexsort((-scores, groups)))


def write_mixed(path: Path, annotations: Annotations, made: Made, rows_per_part: int, seed: int) -> None:
    """The same content through a random mixture of `add` and of `add_rows` over stretches of images."""
    generator = np.random.default_rng(seed)
    writer = ProposalWriter(path, annotations, "oln", "w", rows_per_part)
    todo = sorted(made.items())
    while todo:
        count = int(generator.integers(0, 9))
        if count == 0:
            image_id, (boxes, scores) = todo.pop(0)
            writer.add(image_id, boxes, scores)
            continue
        some, todo = todo[:count], todo[count:]
        ids = np.concatenate([np.full(len(s), i, dtype=np.int64) for i, (_, s) in some])
        boxes, scores = (np.concatenate([rows[k] for _, rows in some]) for k in range(2))
        writer.add_rows(ids, boxes, scores)
    writer.close()


@pytest.mark.parametrize("rows_per_part", [1, 7, 50, 10_000])
def test_bytes_do_not_depend_on_the_mixture_of_calls(tmp_path: Path, rows_per_part: int) -> None:
    generator = np.random.default_rng(rows_per_part)
    counts = {int(i): int(generator.integers(0, 12)) for i in generator.choice(1000, 40, replace=False)}
    annotations = annotations_of(tmp_path / "a.json", list(counts))
    made = random_proposals(counts, seed=1)
    write_proposals(tmp_path / "one", annotations, made, "oln", "w", rows_per_part)
    wanted = files_of(tmp_path / "one")
    for seed in range(4):
        write_mixed(tmp_path / str(seed), annotations, made, rows_per_part, seed)
        assert files_of(tmp_path / str(seed)) == wanted
    sizes, pending = [], 0  # a part ends with the image that fills it
    for image_id in sorted(counts):
        pending += counts[image_id]
        if pending >= rows_per_part:
            sizes, pending = [*sizes, pending], 0
    sizes += [pending] if pending else []
    parts = sorted((tmp_path / "one/proposals").iterdir())
    assert [pq.read_metadata(p).num_rows for p in parts] == sizes


def test_parts_merged_by_rows_equal_the_original(
    tmp_path: Path, folder: Path, annotations: Annotations
) -> None:
    """What several processes wrote, each its share of the images, becomes what one would have written."""
    made = sorted(random_proposals().items())
    writer = ProposalWriter(tmp_path / "merged", annotations, "oln", "w" * 64, rows_per_part=6)
    for k, share in enumerate((made[:2], made[2:])):
        write_proposals(tmp_path / f"share-{k}", annotations, iter(share), "oln", "w")
        rows = read_rows(tmp_path / f"share-{k}")
        boxes = np.stack([rows[c].to_numpy() for c in ("x1", "y1", "x2", "y2")], axis=1)
        writer.add_rows(rows["image_id"].to_numpy(), boxes, rows["score"].to_numpy())
    writer.close()
    assert files_of(tmp_path / "merged") == files_of(folder)


def test_arrays_may_be_used_again_after_the_call(tmp_path: Path, annotations: Annotations) -> None:
    writer = ProposalWriter(tmp_path / "x", annotations, "oln", "w")
    ids, boxes = np.full(3, 5), np.tile(np.array([[1, 2, 3, 4]], dtype=np.float32), (3, 1))
    scores = np.ones(3, dtype=np.float32)
    writer.add_rows(ids, boxes, scores)
    writer.add(7, boxes, scores)
    ids[:], boxes[:], scores[:] = 3, 50, 0
    writer.close()
    assert [tuple(row.values()) for row in read_rows(tmp_path / "x").to_pylist()] == [
        *[(5, 1.0, 2.0, 3.0, 4.0, 1.0)] * 3,
        *[(7, 1.0, 2.0, 3.0, 4.0, 1.0)] * 3,
    ]


def by_add(writer: ProposalWriter, ids: list[int], boxes: np.ndarray, scores: np.ndarray) -> None:
    for k, image_id in enumerate(ids):
        writer.add(image_id, boxes[k : k + 1], scores[k : k + 1])


def by_rows(writer: ProposalWriter, ids: list[int], boxes: np.ndarray, scores: np.ndarray) -> None:
    writer.add_rows(np.array(ids), boxes, scores)


@pytest.mark.parametrize("call", [by_add, by_rows])
@pytest.mark.parametrize(
    ("box", "score", "message"),
    [
        ([0, 0, np.inf, 9], 0.5, "NaN or infinite"),
        ([0, 0, 1e300, 9], 0.5, "NaN or infinite"),  # more than float32 holds
        ([0, np.nan, 9, 9], 0.5, "NaN or infinite"),
        ([0, 0, 9, 9], np.nan, "NaN or infinite"),
        ([9, 0, 8, 9], 0.5, "x2 < x1"),
        ([0, 9, 9, 8], 0.5, "y2 < y1"),
    ],
)
def test_broken_boxes_are_refused_and_their_image_named(
    tmp_path: Path,
    annotations: Annotations,
    call: Callable[..., None],
    box: list[float],
    score: float,
    message: str,
) -> None:
    """A part is checked as a whole: the image is named all the same, not the one that filled the part."""
    writer = ProposalWriter(tmp_path / "x", annotations, "oln", "w", rows_per_part=3)
    boxes, scores = np.array([[0, 0, 9, 9], box, [0, 0, 9, 9]]), np.array([0.5, score, 0.5])
    with pytest.raises(InputError, match=rf"part-00000\.parquet: images 7 have proposals .*{message}"):
        call(writer, [5, 7, 11], boxes, scores)
    assert not list((tmp_path / "x/proposals").iterdir())


@pytest.mark.parametrize("call", [by_add, by_rows])
def test_images_unknown_repeated_or_out_of_order(
    tmp_path: Path, annotations: Annotations, call: Callable[..., None]
) -> None:
    boxes, scores = np.tile([0.0, 0, 9, 9], (3, 1)), np.ones(3)
    for name, ids, error, message in (
        ("a", [5, 8, 11], InputError, "proposals for image 8, which the annotations do not list"),
        ("b", [5, 11, 2**40], InputError, f"proposals for image {2**40}, which"),
        ("c", [5, 11, 7], AssertionError, "image 7 comes after a larger id, or twice"),
    ):
        with pytest.raises(error, match=message):
            call(ProposalWriter(tmp_path / name, annotations, "oln", "w"), ids, boxes, scores)
    writer = ProposalWriter(tmp_path / "d", annotations, "oln", "w")
    call(writer, [3, 5, 7], boxes, scores)
    with pytest.raises(AssertionError, match="image 7 comes after a larger id, or twice"):
        call(writer, [7], boxes[:1], scores[:1])


def test_rows_that_do_not_belong_together(tmp_path: Path, annotations: Annotations) -> None:
    writer = ProposalWriter(tmp_path / "x", annotations, "oln", "w")
    with pytest.raises(AssertionError, match="rows of shapes"):
        writer.add(3, np.zeros((2, 4)), np.zeros(3))
    with pytest.raises(AssertionError, match="ids of shape"):
        writer.add_rows(np.array(["5", "7"]), np.zeros((2, 4)), np.zeros(2))


def test_normalised_coordinates_are_refused(tmp_path: Path, annotations: Annotations) -> None:
    corner = np.random.default_rng(0).uniform(0, 0.5, (20, 2))
    boxes = np.concatenate([corner, corner + 0.5], axis=1)
    with pytest.raises(InputError, match=r"normalised to \[0, 1\]; multiply by the image size") as refused:
        write_proposals(tmp_path / "x", annotations, {7: (boxes, np.ones(20))}, "import", "w")
    assert "part-00000.parquet" in refused.value.message and "pixels" in refused.value.hint
    write_proposals(tmp_path / "few", annotations, {7: (boxes[:3], np.ones(3))}, "import", "w")
    boxes[0, 2] = 1.5  # one box of more than a pixel: these are pixels
    write_proposals(tmp_path / "pixels", annotations, {7: (boxes, np.ones(20))}, "import", "w")


def test_a_used_folder_is_refused(folder: Path, annotations: Annotations) -> None:
    with pytest.raises(FileExistsError):
        write_proposals(folder, annotations, {}, "oln", "w")


def _write_for_ever(folder: Path, annotations: Annotations) -> None:
    writer = ProposalWriter(folder, annotations, "oln", "w", rows_per_part=20_000)
    boxes = np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (20_000, 1))
    for image_id in np.sort(annotations.image_ids):
        writer.add(int(image_id), boxes, np.ones(20_000, np.float32))


def test_killed_writer_leaves_no_partial_file(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path / "a.json", list(range(5000)))
    process = multiprocessing.get_context("spawn").Process(
        target=_write_for_ever, args=(tmp_path / "x", annotations)
    )
    process.start()
    parts = tmp_path / "x/proposals"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        len(list(parts.glob("part-*"))) > 2 and list(parts.glob(".part-*"))  # in the middle of the next one
    ):
        pass
    process.kill()
    process.join()
    assert process.exitcode == -9
    visible = sorted(parts.glob("part-*"))
    assert len(visible) > 2
    for path in visible:
        assert pq.read_table(path, page_checksum_verification=True).num_rows == 20_000
    with pytest.raises(MissingInput, match=r"images\.parquet does not exist"):
        ProposalStore.open(tmp_path / "x", annotations.digest, tmp_path / "cache")
