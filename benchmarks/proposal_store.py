"""Proposals at scale: writing, opening, and reads of random images beside pandas and pickles, in one run.

    python benchmarks/proposal_store.py                                # 2 million boxes
    python benchmarks/proposal_store.py --images 118000 --boxes 1000   # LVIS: minutes, 8 GB of disk in TMPDIR

Each step that writes or opens runs in a fresh process, so that its peak memory is its own (pandas and torch
are imported where they are used, or every peak would hold them too).  Pandas and pickles get the first
`--compared` images only, and pandas the rows of no other: a groupby of 118 million rows needs more memory
than most machines have.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.annotations import read_annotations
from pipeline.proposals.contract import COORDINATES
from pipeline.proposals.store import ProposalStore
from pipeline.proposals.writer import ProposalWriter

WIDTH, HEIGHT = 640, 480
POOL = 1_000_000  # random boxes, taken again and again: no row group of 65,536 holds one twice
STRETCH = 100  # images of one `add_rows`
ROUNDS, BURST = 20, 50  # of the comparison: bursts of each kind take turns
READS = 5000  # random images that each worker reads


@dataclass(frozen=True)
class Case:
    """One size of the experiment, in a folder of its own."""

    folder: Path
    images: int
    boxes: int
    compared: int

    def writer(self, name: str) -> ProposalWriter:
        """A writer of the split, which is read from json as every stage reads it."""
        return ProposalWriter(
            self.folder / name, read_annotations(self.folder / "annotations.json"), "noise", "none"
        )

    def open(self) -> ProposalStore:
        """The store; the first call builds its cache."""
        return ProposalStore.open(self.folder / "made", None, self.folder / "cache")


def main() -> None:
    """Measure and print."""
    args = _arguments()
    total = args.images * args.boxes
    print(f"{args.images} images x {args.boxes} boxes = {total / 1e6:.1f} million")
    with tempfile.TemporaryDirectory(prefix="proposal-store-") as folder:
        os.environ["TWODRCL_CACHE"] = str(Path(folder) / "user-cache")  # digests of files soon gone
        case = Case(Path(folder), args.images, args.boxes, min(args.compared, args.images))
        _write_annotations(case)
        print("step                                  s   million boxes/s   peak MiB")
        for name, step in STEPS.items():
            seconds, peak = _in_process(step, case)
            print(f"{name:30s} {seconds:8.3f} {total / seconds / 1e6:17.2f} {peak:10.0f}")
        _compare(case)
        _report_workers(case)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--boxes", type=int, default=1000, help="of each image")
    parser.add_argument("--compared", type=int, default=2000, help="images that pandas and pickles get")
    return parser.parse_args()


def _in_process(step: Callable[[Case], float], case: Case) -> tuple[float, float]:
    """Seconds of `step`, as it says, and peak memory in MiB of the fresh process that ran it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (step, case))


def _with_peak(step: Callable[[Case], float], case: Case) -> tuple[float, float]:
    seconds = step(case)
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return seconds, int(line.split()[1]) / 1024


def _write_annotations(case: Case) -> None:
    size = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": i, "file_name": f"{i}.jpg", **size} for i in range(case.images)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (case.folder / "annotations.json").write_text(json.dumps(content))


def _random_rows(least: int) -> tuple[np.ndarray, np.ndarray]:
    """`POOL` boxes (n, 4) in random order and their scores (n,), or `least` if that is more."""
    generator = np.random.default_rng(0)
    count = max(POOL, least)
    corner = generator.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(0.01, 0.4, (count, 2))], axis=1)
    pixels = boxes * np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return pixels.astype(np.float32), generator.random(count, dtype=np.float32)


def _write_images(case: Case) -> float:
    """Image by image: as a detector delivers them."""
    writer, (boxes, scores) = case.writer("made"), _random_rows(case.boxes)
    started = time.perf_counter()
    for image_id in range(case.images):
        begin = image_id * case.boxes % (len(scores) - case.boxes + 1)
        rows = slice(begin, begin + case.boxes)
        writer.add(image_id, boxes[rows], scores[rows])
    writer.close()
    return time.perf_counter() - started


def _write_stretches(case: Case) -> float:
    """Many images at once: as part files are merged."""
    writer, (boxes, scores) = case.writer("stretches"), _random_rows(case.boxes * STRETCH)
    started = time.perf_counter()
    for first in range(0, case.images, STRETCH):
        ids = np.arange(first, min(first + STRETCH, case.images)).repeat(case.boxes)
        begin = first * case.boxes % (len(scores) - len(ids) + 1)
        rows = slice(begin, begin + len(ids))
        writer.add_rows(ids, boxes[rows], scores[rows])
    writer.close()
    seconds = time.perf_counter() - started
    shutil.rmtree(case.folder / "stretches")
    return seconds


