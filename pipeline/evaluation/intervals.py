"""What a bootstrap leaves behind: intervals.json for readers, and every resample for a paired comparison.

Resample n of one run and resample n of another are the same images if split, seed and number agree, so the
difference of two runs is taken row by row: what both find hard cancels.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.errors import InputError, MismatchedInput, MissingInput
from pipeline.evaluation.bootstrap import interval, p_value

INTERVALS = "intervals.json"
SAMPLES = "figures/bootstrap.csv"


@dataclass(frozen=True)
class Difference:
    """Of one metric, B minus A, in percent points; None where a side has no such number."""

    value: float | None
    interval: tuple[float, float] | None
    p: float | None


def write_intervals(folder: Path, samples: Mapping[str, np.ndarray]) -> None:
    """intervals.json, {metric: [low, high]}, and figures/bootstrap.csv, one row a resample."""
    found = {name: interval(values) for name, values in samples.items()}
    artifacts.write_json(folder / INTERVALS, {n: list(ends) for n, ends in found.items() if ends is not None})
    with (folder / SAMPLES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(samples)
        for row in zip(*samples.values(), strict=True):
            writer.writerow(["" if np.isnan(value) else repr(float(value)) for value in row])


def read_intervals(folder: Path) -> dict[str, list[float]]:
    """intervals.json of an evaluation, empty where it was made without --bootstrap."""
    path = folder / INTERVALS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_samples(folder: Path) -> dict[str, np.ndarray]:
    """{metric: (N,) percent, NaN where the resample has no object}.

    Raises:
        MissingInput: evaluated without --bootstrap.
        InputError: not what `write_intervals` writes.
    """
    path = folder / SAMPLES
    if not path.exists():
        raise MissingInput(f"{folder} has no resamples", "evaluate it with --bootstrap 1000")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file)
        values = np.array([[float(cell or "nan") for cell in row] for row in rows]).reshape(-1, len(names))
    except (ValueError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} cannot be read: {problem}", "evaluate again with --fresh") from None
    return dict(zip(names, values.T, strict=True))


def paired(first: Path, second: Path, metrics: list[Mapping[str, float | None]]) -> dict[str, Difference]:
    """How much better `second` is than `first`, by metric.

    Args:
        first, second: folders of evaluations with resamples.
        metrics: metrics.json of both.

    Raises:
        MismatchedInput: the resamples are not of the same images.
        MissingInput, InputError: see `read_samples`.
    """
    facts = [_made_from(folder) for folder in (first, second)]
    if facts[0] != facts[1]:
        raise MismatchedInput(
            f"the resamples of {first} and {second} are not the same: {facts[0]} and {facts[1]}",
            "evaluate both with the same protocol, --bootstrap and --seed",
        )
    a, b = read_samples(first), read_samples(second)
    names = [name for name in metrics[0] if name in metrics[1] and name in a and name in b]
    return {name: _difference(name, metrics, b[name] - a[name]) for name in names}


def _difference(name: str, metrics: list[Mapping[str, float | None]], samples: np.ndarray) -> Difference:
    before, after = (side[name] for side in metrics)
    if before is None or after is None:
        return Difference(None, None, None)
    return Difference(after - before, interval(samples), p_value(samples))


def _made_from(folder: Path) -> dict[str, object]:
    """What decides which images each resample holds, and what its numbers are."""
    made = artifacts.read_manifest(folder, "evaluate")
    settings = made["settings"].get("evaluate", {})
    science = {key: settings.get(key) for key in ("bootstrap", "max_detections")}
    return {"protocol": made.get("protocol"), "seed": made["seed"], **science}
