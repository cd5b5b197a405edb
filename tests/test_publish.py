"""What is published works in mmdet's own API, and says there what it says here."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api
from torch import Tensor

from pipeline.artifacts import file_digest
from pipeline.data.annotations import read_annotations
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.inference import Detections, detect
from pipeline.detectors.publish import load_published, publish_detector
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.weights import clone_state
from pipeline.errors import InputError, MismatchedInput, MissingInput
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import method_on
from pipeline.settings import build

# isort: split
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import VISUALIZERS

CLASSES = ["cone", "drum", "bolt"]
COUNTS = ClassCounts(image_counts=[9, 4, 1], instance_counts=[20, 4, 1], num_images=10)
TEST_WH = (96, 64)
WIDTH, HEIGHT = 120, 70
CPU = torch.device("cpu")


def model_of(kind: str, method: str | None = None, num_classes: int = 3) -> dict[str, Any]:
    sizes = {"depth": 18, "stem_channels": 16, "norm": "gn", "fpn_channels": 32, "fc_channels": 32}
    changes = {"anchor_scale": 4.0, "finest_scale": 14, "rpn_proposals": 100, "max_detections": 20}
    settings = build(DetectorSettings, {"type": kind, **sizes, **changes}, "detector")
    heads: dict[str, Any] = {}
    if method is not None:
        chosen = method_on(method, kind)
        heads["box_head"] = chosen.bbox_head(num_classes, COUNTS)
        heads["mask_head"] = chosen.mask_head(num_classes)
    return model_config(settings, num_classes, **heads)


def weights_of(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Random weights, but with outputs far apart, as those of a trained detector are."""
    built = build_model(model, seed=0)
    if model["type"] == "ATSS":
        heads = [built.bbox_head.atss_cls, built.bbox_head.atss_reg]
    else:
        heads = [built.rpn_head.rpn_cls, built.rpn_head.rpn_reg, built.roi_head.bbox_head.fc_cls]
        heads += [built.roi_head.mask_head.conv_logits] if built.roi_head.with_mask else []
    with torch.no_grad():
        for layer in heads:
            layer.weight.mul_(20)
    return clone_state(built.state_dict(), "")


def published(folder: Path, kind: str, method: str | None = None) -> Path:
    model = model_of(kind, method)
    imports = ("pipeline.finetune",) if method else ()
    publish_detector(folder, weights_of(model), model, CLASSES, TEST_WH, {"stage": "test"}, imports)
    return folder


