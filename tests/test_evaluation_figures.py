"""The comparison of runs as bars: it is drawn, repeatable to the byte, and shows what it was given."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pipeline.evaluation.figures import metrics_figure

METRICS = {
    "baseline": {"bbox_AP": 24.4, "bbox_APr": 12.16, "bbox_APc": 23.3, "bbox_APf": None, "segm_AP": 22.9},
    "ours": {"bbox_AP": 26.5, "bbox_APr": 15.1, "bbox_APc": 24.0, "bbox_APf": 30.2},
}


def test_metrics_say_na_where_there_is_no_number(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics_figure(METRICS, tmp_path / "metrics.png")
    boxes, masks = drawn[0].axes
    assert [t.get_text() for t in boxes.get_xticklabels()] == ["AP", "APr", "APc", "APf"]
    assert [t.get_text() for t in boxes.texts] == [
        "24.4",
        "12.2",
        "23.3",
        "n/a",
        "26.5",
        "15.1",
        "24.0",
        "30.2",
    ]
    assert [p.get_height() for p in boxes.patches] == [24.4, 12.16, 23.3, 0, 26.5, 15.1, 24.0, 30.2]
    assert [t.get_text() for t in masks.texts] == ["22.9", "n/a"]
    metrics_figure({"one": {"bbox_AP": 50.0}}, tmp_path / "one.png")
    assert len(drawn[1].axes) == 1


def test_equal_numbers_are_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "deep" / "first.png", tmp_path / "second.png"
    metrics_figure(METRICS, first)
    metrics_figure(METRICS, second)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert "Software" not in image.info
        assert len(set(image.convert("RGB").getdata())) > 4
