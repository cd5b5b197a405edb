"""Initial weights that are not there: the message names the file, and its command makes one that loads."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import write_params

from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.imagenet import file_name
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.weights import load_initial
from pipeline.errors import MissingInput
from stages.initial_weights import initial_digest


def refusal(path: Path, depth: int, *nothing: str) -> MissingInput:
    with pytest.raises(MissingInput, match=r"^initial weights .* do not exist$") as caught:
        initial_digest(path, depth, *nothing)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize(
    ("depth", "name"),
    [(18, "resnet18-f37072fd.pth"), (50, "resnet50-0676ba61.pth"), (101, "resnet101-63fe2227.pth")],
)
def test_the_file_of_each_depth_is_named(tmp_path: Path, depth: int, name: str) -> None:
    assert file_name(depth) == name
    hint = refusal(tmp_path / name, depth).hint
    assert f"are torchvision's {name} (ResNet{depth}_Weights.IMAGENET1K_V1)" in hint
    assert hint.endswith("or set init: null")
    assert refusal(tmp_path / name, depth, "none").hint.endswith("or set init: none")
    assert "://" not in hint and ".org" not in hint


def test_the_command_of_the_message_makes_a_file_that_is_loaded_whole(tmp_path: Path) -> None:
    path = tmp_path / "it's mine.pth"
    command = re.search("or run (.*); or name", refusal(path, 18).hint)
    assert command is not None
    *python, code = shlex.split(command[1])
    assert python == ["python", "-c"] and code.count('"IMAGENET1K_V1"') == 1
    exec(code.replace('"IMAGENET1K_V1"', "None"))  # all but what needs a network
    config = model_config(DetectorSettings(depth=18, fpn_channels=32, fc_channels=32), 3)
    model = build_model(config, seed=0)
    report = load_initial(model, path, classes=["a", "b", "c"], drop={}, allow_partial=())
    assert sum(report.loaded.values()) == 120
    assert initial_digest(path, 18)


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_every_name_and_shape_of_torchvisions_file_has_its_place(tmp_path: Path, depth: int) -> None:
    """A file of the right names and shapes, each tensor one number of its own, repeated without memory."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
    state = {
        name: torch.tensor(number, dtype=tensor.dtype).expand(tensor.shape)
        for number, (name, tensor) in enumerate(shapes.items())
    }
    torch.save(state, tmp_path / file_name(depth))
    assert (tmp_path / file_name(depth)).stat().st_size < 1e6
    settings = DetectorSettings(depth=depth, fpn_channels=32, fc_channels=32)
    model = build_model(model_config(settings, 3), seed=0)
    path = tmp_path / file_name(depth)
    report = load_initial(model, path, classes=["a", "b", "c"], drop={}, allow_partial=())
    trunk = {f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert sum(report.loaded.values()) == len(trunk) == {18: 120, 50: 318, 101: 624}[depth]
    assert set(report.new) == {"neck", "rpn_head", "roi_head.bbox_head"}
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    assert own.keys() == trunk.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in trunk.items())


def test_stages_say_it_before_anything_is_written(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, proposals={"source": "gt-jitter"})
    for stage in ("sample", "proposals", "stats"):
        assert cli(stage).code == 0
    pretrain = cli("pretrain", "--init", "data/resnet18.pth")
    assert pretrain.code == 3 and "error: initial weights data/resnet18.pth do not exist" in pretrain.err
    assert "resnet18-f37072fd.pth" in " ".join(pretrain.err.split())
    finetune = cli("finetune", "--method", "ecm", "--init", "gone/detector.pth")
    assert finetune.code == 3 and "run `2drcl pretrain` first" in " ".join(finetune.err.split())
    write_params(tmp_path, proposals={"source": "oln", "depth": 50, "init": "data/resnet50.pth"})
    proposals = cli("proposals", "--out", "artifacts/proposals/oln")
    assert proposals.code == 3 and "resnet50-0676ba61.pth" in " ".join(proposals.err.split())
    assert not any(
        (tmp_path / "artifacts" / name).exists() for name in ("pretrain", "finetune", "proposals/oln")
    )
