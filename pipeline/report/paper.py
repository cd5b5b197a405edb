"""Our runs beside the paper's rows, table by table, for the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import TwoDRCLError
from pipeline.evaluation.paper_tables import TABLES, Comparison, OwnRun, beside_paper, columns_of, unmatched
from pipeline.report.own_runs import own_run
from pipeline.report.reader import Reader, number


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    rows: label, setting, numbers of the paper, and of our run: its name or None, its numbers, the difference,
    and in what it is unlike the row.
    """

    number: str
    title: str
    columns: list[str]
    rows: list[dict[str, Any]]


def read_paper(reader: Reader, runs: Sequence[str]) -> tuple[list[PaperTable], list[str]]:
    """All tables, and the names of evaluated runs that stand for no row of them."""
    own = [run for name in runs if (run := _own(reader, name)) is not None]
    compared = beside_paper(own)
    tables = [
        PaperTable(
            number, title, list(columns_of(number)), [_row(c) for c in compared if c.row.table == number]
        )
        for number, title in TABLES.items()
    ]
    return tables, [run.name for run in unmatched(own)]


def _own(reader: Reader, name: str) -> OwnRun | None:
    try:
        found = own_run(reader.root / "evaluate" / name)
        return replace(found, metrics={key: number(value) for key, value in found.metrics.items()})
    except TwoDRCLError:  # a gap that `runs.read_run` has named
        return None
    except (KeyError, TypeError, AttributeError) as problem:
        reader.note(
            f"{name} beside the paper",
            f"its manifests lack {problem}",
            f"2drcl finetune --run {name} --fresh",
        )
        return None


def _row(compared: Comparison) -> dict[str, Any]:
    return {
        "label": compared.row.label,
        "setting": f"{compared.row.setting.detector}, {compared.row.setting.schedule}",
        "paper": dict(compared.row.numbers),
        "run": compared.run.name if compared.run else None,
        "ours": {k: v for k, v in compared.ours.items() if v is not None},
        "difference": {k: v for k, v in compared.difference.items() if v is not None},
        "unlike": list(compared.unlike),
    }
