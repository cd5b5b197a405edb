"""The paper's Tables 1 to 5 and A.1 to A.4 as data, and our runs beside them.

`paper_tables.csv` holds every row as printed (Duan et al., NeurIPS 2024), the columns named as in
metrics.json, in percent; Table A.4 also has `vram_gb` (all cards together) and `hours`.  An empty cell is a
number that the paper does not give.

Where the paper contradicts itself the tables are kept: AP^mk of Table 1 is 37.4 (37.3 in the prose), BYOL's
APr in Table 2 is 5.4 (5.3 in the prose), "EQL" of Table 4b repeats the EQLv2 row of Table A.1, and the last
row of Table 5 is not "Ours" of Table 2.  Whether Table A.3 is about boxes or masks
is not said: taken as boxes.
"""

import csv
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TABLES = {
    "1": "COCO, Mask R-CNN R50-FPN",
    "2": "LVIS v1, pre-training methods, Mask R-CNN R50-FPN, 1x",
    "3a": "LVIS v1, Faster R-CNN R50-FPN, 2x",
    "3b": "LVIS v1, Mask R-CNN R50-FPN and R101-FPN, 2x (AP of masks)",
    "4a": "COCO, longer fine-tuning",
    "4b": "LVIS v1, equal epochs in all",
    "5": "LVIS v1, components of 2DRCL",
    "A.1": "LVIS v1, methods without and with 2DRCL",
    "A.2": "LVIS v1, ATSS R50, 2x",
    "A.3": "COCO-LT, Mask R-CNN R50-FPN, 1x",
    "A.4": "LVIS v1, memory and time, Mask R-CNN R50-FPN",
}
COMPONENTS = ("hcl", "lcl", "drb", "ar", "sr")  # of Table 5
FACTS = ("table", "label", "method", "start", "components", "detector", "data", "schedule")
UNTRAINED = ("imagenet", "random")  # a detector that no pre-training has seen


@dataclass(frozen=True)
class Setting:
    """What a row of numbers was measured with.

    method: of fine-tuning, as in `2drcl methods` (`focal`: ATSS's own).  start: what it began from: 2drcl,
    another pre-training (aligndet, soco, ...), imagenet, random.  components: those of 2DRCL that were on.
    detector: e.g. mask-rcnn_r50.  data: lvis-v1, coco, coco-lt, or anything else.  schedule: 1x = 12 epochs
    of fine-tuning; 6+6 and 24+6: epochs of two stages.
    """

    method: str
    start: str
    components: frozenset[str]
    detector: str
    data: str
    schedule: str


@dataclass(frozen=True)
class PaperRow:
    """One row of one table; `numbers` has only what is printed, in the order of the columns."""

    table: str
    label: str
    setting: Setting
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class OwnRun:
    """One of our runs; `metrics` is its metrics.json, and `vram_gb` and `hours` where they were measured."""

    name: str
    setting: Setting
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """A row of the paper and a run of ours, or None where we have no such run.

    `ours` and `difference` (ours - paper) have the keys of `row.numbers`; None is a number that we lack.
    `unlike` says, one phrase each, in what the run's setting is another than the row's: only where it is
    empty is the difference one between like and like.
    """

    row: PaperRow
    run: OwnRun | None
    ours: Mapping[str, float | None]
    difference: Mapping[str, float | None]
    unlike: tuple[str, ...]


@functools.cache
def paper_rows() -> tuple[PaperRow, ...]:
    """All rows, in the paper's order."""
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(record) for record in csv.DictReader(file))


def _row(record: dict[str, str]) -> PaperRow:
    facts = {key: record.pop(key) for key in FACTS}
    setting = Setting(
        method=facts["method"],
        start=facts["start"],
        components=frozenset(facts["components"].split()),
        detector=facts["detector"],
        data=facts["data"],
        schedule=facts["schedule"],
    )
    numbers = {key: float(value) for key, value in record.items() if value}
    return PaperRow(facts["table"], facts["label"], setting, numbers)


def columns_of(table: str) -> tuple[str, ...]:
    """Names of the numbers that a table has, in its order."""
    found = (key for row in paper_rows() if row.table == table for key in row.numbers)
    return tuple(dict.fromkeys(found))


def beside_paper(runs: Sequence[OwnRun]) -> list[Comparison]:
    """Every row of the paper with each run of ours that stands for it; rows without any stay, with no run.

    A run stands for a row with the same method and the same start and components; a detector from random
    weights stands for one from ImageNet.  Detector, data and schedule may differ: see `Comparison.unlike`.

    Args:
        runs: of `pipeline.report.own_runs`.

    Returns:
        in the order of the paper's tables, then of `runs`.  `unmatched` names the runs that are not there.
    """
    found = []
    for row in paper_rows():
        fitting = [_compare(row, run) for run in runs if _stands_for(run.setting, row.setting)]
        found += fitting or [_compare(row, None)]
    return found


def unmatched(runs: Iterable[OwnRun]) -> list[OwnRun]:
    """Runs that stand for no row of the paper."""
    return [run for run in runs if not any(_stands_for(run.setting, row.setting) for row in paper_rows())]


def _stands_for(ours: Setting, paper: Setting) -> bool:
    same_start = ours.start == paper.start or (paper.start == "imagenet" and ours.start in UNTRAINED)
    return ours.method == paper.method and same_start and ours.components == paper.components


def _compare(row: PaperRow, run: OwnRun | None) -> Comparison:
    if run is None:
        nothing = dict.fromkeys(row.numbers)
        return Comparison(row, None, nothing, nothing, ())
    ours = {key: run.metrics.get(key) for key in row.numbers}
    difference = {key: None if value is None else value - row.numbers[key] for key, value in ours.items()}
    return Comparison(row, run, ours, difference, _unlike(run.setting, row.setting))


def _unlike(ours: Setting, paper: Setting) -> tuple[str, ...]:
    pairs = (
        ("data", ours.data, paper.data),
        ("detector", ours.detector, paper.detector),
        ("schedule", ours.schedule, paper.schedule),
        ("start", ours.start, paper.start),
    )
    return tuple(f"{name} {own}, not {theirs}" for name, own, theirs in pairs if own != theirs)
