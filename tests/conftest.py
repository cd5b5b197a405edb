"""What several test modules share: the command line in this process, and a tiny project to run it in."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from pipeline import drawing
from pipeline.engine import signals

# As small as every stage can be: numbers mean nothing, only that they come out.
TINY = {
    "seed": 3,
    "sample": {
        "train_images": 16,
        "val_images": 8,
        "width": 96,
        "height": 64,
        "categories": 4,
        "object_size_px": [16, 40],
        "val_instances": 2,
    },
    "detector": {
        "depth": 18,
        "stem_channels": 16,
        "norm": "gn",
        "fpn_channels": 32,
        "fc_channels": 32,
        "anchor_scale": 4,
        "finest_scale": 14,
        "rpn_proposals": 50,
        "roi_samples": 16,
    },
    "proposals": {
        "depth": 18,
        "stem_channels": 16,
        "fpn_channels": 32,
        "fc_channels": 32,
        "anchor_scale": 4,
        "finest_scale": 14,
        "rpn_max": 50,
        "keep": 10,
        "epochs": 1,
        "batch_size": 4,
        "short_side": 64,
        "long_side": 96,
    },
    "pretrain": {
        "epochs": 2,
        "milestones": [1],
        "batch_size": 4,
        "lr": 0.01,
        "warmup_steps": 2,
        "clip_norm": 10.0,
        "contrast": {"min_side": 4, "hidden": 16, "width": 16},
        "views": {"short_sides": [64], "long_side": 96},
    },
    "finetune": {
        "epochs": 1,
        "milestones": [1],
        "batch_size": 4,
        "lr": 0.01,
        "short_sides": [64],
        "long_side": 96,
        "runs": {
            "ecm": {"method": "ecm"},
            "control": {"method": "seesaw", "init": "none", "match_pretrain_draws": True},
        },
    },
    "analyze": {"examples": 1, "attention": {"images": 1}},
}


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither find nor leave anything in the user's cache; processes they start do not either."""
    before, folder = os.environ.get("TWODRCL_CACHE"), tmp_path_factory.mktemp("cache")
    os.environ["TWODRCL_CACHE"] = str(folder)
    yield folder
    os.environ.pop("TWODRCL_CACHE")
    if before is not None:
        os.environ["TWODRCL_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def patience() -> None:
    """On a busy machine a step may take long after a signal to this process, which is all tests'."""
    signals.GRACE_S = 300.0


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `2drcl ...` in this process, through the same `main` that the script calls."""
    from stages.cli import main

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["2drcl", *map(str, arguments)])
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
        logging.getLogger("pipeline").propagate = True  # `caplog` of later tests listens there
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        return Answer(code, out, err)

    return run


def write_params(folder: Path, **changes: object) -> Path:
    """params.yaml of the tiny project, with whole sections replaced."""
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


@pytest.fixture(scope="session")
def report_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with the artifacts of three runs (`report_tree`); copied by who changes it."""
    import report_tree

    folder = tmp_path_factory.mktemp("report") / "project"
    folder.mkdir()
    report_tree.build(folder)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the files that a test draws, to look at their texts."""
    kept: list[Figure] = []
    save = drawing.save

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(drawing, "save", keep)
    return kept
