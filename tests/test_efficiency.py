"""Costs of the stages from their timing files."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.artifacts import write_json
from pipeline.errors import InputError
from pipeline.report.efficiency import cost_figure, costs, write_costs


def timing(root: Path, place: str, **values: float) -> None:
    write_json(root / place / "timing.json", values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    timing(
        tmp_path, "finetune/ecm", seconds=90, train_seconds=60, images_per_second=8.5, peak_memory_mib=2048
    )
    timing(
        tmp_path,
        "finetune/loce",
        seconds=200,
        train_seconds=60,
        stage1_train_seconds=100,
        peak_memory_mib=1024,
    )
    timing(tmp_path, "sample", seconds=6, peak_memory_mib=300)
    timing(tmp_path, ".work/finetune/x", seconds=1)
    return tmp_path


def test_products_in_the_order_of_the_chain(root: Path) -> None:
    found = costs(root)
    assert [(c.stage, c.run) for c in found] == [("sample", ""), ("finetune", "ecm"), ("finetune", "loce")]
    assert found[1].images_per_second == 8.5 and found[1].gpu_memory_mib is None
    assert found[2].train_seconds == 160  # both stages
    assert costs(root / "nowhere") == []


def test_table_and_figure(root: Path) -> None:
    found = costs(root)
    write_costs(found, root / "costs.csv")
    table = pd.read_csv(root / "costs.csv")
    assert table["seconds"].tolist() == [6, 90, 200] and table["images_per_second"].isna().sum() == 2
    cost_figure(found, root / "costs.png")
    text = (root / "costs.svg").read_text()
    assert "finetune loce" in text and " 8.5" in text and "largest process" in text
    timing(root, "pretrain/default", seconds=9, gpu_memory_mib=20480)
    cost_figure(costs(root), root / "costs.png")
    assert "all cards" in (root / "costs.svg").read_text() and " 20.0" in (root / "costs.svg").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"seconds": "long"}'])
def test_broken_files_are_named(root: Path, content: str) -> None:
    (root / "sample/timing.json").write_text(content)
    with pytest.raises(InputError, match=r"timing\.json is broken"):
        costs(root)
