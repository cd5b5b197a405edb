"""Files of earlier stages that may be missing, half-written or damaged: a value, or a gap that is named.

A report is most wanted when something went wrong, so nothing that lies in a file stops it.
"""

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Gap:
    """Something the page lacks.

    what: in the reader's words.  why: which file, and what is the matter with it.  todo: the command that
    makes it.
    """

    what: str
    why: str
    todo: str


class Reader:
    """Reads files below `root`, and keeps the gaps that it finds, in order.

    Args:
        root: the folder of all artifacts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gaps: list[Gap] = []

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def mapping(self, name: str, what: str, todo: str, *, optional: bool = False) -> dict[str, Any]:
        """A JSON object; empty where there is none.  Optional: its absence is no gap."""
        return self._read(name, what, todo, _mapping, optional) or {}

    def lines(self, name: str, what: str, todo: str) -> list[dict[str, Any]]:
        """A file of JSON objects, one a line; a half-written last line is a gap, and the rest is kept."""
        path = self.root / name
        text = self._read(name, what, todo, lambda file: file.read_text(encoding="utf-8"), False) or ""
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                self.note(what, f"{path}, line {number} is not JSON: the lines before it are shown", todo)
                break
            if isinstance(record, dict):
                found.append(record)
        return found

    def rows(
        self, name: str, what: str, todo: str, columns: tuple[str, ...], *, optional: bool = False
    ) -> list[dict[str, str]]:
        """The rows of a CSV file, by column name; damaged without `columns`, or where an id is no number."""
        return self._read(name, what, todo, lambda path: _rows(path, columns), optional) or []

    def value(self, name: str, what: str, todo: str, parse: Callable[[Path], T]) -> T | None:
        """What `parse` makes of a file; None, and a gap, where it cannot."""
        return self._read(name, what, todo, parse, False)

    def note(self, what: str, why: str, todo: str = "") -> None:
        """Keep a gap that was found elsewhere."""
        self.gaps.append(Gap(what, why, todo))

    def _read(self, name: str, what: str, todo: str, parse: Callable[[Path], T], optional: bool) -> T | None:
        path = self.root / name
        if not path.exists():
            if not optional:
                self.note(what, f"{path} is not there", todo)
            return None
        try:
            return parse(path)
        except Exception as problem:  # whatever a damaged file makes its parser raise
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            self.note(what, f"{path} cannot be read: {reason}", f"{todo} --fresh" if todo else "")
            return None


def number(value: Any) -> float | None:
    """A finite number, else None: JSON has no NaN, and a page no place for one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _mapping(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")
    return content


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        lacking = [name for name in columns if name not in (table.fieldnames or ())]
        if lacking:
            raise ValueError(f"it has no column {', '.join(lacking)}")
        rows = [dict(row) for row in table]
    for place, row in enumerate(rows, start=1):
        if "category_id" in columns and not re.fullmatch(r"-?\d{1,18}", row["category_id"] or ""):
            raise ValueError(f"row {place} has no whole number as category_id: {row['category_id']!r}")
    return rows
