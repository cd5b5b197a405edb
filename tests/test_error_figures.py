"""Figures of the error types: they are drawn, repeatable to the byte, and show what they were given."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.analysis import error_figures as figures
from pipeline.analysis.error_figures import error_bars, error_pies
from pipeline.analysis.error_types import GROUPS, TYPES, ErrorReport


def report(**shares: tuple[float, ...]) -> ErrorReport:
    """Percentages per group in the order of TYPES; groups left out are empty."""
    groups = {}
    for name in GROUPS:
        part: tuple[float | None, ...] = shares.get(name, (None,) * 5)
        has_boxes = name in shares
        groups[name] = {"n": 1200 if has_boxes else 0, "categories": 37 if has_boxes else 0, "missing": 0}
        groups[name] |= {
            t: {"count": 0, "percent": p, "pooled_percent": p} for t, p in zip(TYPES, part, strict=True)
        }
    return ErrorReport(groups, pd.DataFrame())


BASELINE = report(
    all=(60, 10, 10, 10, 10), r=(51.8, 12, 17.2, 15, 4), c=(60, 20, 12, 8, 0), f=(98, 0.5, 0.5, 0.5, 0.5)
)
OURS = report(all=(60, 10, 10, 10, 10), r=(53.5, 12, 16.2, 14.3, 4), c=(100, 0, 0, 0, 0), f=(0, 0, 0, 0, 100))


def texts(figure: Figure) -> list[str]:
    found = [t.get_text() for ax in figure.axes for t in (*ax.texts, ax.title, *ax.get_yticklabels())]
    return [t for t in found if t]


def test_pies_name_every_slice_box_and_category(tmp_path: Path, drawn: list[Figure]) -> None:
    error_pies({"baseline": BASELINE, "ours": OURS}, tmp_path / "pies.png")
    (figure,) = drawn
    found = texts(figure)
    assert len(figure.axes) == 6  # two models, three groups
    for sentence in (
        "baseline, rare: 1,200 boxes, 37 categories",
        "correct 51.8 %",
        "correct 53.5 %",
        "other 100.0 %",
    ):
        assert sentence in found
    assert sum(t.startswith("classification") for t in found) == 6
    assert figure.get_supxlabel() == figures.convention({"ours": OURS})
    assert [p.get_hatch() for p in figure.axes[0].patches] == ["", "//", "..", "xx", "--"]
    spans = [p.theta2 - p.theta1 for p in figure.axes[0].patches]
    assert spans == pytest.approx([3.6 * s for s in (51.8, 12, 17.2, 15, 4)])


def test_pies_without_letters_show_all(tmp_path: Path, drawn: list[Figure]) -> None:
    error_pies({"a": report(all=(60, 10, 10, 10, 10)), "b": report()}, tmp_path / "pies.png")
    found = texts(drawn[0])
    assert len(drawn[0].axes) == 2
    assert "a, all: 1,200 boxes, 37 categories" in found and "no boxes" in found


def test_bars_stack_to_the_shares(tmp_path: Path, drawn: list[Figure]) -> None:
    error_bars({"baseline": BASELINE, "ours": OURS}, tmp_path / "bars.png")
    ax = drawn[0].axes[0]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels[:2] == [f"{m}, rare\n1,200 boxes, 37 categories" for m in ("baseline", "ours")]
    widths = np.array([p.get_width() for p in ax.patches]).reshape(6, 5)
    np.testing.assert_allclose(widths[0], (51.8, 12, 17.2, 15, 4))
    np.testing.assert_allclose(widths.sum(axis=1), 100)
    assert "53.5" in texts(drawn[0]) and "0.5" not in texts(drawn[0])  # too narrow for its number
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(TYPES)


@pytest.mark.parametrize("draw", [error_pies, error_bars])
def test_equal_numbers_are_equal_bytes(tmp_path: Path, draw: Any) -> None:
    first, second = tmp_path / "deep" / "first.png", tmp_path / "second.png"
    draw({"baseline": BASELINE, "ours": OURS}, first)
    draw({"baseline": BASELINE, "ours": OURS}, second)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert "Software" not in image.info
        assert len(set(image.convert("RGB").getdata())) > 4


@pytest.mark.parametrize("count", [0, 1, 5])
def test_names_of_thin_slices_keep_their_distance(count: int) -> None:
    heights: Any = np.linspace(1.05, 1.1, count)
    moved = figures._spread(heights)
    assert (np.diff(moved) >= 0.24 - 1e-9).all() and (np.abs(moved) <= 1.15 + 1e-9).all()
    apart = np.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(figures._spread(apart), apart)
