"""Categories with their counts, and the repeat factors of every scheme, from the stats stage.

Shapes: C categories, in the order of categories.parquet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.reader import Reader
from pipeline.stats.tables import read_categories, read_repeat_factors

REMEDY = "2drcl stats"


@dataclass(frozen=True)
class Factors:
    """Repeat factors of one scheme in one epoch: `values` (C,)."""

    label: str
    values: list[float]


@dataclass(frozen=True)
class Categories:
    """Columns (C,); `proposals` None where none were counted; `frequency` letters r, c, f or nothing.

    Without stats, `images` and `instances` are empty.
    """

    ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    frequency: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    instances: list[int] = field(default_factory=list)
    proposals: list[int] | None = None
    num_images: int = 0
    factors: list[Factors] = field(default_factory=list)
    threshold: float | None = None


def read_dataset(reader: Reader, run: str) -> Categories:
    """The training split's categories; empty, with a gap in `reader`, where stats did not run.

    Args:
        reader: of the artifacts.
        run: of stats.
    """
    folder = f"stats/{run}"
    found = reader.value(
        f"{folder}/categories.parquet", "categories and frequencies", REMEDY, read_categories
    )
    if found is None:
        return Categories()
    ids = found.category_ids.tolist()
    table = reader.value(
        f"{folder}/repeat_factors.parquet", "repeat factors", REMEDY, lambda path: _factors(path, ids)
    )
    factors, threshold = table or ([], None)
    return Categories(
        ids=ids,
        names=[str(name) for name in found.names],
        frequency=list(found.frequency),
        images=found.image_count.tolist(),
        instances=found.instance_count.tolist(),
        proposals=None if found.proposal_count is None else found.proposal_count.tolist(),
        num_images=found.num_images,
        factors=factors,
        threshold=threshold,
    )


def scored_categories(reader: Reader, runs: Sequence[str]) -> Categories:
    """In place of those of stats: what an evaluation knows of its categories, names and groups alone."""
    for run in runs:
        rows = reader.rows(
            f"evaluate/{run}/figures/per_category.csv",
            f"categories of {run}",
            f"2drcl evaluate --run {run}",
            ("category_id", "name"),
            optional=True,
        )
        if rows:
            return Categories(
                ids=[int(row["category_id"]) for row in rows],
                names=[row.get("name") or "" for row in rows],
                frequency=[row.get("frequency") or "" for row in rows],
            )
    return Categories()


def _factors(path: Path, ids: list[int]) -> tuple[list[Factors], float | None]:
    """RFS, IRFS, and eq. 4 in the first, the middle and the last epoch."""
    table = read_repeat_factors(path)
    column: dict[str, Any] = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    found = []
    for scheme in ("rfs", "irfs", "drb"):
        of_scheme = column["scheme"] == scheme
        for epoch in _three(np.unique(column["epoch"][of_scheme])):
            rows = np.flatnonzero(of_scheme & (column["epoch"] == epoch))
            by_id = dict(zip(column["category_id"][rows].tolist(), column["r"][rows].tolist(), strict=True))
            label = scheme.upper() if scheme != "drb" else f"DRB, epoch {epoch + 1}"
            found.append(Factors(label, [round(float(by_id.get(i, 1.0)), 5) for i in ids]))
    return found, float(column["threshold"][0]) if len(column["threshold"]) else None


def _three(epochs: np.ndarray) -> list[int]:
    if not len(epochs):
        return []
    chosen = {int(epochs[0]), int(epochs[len(epochs) // 2]), int(epochs[-1])}
    return sorted(chosen)
