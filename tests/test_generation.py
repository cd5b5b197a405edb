"""Boxes of all images: the same bytes from any number of processes, however often they were killed."""

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.images import read_image
from pipeline.engine.checkpoint import save_tensors
from pipeline.engine.distributed import Process
from pipeline.errors import InputError, MissingInput, Stopped, TwoDRCLError
from pipeline.proposals import generation
from pipeline.proposals.chunks import CHUNK, ChunkFolder, Tally
from pipeline.proposals.generation import (
    GenerationJob,
    GenerationPlan,
    boxes_digest,
    generate,
    merge,
    prepare,
)
from pipeline.proposals.settings import ProposalsSettings
from pipeline.proposals.sources import Boxes, Source
from pipeline.proposals.store import ProposalStore
from pipeline.settings import build

SIZES_WH = [(80, 60), (60, 80), (97, 51), (80, 60)]
NUM_IMAGES, SIZE = 23, 5  # chunks of 5, 5, 5, 5 and 3 images


def boxes_of(image_id: int) -> Boxes:
    """What the toy finds in an image; in some nothing."""
    random = np.random.default_rng(image_id)
    n = int(random.integers(0, 4))
    corners = np.sort(random.uniform(0, 50, (n, 2, 2)), axis=1).reshape(n, 4)
    return corners.astype(np.float32), random.random(n).astype(np.float32)


