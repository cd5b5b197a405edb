"""Losses are found by mmdet's registry whoever is imported first, and cost nothing before mmengine is."""

import subprocess
import sys
from pathlib import Path

import pytest

FOUND = "assert MODELS.get('twodrcl.ECMLoss').__module__ == 'pipeline.finetune.ecm'"
ORDERS = {
    "ours first": f"import pipeline.finetune\nfrom mmdet.registry import MODELS\n{FOUND}",
    "mmdet first": f"from mmdet.registry import MODELS\nimport pipeline.finetune\n{FOUND}",
    "one loss, then mmcv": f"import pipeline.finetune.eql, mmcv\nfrom mmdet.registry import MODELS\n{FOUND}",
}


def run(code):
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_losses_are_registered_whoever_comes_first(order):
    run(ORDERS[order])


def test_the_package_alone_imports_neither_torch_nor_mmengine():
    run("import sys, pipeline.finetune.methods\nassert not {'torch', 'mmengine'} & set(sys.modules)")


def test_mmengine_keeps_its_own_loader():
    run(
        "import sys, pipeline.finetune, mmengine\n"
        "assert 'pipeline' not in type(mmengine.__spec__.loader).__module__\n"
        "assert mmengine.__loader__ is mmengine.__spec__.loader\n"
        "assert not any('pipeline' in type(f).__module__ for f in sys.meta_path)"
    )
