"""Initial weights: what is loaded is the file's, what is not has a reason, and the rest is refused."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.weights import LoadReport, clone_state, load_initial, part_of
from pipeline.errors import InputError, MismatchedInput, MissingInput, UsageError
from pipeline.settings import build

# isort: split
import torchvision

NAMES = ["cone", "drum", "bolt"]
ONLY_BACKBONE = "the file holds a backbone only"
HEADS = {"neck", "rpn_head", "roi_head.bbox_head"}
REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TWODRCL_DATA", REPOSITORY / ".." / "shared" / "data"))
REAL = DATA / "weights" / "resnet18-imagenet-c4.pth"


def tiny(seed: int = 0, num_classes: int = 3, **changes: Any) -> Any:
    sizes = {"depth": 18, "stem_channels": 16, "fpn_channels": 32, "fc_channels": 32, **changes}
    return build_model(model_config(build(DetectorSettings, sizes, "detector"), num_classes), seed)


@pytest.fixture(scope="module")
def r18() -> Any:
    """A detector with torchvision's widths, for tests that leave it as it is."""
    return tiny(stem_channels=64)


def load(model: Any, path: Path | None, **changes: Any) -> LoadReport:
    return load_initial(model, path, **{"classes": NAMES, "drop": {}, "allow_partial": (), **changes})


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refused(model: Any, path: Path, kind: type, message: str, **changes: Any) -> Any:
    """The error, having made sure that nothing was loaded on the way to it."""
    before = snapshot(model)
    with pytest.raises(kind, match=message) as caught:
        load(model, path, **changes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return caught.value


def checkpoint(path: Path, model: Any, classes: list[str] = NAMES) -> Path:
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": classes}}}, path)
    return path


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's names and shapes, with statistics that are not those of a fresh layer."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    for name, tensor in state.items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path


def without(source: Path, target: Path, *prefixes: str) -> Path:
    state = torch.load(source)
    torch.save({n: t for n, t in state.items() if not n.startswith(prefixes)}, target)
    return target


@pytest.mark.skipif(not REAL.exists(), reason=f"the ImageNet weights are not at {REAL}")
def test_the_imagenet_trunk_without_layer4() -> None:
    model = tiny(stem_channels=64)
    before = snapshot(model)
    problem = refused(model, REAL, MismatchedInput, r"resnet18-imagenet-c4.pth lacks backbone.layer4$")
    assert problem.hint == "if that is intended: --allow-partial layer4"
    report = load(model, REAL, allow_partial=("layer4",))
    assert report.loaded == {
        "backbone.stem": 5,
        "backbone.layer1": 20,
        "backbone.layer2": 25,
        "backbone.layer3": 25,
    }
    assert report.new == {"backbone.layer4": "the file lacks it, as allowed"} | dict.fromkeys(
        HEADS, ONLY_BACKBONE
    )
    own, file = model.state_dict(), torch.load(REAL)
    for name, tensor in file.items():
        assert torch.equal(own[f"backbone.{name}"], tensor.float())
    new = [n for n in own if part_of(n) in report.new]
    assert len(new) > 40 and all(torch.equal(own[n], before[n]) for n in new)
    assert report.sentence() == (
        "from resnet18-imagenet-c4.pth: loaded backbone.stem (5), backbone.layer1 (20), "
        "backbone.layer2 (25), backbone.layer3 (25) tensors; newly initialised: "
        "backbone.layer4 (the file lacks it, as allowed); "
        f"neck ({ONLY_BACKBONE}); rpn_head ({ONLY_BACKBONE}); roi_head.bbox_head ({ONLY_BACKBONE})"
    )


def test_torchvisions_resnet50_is_loaded_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet50.pth")
    model = tiny(depth=50, stem_channels=64)
    report = load(model, tmp_path / "resnet50.pth")
    assert sum(report.loaded.values()) == len(state) - 2  # all but fc
    assert report.loaded.keys() == {"backbone.stem", *(f"backbone.layer{i}" for i in (1, 2, 3, 4))}
    assert report.new == dict.fromkeys(HEADS, ONLY_BACKBONE)
    own = model.backbone.state_dict()
    assert own.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(own[name], state[name]) for name in own)


