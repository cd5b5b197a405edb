"""Numbers of the analyses as CSV: floats in full, None as nothing, the same bytes for the same numbers."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import replacing


def write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write one table.

    Args:
        path: the CSV; its folder is made.
        header: names of the columns.
        rows: as long as the header.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
