"""Boxes of every image of a split, from any source, by any number of processes.

Process p of N makes the chunks p, p + N, ... that are missing.  Loader processes decode ahead, the source
works on one batch, a thread writes the chunk before.  Processes never wait for each other but for the first,
which waits until all chunks are there: a slow one holds nobody up, a dead one is noticed.

Shapes: n boxes of one image, xyxy float32 in pixels of the stored image, with scores (n,).
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts import file_digest, fingerprint
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.engine.distributed import TIMEOUT, Process
from pipeline.engine.signals import SignalWatch
from pipeline.errors import TwoDRCLError
from pipeline.proposals.chunks import ChunkFolder, Rows, Tally
from pipeline.proposals.settings import ProposalsSettings
from pipeline.proposals.sources import Boxes, Source
from pipeline.proposals.writer import ProposalWriter
from pipeline.settings import setting

TELL_S, POLL_S = 1.0, 0.2  # between notes of the progress; between looks at the others' chunks
CONTINUE = "the same command continues with the images that are left"


@dataclass(frozen=True)
class GenerationJob:
    """All that decides the boxes, besides the weights that training left in `work`; plain data."""

    annotations: Path = setting(why="json of the split")
    images: Path = setting(why="its image folder; gt-jitter and import never look into it")
    work: Path = setting(why="scratch folder of this run")
    seed: int = setting(why="of every draw")
    proposals: ProposalsSettings = setting(ProposalsSettings)

    @property
    def weights(self) -> Path:
        """Tensors of the trained detector, MMDetection's names."""
        return self.work / "weights.pth"


class GenerationPlan:
    """What follows from a job without making a box."""

    def __init__(self, job: GenerationJob) -> None:
        self.job = job

    @cached_property
    def annotations(self) -> Annotations:
        """The split."""
        return read_annotations(self.job.annotations)

    @cached_property
    def origin(self) -> str:
        """Digest of the detector's weights or of the imported file; empty for a source that has neither."""
        settings = self.job.proposals
        if settings.is_trained:
            from pipeline.engine.checkpoint import load_tensors, state_digest

            return state_digest(load_tensors(self.job.weights))
        return "" if settings.file is None else boxes_digest(settings.file)

    @cached_property
    def chunks(self) -> ChunkFolder:
        """What is done, and what is left to do."""
        return ChunkFolder(self.job.work / "chunks", self.annotations.image_ids, self.origin)

    def tally(self, rank: int, world: int) -> Tally:
        """The progress of one process, and its view of the others'."""
        return Tally(self.job.work / "progress", rank, world)


def boxes_digest(file: Path) -> str:
    """Digest of what source import reads: a file, or the Parquet files of a folder.

    Raises:
        MissingInput: there is no such file.
    """
    if not file.is_dir():
        return file_digest(file)
    parts = sorted(file.rglob("*.parquet"))
    return fingerprint({path.relative_to(file).as_posix(): file_digest(path) for path in parts})


def source_of(plan: GenerationPlan, device: torch.device, workers: int) -> Source:
    """What the settings name; imported only when named, because a detector costs seconds.

    Args:
        plan: names the source.
        device: where a detector runs.
        workers: loader processes.

    Raises:
        EnvironmentProblem, InputError: as the source.
    """
    job, settings = plan.job, plan.job.proposals
    if settings.is_trained:
        from pipeline.proposals.detected import detected

        return detected(plan, device, workers)
    if settings.source == "gt-jitter":
        from pipeline.proposals.gt_jitter import jittered

        return jittered(plan.annotations, settings, job.seed)
    if settings.source == "selective-search":
        from pipeline.proposals.selective_search import searched

        return searched(plan.annotations, job.images, settings)
    from pipeline.proposals.importing import imported

    assert settings.file is not None, "ProposalsSettings refuses source import without a file"
    return imported(settings.file, plan.annotations)


def prepare(plan: GenerationPlan) -> None:
    """What one process does before any begins: damaged chunks and old notes of progress go."""
    plan.chunks.discard_damaged()
    plan.tally(0, 1).clear()