@dataclass
class Toy:
    """A source that remembers what it was asked for, and misbehaves after `limit` images."""

    annotations: Annotations
    limit: int | None = None
    misbehave: Callable[[], object] = lambda: None
    asked: list[int] = field(default_factory=list)

    def __call__(self, positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        self.asked += positions
        for count, position in enumerate(positions):
            if count == self.limit:
                self.misbehave()
            image_id = int(self.annotations.image_ids[position])
            yield image_id, boxes_of(image_id)


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    ids = np.random.default_rng(0).permutation(1000)[:NUM_IMAGES].tolist()
    images = [
        {"id": i, "file_name": f"{i}.png", "width": w, "height": h}
        for i, (w, h) in zip(ids, SIZES_WH * NUM_IMAGES, strict=False)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return read_annotations(tmp_path / "annotations.json")


def plan_in(folder: Path, annotations: Annotations, **proposals: object) -> GenerationPlan:
    """A plan with small chunks."""
    settings = build(ProposalsSettings, {"source": "gt-jitter", **proposals}, "proposals")
    plan = GenerationPlan(GenerationJob(annotations.path, annotations.path.parent, folder, 0, settings))
    plan.chunks = ChunkFolder(folder / "chunks", annotations.image_ids, plan.origin, SIZE)
    return plan


def run(plan: GenerationPlan, source: Source, rank: int = 0, world: int = 1) -> list[int]:
    """One process's work; returns what it showed."""
    shown: list[int] = []
    process = Process(rank, world, torch.device("cpu"))
    generate(lambda: source, plan.chunks, plan.tally(rank, world), process, shown.append)
    return shown


def product(plan: GenerationPlan, folder: Path) -> dict[str, bytes]:
    merge(plan, folder)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


@pytest.fixture
def undisturbed(tmp_path: Path, annotations: Annotations) -> dict[str, bytes]:
    plan = plan_in(tmp_path / "undisturbed", annotations)
    run(plan, Toy(annotations))
    return product(plan, tmp_path / "undisturbed-product")


# --- chunks


def test_chunks_cut_the_images_by_ascending_id(annotations: Annotations, tmp_path: Path) -> None:
    chunks = ChunkFolder(tmp_path, annotations.image_ids, "", SIZE)
    ids = [chunks.ids(n).tolist() for n in range(len(chunks))]
    assert [len(i) for i in ids] == [5, 5, 5, 5, 3]
    assert [i for chunk in ids for i in chunk] == sorted(annotations.image_ids.tolist())
    for number in range(len(chunks)):
        assert annotations.image_ids[chunks.positions(number)].tolist() == ids[number]
        assert {chunks.number_of(p) for p in chunks.positions(number)} == {number}
    assert [chunks.missing(rank, 3) for rank in range(3)] == [[0, 3], [1, 4], [2]]
    assert len(ChunkFolder(tmp_path, np.arange(CHUNK), "")) == 1
    assert len(ChunkFolder(tmp_path, np.arange(CHUNK + 1), "")) == 2


def test_a_chunk_comes_back_as_it_went_in(annotations: Annotations, tmp_path: Path) -> None:
    chunks = ChunkFolder(tmp_path / "new", annotations.image_ids, "weights", SIZE)
    ids = chunks.ids(1)[[0, 0, 3]]
    boxes = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    scores = np.array([0.5, 0.7, 0.1], np.float32)
    chunks.write(1, ids, boxes, scores)
    for found, expected in zip(chunks.read(1), (ids, boxes, scores), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert chunks.missing() == [0, 2, 3, 4] and chunks.num_done(1, 2) == SIZE and chunks.num_done(0, 2) == 0
    chunks.write(0, ids[:0], boxes[:0], scores[:0])
    assert [len(column) for column in chunks.read(0)] == [0, 0, 0]
    assert [p.name for p in sorted((tmp_path / "new").iterdir())] == [
        "chunk-000000.parquet",
        "chunk-000001.parquet",
    ]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        flip_a_byte,
    ],
    ids=["truncated", "empty", "flipped"],
)
def test_a_damaged_chunk_is_made_again_loudly(
    damage: Callable[[Path], object],
    annotations: Annotations,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_in(tmp_path / "work", annotations)
    run(plan, Toy(annotations))
    damage(tmp_path / "work/chunks/chunk-000002.parquet")
    with caplog.at_level(logging.WARNING):
        prepare(plan)
    assert "chunk-000002.parquet" in caplog.text and "made again" in caplog.text
    toy = Toy(annotations)
    run(plan, toy)
    assert toy.asked == plan.chunks.positions(2)
    assert product(plan, tmp_path / "product") == undisturbed


def test_chunks_of_other_weights_or_images_are_not_taken(annotations: Annotations, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, annotations)
    run(plan, Toy(annotations))
    plan.chunks.discard_damaged()
    assert plan.chunks.missing() == []
    retrained = ChunkFolder(tmp_path / "chunks", annotations.image_ids, "other weights", SIZE)
    with pytest.raises(InputError, match="made by another run"):
        retrained.read(0)
    cut_otherwise = ChunkFolder(tmp_path / "chunks", annotations.image_ids, plan.origin, SIZE + 1)
    cut_otherwise.discard_damaged()
    assert cut_otherwise.missing() == list(range(len(cut_otherwise)))


def test_a_damaged_chunk_is_not_merged(annotations: Annotations, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, annotations)
    run(plan, Toy(annotations))
    flip_a_byte(tmp_path / "chunks/chunk-000002.parquet")
    with pytest.raises(InputError, match="chunk-000002"):
        merge(plan, tmp_path / "product")


# --- any number of processes


def test_the_product_holds_what_the_source_gave(
    annotations: Annotations, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    store = ProposalStore.open(tmp_path / "undisturbed-product", annotations.digest, tmp_path / "cache")
    assert store.metadata["2drcl.source"] == "gt-jitter" and store.metadata["2drcl.weights"] == ""
    for image_id in annotations.image_ids.tolist():
        boxes, scores = boxes_of(image_id)
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_array_equal(store.of_image(image_id)[0], boxes[order])
        np.testing.assert_array_equal(store.of_image(image_id)[1], scores[order])


@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_processes_gives_the_same_bytes(
    annotations: Annotations, tmp_path: Path, undisturbed: dict[str, bytes], world: int
) -> None:
    plan = plan_in(tmp_path / "work", annotations)
    toys = [Toy(annotations) for _ in range(world)]
    for rank in reversed(range(world)):  # the first one waits for the others
        run(plan, toys[rank], rank, world)
    asked = sorted(p for toy in toys for p in toy.asked)
    assert asked == list(range(NUM_IMAGES))  # each image by one process
    assert product(plan, tmp_path / "product") == undisturbed


def test_the_order_within_a_chunk_does_not_matter(
    annotations: Annotations, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    plan = plan_in(tmp_path / "work", annotations)
    toy = Toy(annotations)

    def backwards(positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        for begin in range(0, len(positions), SIZE):
            yield from toy(positions[begin : begin + SIZE][::-1])

    run(plan, backwards)
    assert product(plan, tmp_path / "product") == undisturbed


def test_a_source_that_leaves_images_out_is_a_bug(annotations: Annotations, tmp_path: Path) -> None:
    toy = Toy(annotations)
    with pytest.raises(AssertionError, match="gives the images it is asked for"):
        run(plan_in(tmp_path, annotations), lambda positions: toy(positions[1:]))


def test_the_progress_counts_all_processes_and_earlier_runs(
    annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TELL_S", 0.0)
    plan = plan_in(tmp_path, annotations)
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress/done-5").write_text("100\n")
    prepare(plan)
    assert run(plan, Toy(annotations), 1, 2) == []  # only the first process shows anything
    shown = run(plan, Toy(annotations), 0, 2)
    assert shown[0] == 10 and shown[-1] == NUM_IMAGES and shown == sorted(shown) and 17 in shown
    (tmp_path / "chunks/chunk-000004.parquet").unlink()
    prepare(plan)
    assert run(plan, Toy(annotations))[0] == 20


def test_half_a_number_is_not_believed(tmp_path: Path) -> None:
    tally = Tally(tmp_path, 0, 2)
    tally.note(128)
    Tally(tmp_path, 1, 2).note(7)
    assert tally.of_all() == [128, 7]
    (tmp_path / "done-0").write_text("12")
    (tmp_path / "done-1").write_text("")
    assert tally.of_all() == [128, 7]


def test_the_first_process_gives_up_on_dead_ones(
    annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TIMEOUT", timedelta(seconds=0.3))
    plan = plan_in(tmp_path, annotations)
    with pytest.raises(TwoDRCLError, match=r"2 chunks .* missing, and no process has made progress"):
        run(plan, Toy(annotations), 0, 2)
    assert plan.chunks.missing() == [1, 3]


# --- killed, stopped, broken


def die(plan: GenerationPlan, toy: Toy) -> None:
    run(plan, toy)


def test_killed_in_the_middle_it_continues_to_the_same_bytes(
    annotations: Annotations, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    plan = plan_in(tmp_path / "work", annotations)
    plan.chunks.write = _slowly(plan.chunks.write)  # type: ignore[method-assign]
    toy = Toy(annotations, 18, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(target=die, args=(plan, toy))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    plan = plan_in(tmp_path / "work", annotations)
    whole = {p: p.stat().st_mtime_ns for p in (tmp_path / "work/chunks").glob("chunk-*.parquet")}
    assert 2 <= len(whole) < len(plan.chunks)
    prepare(plan)
    toy = Toy(annotations)
    missing = plan.chunks.missing()
    run(plan, toy)
    assert toy.asked == [p for n in missing for p in plan.chunks.positions(n)]
    assert all(path.stat().st_mtime_ns == made for path, made in whole.items())
    assert product(plan, tmp_path / "product") == undisturbed


def _slowly(write: Callable[..., None]) -> Callable[..., None]:
    """The third chunk is being written when the process dies."""

    def slow(number: int, *rows: np.ndarray) -> None:
        if number == 2:
            signal.pause()
        write(number, *rows)

    return slow


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_it_and_whole_chunks_stay(
    annotations: Annotations, tmp_path: Path, undisturbed: dict[str, bytes], number: int, code: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    plan = plan_in(tmp_path / "work", annotations)
    toy = Toy(annotations, 12, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="stopped by a signal") as caught:
        run(plan, toy)
    assert caught.value.exit_code == code and "continues" in caught.value.hint
    assert plan.chunks.missing() == [2, 3, 4]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    run(plan, Toy(annotations))
    assert product(plan, tmp_path / "product") == undisturbed


def test_a_signal_stops_the_first_process_while_it_waits(
    annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path, annotations)
    monkeypatch.setattr(generation.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        run(plan, Toy(annotations), 0, 2)


def test_a_full_disk_ends_it(annotations: Annotations, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, annotations)

    def full(number: int, *rows: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    plan.chunks.write = full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space"):
        run(plan, Toy(annotations))


def test_a_broken_image_is_named_and_whole_chunks_stay(annotations: Annotations, tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "work", annotations)
    write_images(annotations, tmp_path)
    broken = tmp_path / f"{plan.chunks.ids(3)[1]}.png"
    broken.write_bytes(broken.read_bytes()[:60])

    def reading(positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        for position in positions:
            read_image(tmp_path / annotations.file_names[position])
            yield int(annotations.image_ids[position]), boxes_of(0)

    with pytest.raises(InputError, match=broken.name) as caught:
        run(plan, reading)
    assert caught.value.exit_code == 3
    assert plan.chunks.missing() == [3, 4]


# --- what the boxes come from


def test_imported_boxes_are_known_by_their_digest(tmp_path: Path) -> None:
    one, other = tmp_path / "a/proposals/part-0.parquet", tmp_path / "a/part-1.parquet"
    one.parent.mkdir(parents=True)
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    before = boxes_digest(tmp_path / "a")
    assert before == boxes_digest(tmp_path / "a") and boxes_digest(one) != boxes_digest(other)
    other.write_bytes(b"3")
    assert boxes_digest(tmp_path / "a") != before
    with pytest.raises(MissingInput):
        boxes_digest(tmp_path / "none")


def write_images(annotations: Annotations, folder: Path) -> None:
    random = np.random.default_rng(0)
    for name, (width, height) in zip(annotations.file_names, annotations.sizes_wh.tolist(), strict=True):
        coarse = Image.fromarray(random.integers(0, 256, size=(5, 5, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / name)


@pytest.fixture
def detector(annotations: Annotations, tmp_path: Path) -> Callable[[str], GenerationPlan]:
    """Plans with one untrained OLN, each in its own scratch folder."""
    from pipeline.proposals.training import ProposalsJob, ProposalsPlan, build_detector

    write_images(annotations, tmp_path)
    plan = plan_in(tmp_path, annotations)
    settings = build(ProposalsSettings, TINY["proposals"], "proposals")
    job = plan.job
    training = ProposalsPlan(ProposalsJob(job.annotations, job.images, job.work, job.seed, settings))
    weights = build_detector(training)[0].state_dict()

    def make(name: str) -> GenerationPlan:
        save_tensors(tmp_path / name / "weights.pth", dict(weights))
        return plan_in(tmp_path / name, annotations, **TINY["proposals"], source="oln")  # type: ignore[call-overload]

    return make


def run_detector(plan: GenerationPlan, rank: int = 0, world: int = 1, workers: int = 0) -> None:
    from pipeline.proposals.generation import source_of

    run(plan, source_of(plan, torch.device("cpu"), workers), rank, world)


def test_a_detector_gives_the_same_bytes_with_any_processes_and_workers(
    detector: Callable[[str], GenerationPlan], tmp_path: Path
) -> None:
    alone = detector("alone")
    run_detector(alone)
    expected = product(alone, tmp_path / "alone-product")
    shared = detector("shared")
    threads = torch.get_num_threads()
    run_detector(shared, 1, 2, workers=2)
    run_detector(shared, 0, 2)
    assert torch.get_num_threads() == threads
    assert product(shared, tmp_path / "shared-product") == expected
    store = ProposalStore.open(tmp_path / "alone-product", None, tmp_path / "cache")
    assert store.metadata["2drcl.weights"] == alone.origin and len(alone.origin) == 64
    assert all(1 <= len(store.of_image(int(i))[1]) <= 10 for i in store.image_ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_detector_names_a_broken_image(
    detector: Callable[[str], GenerationPlan], tmp_path: Path, workers: int
) -> None:
    plan = detector("work")
    first_of_a_chunk = plan.chunks.positions(2)[0]
    broken = tmp_path / plan.annotations.file_names[first_of_a_chunk]
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match=broken.name):
        run_detector(plan, workers=workers)
    assert plan.chunks.missing() == [2, 3, 4]
