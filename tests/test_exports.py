"""A detector in the forms of other libraries: there and back to the bit, the same boxes on the same image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_atss
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from pipeline.data.annotations import read_annotations
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.exchange import DETECTRON2, TORCHVISION, Layout, from_layout, to_layout
from pipeline.detectors.exports import export, read_detector
from pipeline.detectors.inference import detect
from pipeline.detectors.publish import load_published, publish_detector
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.torchvision_model import exact_anchors, torchvision_detector
from pipeline.detectors.weights import clone_state
from pipeline.engine.checkpoint import load_tensors
from pipeline.errors import MismatchedInput

# isort: split
from mmdet.apis import init_detector
from mmdet.registry import TASK_UTILS

CLASSES = ["cone", "drum", "bolt"]
WIDTH, HEIGHT = 160, 96
CPU = torch.device("cpu")


def config_of(**changes: Any) -> dict[str, Any]:
    small = {"rpn_proposals": 60, "max_detections": 120, "anchor_scale": 4.0, "finest_scale": 14}
    return model_config(DetectorSettings(**{**small, **changes}), len(CLASSES))


def state_of(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights with outputs far apart, and batch norm with statistics that matter."""
    model, chance = build_model(config, seed=0), torch.Generator().manual_seed(1)
    heads = [model.rpn_head.rpn_cls, model.rpn_head.rpn_reg, model.roi_head.bbox_head.fc_cls]
    heads += [model.roi_head.mask_head.conv_logits] if model.roi_head.with_mask else []
    with torch.no_grad():
        for layer in heads:
            layer.weight.mul_(20)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=chance) * 0.3)
    state = clone_state(model.state_dict(), "")
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=chance) * 0.05)
        if name.endswith("running_var"):
            tensor.copy_(0.8 + 0.4 * torch.rand(tensor.shape, generator=chance))
    return state


def published(folder: Path, **changes: Any) -> Path:
    config = config_of(**changes)
    publish_detector(folder, state_of(config), config, CLASSES, (WIDTH, HEIGHT), {"stage": "test"})
    return folder / "detector.pth"


