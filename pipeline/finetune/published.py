"""What the paper reports for fine-tuning methods on LVIS v1 (Duan et al., NeurIPS 2024, Tables 3, A.1, A.2).

Percent.  Rows with 2DRCL start from its pre-training; "Ours" in Tables 3 and A.2 is ECM with it.  The
numbers are those of `pipeline.evaluation.paper_tables`, where all tables are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.evaluation.paper_tables import paper_rows

TABLES = ("3a", "3b", "A.1", "A.2")  # no row of EQL v1: "EQL" in Table 4b repeats the EQLv2 row of Table A.1


@dataclass(frozen=True)
class Published:
    """One row of the paper's tables; `metrics` are named as in metrics.json, in percent."""

    table: str
    detector: str
    schedule: str  # 1x = 12 epochs, 2x = 24; 24+6: epochs of two stages
    with_2drcl: bool
    metrics: Mapping[str, float]


def published(method: str) -> tuple[Published, ...]:
    """The rows of one method, in the paper's order."""
    return tuple(
        Published(
            row.table, row.setting.detector, row.setting.schedule, row.setting.start == "2drcl", row.numbers
        )
        for row in paper_rows()
        if row.table in TABLES and row.setting.method == method
    )
