"""What the paper reports for fine-tuning methods on LVIS v1 (Duan et al., NeurIPS 2024, Tables 3 and A.1).

Percent.  Rows with 2DRCL start from its pre-training; "Ours" in Table 3 is ECM with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Numbers = tuple[float, float, float, float]  # AP, APr, APc, APf


@dataclass(frozen=True)
class Published:
    """One row of the paper's tables; `metrics` are named as in metrics.json, in percent."""

    table: str
    detector: str
    schedule: str  # 1x = 12 epochs, 2x = 24; 24+6: epochs of two stages
    with_2drcl: bool
    metrics: Mapping[str, float]


def _row(
    table: str, detector: str, schedule: str, kind: str, values: Numbers, ours: bool = False
) -> Published:
    names = (f"{kind}_AP", f"{kind}_APr", f"{kind}_APc", f"{kind}_APf")
    return Published(table, detector, schedule, ours, dict(zip(names, values, strict=True)))


def _table_a1(
    r50: Numbers, r50_ours: Numbers, r101: Numbers, r101_ours: Numbers, schedule: str = "1x"
) -> tuple[Published, ...]:
    """Table A.1: Mask R-CNN, without and with 2DRCL."""
    return (
        _row("A.1", "mask-rcnn_r50", schedule, "bbox", r50),
        _row("A.1", "mask-rcnn_r50", schedule, "bbox", r50_ours, ours=True),
        _row("A.1", "mask-rcnn_r101", schedule, "bbox", r101),
        _row("A.1", "mask-rcnn_r101", schedule, "bbox", r101_ours, ours=True),
    )


def _table_3a(values: Numbers, ours: bool = False) -> Published:
    """Table 3a: Faster R-CNN, 2x."""
    return _row("3a", "faster-rcnn_r50", "2x", "bbox", values, ours)


def _table_3b(backbone: str, masks: Numbers, bbox_AP: float, ours: bool = False) -> Published:
    """Table 3b: Mask R-CNN, 2x; mask AP by frequency, and box AP."""
    row = _row("3b", f"mask-rcnn_{backbone}", "2x", "segm", masks, ours)
    return Published(row.table, row.detector, row.schedule, ours, {**row.metrics, "bbox_AP": bbox_AP})


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "ce": (
        _table_3b("r50", (18.7, 0.4, 16.5, 29.3), bbox_AP=19.7),
        _table_3b("r101", (25.5, 16.6, 24.5, 30.6), bbox_AP=26.6),
    ),
    "bce": (_table_3a((19.5, 1.6, 16.6, 30.6)),),
    "rfs": (
        *_table_a1(
            (22.7, 9.1, 21.5, 30.0),
            (23.9, 11.9, 22.3, 31.0),
            (24.8, 12.1, 23.4, 31.9),
            (25.1, 12.7, 23.5, 32.4),
        ),
        _table_3a((24.2, 14.2, 22.3, 30.6)),
        _table_3b("r50", (23.7, 14.2, 22.9, 29.3), bbox_AP=24.7),
    ),
    "irfs": _table_a1(
        (24.4, 14.3, 22.6, 30.8),
        (24.7, 14.3, 22.9, 31.3),
        (26.3, 16.5, 24.5, 32.5),
        (26.5, 16.7, 24.6, 32.8),
    ),
    # no row of EQL v1: "EQL" in Table 4b repeats the EQLv2 row of Table A.1
    "eqlv2": (
        *_table_a1(
            (24.9, 14.8, 24.1, 30.4),
            (25.7, 16.5, 24.5, 31.0),
            (26.3, 17.7, 24.4, 31.2),
            (26.9, 18.9, 25.1, 32.5),
        ),
        _table_3a((25.4, 15.8, 23.5, 31.7)),
        _table_3b("r50", (25.2, 17.4, 24.1, 29.9), bbox_AP=26.0),
        _table_3b("r101", (27.2, 20.6, 25.9, 31.4), bbox_AP=27.9),
    ),
    "droploss": (_table_3a((21.8, 5.2, 21.8, 29.1)),),
    "seesaw": (
        *_table_a1(
            (24.7, 14.7, 23.6, 30.4),
            (26.2, 17.5, 25.0, 31.5),
            (26.3, 15.1, 25.4, 32.2),
            (27.0, 17.6, 25.6, 32.6),
        ),
        _table_3a((26.4, 16.8, 25.1, 32.2)),
        _table_3b("r50", (26.9, 19.6, 26.8, 30.5), bbox_AP=27.3),
        _table_3b("r101", (28.2, 20.3, 28.1, 31.8), bbox_AP=29.0),
    ),
    "ecm": (
        *_table_a1(
            (26.5, 17.0, 25.4, 31.7),
            (27.3, 19.2, 25.9, 32.5),
            (27.9, 19.2, 26.5, 33.5),
            (28.0, 19.5, 26.2, 33.7),
        ),
        _table_3a((26.7, 17.5, 25.7, 32.2)),
        _table_3a((27.3, 18.6, 25.8, 32.6), ours=True),
        _table_3b("r50", (27.4, 19.7, 27.0, 31.1), bbox_AP=27.9),
        _table_3b("r50", (27.7, 20.4, 27.1, 31.4), bbox_AP=28.3, ours=True),
        _table_3b("r101", (28.7, 21.9, 28.4, 32.2), bbox_AP=29.4),
        _table_3b("r101", (28.8, 21.1, 28.7, 32.3), bbox_AP=29.6, ours=True),
    ),
    "bags": (_table_3a((23.7, 14.2, 22.2, 29.6)),),
    "acsl": (_table_3a((22.2, 9.9, 21.3, 28.5)),),
    "pcb": (_table_3a((23.0, 6.2, 21.5, 32.2)),),
    "loce": (
        *_table_a1(
            (27.2, 18.7, 25.7, 32.6),
            (27.6, 18.9, 26.5, 33.0),
            (28.5, 19.0, 27.0, 34.3),
            (28.7, 20.2, 26.8, 34.4),
            schedule="24+6",
        ),
        _table_3a((25.1, 15.7, 24.2, 30.1)),
        _table_3b("r50", (26.6, 18.5, 26.2, 30.7), bbox_AP=27.4),
    ),
    "bacl": (
        *_table_a1(
            (26.1, 16.0, 25.7, 30.9),
            (27.0, 17.5, 25.9, 32.5),
            (27.2, 16.7, 26.8, 32.3),
            (28.4, 18.9, 27.3, 33.7),
            schedule="12+12",
        ),
        _table_3a((26.1, 16.0, 25.7, 30.9)),
    ),
    "rog": _table_a1(
        (25.7, 16.4, 24.4, 31.2),
        (26.2, 16.9, 24.8, 31.8),
        (27.3, 18.5, 26.2, 32.5),
        (27.6, 18.8, 26.3, 32.9),
    ),
}
