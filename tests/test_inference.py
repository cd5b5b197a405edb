"""Detections are in stored pixels, whatever the order, the batch and the size they were made at."""

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.boxes import iou
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.inference import Detections, detect, detect_batches, encode_masks
from pipeline.detectors.inference_views import batches_of_one_canvas
from pipeline.detectors.settings import DetectorSettings
from pipeline.errors import InputError, MachineFailed, MissingInput
from pipeline.settings import build

SIZES_WH = [(80, 60), (80, 60), (60, 80), (97, 51), (80, 60), (80, 60), (80, 60)]
IDS = [40, 3, 17, 8, 25, 1, 2]
TEST_WH = (96, 64)
CLASSES = 3
CPU = torch.device("cpu")


def tiny(kind: str) -> Any:
    """Random weights, but with outputs far apart, as those of a trained detector are."""
    sizes = {"depth": 18, "stem_channels": 16, "norm": "gn", "fpn_channels": 32, "fc_channels": 32}
    changes = {"anchor_scale": 4.0, "finest_scale": 14, "rpn_proposals": 100, "max_detections": 20}
    settings = build(DetectorSettings, {"type": kind, **sizes, **changes}, "detector")
    model = build_model(model_config(settings, CLASSES), seed=0).eval()
    with torch.no_grad():
        for layer in (model.rpn_head.rpn_cls, model.rpn_head.rpn_reg, model.roi_head.bbox_head.fc_cls):
            layer.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Annotations, Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    images = []
    for number, (width, height) in zip(IDS, SIZES_WH, strict=True):
        coarse = rng.integers(0, 256, size=(5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    categories = [{"id": i + 1, "name": f"c{i}"} for i in range(CLASSES)]
    content = {"images": images, "annotations": [], "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return read_annotations(folder / "annotations.json"), folder


@pytest.fixture(scope="module")
def faster() -> Any:
    return tiny("faster-rcnn")


@pytest.fixture(scope="module")
def alone(faster: Any, split: tuple[Annotations, Path]) -> list[Detections]:
    """One image at a time."""
    return list(detect(faster, *split, TEST_WH, CPU))


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.image == expected.image
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_every_image_once_as_annotated(alone: list[Detections]) -> None:
    assert [one.image for one in alone] == list(range(len(IDS)))
    for one, (width, height) in zip(alone, SIZES_WH, strict=True):
        assert (one.boxes.dtype, one.scores.dtype, one.labels.dtype) == (np.float32, np.float32, np.int64)
        assert one.boxes.shape == (len(one.scores), 4) and 1 <= len(one.scores) <= 20
        assert (one.boxes >= 0).all() and (one.boxes <= [width, height, width, height]).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert (np.diff(one.scores) <= 0).all() and set(one.labels) <= set(range(CLASSES))
        assert one.masks is None


def test_boxes_reach_the_far_sides_of_the_stored_image(alone: list[Detections]) -> None:
    assert max(one.boxes[:, 2].max() / w for one, (w, _) in zip(alone, SIZES_WH, strict=True)) > 0.95
    assert max(one.boxes[:, 3].max() / h for one, (_, h) in zip(alone, SIZES_WH, strict=True)) > 0.95


def test_an_order_may_be_given(faster: Any, split: tuple[Annotations, Path], alone: list[Detections]) -> None:
    order = [int(i) for i in np.argsort(IDS)][:5]
    found = list(detect(faster, *split, TEST_WH, CPU, order=order))
    assert [IDS[one.image] for one in found] == [1, 2, 3, 8, 17]
    for one in found:
        assert_same(one, alone[one.image])
    assert list(detect(faster, *split, TEST_WH, CPU, order=[])) == []


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_batch_changes_nothing(
    faster: Any, split: tuple[Annotations, Path], alone: list[Detections], batch: int
) -> None:
    found = list(detect(faster, *split, TEST_WH, CPU, batch=batch))
    assert len(found) == len(alone)
    for one, expected in zip(found, alone, strict=True):
        assert_same(one, expected)


def test_batches_hold_images_of_one_canvas(faster: Any, split: tuple[Annotations, Path]) -> None:
    sizes: list[tuple[int, ...]] = []
    hook = faster.backbone.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    list(detect(faster, *split, TEST_WH, CPU, batch=2))
    hook.remove()
    # 80 x 60 -> 85 x 64, 60 x 80 -> 64 x 85, 97 x 51 -> 96 x 50; canvases are multiples of 32
    assert sizes == [(2, 3, 64, 96), (1, 3, 96, 64), (2, 3, 64, 96), (2, 3, 64, 96)]


def test_batches_of_one_canvas_are_as_full_as_can_be(split: tuple[Annotations, Path]) -> None:
    sizes_wh = split[0].sizes_wh
    assert batches_of_one_canvas(sizes_wh, range(7), TEST_WH, 4) == [[0, 1, 3, 4], [5, 6], [2]]
    assert batches_of_one_canvas(sizes_wh, [6, 2, 5], TEST_WH, 1) == [[6], [5], [2]]
    assert batches_of_one_canvas(sizes_wh, [], TEST_WH, 4) == []


def test_full_batches_change_nothing(
    faster: Any, split: tuple[Annotations, Path], alone: list[Detections]
) -> None:
    batches = batches_of_one_canvas(split[0].sizes_wh, range(7), TEST_WH, 4)
    found = list(detect_batches(faster, *split, TEST_WH, CPU, batches, workers=0))
    assert [one.image for one in found] == [0, 1, 3, 4, 5, 6, 2]
    for one in found:
        assert_same(one, alone[one.image])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_at_all(faster: Any, split: tuple[Annotations, Path], workers: int) -> None:
    expected = list(detect(faster, *split, TEST_WH, CPU, batch=2))
    found = list(detect(faster, *split, TEST_WH, CPU, batch=2, workers=workers))
    assert [one.image for one in found] == [one.image for one in expected]
    for one, other in zip(found, expected, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_bf16_ends_where_the_heads_begin(faster: Any, split: tuple[Annotations, Path]) -> None:
    used: dict[str, set[torch.dtype]] = {"trunk": set(), "neck": set(), "rpn": set(), "roi": set()}

    def watch(part: str, layer: Any) -> Any:
        return layer.register_forward_hook(lambda _, __, out: used[part].add(out.dtype))

    hooks = [
        watch("trunk", faster.backbone.conv1),
        watch("neck", faster.neck.fpn_convs[0].conv),
        watch("rpn", faster.rpn_head.rpn_reg),
        watch("roi", faster.roi_head.bbox_head.fc_reg),
    ]
    batches = [[0, 1], [2]]
    found = list(detect_batches(faster, *split, TEST_WH, CPU, batches, workers=0, bf16=True))
    for hook in hooks:
        hook.remove()
    low, full = {torch.bfloat16}, {torch.float32}
    assert used == {"trunk": low, "neck": low, "rpn": full, "roi": full}
    for one in found:
        assert one.boxes.dtype == np.float32 and len(one.boxes) > 0
        width, height = SIZES_WH[one.image]
        assert (one.boxes >= 0).all() and (one.boxes <= [width, height, width, height]).all()


def test_bf16_finds_about_the_same_best_boxes(
    faster: Any, split: tuple[Annotations, Path], alone: list[Detections]
) -> None:
    best = next(iter(detect_batches(faster, *split, TEST_WH, CPU, [[0]], workers=0, bf16=True)))
    assert iou(best.boxes, alone[0].boxes).max(axis=1).mean() > 0.8
    assert best.scores[0] == pytest.approx(alone[0].scores[0], abs=0.1)


def test_masks_are_run_lengths_of_the_stored_image(split: tuple[Annotations, Path]) -> None:
    annotations, folder = split
    model = tiny("mask-rcnn")
    for one in detect(model, annotations, folder, TEST_WH, CPU, order=[2, 3], batch=2):
        width, height = SIZES_WH[one.image]
        assert one.masks is not None and len(one.masks) == len(one.boxes) > 0
        json.dumps(one.masks)
        for rle, box in zip(one.masks, one.boxes, strict=True):
            assert rle["size"] == [height, width] and isinstance(rle["counts"], str)
            decoded = mask_api.decode(rle)
            assert decoded.shape == (height, width)
            rows, columns = np.nonzero(decoded)
            if len(rows):  # inside its box, but for the pixel that the border cuts
                assert columns.min() >= box[0] - 1 and columns.max() <= box[2] + 1
                assert rows.min() >= box[1] - 1 and rows.max() <= box[3] + 1
        assert any(mask_api.area(rle) > 0 for rle in one.masks)


def test_masks_come_back_as_they_went_in() -> None:
    masks = np.random.default_rng(0).random((3, 7, 11)) > 0.5
    encoded = encode_masks(masks)
    assert [r["size"] for r in encoded] == [[7, 11]] * 3
    for rle, mask in zip(encoded, masks, strict=True):
        np.testing.assert_array_equal(mask_api.decode(rle).astype(bool), mask)
    assert encode_masks(masks[:0]) == []


def test_nothing_found_is_no_rows_at_all(split: tuple[Annotations, Path]) -> None:
    annotations, folder = split
    model = tiny("mask-rcnn")
    model.roi_head.test_cfg.score_thr = 1.1
    one = next(detect(model, annotations, folder, TEST_WH, CPU))
    assert one.boxes.shape == (0, 4) and one.scores.shape == one.labels.shape == (0,)
    assert one.masks == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_of_another_size_than_annotated_is_refused(
    faster: Any, split: tuple[Annotations, Path], tmp_path: Path, workers: int
) -> None:
    annotations, _ = split
    Image.new("RGB", (60, 80)).save(tmp_path / "40.png")
    with pytest.raises(InputError, match="60 x 80, but the annotations say 80 x 60") as caught:
        next(detect(faster, annotations, tmp_path, TEST_WH, CPU, workers=workers))
    # loaders ignore SIGTERM: one that an error's traceback keeps alive would stop Python from ending
    assert caught.traceback and not multiprocessing.active_children()


def test_what_comes_before_a_missing_image_is_detected(
    faster: Any, split: tuple[Annotations, Path], tmp_path: Path
) -> None:
    annotations, folder = split
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images/8.png").unlink()
    found = []
    with pytest.raises(MissingInput, match=r"8\.png"):
        for one in detect(faster, annotations, tmp_path / "images", TEST_WH, CPU):
            found.append(one.image)
    assert found == [0, 1, 2]


def test_gpu_memory_that_gives_out_says_what_to_change(
    split: tuple[Annotations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("faster-rcnn")

    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "predict", exhausted)
    with pytest.raises(MachineFailed, match="detecting: out of GPU memory: CUDA") as caught:
        list(detect(model, *split, TEST_WH, CPU))
    assert caught.value.exit_code == 4 and "long_side" in caught.value.hint
