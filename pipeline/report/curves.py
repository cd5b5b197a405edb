"""history.jsonl as short curves: what a page can carry, whatever the number of steps.

Shapes: S steps in the file, P points of a curve (at most `POINTS`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.reader import number

POINTS = 160  # a curve is drawn 300 px wide
X = ("step", "epoch", "images")
NOT_DRAWN = ("seconds",)


@dataclass(frozen=True)
class Curves:
    """`images` (P,) drawn at the end of each stretch, `terms` name -> (P,) its mean; None: no number."""

    images: list[float] = field(default_factory=list)
    terms: dict[str, list[float | None]] = field(default_factory=dict)


def curves(records: Sequence[dict[str, Any]]) -> Curves:
    """Means over equal stretches of steps: (S) -> (P).

    Args:
        records: lines of history.jsonl; without `images`, steps are counted instead.
    """
    names = list(dict.fromkeys(k for record in records for k in record if k not in (*X, *NOT_DRAWN)))
    per_point = -(-len(records) // POINTS) or 1
    stretches = [records[i : i + per_point] for i in range(0, len(records), per_point)]
    images = [_place(stretch[-1], (i + 1) * per_point) for i, stretch in enumerate(stretches)]
    terms = {name: [_mean(stretch, name) for stretch in stretches] for name in names}
    return Curves(images, {k: v for k, v in terms.items() if any(x is not None for x in v)})


def _place(record: dict[str, Any], counted: int) -> float:
    found = number(record.get("images"))
    return float(counted) if found is None else found


def _mean(stretch: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [v for record in stretch if (v := number(record.get(name))) is not None]
    return float(f"{sum(values) / len(values):.5g}") if values else None