@pytest.fixture(scope="module")
def faster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("faster"), "faster-rcnn")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours that differ between the channels; the second file says `rotate me` in its EXIF data."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    channels = rng.integers(0, 256, size=(6, 6, 3)) * np.array([1.0, 0.6, 0.2])
    image = Image.fromarray(channels.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    image.save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    image.save(folder / "turned.jpg", exif=exif, quality=95)
    records = [
        {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for i, name in enumerate(("plain.png", "turned.jpg"))
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": records, "annotations": [], "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def ours(weights: Path, images: Path) -> list[Detections]:
    model, classes, test_wh = load_published(weights)
    assert (classes, test_wh, model.training) == (CLASSES, TEST_WH, False)
    return list(detect(model, read_annotations(images / "annotations.json"), images, test_wh, CPU))


def assert_same(found: Detections, theirs: Any) -> None:
    np.testing.assert_array_equal(found.labels, theirs.labels.numpy())
    np.testing.assert_allclose(found.boxes, theirs.bboxes.numpy(), atol=2e-3)
    np.testing.assert_allclose(found.scores, theirs.scores.numpy(), atol=1e-5)
    assert len(found.boxes) > 3 and np.ptp(found.scores) > 0.05


@pytest.mark.parametrize(
    ("kind", "method"), [("faster-rcnn", None), ("mask-rcnn", None), ("atss", None), ("atss", "ecm")]
)
def test_mmdets_api_finds_what_we_find(kind: str, method: str | None, tmp_path: Path, images: Path) -> None:
    folder = published(tmp_path, kind, method)
    detector = init_detector(str(folder / "config.py"), str(folder / "detector.pth"), device="cpu")
    for found, name in zip(ours(folder / "detector.pth", images), ("plain.png", "turned.jpg"), strict=True):
        theirs = inference_detector(detector, str(images / name)).pred_instances
        assert_same(found, theirs)
        assert found.boxes[:, 2].max() > HEIGHT  # wider than high: not turned
        if kind != "mask-rcnn":
            assert found.masks is None
            continue
        assert found.masks is not None
        decoded = np.stack([mask_api.decode(rle) for rle in found.masks]).astype(bool)
        assert decoded.shape == (len(found.boxes), HEIGHT, WIDTH)
        assert (decoded != theirs.masks.numpy()).mean() < 1e-3 and 0 < decoded.mean() < 1


def test_the_comparison_would_notice_swapped_colours(faster: Path, images: Path) -> None:
    detector = init_detector(str(faster / "config.py"), str(faster / "detector.pth"), device="cpu")
    found = ours(faster / "detector.pth", images)[0]
    rgb = np.asarray(Image.open(images / "plain.png"))
    assert_same(
        found, inference_detector(detector, rgb[:, :, ::-1].copy()).pred_instances
    )  # BGR, as mmdet asks
    with pytest.raises(AssertionError):
        assert_same(found, inference_detector(detector, rgb.copy()).pred_instances)


def test_a_batch_and_the_inferencer_work_too(faster: Path, images: Path) -> None:
    detector = init_detector(str(faster / "config.py"), str(faster / "detector.pth"), device="cpu")
    files = [str(images / name) for name in ("plain.png", "turned.jpg")]
    found = ours(faster / "detector.pth", images)
    for one, theirs in zip(found, inference_detector(detector, files), strict=True):
        assert_same(one, theirs.pred_instances)
    inferencer = DetInferencer(
        str(faster / "config.py"), str(faster / "detector.pth"), device="cpu", show_progress=False
    )
    answer = inferencer(files[0], return_vis=True, no_save_vis=True)
    np.testing.assert_allclose(answer["predictions"][0]["scores"], found[0].scores, atol=1e-5)
    assert answer["visualization"][0].shape == (HEIGHT, WIDTH, 3)


def test_more_classes_than_coco_has_colours(tmp_path: Path) -> None:
    """mmdet refuses to draw when its palette is shorter than the list of classes; LVIS has 1,203."""
    names = [f"class {i}" for i in range(140)]
    model = model_of("faster-rcnn", num_classes=140)
    publish_detector(tmp_path, weights_of(model), model, names, TEST_WH, {})
    detector = init_detector(str(tmp_path / "config.py"), str(tmp_path / "detector.pth"), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, size=(64, 96, 3), dtype=np.uint8)
    result = inference_detector(detector, image)
    result.pred_instances.labels.fill_(len(names) - 1)
    drawer = VISUALIZERS.build({"type": "DetLocalVisualizer", "name": "many"})
    drawer.dataset_meta = detector.dataset_meta
    drawer.add_datasample("image", image, result, draw_gt=False, pred_score_thr=0.0)
    assert not np.array_equal(drawer.get_image(), image)


def test_the_config_is_complete_and_plain(faster: Path) -> None:
    text = (faster / "config.py").read_text()
    for ours_alone in ("KeyedRandomSampler", "pipeline.", "twodrcl", "_base_", "import"):
        assert ours_alone not in text
    content: dict[str, Any] = {}
    exec(text, content)
    assert content["model"]["train_cfg"]["rcnn"]["sampler"]["type"] == "RandomSampler"
    assert content["model"]["train_cfg"]["rpn"]["sampler"]["type"] == "RandomSampler"
    dataset = content["test_dataloader"]["dataset"]
    assert dataset["metainfo"]["classes"] == tuple(CLASSES)
    assert [step["type"] for step in dataset["pipeline"]] == ["LoadImageFromFile", "Resize", "PackDetInputs"]
    assert dataset["pipeline"][1]["scale"] == TEST_WH
    expected = model_of("faster-rcnn")
    for part in ("rpn", "rcnn"):
        expected["train_cfg"][part]["sampler"]["type"] = "RandomSampler"
    assert json.dumps(content["model"], sort_keys=True) == json.dumps(expected, sort_keys=True)


def test_publishing_leaves_the_config_it_is_given(tmp_path: Path) -> None:
    model = model_of("faster-rcnn")
    before = json.dumps(model)
    publish_detector(tmp_path, {}, model, CLASSES, TEST_WH, {})
    assert json.dumps(model) == before


def test_the_weights_are_tensors_and_plain_data(faster: Path) -> None:
    content = torch.load(faster / "detector.pth", weights_only=True)
    assert content.keys() == {"state_dict", "meta"}
    assert content["meta"]["dataset_meta"]["classes"] == CLASSES and content["meta"]["stage"] == "test"
    parts = {name.split(".")[0] for name in content["state_dict"]}
    assert parts == {"backbone", "neck", "rpn_head", "roi_head"}
    assert {t.device.type for t in content["state_dict"].values()} == {"cpu"}


def test_the_same_detector_is_the_same_bytes(faster: Path, tmp_path: Path) -> None:
    again = published(tmp_path, "faster-rcnn")
    for name in ("detector.pth", "config.py"):
        assert file_digest(again / name) == file_digest(faster / name)
    assert sorted(p.name for p in again.iterdir()) == ["config.py", "detector.pth"]


ELSEWHERE = """
import json, sys
import pipeline.detectors
from mmdet.apis import inference_detector, init_detector
config, weights, image = sys.argv[1:]
assert "pipeline.finetune" not in sys.modules
detector = init_detector(config, weights, device="cpu")
found = inference_detector(detector, image).pred_instances
loss = type(detector.roi_head.bbox_head.loss_cls).__name__
answer = {"loss": loss, "boxes": found.bboxes.tolist(), "scores": found.scores.tolist()}
print("answer:" + json.dumps(answer))
"""


def test_a_method_with_its_own_loss_works_in_a_fresh_process(tmp_path: Path, images: Path) -> None:
    folder = published(tmp_path, "mask-rcnn", method="ecm")
    files = [str(folder / "config.py"), str(folder / "detector.pth"), str(images / "plain.png")]
    command = [sys.executable, "-c", ELSEWHERE, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.split("answer:")[1])
    found = ours(folder / "detector.pth", images)[0]
    assert answer["loss"] == "ECMLoss"
    np.testing.assert_allclose(answer["boxes"], found.boxes, atol=2e-3)
    np.testing.assert_allclose(answer["scores"], found.scores, atol=1e-5)
    assert len(found.boxes) > 3


def edited(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy of the product with another config."""
    text = (source / "config.py").read_text()
    assert old in text
    (target / "config.py").write_text(text.replace(old, new))
    (target / "detector.pth").write_bytes((source / "detector.pth").read_bytes())
    return target / "detector.pth"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fc_out_channels=32", "fc_out_channels=64", "does not fit"),
        ("depth=18", "depth=50", "does not fit"),
        ("bgr_to_rgb=True", "bgr_to_rgb=False", "normalises images in another way"),
        ("type='Resize'", "type='Normalize'", "no config of a published detector"),
        ("test_dataloader", "other_dataloader", "no config of a published detector"),
        ("model = dict(", "model = dict((", "no config of a published detector"),
    ],
    ids=["width", "depth", "colours", "no resize", "no test data", "no python"],
)
def test_a_config_of_something_else_is_refused(
    faster: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    kind = MismatchedInput if message == "does not fit" else InputError
    with pytest.raises(kind, match=message) as caught:
        load_published(edited(faster, tmp_path, old, new))
    assert caught.value.exit_code == 3


def test_incomplete_products_are_refused(faster: Path, tmp_path: Path) -> None:
    weights = tmp_path / "detector.pth"
    with pytest.raises(MissingInput, match="do not exist"):
        load_published(weights)
    weights.write_bytes((faster / "detector.pth").read_bytes())
    with pytest.raises(MissingInput, match=r"config\.py does not exist") as caught:
        load_published(weights)
    assert "beside" in caught.value.hint
    (tmp_path / "config.py").write_bytes((faster / "config.py").read_bytes())
    for content in ({"state_dict": {}, "meta": {}}, {"conv1.weight": torch.zeros(1)}):
        torch.save(content, weights)
        with pytest.raises(InputError, match="no published detector"):
            load_published(weights)
