"""All runs in one figure and in one table, for papers and for `dvc plots`; the page draws its own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis.error_figures import error_bars, error_pies
from pipeline.analysis.error_types import TYPES, ErrorReport
from pipeline.analysis.tables import write_table
from pipeline.evaluation.figures import metrics_figure
from pipeline.report.collect import Report
from pipeline.report.runs import Run


def write(report: Report, folder: Path) -> None:
    """metrics.csv and categories.csv; metrics.png, error_types.png and error_bars.png where they can be."""
    write_table(folder / "metrics.csv", ("run", "metric", "value", "low", "high"), _metric_rows(report.runs))
    names = tuple(f"bbox_AP_{run.name}" for run in report.runs)
    counts = ("category_id", "name", "frequency", "image_count", "instance_count")
    write_table(folder / "categories.csv", (*counts, *names), _category_rows(report))
    metrics = {run.name: run.metrics for run in report.runs if run.metrics}
    if any("bbox_AP" in found or "segm_AP" in found for found in metrics.values()):
        metrics_figure(metrics, folder / "metrics.png")
    errors = {run.name: ErrorReport(_groups(run), pd.DataFrame()) for run in report.runs if _is_whole(run)}
    if errors:
        error_pies(errors, folder / "error_types.png")
        error_bars(errors, folder / "error_bars.png")


def _metric_rows(runs: Iterable[Run]) -> Iterable[tuple[Any, ...]]:
    for run in runs:
        for metric, value in run.metrics.items():
            yield (run.name, metric, value, *run.intervals.get(metric, (None, None)))


def _category_rows(report: Report) -> Iterable[tuple[Any, ...]]:
    found = report.categories
    unknown = [None] * len(found.ids)
    counts = (found.images or unknown, found.instances or unknown)
    columns = (found.ids, found.names, found.frequency, *counts)
    for row in zip(*columns, strict=True):
        yield (*row, *(run.categories.get(row[0], {}).get("bbox_AP") for run in report.runs))


def _is_whole(run: Run) -> bool:
    """errors.json with its four groups, each with numbers where it has boxes."""
    return len(run.errors) == 4 and all(
        not group["n"] or all(group[kind][1] is not None for kind in TYPES) for group in run.errors.values()
    )


def _groups(run: Run) -> dict[str, dict[str, Any]]:
    """As errors.json has them."""
    return {
        name: {
            **{key: group[key] for key in ("n", "categories", "missing")},
            **{kind: {"count": group[kind][0], "percent": group[kind][1]} for kind in TYPES},
        }
        for name, group in run.errors.items()
    }
