"""`2drcl pretrain --show-batch`: the picture shows the draws of the next step, and its weights' painting."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_params
from PIL import Image
from toy_detector import tiny_settings, toy_batch, toy_model

from pipeline.data.draws import images_of_step
from pipeline.data.photometric import pixels_of
from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.errors import InputError
from pipeline.pretrain.preview import Preview, preview
from pipeline.pretrain.preview_figure import COLOURS, preview_figure
from pipeline.pretrain.training import PretrainPlan, build_step
from stages.common import Order, split_of
from stages.params import load
from stages.pretrain import Inputs, plan_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a sample, jittered proposals and stats."""
    folder = tmp_path_factory.mktemp("preview")
    write_params(folder, proposals={"source": "gt-jitter", "keep": 10})
    return folder


@pytest.fixture
def plan(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    for stage in ("sample", "proposals", "stats"):
        assert cli(stage).code == 0
    params = load(None)
    folders = (Path("artifacts/proposals/default"), Path("artifacts/stats/default"))
    order = Order(params, Path("artifacts/pretrain/default"))
    return PretrainPlan(plan_run(order, Inputs(split_of(params, "train", None, None), *folders))[0])


def test_the_command_draws_and_trains_nothing(plan, cli):
    answer = cli("pretrain", "--show-batch", "seen/out.png")
    assert answer.code == 0 and answer.out.strip() == "seen/out.png", answer.err
    with Image.open("seen/out.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert not Path("artifacts/pretrain").exists()
    first = Path("seen/out.png").read_bytes()
    assert cli("pretrain", "--show-batch", "seen/out.png").code == 0
    assert Path("seen/out.png").read_bytes() == first
    files = CheckpointFolder(plan.job.work / "checkpoints")
    files.save(2, {"model": build_step(plan, CPU).state_dict()})
    assert cli("pretrain", "--show-batch", "seen/out.png").code == 0
    assert Path("seen/out.png").read_bytes() != first  # of step 2, from the checkpoint
    assert files.steps() == [2]
    assert cli("pretrain", "--show-batch", "out.jpg").code == 2


def test_it_is_the_next_step_with_the_weights_that_would_continue(plan):
    at_start = preview(plan, CPU, None, 2)
    model = build_step(plan, CPU)
    with torch.no_grad():
        model.generator.layers[-1].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    continued = preview(plan, CPU, (3, model.state_dict()), 2)
    assert (at_start.step, continued.step) == (0, 3)
    for shown in (at_start, continued):
        drawn = images_of_step(plan.sampler, plan.schedule.epoch_steps, shown.step)[:2]
        assert shown.batch.image_ids.tolist() == plan.annotations.image_ids[drawn].tolist()
    painted = continued.painting.reconstruction[0, :, 8, 8]
    torch.testing.assert_close(painted, torch.tensor([1.0, 2.0, 3.0]), atol=0.5, rtol=0)
    assert preview(plan, CPU, (plan.schedule.total, model.state_dict()), 2).step == plan.schedule.total - 1
    with pytest.raises(InputError, match="does not fit"):
        preview(plan, CPU, (3, {"detector": torch.zeros(1)}), 2)


def test_without_reconstruction_there_is_none_to_show(plan):
    settings = dataclasses.replace(plan.job.pretrain, terms=("hcl", "lcl", "det"))
    bare = PretrainPlan(dataclasses.replace(plan.job, pretrain=settings))
    assert preview(bare, CPU, None, TINY["pretrain"]["batch_size"]).painting is None


def is_colour(picture, colour):
    """Pixels of exactly this colour."""
    return (np.abs(picture.astype(int) - np.round(np.array(colour) * 255)) <= 1).all(axis=2)


@pytest.mark.parametrize("with_painting", [True, False])
def test_a_pair_has_one_colour_in_both_views_and_invalid_boxes_none(tmp_path, with_painting):
    batch = toy_batch(0, images=2, invalid=[(0, 1), (1, 1), (1, 2)])
    grey = dataclasses.replace(batch, query=0 * batch.query, key=0 * batch.key)
    model = toy_model(tiny_settings())
    with torch.no_grad():
        painting = model.paint(grey, torch.zeros(2, 24, 2, 3))
    preview_figure(Preview(0, grey, painting if with_painting else None), tmp_path / "out.png", "title")
    with Image.open(tmp_path / "out.png") as file:
        picture = np.array(file.convert("RGB"))
    cells = np.split(picture[:, : picture.shape[1] // 4 * 4], 4 if with_painting else 2, axis=1)
    for number, colour in enumerate(COLOURS[:3]):
        in_row = [
            [is_colour(half, colour).sum() > 20 for half in np.array_split(cell, 2)] for cell in cells[:2]
        ]
        expected = [number != 1, number == 0]  # of the first and the second image
        assert in_row == [expected, expected], number
    assert not any(is_colour(cell, colour).any() for cell in cells[2:] for colour in COLOURS[:3])


def test_pixels_are_those_before_normalisation():
    view = torch.zeros(3, 4, 6)
    view[:, :2, :3] = torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    found = pixels_of(view, torch.tensor([3.0, 2.0]))
    assert found.shape == (2, 3, 3)
    np.testing.assert_allclose(found[1, 2], [0.485 + 0.229, 0.456, 0.406 - 0.225], atol=1e-6)