def test_the_loaded_trunk_computes_what_torchvisions_does(resnet18: Path) -> None:
    model = tiny(stem_channels=64).eval()
    load(model, resnet18)
    reference = torchvision.models.resnet18(weights=None).eval()
    reference.load_state_dict(torch.load(resnet18))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = torch.nn.Sequential(*list(reference.children())[:-2])
    with torch.inference_mode():
        torch.testing.assert_close(model.backbone(images)[-1], features(images))


def test_nothing_given() -> None:
    model = tiny()
    before = snapshot(model)
    report = load(model, None)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert (report.loaded, report.new) == ({}, {})
    assert report.sentence() == (
        "nothing was loaded: every module is newly initialised (no initial weights given)"
    )


def test_another_depth_is_named_as_such(resnet18: Path, r18: Any, tmp_path: Path) -> None:
    state = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
    }
    torch.save({name: torch.zeros(shape) for name, shape in state.items()}, tmp_path / "resnet50.pth")
    problem = refused(r18, tmp_path / "resnet50.pth", MismatchedInput, r"backbone\.layer1\.0\.conv3\.weight")
    assert "depth" in problem.hint and "norm" not in problem.hint
    deeper = tiny(depth=50, stem_channels=64)
    problem = refused(deeper, resnet18, MismatchedInput, r"\(64, 64, 3, 3\) instead of \(64, 64, 1, 1\)")
    assert "detector:" in problem.hint
    problem = refused(tiny(), resnet18, MismatchedInput, r"instead of \(16, 3, 7, 7\)")
    assert "detector:" in problem.hint


def test_another_norm_is_named_as_such(resnet18: Path, tmp_path: Path) -> None:
    group_norm = tiny(norm="gn")
    problem = refused(group_norm, resnet18, MismatchedInput, "running_mean")
    assert problem.hint.endswith("set detector.norm: frozen-bn")
    problem = refused(tiny(), checkpoint(tmp_path / "gn.pth", group_norm), MismatchedInput, "gn1.weight")
    assert problem.hint.endswith("set detector.norm: gn")


@pytest.mark.parametrize("allowed", [(), ("layer3",)])
def test_half_a_layer_is_never_loaded(
    resnet18: Path, r18: Any, tmp_path: Path, allowed: tuple[str, ...]
) -> None:
    path = without(resnet18, tmp_path / "torn.pth", "layer3.1.conv2", "layer3.1.bn2")
    lacks = r"it lacks backbone\.layer3\.1\.conv2\.weight, backbone\.layer3\.1\.bn2\.weight"
    problem = refused(r18, path, MismatchedInput, lacks, allow_partial=allowed)
    assert "allow-partial" not in problem.hint


def test_several_missing_parts_are_all_named(resnet18: Path, r18: Any, tmp_path: Path) -> None:
    path = without(resnet18, tmp_path / "c3.pth", "layer3", "layer4")
    problem = refused(r18, path, MismatchedInput, "lacks backbone.layer4$", allow_partial=["layer3"])
    assert problem.hint == "if that is intended: --allow-partial layer4"
    problem = refused(r18, path, MismatchedInput, "backbone.layer3, backbone.layer4")
    assert problem.hint == "if that is intended: --allow-partial layer3 --allow-partial layer4"


def test_an_allowed_part_that_is_there_is_loaded(resnet18: Path) -> None:
    report = load(tiny(stem_channels=64), resnet18, allow_partial=("layer4",))
    assert report.loaded["backbone.layer4"] == 30 and "backbone.layer4" not in report.new


def test_an_allowed_part_that_no_detector_has_is_a_slip(resnet18: Path, r18: Any) -> None:
    problem = refused(r18, resnet18, UsageError, "--allow-partial layr4", allow_partial=["layr4"])
    assert "layer4" in problem.hint and "bbox_head" in problem.hint
    refused(r18, resnet18.parent / "absent.pth", UsageError, "layer5", allow_partial=["layer5"])


CLASS_SHAPED = {"roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"}


def test_a_detector_of_the_same_categories_is_loaded_whole(tmp_path: Path) -> None:
    source, model = tiny(seed=1, type="mask-rcnn"), tiny(seed=2, type="mask-rcnn")
    report = load(model, checkpoint(tmp_path / "detector.pth", source))
    assert report.new == {} and sum(report.loaded.values()) == len(source.state_dict())
    assert "newly initialised: nothing" in report.sentence()
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("classes", [["cone", "bolt", "drum"], ["cone", "drum"], []])
def test_with_other_categories_the_last_layers_stay_new(tmp_path: Path, classes: list[str]) -> None:
    source = tiny(seed=1, num_classes=len(classes) or 3, type="mask-rcnn")
    model = tiny(seed=2, type="mask-rcnn")
    before = snapshot(model)
    report = load(model, checkpoint(tmp_path / "detector.pth", source, classes))
    assert report.new == dict.fromkeys(CLASS_SHAPED, "the checkpoint has other categories")
    for name, tensor in model.state_dict().items():
        is_new = name.rsplit(".", 1)[0] in CLASS_SHAPED
        assert torch.equal(tensor, before[name] if is_new else source.state_dict()[name])


