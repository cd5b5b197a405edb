"""Which views a stage of fine-tuning has, and the canvases that they lie on."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pipeline.data.copy_paste_settings import CopyPasteSettings
from pipeline.data.pasted_view import PastedViewDataset
from pipeline.data.single_view import SingleViewDataset
from pipeline.detectors.settings import DetectorSettings
from pipeline.engine.distributed import Process
from pipeline.engine.schedule import Schedule
from pipeline.errors import UsageError
from pipeline.finetune import second_stage
from pipeline.finetune.methods import METHODS
from pipeline.finetune.plan import FinetuneJob, FinetunePlan
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings
from pipeline.finetune.views import dataset_of, source_of


def plan(folder, method, stage="only", augment="method", kind=None, **settings):
    """Of a split of two images of 100 x 60 without pixels."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 60} for i in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": [box]}
    (folder / "split.json").write_text(json.dumps(content))
    job = FinetuneJob(
        folder / "split.json", folder, folder, folder, 3, FinetuneRun(method, augment=augment),
        detector=DetectorSettings(kind or METHODS[method].detectors[0], norm="gn"),
        finetune=FinetuneSettings(**settings), stage=stage,
    )  # fmt: skip
    return FinetunePlan(job)


def test_only_bacl_pastes_and_only_in_its_first_stage(tmp_path):
    found = {
        (name, stage): plan(tmp_path, name, stage).augment
        for name, method in METHODS.items()
        for stage in (["first", "second"] if method.second_stage else ["only"])
    }
    assert {key for key, augment in found.items() if augment == "copy-paste"} == {("bacl", "first")}
    assert plan(tmp_path, "bacl", "first").title == ", stage 1 (bce) with copy-paste"
    assert plan(tmp_path, "ce", augment="copy-paste").title == " with copy-paste"
    assert plan(tmp_path, "bacl", "second").title == ", stage 2 (bacl)"


@pytest.mark.parametrize("method", ["ecm", "bags", "bacl"])
def test_a_run_says_otherwise_but_not_of_a_second_stage(tmp_path, method):
    first = "first" if METHODS[method].second_stage else "only"
    for augment in ("plain", "copy-paste"):
        assert plan(tmp_path, method, first, augment).augment == augment
        assert plan(tmp_path, method, "second", augment).augment == "plain" or first == "only"


def test_a_first_stage_that_is_trained_has_its_views_already():
    run = FinetuneRun("bacl", stage1="x.pth", augment="plain")
    with pytest.raises(UsageError, match=r"augment: plain is of stage 1, but stage1: x\.pth is trained"):
        second_stage.refuse_contradictions(run)
    second_stage.refuse_contradictions(dataclasses.replace(run, augment="method"))


def test_pasted_views_have_the_runs_settings(tmp_path):
    views = CopyPasteSettings(scales=(0.5, 2.0), most=7)
    data = dataset_of(plan(tmp_path, "bacl", "first", flip=0.25, long_side=176, copy_paste=views))
    assert isinstance(data, PastedViewDataset)
    assert (data.side, data.scales, data.most, data.flip, data.seed) == (160, (0.5, 2.0), 7, 0.25, 3)
    assert not data.with_polygons
    assert dataset_of(plan(tmp_path, "bacl", "first", kind="mask-rcnn")).with_polygons
    assert dataset_of(plan(tmp_path, "ecm", augment="copy-paste", kind="atss")).side == 1280
    assert isinstance(dataset_of(plan(tmp_path, "bacl", "second")), SingleViewDataset)


class OneBatch:
    def steps(self, epoch):
        return np.array([[0, 1]])


class Canvases(torch.utils.data.Dataset):
    """The draws themselves."""

    def __getitem__(self, draw):
        return draw.canvas_wh


@pytest.mark.parametrize(
    ("augment", "settings", "canvas"),
    [
        ("plain", {"short_sides": (64,), "long_side": 96}, (96, 64)),
        ("copy-paste", {"short_sides": (64,), "long_side": 96}, (96, 96)),
        ("copy-paste", {"copy_paste": CopyPasteSettings(side=100)}, (128, 128)),
    ],
)
def test_canvases(tmp_path, augment, settings, canvas, monkeypatch):
    made = plan(tmp_path, "ce", augment=augment, **settings)
    monkeypatch.setattr(FinetunePlan, "sampler", OneBatch())
    monkeypatch.setattr(FinetunePlan, "schedule", Schedule((1,), (), 0.1))
    source = source_of(made, dataset_of(made), Process(0, 1, torch.device("cpu")), 0)
    source.dataset = Canvases()
    assert next(source(0)) == [canvas, canvas]