def _open(case: Case) -> float:
    started = time.perf_counter()
    case.open()
    return time.perf_counter() - started


STEPS = {
    "writing, image by image": _write_images,
    f"writing, {STRETCH} images at once": _write_stretches,
    "opening, builds the cache": _open,
    "opening again": _open,
}


def _compare(case: Case) -> None:
    """Reads of random images of each kind, in turns."""
    kinds = {"store": _store, "pandas groupby": _pandas, "a pickle per image": _pickles}
    ready = {name: make(case) for name, make in kinds.items()}
    generator = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        image_ids = generator.integers(case.compared, size=BURST).tolist()
        for name, read in ready.items():
            started = time.perf_counter()
            for image_id in image_ids:
                read(image_id)
            seconds[name].append((time.perf_counter() - started) / BURST)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"\nrandom reads of {case.compared} images         us    images/s   times as long as the store")
    for name, value in medians.items():
        print(f"{name:30s} {value * 1e6:10.1f} {1 / value:11.0f} {value / medians['store']:14.1f}")


def _store(case: Case) -> Callable[[int], Any]:
    return case.open().of_image


def _pandas(case: Case) -> Callable[[int], Any]:
    import pandas as pd

    frame = pd.read_parquet(case.folder / "made/proposals", filters=[("image_id", "<", case.compared)])
    groups = frame.groupby("image_id")
    groups.get_group(0)  # builds its index

    def read(image_id: int) -> tuple[np.ndarray, np.ndarray]:
        rows = groups.get_group(image_id)
        return rows[list(COORDINATES)].to_numpy(), rows["score"].to_numpy()

    return read


def _pickles(case: Case) -> Callable[[int], Any]:
    folder, store = case.folder / "pickles", case.open()
    folder.mkdir()
    for image_id in range(case.compared):
        (folder / str(image_id)).write_bytes(pickle.dumps(store.of_image(image_id)))
    return lambda image_id: pickle.loads((folder / str(image_id)).read_bytes())


@dataclass(frozen=True)
class Reads:
    """A data set whose samples are timings: of random images over the whole split, one sample a worker."""

    store: ProposalStore
    num_workers: int

    def __len__(self) -> int:
        return self.num_workers

    def __getitem__(self, index: int) -> tuple[list[float], dict[str, int]]:
        image_ids = np.random.default_rng(index).choice(self.store.image_ids, READS).tolist()
        times = []
        for image_id in image_ids:
            started = time.perf_counter()
            self.store.of_image(image_id)
            times.append(time.perf_counter() - started)
        return times, _memory_of_maps()


def _memory_of_maps() -> dict[str, int]:
    """KiB of the mapped arrays, by the names of /proc/PID/smaps."""
    found = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            inside = fields[-1].endswith(".npy")
        elif inside and fields[0][:-1] in found:
            found[fields[0][:-1]] += int(fields[1])
    return found


def _report_workers(case: Case) -> None:
    """The same reads in this process and in two workers of a loader, and what of the maps is a worker's own.

    Rss counts every page that the worker touched, Pss a page shared by k processes as 1 / k.
    """
    from torch.utils.data import DataLoader

    here = Reads(case.open(), 1)
    print(f"\n{READS} random images of all    median us    mean us   99 % us   map MiB: Rss    Pss    own")
    _print_timings("this process", *here[0])
    reads = Reads(here.store, 2)
    for start in ("fork", "spawn"):
        context = multiprocessing.get_context(start)
        loader = DataLoader(reads, batch_size=None, num_workers=2, multiprocessing_context=context)
        for times, memory in loader:
            _print_timings(f"a worker of two, {start}", times, memory)


def _print_timings(name: str, times: list[float], memory: dict[str, int]) -> None:
    us = np.array(times) * 1e6
    timings = f"{name:25s} {np.median(us):10.1f} {us.mean():10.1f} {np.percentile(us, 99):9.1f}"
    rss, pss, own = (memory[key] / 1024 for key in ("Rss", "Pss", "Private_Dirty"))
    print(f"{timings} {rss:15.1f} {pss:6.1f} {own:6.1f}")


if __name__ == "__main__":
    main()