def generate(
    source: Callable[[], Source],
    chunks: ChunkFolder,
    tally: Tally,
    process: Process,
    show: Callable[[int], None],
) -> None:
    """Make this process's missing chunks; the first process then waits for those of the others.

    Args:
        source: makes the source, if there is anything left to do.
        chunks: the same on all processes, after `prepare`.
        tally: of this process.
        process: this one.
        show: takes the number of images that all processes have done; called by the first one.

    Raises:
        Stopped: a signal came; chunks that are whole stay.
        TwoDRCLError: another process died.
        EnvironmentProblem, InputError: as the source, e.g. for a damaged image.
    """
    missing = chunks.missing(process.rank, process.world)
    with SignalWatch(CONTINUE) as watch:
        progress = _Progress(tally, watch, show if process.is_first else None)
        progress.done = chunks.num_done(process.rank, process.world)
        progress.tell()
        if missing:
            _make_chunks(source(), chunks, missing, progress.one_more)
        progress.tell()
        if process.is_first:
            _await_others(chunks, progress)


class _Progress:
    """What happens after every image: a signal ends the run, and now and then the progress is told."""

    def __init__(self, tally: Tally, watch: SignalWatch, show: Callable[[int], None] | None) -> None:
        self.tally, self.watch, self.show = tally, watch, show
        self.done = 0
        self._told = 0.0

    def one_more(self) -> None:
        self.done += 1
        self.watch.check("making proposals")
        if time.monotonic() - self._told > TELL_S:
            self.tell()

    def tell(self) -> list[int]:
        """Note what is done here; the images done by each process."""
        self._told = time.monotonic()
        self.tally.note(self.done)
        done = self.tally.of_all()
        if self.show is not None:
            self.show(sum(done))
        return done


def _make_chunks(
    source: Source, chunks: ChunkFolder, numbers: Sequence[int], after_image: Callable[[], None]
) -> None:
    """One call of the source, which may work ahead over the ends of chunks; a thread writes what is whole."""
    found = source([position for number in numbers for position in chunks.positions(number)])
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for number in numbers:
            rows = _rows(found, chunks.ids(number), after_image)
            if written is not None:
                written.result()  # a full disk is found here
            written = writer.submit(chunks.write, number, *rows)
    if written is not None:
        written.result()


def _rows(found: Iterator[tuple[int, Boxes]], image_ids: np.ndarray, after_image: Callable[[], None]) -> Rows:
    """The next images of a source, which must be these in any order, as rows by ascending image id."""
    boxes_of: dict[int, Boxes] = {}
    for image_id, boxes in itertools.islice(found, len(image_ids)):
        boxes_of[image_id] = boxes
        after_image()
    assert sorted(boxes_of) == image_ids.tolist(), "a source gives the images it is asked for, chunk by chunk"
    corners = [np.asarray(boxes_of[i][0], np.float32).reshape(-1, 4) for i in image_ids.tolist()]
    scores = [np.asarray(boxes_of[i][1], np.float32) for i in image_ids.tolist()]
    ids = image_ids.repeat([len(s) for s in scores])
    return ids, np.concatenate(corners), np.concatenate(scores)  # (n_i, 4) -> (n, 4), (n_i,) -> (n,)


def _await_others(chunks: ChunkFolder, progress: _Progress) -> None:
    """Wait for all chunks, as long as any process makes progress.

    Raises:
        TwoDRCLError: none has for `TIMEOUT`.
    """
    before, since = progress.tell(), time.monotonic()
    while missing := chunks.missing():
        progress.watch.check("making proposals")
        time.sleep(POLL_S)
        now = progress.tell()
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > TIMEOUT.total_seconds():
            raise TwoDRCLError(
                f"{len(missing)} chunks of proposals are missing, and no process has made progress for "
                f"{TIMEOUT.total_seconds():.0f} s: one has died, or hangs",
                CONTINUE,
            )


def merge(plan: GenerationPlan, folder: Path) -> None:
    """Write the product from the chunks, one at a time.

    Args:
        plan: whose chunks are all there.
        folder: gets `proposals/part-*.parquet` and `images.parquet`.

    Raises:
        Stopped: a signal came.
        InputError: a chunk is damaged, or its boxes are not finite or turned inside out.
    """
    writer = ProposalWriter(folder, plan.annotations, plan.job.proposals.source, plan.origin)
    with SignalWatch(CONTINUE) as watch:
        for ids, boxes, scores in plan.chunks:
            writer.add_rows(ids, boxes, scores)
            watch.check("writing proposals")
        writer.close()
