"""Two stats folders side by side: their groups, and the categories whose factors differ most.

Two data sets, or two settings on one.  Where both folders list the same ids and names, categories are matched
in that order; otherwise those whose name occurs once in both.

Shapes: C categories, M matched categories.
"""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.tables import read_categories, read_repeat_factors

GROUPS = ("all", "r", "c", "f")
KINDS = ("rfs", "irfs", "drb_first", "drb_last")  # of factors; first and last epoch


@dataclass(frozen=True, eq=False)
class StatsFolder:
    """What one folder says."""

    frequencies: CategoryFrequencies
    factors: dict[str, np.ndarray]  # kind -> (C,)
    draws: dict[str, float] | None  # kind -> expected draws of an epoch, if the folder has them


def read_stats(folder: Path) -> StatsFolder:
    """Read a folder of the stats stage.

    Raises:
        MissingInput: a table is missing.
        InputError: a table is damaged, or the two are not about the same categories.
    """
    frequencies = read_categories(folder / "categories.parquet")
    path = folder / "repeat_factors.parquet"
    table = read_repeat_factors(path)
    last = pc.max(table["epoch"]).as_py()
    keys = zip(KINDS, ("rfs", "irfs", "drb", "drb"), (-1, -1, 0, last), strict=True)
    factors = {}
    for kind, scheme, epoch in keys:
        block = table.filter(pc.and_(pc.equal(table["scheme"], scheme), pc.equal(table["epoch"], epoch)))
        if not np.array_equal(block["category_id"].to_numpy(), frequencies.category_ids):
            raise InputError(f"{path} has other categories than its neighbour", "run `2drcl stats` again")
        factors[kind] = block["r"].to_numpy()
    return StatsFolder(frequencies, factors, _draws(folder / "figures" / "epoch_length.csv"))


def summarize(stats: StatsFolder) -> dict[str, dict[str, Any]]:
    """Group (all, r, c, f) -> its counts and, for every kind, repeated categories, mean and largest factor.

    `image_count` and `instance_count` are sums over the categories: an image counts once for each of its own.
    """
    frequencies = stats.frequencies
    letters = np.array(frequencies.frequency)
    groups: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        members = np.flatnonzero((letters == group) | (group == "all"))
        row: dict[str, Any] = {
            "categories": len(members),
            "image_count": int(frequencies.image_count[members].sum()),
            "instance_count": int(frequencies.instance_count[members].sum()),
        }
        for kind in KINDS:
            r = stats.factors[kind][members]
            row[f"{kind}_repeated"] = int((r > 1).sum())
            row[f"{kind}_mean"] = float(r.mean()) if len(r) else None
            row[f"{kind}_max"] = float(r.max()) if len(r) else None
        groups[group] = row
    return groups


def match(a: CategoryFrequencies, b: CategoryFrequencies) -> tuple[np.ndarray, np.ndarray]:
    """(M,) and (M,) positions of the categories that both have, in the order of `a`."""
    if a.names == b.names and np.array_equal(a.category_ids, b.category_ids):
        everything = np.arange(len(a.names))
        return everything, everything
    once = [{name for name, times in Counter(side.names).items() if times == 1} for side in (a, b)]
    place = {name: i for i, name in enumerate(b.names)}
    pairs = [(i, place[name]) for i, name in enumerate(a.names) if name in once[0] & once[1]]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def differences(a: StatsFolder, b: StatsFolder, most: int) -> list[dict[str, Any]]:
    """The matched categories whose factors differ, by the largest ratio among the kinds, at most `most`."""
    left, right = match(a.frequencies, b.frequencies)
    ratios = [np.abs(np.log(a.factors[kind][left] / b.factors[kind][right])) for kind in KINDS]
    largest = np.max(ratios, axis=0)  # (4, M) -> (M,)
    order = np.argsort(-largest, kind="stable")[:most]
    return [_difference(a, b, left[i], right[i]) for i in order if largest[i] > 1e-12]


def _difference(a: StatsFolder, b: StatsFolder, left: int, right: int) -> dict[str, Any]:
    sides = ((a, left), (b, right))
    return {
        "name": a.frequencies.names[left],
        "frequency": [stats.frequencies.frequency[i] for stats, i in sides],
        "image_count": [int(stats.frequencies.image_count[i]) for stats, i in sides],
        "instance_count": [int(stats.frequencies.instance_count[i]) for stats, i in sides],
        **{kind: [float(stats.factors[kind][i]) for stats, i in sides] for kind in KINDS},
    }


def _draws(path: Path) -> dict[str, float] | None:
    """Expected draws by kind from the figure's table; None where there is none to be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            draws = {(row["scheme"], int(row["epoch"])): float(row["draws"]) for row in csv.DictReader(file)}
        last = max(epoch for scheme, epoch in draws if scheme == "drb")
        wanted = zip(KINDS, (("rfs", 1), ("irfs", 1), ("drb", 1), ("drb", last)), strict=True)
        return {kind: draws[key] for kind, key in wanted}
    except (OSError, KeyError, TypeError, ValueError):
        return None