@pytest.fixture(scope="module")
def faster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faster R-CNN R50-FPN, whole."""
    return published(tmp_path_factory.mktemp("faster"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask R-CNN R18-FPN with narrow box layers."""
    return published(tmp_path_factory.mktemp("masked"), type="mask-rcnn", depth=18, fc_channels=64)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image of the size that detectors are tested at, and its json."""
    folder = tmp_path_factory.mktemp("image")
    pixels = np.random.default_rng(3).integers(0, 256, (12, 20, 3)) * np.array([1.0, 0.6, 0.2])
    whole = Image.fromarray(pixels.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    whole.save(folder / "a.png")
    record = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": [record], "annotations": [], "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- names and rows


@pytest.mark.parametrize("layout", [TORCHVISION, DETECTRON2], ids=["torchvision", "detectron2"])
@pytest.mark.parametrize("kind", ["faster", "masked"])
def test_there_and_back_is_the_same_to_the_bit(
    kind: str, layout: Layout, request: pytest.FixtureRequest
) -> None:
    state = load_tensors(request.getfixturevalue(kind))["state_dict"]
    theirs = to_layout(state, layout)
    assert not set(theirs) & set(state)
    assert_equal(from_layout(theirs, layout), state)


def test_torchvisions_stock_models_take_every_tensor(faster: Path) -> None:
    theirs = to_layout(load_tensors(faster)["state_dict"], TORCHVISION)
    stock = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    assert set(stock.state_dict()) == set(theirs)
    stock.load_state_dict(theirs, strict=True)
    masks = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    own = build_model(config_of(type="mask-rcnn"), seed=0).state_dict()
    own = to_layout(clone_state(own, ""), TORCHVISION)
    shapes = {name: tuple(tensor.shape) for name, tensor in masks.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == shapes


def test_the_background_comes_first_in_torchvision(masked: Path) -> None:
    state = load_tensors(masked)["state_dict"]
    theirs = to_layout(state, TORCHVISION)
    head = "roi_head.bbox_head."
    scores, boxes = (
        theirs["roi_heads.box_predictor.cls_score.bias"],
        theirs["roi_heads.box_predictor.bbox_pred.weight"],
    )
    assert torch.equal(scores[0], state[f"{head}fc_cls.bias"][3])
    assert torch.equal(scores[1:], state[f"{head}fc_cls.bias"][:3])
    assert boxes.shape == (16, 64) and not boxes[:4].any()
    assert torch.equal(boxes[8:12], state[f"{head}fc_reg.weight"][4:8])
    masks = theirs["roi_heads.mask_predictor.mask_fcn_logits.bias"]
    assert masks.shape == (4,) and torch.equal(masks[1:], state["roi_head.mask_head.conv_logits.bias"])


def test_detectron2s_names_by_hand(faster: Path, masked: Path) -> None:
    """As in detectron2's model zoo: R_50_FPN's own names."""
    theirs = to_layout(load_tensors(faster)["state_dict"], DETECTRON2)
    for name in (
        "backbone.bottom_up.stem.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.bottom_up.res2.0.shortcut.weight",
        "backbone.bottom_up.res2.0.shortcut.norm.bias",
        "backbone.bottom_up.res5.2.conv3.norm.running_mean",
        "backbone.bottom_up.res4.5.conv2.weight",
        "backbone.fpn_lateral2.weight",
        "backbone.fpn_output5.bias",
        "proposal_generator.rpn_head.conv.weight",
        "proposal_generator.rpn_head.objectness_logits.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
    ):
        assert name in theirs, name
    assert not [name for name in theirs if "num_batches" in name or "bn" in name or "downsample" in name]
    # 53 convolutions with four statistics each, FPN, RPN, box head
    assert len(theirs) == 53 * 5 + 16 + 6 + 8
    masks = to_layout(load_tensors(masked)["state_dict"], DETECTRON2)
    wanted = {"mask_fcn1.weight", "mask_fcn4.bias", "deconv.weight", "predictor.bias"}
    assert {f"roi_heads.mask_head.{name}" for name in wanted} <= masks.keys()


@pytest.mark.parametrize("layout", [TORCHVISION, DETECTRON2], ids=["torchvision", "detectron2"])
def test_what_has_no_place_there_is_refused(layout: Layout, faster: Path) -> None:
    state = {**load_tensors(faster)["state_dict"], "bbox_head.atss_cls.weight": torch.zeros(1)}
    with pytest.raises(
        MismatchedInput, match=rf"{layout.library} has no .* with bbox_head\.atss_cls\.weight"
    ):
        to_layout(state, layout)
    with pytest.raises(MismatchedInput, match=r"with neck\.weight"):
        from_layout({"neck.weight": torch.zeros(1)}, layout)


# --- the same boxes


def assert_torchvision_finds_the_same(weights: Path, image: Path, folder: Path) -> None:
    detector = read_detector(weights)
    export(detector, "torchvision", folder)
    model = torchvision_detector(detector.config.model, len(CLASSES), detector.test_wh)
    model.load_state_dict(load_tensors(folder / "torchvision.pth"), strict=True)
    ours, classes, test_wh = load_published(weights)
    masks = kept_logits(ours, model)
    (found,) = detect(ours, read_annotations(image / "a.json"), image, test_wh, CPU)
    pixels = torch.from_numpy(np.array(Image.open(image / "a.png"))).permute(2, 0, 1) / 255  # -> (3, H, W)
    with torch.no_grad():
        (theirs,) = model([pixels])
    facts = json.loads((folder / "facts.json").read_text())
    names = [facts["classes"][label] for label in theirs["labels"]]
    assert names == [classes[label] for label in found.labels]
    np.testing.assert_allclose(theirs["boxes"].numpy(), found.boxes, atol=5e-3)
    np.testing.assert_allclose(theirs["scores"].numpy(), found.scores, atol=1e-5)
    assert len(names) > 5 and np.ptp(found.scores) > 0.05 and len(set(names)) > 1
    if masks:
        logits = torch.cat(masks["ours"])
        assert len(logits) == len(names) and logits.std() > 0.1
        torch.testing.assert_close(torch.cat(masks["theirs"])[:, 1:], logits, atol=2e-3, rtol=1e-3)


def kept_logits(ours: Any, theirs: Any) -> dict[str, list[Tensor]]:
    """What both mask heads answer, before it is pasted into the image, which each library does in its way."""
    if not ours.roi_head.with_mask:
        return {}
    kept: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    layers = {"ours": ours.roi_head.mask_head.conv_logits}
    layers["theirs"] = theirs.roi_heads.mask_predictor.mask_fcn_logits
    for name, layer in layers.items():
        layer.register_forward_hook(lambda module, given, out, name=name: kept[name].append(out.detach()))
    return kept


def test_torchvisions_faster_rcnn_finds_the_same(faster: Path, image: Path, tmp_path: Path) -> None:
    assert_torchvision_finds_the_same(faster, image, tmp_path)


def test_torchvisions_mask_rcnn_finds_the_same(masked: Path, image: Path, tmp_path: Path) -> None:
    assert_torchvision_finds_the_same(masked, image, tmp_path)


def test_anchors_are_mmdets() -> None:
    settings = config_of()["rpn_head"]["anchor_generator"]
    wanted = TASK_UTILS.build(settings).base_anchors
    for own, theirs in zip(exact_anchors(settings).cell_anchors, wanted, strict=True):
        torch.testing.assert_close(own, theirs)


# --- files


def test_mmdet_reads_what_is_exported_for_it(faster: Path, tmp_path: Path) -> None:
    export(read_detector(faster), "mmdet", tmp_path)
    model = init_detector(str(tmp_path / "config.py"), str(tmp_path / "detector.pth"), device="cpu")
    assert list(model.dataset_meta["classes"]) == CLASSES
    assert_equal(dict(model.state_dict()), load_tensors(faster)["state_dict"])


def test_safetensors_hold_all_and_are_the_same_bytes_again(faster: Path, tmp_path: Path) -> None:
    detector = read_detector(faster)
    for folder in (tmp_path / "a", tmp_path / "b"):
        export(detector, "safetensors", folder)
    first, second = (tmp_path / name / "detector.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert_equal(safetensors.torch.load_file(first), load_tensors(faster)["state_dict"])
    with safetensors.safe_open(first, "pt") as file:
        assert json.loads(file.metadata()["meta"])["dataset_meta"]["classes"] == CLASSES
    # and back: a file of ours again
    loaded = {"state_dict": safetensors.torch.load_file(first), "meta": detector.meta}
    torch.save(loaded, tmp_path / "a" / "detector.pth")
    assert load_published(tmp_path / "a" / "detector.pth")[1] == CLASSES


def test_detectron2s_settings_are_complete(masked: Path, tmp_path: Path) -> None:
    export(read_detector(masked), "detectron2", tmp_path)
    model = load_tensors(tmp_path / "detectron2.pth")["model"]
    assert_equal(from_layout(model, DETECTRON2), load_tensors(masked)["state_dict"])
    settings = yaml.safe_load((tmp_path / "detectron2.yaml").read_text())
    own = settings["MODEL"]
    assert own["PIXEL_STD"] == [58.395, 57.12, 57.375] and settings["INPUT"]["FORMAT"] == "RGB"
    assert own["RESNETS"]["STRIDE_IN_1X1"] is False and own["RESNETS"]["RES2_OUT_CHANNELS"] == 64
    assert own["ANCHOR_GENERATOR"]["SIZES"] == [[16.0], [32.0], [64.0], [128.0], [256.0]]
    assert (own["ROI_HEADS"]["NUM_CLASSES"], own["ROI_BOX_HEAD"]["FC_DIM"], own["MASK_ON"]) == (3, 64, True)
    assert (settings["INPUT"]["MIN_SIZE_TEST"], settings["INPUT"]["MAX_SIZE_TEST"]) == (HEIGHT, WIDTH)


@pytest.mark.filterwarnings("ignore:DeprecationWarning. `num_anchors`")
def test_a_one_stage_detector_goes_where_it_has_a_place(image: Path, tmp_path: Path) -> None:
    """ATSS: the same boxes from what mmdet is given, every tensor in safetensors, no such model elsewhere."""
    built = build_model(tiny_atss.config(), seed=1)
    with torch.no_grad():
        for number, layer in enumerate((built.bbox_head.atss_cls, built.bbox_head.atss_reg)):
            layer.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    state, classes = clone_state(built.state_dict(), ""), ["cone", "drum", "bolt", "nut"]
    publish_detector(tmp_path, state, tiny_atss.config(), classes, (WIDTH, HEIGHT), {"stage": "test"})
    detector, split = read_detector(tmp_path / "detector.pth"), read_annotations(image / "a.json")
    (expected,) = detect(built.eval(), split, image, (WIDTH, HEIGHT), CPU)
    assert len(expected.boxes) > 5 and np.ptp(expected.scores) > 0.01

    export(detector, "mmdet", tmp_path / "mmdet")
    model = init_detector(
        str(tmp_path / "mmdet/config.py"), str(tmp_path / "mmdet/detector.pth"), device="cpu"
    )
    (found,) = detect(model, split, image, (WIDTH, HEIGHT), CPU)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    export(detector, "safetensors", tmp_path / "safetensors")
    assert_equal(safetensors.torch.load_file(tmp_path / "safetensors/detector.safetensors"), state)
    for target in ("torchvision", "detectron2"):
        with pytest.raises(MismatchedInput, match=f"has heads that {target} does not know") as caught:
            export(detector, target, tmp_path / target)
        assert "--to safetensors" in caught.value.hint and not (tmp_path / target).exists()


@pytest.mark.parametrize("target", ["torchvision", "detectron2"])
@pytest.mark.parametrize("change", ["group norm", "sigmoid classifier"])
def test_detectors_that_others_do_not_have_are_refused(target: str, change: str, tmp_path: Path) -> None:
    sizes = {"depth": 18, "stem_channels": 16, "fpn_channels": 32, "fc_channels": 32}
    config = config_of(norm="gn" if change == "group norm" else "frozen-bn", **sizes)
    if change == "sigmoid classifier":
        config["roi_head"]["bbox_head"]["loss_cls"] |= {"type": "CrossEntropyLoss", "use_sigmoid": True}
    state = clone_state(build_model(config, seed=0).state_dict(), "")
    publish_detector(tmp_path, state, config, CLASSES, (WIDTH, HEIGHT), {})
    with pytest.raises(MismatchedInput) as caught:
        export(read_detector(tmp_path / "detector.pth"), target, tmp_path / "out")
    assert "--to safetensors" in caught.value.hint and not (tmp_path / "out").exists()


def test_the_command(masked: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cli("export", "--to", "safetensors", "--weights", masked, "--json")
    assert answer.code == 0 and json.loads(answer.out) == {"out": "artifacts/export/safetensors"}, answer.err
    made = {p.name for p in (tmp_path / "artifacts/export/safetensors").iterdir()}
    assert made - {"timing.json"} == {"detector.safetensors", "config.py", "manifest.json"}
    assert "up to date" in cli("export", "--to", "safetensors", "--weights", masked).err
    assert cli("export", "--to", "onnx", "--weights", masked).code == 2
    missing = cli("export", "--to", "mmdet")
    assert missing.code == 3 and "artifacts/pretrain/default/detector.pth does not exist" in missing.err
    assert not (tmp_path / "artifacts/export/mmdet").exists()
