"""The recall curve and its tables: drawn, repeatable to the byte, and equal to the numbers they come from."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.evaluation.proposal_recall import AREAS, ProposalRecall
from pipeline.evaluation.recall_figures import (
    CURVE_BUDGETS,
    category_recall,
    recall_curves,
    recall_figure,
    write_categories,
    write_curves,
)
from pipeline.evaluation.recall_matching import NEVER

LETTERS = ["r", "c", "f", "r"]
LABELS = [0, 0, 1, 2, 2, 2]


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """Six objects: two of category 0, one of 1, three of 2 (one a crowd), none of 3."""
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(4)],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": c,
                "bbox": [0, 0, 9, 9],
                "area": 81,
                "iscrowd": int(n == 5),
            }
            for n, c in enumerate(LABELS)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_annotations(tmp_path / "a.json")


@pytest.fixture
def recall(annotations: Annotations) -> ProposalRecall:
    """Objects 0 and 4 are found at once, 2 never, 1 and 3 at ranks 150 and 20 up to IoU .7."""
    ranks = np.full((10, 6), NEVER, dtype=np.int32)
    ranks[:, 0] = ranks[:, 4] = 0
    ranks[:5, 1] = 150
    ranks[:5, 3] = 20
    counts = ~annotations.is_crowd
    none = np.zeros(6, dtype=bool)
    by_area = {area: counts if area in ("all", "s") else none for area in AREAS}
    return ProposalRecall(dict.fromkeys(AREAS, ranks), by_area, np.array([200]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_curves_hold_the_recall_of_every_group(
    tmp_path: Path, annotations: Annotations, recall: ProposalRecall
) -> None:
    curves = recall_curves(recall, annotations, LETTERS)
    assert curves.num_objects == {"all": 5, "r": 2, "c": 1, "f": 2, "s": 5, "m": 0, "l": 0}
    assert CURVE_BUDGETS[0] == 1 and CURVE_BUDGETS[-1] == 1000 and {10, 100} <= set(CURVE_BUDGETS)
    write_curves(curves, tmp_path / "recall.csv")
    rows = {int(row["proposals"]): row for row in rows_of(tmp_path / "recall.csv")}
    assert list(rows) == CURVE_BUDGETS
    assert [float(rows[1][g]) for g in ("all", "r", "c", "f", "s")] == [40, 50, 0, 50, 40]
    assert [float(rows[1000][g]) for g in ("all", "r", "c", "f")] == [60, 75, 0, 75]
    assert rows[1]["m"] == rows[1000]["l"] == ""
    assert set(recall_curves(recall, annotations, None).values) == {"all", "s", "m", "l"}


def test_categories_without_recall_are_missed(
    tmp_path: Path, annotations: Annotations, recall: ProposalRecall
) -> None:
    found = category_recall(recall, annotations)
    assert found.is_missed.tolist() == [False, True, False, False]  # c3 has nothing to find
    write_categories(found, annotations, LETTERS, tmp_path / "per_category.csv")
    rows = [list(row.values()) for row in rows_of(tmp_path / "per_category.csv")]
    assert list(rows_of(tmp_path / "per_category.csv")[0]) == [
        "category_id",
        "name",
        "frequency",
        "objects",
        "AR@100",
        "AR@1000",
        "R50@100",
        "R50@1000",
    ]
    assert rows == [
        ["0", "c0", "r", "2", "50.0", "75.0", "50.0", "100.0"],
        ["1", "c1", "c", "1", "0.0", "0.0", "0.0", "0.0"],
        ["2", "c2", "f", "2", "75.0", "75.0", "100.0", "100.0"],
        ["3", "c3", "r", "0", "", "", "", ""],
    ]


@pytest.mark.parametrize(("letters", "panels"), [(LETTERS, 2), (None, 1)])
def test_equal_curves_are_equal_bytes(
    tmp_path: Path, annotations: Annotations, recall: ProposalRecall, letters: list[str] | None, panels: int
) -> None:
    curves = recall_curves(recall, annotations, letters)
    first, second = tmp_path / "deep" / "first.png", tmp_path / "second.png"
    recall_figure(curves, first)
    recall_figure(curves, second)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert "Software" not in image.info
        assert image.width == round((5.4 * panels + 0.4) * 130)
        assert len(set(image.convert("RGB").getdata())) > 4