@pytest.mark.parametrize(
    "meta", [{"CLASSES": NAMES}, {"dataset_meta": {"CLASSES": tuple(NAMES)}}], ids=["mmdet2", "mmdet3.0"]
)
def test_categories_as_older_mmdet_wrote_them(tmp_path: Path, meta: Mapping[str, Any]) -> None:
    torch.save({"state_dict": tiny(seed=1).state_dict(), "meta": meta}, tmp_path / "old.pth")
    assert load(tiny(), tmp_path / "old.pth").new == {}


def test_what_a_method_replaces_stays_new_with_its_reason(tmp_path: Path) -> None:
    source, model = tiny(seed=1), tiny(seed=2)
    before = snapshot(model)
    drop = {
        "roi_head.bbox_head.fc_cls": "ecm classifies in another way",
        "roi_head.mask_head": "no such head",
    }
    path = checkpoint(tmp_path / "detector.pth", source)
    report = load(model, path, drop=drop)
    assert report.new == {"roi_head.bbox_head.fc_cls": "ecm classifies in another way"}
    assert report.loaded["roi_head.bbox_head"] == 6  # fc_reg and two shared layers
    fc_cls = "roi_head.bbox_head.fc_cls.weight"
    assert torch.equal(model.state_dict()[fc_cls], before[fc_cls])
    wider = checkpoint(tmp_path / "wider.pth", tiny(seed=1, num_classes=4))
    refused(tiny(), wider, MismatchedInput, r"fc_reg\.weight \(16, 32\) instead of \(12, 32\)", drop=drop)


def test_a_mask_head_can_be_new_but_not_left_over(tmp_path: Path) -> None:
    faster, mask = tiny(), tiny(type="mask-rcnn")
    path = checkpoint(tmp_path / "faster.pth", faster)
    problem = refused(mask, path, MismatchedInput, "lacks roi_head.mask_head")
    assert problem.hint == "if that is intended: --allow-partial mask_head"
    report = load(mask, path, allow_partial=["mask_head"])
    assert report.new == {"roi_head.mask_head": "the file lacks it, as allowed"}
    problem = refused(faster, checkpoint(tmp_path / "mask.pth", mask), MismatchedInput, "mask_head.convs")
    assert "detector.type" in problem.hint


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_that_would_run_code_does_not(tmp_path: Path, inside: bool) -> None:
    payload = Payload(tmp_path / "ran")
    torch.save({"state_dict": {}, "meta": payload} if inside else payload, tmp_path / "evil.pth")
    refused(tiny(), tmp_path / "evil.pth", InputError, "not a readable file of weights")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(payload, protocol=2))
    refused(tiny(), tmp_path / "evil.pkl", InputError, "not a readable file of weights")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    model = tiny()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    (tmp_path / "text.pth").write_text("hello")
    refused(model, tmp_path / "linear.pth", MismatchedInput, "neither a torchvision ResNet")
    refused(model, tmp_path / "tensor.pth", InputError, "holds a Tensor")
    refused(model, tmp_path / "text.pth", InputError, "not a readable file of weights")
    refused(model, tmp_path / "absent.pth", MissingInput, "do not exist")
    refused(model, tmp_path, UsageError, "is a folder")


def test_what_is_published_is_a_copy_without_its_prefix() -> None:
    weight, bias = torch.arange(6.0).reshape(2, 3).T, torch.ones(2)  # (6) -> (2, 3) -> (3, 2)
    state = {"model.detector.a.weight": weight, "model.detector.a.bias": bias, "queue": torch.zeros(2)}
    found = clone_state(state, "model.detector.")
    assert list(found) == ["a.weight", "a.bias"] and found["a.weight"].is_contiguous()
    weight.zero_()
    bias.zero_()
    assert found["a.weight"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["a.bias"].tolist() == [1, 1]
